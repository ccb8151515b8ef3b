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
    uint256 private constant WEIGHT_BITS = 64;

    /// @dev keccak256(abi.encode(datasetId, epoch, account, weight)) truncated, then the weight.
    function leaf(uint256 datasetId, uint64 epoch, address account, uint64 weight) internal pure returns (bytes32) {
        return _word(keccak256(abi.encode(datasetId, epoch, account, weight)), weight);
    }

    /// @dev The node above two nodes, in any order. Reverts (Panic 0x11) where the sum does not fit into 64 bits.
    function parent(bytes32 a, bytes32 b) internal pure returns (bytes32) {
        return _word(Hashes.commutativeKeccak256(a, b), weightOf(a) + weightOf(b));
    }

    /// @dev The root that `proof`, the siblings from the bottom up, leads to from `node`.
    function rootFrom(bytes32 node, bytes32[] calldata proof) internal pure returns (bytes32) {
        for (uint256 i = 0; i < proof.length; ++i) {
            node = parent(node, proof[i]);
        }
        return node;
    }

    /// @dev The weight in a node's word; the root's is the total.
    function weightOf(bytes32 node) internal pure returns (uint64) {
        return uint64(uint256(node));
    }

    function _word(bytes32 hash, uint64 weight) private pure returns (bytes32) {
        return bytes32(uint256(hash) >> WEIGHT_BITS << WEIGHT_BITS | weight);
    }
}
