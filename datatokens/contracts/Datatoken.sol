// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {Strings} from "@openzeppelin/contracts/utils/Strings.sol";

/// @title The ERC-20 of one tier of a dataset: 1.0 (1e18) pays for one job, or for one order of the tier's time
/// @notice An EIP-1167 clone whose dataset, tier and symbol are immutable arguments of the clone: nothing to
///         initialise, so nothing that anybody else could initialise. Only the registry mints.
contract Datatoken is ERC20 {
    address public immutable registry;
    address private immutable _template;

    error OnlyRegistry(address caller);
    error TemplateHasNoDataset();

    constructor() ERC20("", "") {
        registry = msg.sender;
        _template = address(this);
    }

    /// @notice The dataset this token pays for; reverts on the template itself.
    function datasetId() public view returns (uint256) {
        return uint64(bytes8(_arguments()));
    }

    /// @notice The tier of the dataset; 0 is the one of the listing.
    function tierId() public view returns (uint8) {
        return uint8(_arguments()[8]);
    }

    function name() public view override returns (string memory) {
        string memory text = string.concat("Datatoken ", Strings.toString(datasetId()));
        return tierId() == 0 ? text : string.concat(text, ".", Strings.toString(tierId()));
    }

    function symbol() public view override returns (string memory) {
        bytes memory arguments = _arguments();
        bytes memory text = new bytes(arguments.length - 9);
        for (uint256 i = 0; i < text.length; ++i) {
            text[i] = arguments[i + 9];
        }
        return string(text);
    }

    /// @notice Mint, by the registry only.
    function mint(address to, uint256 amount) external {
        if (msg.sender != registry) revert OnlyRegistry(msg.sender);
        _mint(to, amount);
    }

    /// @notice Burn from the caller's own balance.
    function burn(uint256 amount) external {
        _burn(msg.sender, amount);
    }

    /// @notice Burn from `account`, out of what it lets the caller take.
    function burnFrom(address account, uint256 amount) external {
        _spendAllowance(account, msg.sender, amount);
        _burn(account, amount);
    }

    /// @dev uint64 dataset, uint8 tier, then the symbol, packed: every byte of a clone costs 200 gas to list.
    function _arguments() private view returns (bytes memory) {
        if (address(this) == _template) revert TemplateHasNoDataset();
        return Clones.fetchCloneArgs(address(this));
    }
}
