// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {JobEscrow} from "./JobEscrow.sol";
import {RevenuePools} from "./RevenuePools.sol";
import {IDatasetRegistry} from "./interfaces/IDatasetRegistry.sol";

/// @title Escrow and revenue pools in one contract, so that settling credits pools without moving a token
/// @notice No owner, no upgrade. The guardian can pause new jobs for days and rules on disputed contributor lists;
///         neither it nor anybody else can move money but by the rules in the two parts.
contract Market is JobEscrow {
    constructor(
        IDatasetRegistry registry_,
        IERC20 paymentToken_,
        address feeRecipient_,
        address guardian_,
        uint256 disputeBondUnits_
    )
        EIP712("datahub", "1")
        RevenuePools(registry_, paymentToken_, guardian_, disputeBondUnits_)
        JobEscrow(feeRecipient_, guardian_)
    {}
}
