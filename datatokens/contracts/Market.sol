// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {JobEscrow} from "./JobEscrow.sol";
import {RevenuePools} from "./RevenuePools.sol";
import {IDatasetRegistry} from "./interfaces/IDatasetRegistry.sol";

/// @title Escrow and revenue pools in one contract, so that settling credits pools without moving a token
/// @notice No owner, no upgrade, no pause: nobody can move anybody's money but by the rules in the two parts.
contract Market is JobEscrow {
    /// @dev Whoever gets the hub's fees also rules on disputed contributor lists.
    constructor(IDatasetRegistry registry_, IERC20 paymentToken_, address feeRecipient_, uint256 disputeBondUnits_)
        RevenuePools(registry_, paymentToken_, feeRecipient_, disputeBondUnits_)
        JobEscrow(feeRecipient_)
    {}
}
