// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @dev A stablecoin with a blocklist, and, when told to, an answer of `false` instead of a revert.
contract BlocklistToken is ERC20("Blocklist", "BLK") {
    mapping(address => bool) public blocked;
    bool public quiet;

    function mint(address to, uint256 units) external {
        _mint(to, units);
    }

    function setBlocked(address account, bool yes) external {
        blocked[account] = yes;
    }

    function setQuiet(bool yes) external {
        quiet = yes;
    }

    function transfer(address to, uint256 units) public override returns (bool) {
        if (blocked[to] && quiet) return false;
        require(!blocked[to]);
        return super.transfer(to, units);
    }
}

/// @dev Keeps 1 % of every transfer.
contract FeeOnTransferToken is ERC20("Fee", "FEE") {
    function mint(address to, uint256 units) external {
        _mint(to, units);
    }

    function _update(address from, address to, uint256 units) internal override {
        uint256 fee = from == address(0) || to == address(0) ? 0 : units / 100;
        if (fee > 0) super._update(from, address(0), fee);
        super._update(from, to, units - fee);
    }
}

/// @dev Calls back into a chosen contract during every transfer and keeps what came of it.
contract CallbackToken is ERC20("Callback", "CALL") {
    address public target;
    bytes public data;
    bytes public answer;

    function mint(address to, uint256 units) external {
        _mint(to, units);
    }

    function arm(address target_, bytes calldata data_) external {
        (target, data) = (target_, data_);
    }

    function _update(address from, address to, uint256 units) internal override {
        super._update(from, to, units);
        if (target != address(0)) (, answer) = target.call(data);
    }
}

/// @dev A hospital's contract wallet: whatever its one key signed is its word (ERC-1271).
contract ContractWallet {
    address private immutable _key;

    constructor(address key) {
        _key = key;
    }

    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        (bytes32 r, bytes32 s) = abi.decode(signature[:64], (bytes32, bytes32));
        return ecrecover(digest, uint8(signature[64]), r, s) == _key ? bytes4(0x1626ba7e) : bytes4(0);
    }
}

/// @dev A stablecoin with ERC-2612.
contract PermitToken is ERC20Permit("Permit") {
    constructor() ERC20("Permit", "PMT") {}

    function mint(address to, uint256 units) external {
        _mint(to, units);
    }
}
