// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
import {Strings} from "@openzeppelin/contracts/utils/Strings.sol";

/// @title The ERC-20 of one dataset: 1.0 (1e18) pays for one job
/// @notice An EIP-1167 clone whose dataset id and symbol are immutable arguments of the clone: nothing to initialise,
///         so nothing that anybody else could initialise. Only the registry mints.
contract Datatoken is ERC20 {
    address public immutable registry;

    error OnlyRegistry(address caller);

    constructor() ERC20("", "") {
        registry = msg.sender;
    }

    /// @notice The dataset this token pays for; reverts on the template itself.
    function datasetId() public view returns (uint256 id) {
        (id,) = abi.decode(Clones.fetchCloneArgs(address(this)), (uint256, string));
    }

    function name() public view override returns (string memory) {
        return string.concat("Datatoken ", Strings.toString(datasetId()));
    }

    function symbol() public view override returns (string memory text) {
        (, text) = abi.decode(Clones.fetchCloneArgs(address(this)), (uint256, string));
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
}
