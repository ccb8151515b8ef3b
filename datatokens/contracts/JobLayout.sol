// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title The two packed layouts of a job: a dataset's line in the terms, its outcome in the result
/// @notice Named here once; datatokens/layouts.py says the same for Python.
library JobLayout {
    /// @dev line: uint32 datasetId | address node | uint8 tier | uint96 priceUnits | uint96 computeCapUnits
    uint256 internal constant LINE_BYTES = 49;
    uint256 private constant UNITS_AT = 17; // both amounts are in the last 32 of the 49 bytes
    uint256 private constant DATASET_SHIFT = 224; // in a line's first 32 bytes
    uint256 private constant NODE_SHIFT = 64;
    uint256 private constant TIER_SHIFT = 56;
    uint256 private constant PRICE_SHIFT = 96; // in its last 32 bytes
    /// @dev outcome: uint88 computeUnits | uint88 rewardUnits | uint40 epsilonMicro | uint40 deltaPico
    uint256 private constant COMPUTE_SHIFT = 168;
    uint256 private constant REWARD_SHIFT = 80;

    /// @dev How many whole lines there are.
    function count(bytes calldata lines) internal pure returns (uint256) {
        return lines.length / LINE_BYTES;
    }

    /// @dev Who signs for line `i`, which must be within the list, and which datatoken pays for it.
    function who(bytes calldata lines, uint256 i) internal pure returns (uint256 datasetId, address node, uint8 tier) {
        uint256 word = _word(lines, i, 0);
        return (word >> DATASET_SHIFT, address(uint160(word >> NODE_SHIFT)), uint8(word >> TIER_SHIFT));
    }

    /// @dev What line `i` costs.
    function units(bytes calldata lines, uint256 i) internal pure returns (uint256 price, uint256 computeCap) {
        uint256 word = _word(lines, i, UNITS_AT);
        return (word >> PRICE_SHIFT & type(uint96).max, word & type(uint96).max);
    }

    /// @dev What an outcome pays.
    function paid(uint256 outcome) internal pure returns (uint256 compute, uint256 reward) {
        return (outcome >> COMPUTE_SHIFT, outcome >> REWARD_SHIFT & type(uint88).max);
    }

    function _word(bytes calldata lines, uint256 i, uint256 offset) private pure returns (uint256 word) {
        assembly ("memory-safe") {
            word := calldataload(add(lines.offset, add(mul(i, LINE_BYTES), offset)))
        }
    }
}
