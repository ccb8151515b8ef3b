// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title A stand-in for a stablecoin on the embedded chain: 6 decimals, minted by its deployer
contract TestUSD is ERC20, ERC20Permit {
    address public immutable minter = msg.sender;

    error OnlyMinter(address caller);

    constructor() ERC20("Test USD", "tUSD") ERC20Permit("Test USD") {}

    function decimals() public pure override returns (uint8) {
        return 6;
    }

    /// @notice Mint, by the deployer only.
    function mint(address to, uint256 units) external {
        if (msg.sender != minter) revert OnlyMinter(msg.sender);
        _mint(to, units);
    }
}
