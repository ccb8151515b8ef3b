"""Merkle trees of contributors, as OpenZeppelin's MerkleProof checks them. Pure; knows nothing of chains.

A leaf is hashed twice and carries dataset and epoch, so a proof fits one tree only; pairs are sorted before hashing.

>>> tree = Tree([leaf(1, 1, "0x" + "11" * 20, 3), leaf(1, 1, "0x" + "22" * 20, 1)])
>>> verify(tree.root, leaf(1, 1, "0x" + "11" * 20, 3), tree.proof(0))
True
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from eth_hash.auto import keccak

from datatokens.terms import address, whole


def leaf(dataset_id: int, epoch: int, account: str, weight: int) -> bytes:
    """keccak256(keccak256(abi.encode(dataset_id, epoch, account, weight))); 32 bytes. Raises TermsError."""
    words = (
        whole("dataset_id", dataset_id, 1, 2**256 - 1),
        whole("epoch", epoch, 1, 2**64 - 1),
        int(address("account", account), 16),
        whole("weight", weight, 1, 2**128 - 1),
    )
    digest: bytes = keccak(keccak(b"".join(word.to_bytes(32, "big") for word in words)))
    return digest


def _pair(a: bytes, b: bytes) -> bytes:
    digest: bytes = keccak(a + b if a < b else b + a)
    return digest


class Tree:
    """All levels of a tree over `leaves` (at least one); a level's odd last node moves up unchanged.

    Raises ValueError for no leaves. 100,000 leaves take a few seconds and some 30 MB.
    """

    def __init__(self, leaves: Sequence[bytes]):
        if not leaves:
            raise ValueError("a tree needs at least one leaf")
        self._levels = [list(leaves)]
        while len(self._levels[-1]) > 1:
            level = self._levels[-1]
            above = [_pair(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
            self._levels.append(above + level[len(level) - len(level) % 2 :])

    @property
    def root(self) -> bytes:
        """32 bytes."""
        return self._levels[-1][0]

    def proof(self, index: int) -> list[bytes]:
        """The siblings from leaf `index` to the root. Raises IndexError for no such leaf."""
        if not 0 <= index < len(self._levels[0]):
            raise IndexError(f"leaf {index} of {len(self._levels[0])}")
        siblings = []
        for level, _ in pairwise(self._levels):
            sibling = index ^ 1
            if sibling < len(level):
                siblings.append(level[sibling])
            index //= 2
        return siblings


def verify(root: bytes, leaf_hash: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` leads from `leaf_hash` to `root`."""
    for sibling in proof:
        leaf_hash = _pair(leaf_hash, sibling)
    return leaf_hash == root
