// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Hashes} from "@openzeppelin/contracts/utils/cryptography/Hashes.sol";

/// @title A Merkle tree that also adds up: whoever proves a leaf proves the sum of all weights too
/// @notice Every node is one word: the first 192 bits of a hash, then 64 bits of weight. A leaf hashes 128 bytes, an
///         inner node the 64 bytes of its two children in ascending order, so neither can pass for the other. A
///         parent's weight is the sum of its children's, computed here on every step and never taken from the proof:
///         a sibling may be anything, but its weight is part of what the parent hashes, so all leaves that can ever be
///         proved against one root have weights that sum to at most the root's.
///         192 bits are enough: the maker of a tree could cheat only with two preimages of one truncated hash, which
///         takes some 2**96 hashes to find (all of Bitcoin makes about 2**95 a year, of another hash); anybody else
///         needs a second preimage, 2**192.
library SumTree {
    bytes32 private constant HASH = ~bytes32(uint256(type(uint64).max));

    error WeightsOverflow(uint256 sum);

    /// @dev keccak256(abi.encode(datasetId, epoch, account, weight)) truncated, then the weight.
    function leaf(uint256 datasetId, uint64 epoch, address account, uint64 weight) internal pure returns (bytes32) {
        return keccak256(abi.encode(datasetId, epoch, account, weight)) & HASH | bytes32(uint256(weight));
    }

    /// @dev The root that `proof`, the siblings from the bottom up, leads to from `node`. Reverts where a sum does not
    ///      fit into 64 bits: sums only grow on the way up, so it is enough to look at the last one.
    function rootFrom(bytes32 node, bytes32[] calldata proof) internal pure returns (bytes32) {
        uint256 sum = weightOf(node);
        for (uint256 i = 0; i < proof.length; ++i) {
            bytes32 sibling = proof[i];
            unchecked {
                sum += uint64(uint256(sibling)); // calldata is too short for 2**192 siblings
            }
            node = Hashes.commutativeKeccak256(node, sibling) & HASH | bytes32(sum);
        }
        if (sum > type(uint64).max) revert WeightsOverflow(sum);
        return node;
    }

    /// @dev The weight in a node's word; the root's is the total.
    function weightOf(bytes32 node) internal pure returns (uint64) {
        return uint64(uint256(node));
    }
}
