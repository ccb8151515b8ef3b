"""Merkle sum trees of contributors, as SumTree.sol checks them. Pure; knows nothing of chains.

Every node is one word of 32 bytes: the first 24 of a hash, then 8 of weight. A leaf carries dataset
and epoch, so a proof fits one tree only; a parent's weight is the sum of its children's, so the
root carries the total.

>>> tree = Tree(1, 1, [("0x" + "11" * 20, 3), ("0x" + "22" * 20, 1)])
>>> total_weight(tree.root)
4
>>> verify(tree.root, leaf(1, 1, "0x" + "11" * 20, 3), tree.proof(0))
True
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from eth_hash.auto import keccak

from datatokens.errors import TermsError
from datatokens.terms import whole

MAX_WEIGHT = 2**64 - 1
_WORD = 32
_HASH = 24  # bytes of a word that are hash
_ACCOUNT = re.compile("0x[0-9a-fA-F]{40}").fullmatch


def leaf(dataset_id: int, epoch: int, account: str, weight: int) -> bytes:
    """keccak256(abi.encode(dataset_id, epoch, account, weight))[:24] + weight; 32 bytes. Raises
    TermsError.

    The case of the account's letters means nothing here: a checksum is for whoever reads a person's
    input.
    """
    return _leaf(_prefix(dataset_id, epoch), account, weight)


def _prefix(dataset_id: int, epoch: int) -> bytes:
    whole("dataset_id", dataset_id, 1, 2**256 - 1)
    whole("epoch", epoch, 1, 2**64 - 1)
    return dataset_id.to_bytes(_WORD, "big") + epoch.to_bytes(_WORD, "big")


def _leaf(prefix: bytes, account: str, weight: int) -> bytes:
    whole("weight", weight, 1, MAX_WEIGHT)
    if not isinstance(account, str) or not _ACCOUNT(account):
        raise TermsError(f"account={account!r} must be an address of 0x and 40 hexadecimal digits")
    end = weight.to_bytes(8, "big")
    digest: bytes = keccak(prefix + bytes(12) + bytes.fromhex(account[2:]) + bytes(24) + end)
    return digest[:_HASH] + end


def total_weight(node: bytes) -> int:
    """The weight in a node's word; a root's is the sum over all leaves."""
    return int.from_bytes(node[_HASH:], "big")


def parent(a: bytes, b: bytes) -> bytes:
    """The node above two nodes, in any order. Raises OverflowError where the sum does not fit into
    64 bits.
    """
    digest: bytes = keccak(a + b if a < b else b + a)
    return digest[:_HASH] + (total_weight(a) + total_weight(b)).to_bytes(8, "big")


class Tree:
    """A dataset's contributor list for one epoch: (account, weight) in the order of the leaves.

    Raises TermsError for an empty list, an account that comes twice, a weight outside 1..2**64-1,
    or weights that sum to more than 2**64-1. Keeps 64 bytes per contributor;
    tests/benchmarks/claims.py says what building takes.
    """

    def __init__(self, dataset_id: int, epoch: int, entries: Sequence[tuple[str, int]]):
        prefix = _prefix(dataset_id, epoch)
        if not entries:
            raise TermsError("a contributor list needs at least one entry")
        level = b"".join(_leaf(prefix, account, weight) for account, weight in entries)
        total = sum(weight for _, weight in entries)
        if total > MAX_WEIGHT:
            raise TermsError(f"the weights sum to {total}; at most {MAX_WEIGHT} is allowed")
        _check_distinct(entries)
        levels = [level]
        while len(level) > _WORD:
            pairs = range(0, len(level) - _WORD, 2 * _WORD)
            above = [parent(level[i : i + _WORD], level[i + _WORD : i + 2 * _WORD]) for i in pairs]
            if len(level) % (2 * _WORD):
                above.append(level[-_WORD:])  # the odd last node moves up unchanged
            level = b"".join(above)
            levels.append(level)
        # every node, 32 bytes each, level by level from the leaves; the root is the last
        self.words = b"".join(levels)
        self.leaves = len(entries)

    @property
    def root(self) -> bytes:
        """32 bytes, the last 8 of them the total weight."""
        return self.words[-_WORD:]

    def proof(self, index: int) -> list[bytes]:
        """The siblings from leaf `index` to the root. Raises IndexError for no such leaf."""
        return [self.words[_WORD * i : _WORD * (i + 1)] for i in steps(self.leaves, index)]


def steps(leaves: int, index: int) -> list[int]:
    """Where in a tree's `words` the proof of leaf `index` stands, in its order. Raises IndexError
    for no such leaf.

    >>> steps(3, 0)
    [1, 4]
    """
    if not 0 <= index < leaves:
        raise IndexError(f"leaf {index} of {leaves}")
    found, start = [], 0
    while leaves > 1:
        if index ^ 1 < leaves:  # else the odd last node, which moves up unchanged
            found.append(start + (index ^ 1))
        start, leaves, index = start + leaves, (leaves + 1) // 2, index // 2
    return found


def _check_distinct(entries: Sequence[tuple[str, int]]) -> None:
    seen = {account.lower() for account, _ in entries}
    if len(seen) == len(entries):
        return
    for account, _ in entries:
        if account.lower() not in seen:
            raise TermsError(f"account={account} is on the list twice")
        seen.remove(account.lower())


def verify(root: bytes, leaf_word: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` leads from `leaf_word` to `root`, sums included; False where the contract
    would revert too.
    """
    for sibling in proof:
        try:
            leaf_word = parent(leaf_word, sibling)
        except OverflowError:
            return False
    return leaf_word == root
