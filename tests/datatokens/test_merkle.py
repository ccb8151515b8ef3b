"""Contributor trees: what they commit to, and that OpenZeppelin's MerkleProof would say the same."""

from __future__ import annotations

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak
from hypothesis import assume, given
from hypothesis import strategies as st

from datatokens.errors import TermsError
from datatokens.merkle import Tree, leaf, verify

# The same five leaves, root and proofs stand in RevenuePools.t.sol, where OpenZeppelin checks them.
FIVE = [leaf(1, 1, f"0x{0xC0FFEE00 + i:040x}", i + 1) for i in range(5)]
FIVE_ROOT = "7de9816ab56be6d6e2c01f07418b97f232c5efe42f6823c3dc8ce1b239fa9ab2"

addresses = st.integers(0, 2**160 - 1).map(lambda n: f"0x{n:040x}")
weights = st.integers(1, 2**128 - 1)
hashes = st.binary(min_size=32, max_size=32)


def openzeppelin_root(proof: list[bytes], computed: bytes) -> bytes:
    """MerkleProof.processProof, transcribed."""
    for sibling in proof:
        low, high = sorted((computed, sibling))
        computed = keccak(low + high)
    return computed


@given(st.integers(1, 2**256 - 1), st.integers(1, 2**64 - 1), addresses, weights)
def test_leaf__any_entry__is_the_double_hash_of_its_abi_encoding(
    dataset_id: int, epoch: int, account: str, weight: int
) -> None:
    encoded = encode(["uint256", "uint64", "address", "uint128"], [dataset_id, epoch, account, weight])
    assert leaf(dataset_id, epoch, account, weight) == keccak(keccak(encoded))


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ((0, 1, "0x" + "11" * 20, 1), "dataset_id"),
        ((1, 0, "0x" + "11" * 20, 1), "epoch"),
        ((1, 2**64, "0x" + "11" * 20, 1), "epoch"),
        ((1, 1, "0x" + "11" * 19, 1), "account"),
        ((1, 1, "anna", 1), "account"),
        ((1, 1, "0x" + "11" * 20, 0), "weight"),
        ((1, 1, "0x" + "11" * 20, 2**128), "weight"),
        ((1, 1, "0x" + "11" * 20, 1.0), "weight"),
    ],
)
def test_leaf__field_out_of_range__names_it(entry: tuple[int, int, str, int], field: str) -> None:
    with pytest.raises(TermsError, match=field):
        leaf(*entry)


@given(st.lists(hashes, min_size=1, max_size=70))
def test_proof__every_leaf__leads_to_the_root_as_openzeppelin_walks(leaves: list[bytes]) -> None:
    tree = Tree(leaves)
    for index, entry in enumerate(leaves):
        proof = tree.proof(index)
        assert openzeppelin_root(proof, entry) == tree.root
        assert verify(tree.root, entry, proof)
        assert len(proof) <= (len(leaves) - 1).bit_length()


@given(st.lists(hashes, min_size=1, max_size=40, unique=True), hashes, st.data())
def test_verify__leaf_that_is_not_in_the_tree__is_refused(
    leaves: list[bytes], other: bytes, data: st.DataObject
) -> None:
    assume(other not in leaves)
    tree = Tree(leaves)
    assert not verify(tree.root, other, tree.proof(data.draw(st.integers(0, len(leaves) - 1))))


@given(st.lists(hashes, min_size=2, max_size=40, unique=True), st.data())
def test_verify__one_bit_of_a_proof_flipped__is_refused(leaves: list[bytes], data: st.DataObject) -> None:
    tree = Tree(leaves)
    index = data.draw(st.integers(0, len(leaves) - 1))
    proof = tree.proof(index)
    step = data.draw(st.integers(0, len(proof) - 1))
    bit = data.draw(st.integers(0, 255))
    proof[step] = (int.from_bytes(proof[step], "big") ^ 1 << bit).to_bytes(32, "big")
    assert not verify(tree.root, leaves[index], proof)


@given(st.lists(st.tuples(addresses, weights), min_size=1, max_size=20), st.data())
def test_root__one_weight_changed__is_another_root(entries: list[tuple[str, int]], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(entries) - 1))
    account, weight = entries[position]
    changed = [*entries[:position], (account, weight - 1 or 2), *entries[position + 1 :]]
    roots = {Tree([leaf(1, 1, a, w) for a, w in rows]).root for rows in (entries, changed)}
    assert len(roots) == 2


def test_root__another_dataset_or_epoch__is_another_root() -> None:
    roots = {Tree([leaf(d, e, f"0x{i:040x}", 1) for i in range(3)]).root for d in (1, 2) for e in (1, 2)}
    assert len(roots) == 4


def test_tree__five_leaves__has_the_root_that_the_contract_test_knows() -> None:
    assert Tree(FIVE).root.hex() == FIVE_ROOT


def test_tree__no_leaves__refuses() -> None:
    with pytest.raises(ValueError, match="at least one leaf"):
        Tree([])


@pytest.mark.parametrize("index", [-1, 5])
def test_proof__no_such_leaf__names_it(index: int) -> None:
    with pytest.raises(IndexError, match=f"leaf {index} of 5"):
        Tree(FIVE).proof(index)


def test_tree__hundred_thousand_leaves__has_proofs_of_17_steps() -> None:
    leaves = [i.to_bytes(32, "big") for i in range(100_000)]
    tree = Tree(leaves)
    assert len(tree.proof(0)) == 17
    assert verify(tree.root, leaves[99_999], tree.proof(99_999))
