"""Merkle sum trees: what they commit to, and what no forged tree or proof can do. The contract says
the same: see test_bindings.py for random trees on a chain and RevenuePools.t.sol for forged ones.
"""

from __future__ import annotations

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datatokens.errors import TermsError
from datatokens.merkle import MAX_WEIGHT, Tree, leaf, parent, total_weight, verify

ANNA, BEN, CARLA = ("0x" + digit * 40 for digit in "abc")

addresses = st.integers(0, 2**160 - 1).map(lambda n: f"0x{n:040x}")
weights = st.integers(1, MAX_WEIGHT)
lists = st.lists(
    st.tuples(addresses, st.integers(1, 2**56)),
    min_size=1,
    max_size=70,
    unique_by=lambda entry: entry[0],
)
words = st.binary(min_size=32, max_size=32)


def sum_tree_root(proof: list[bytes], node: bytes) -> bytes:
    """SumTree.rootFrom, transcribed."""
    for sibling in proof:
        low, high = sorted((node, sibling))
        weight = int.from_bytes(low[24:], "big") + int.from_bytes(high[24:], "big")
        node = keccak(low + high)[:24] + weight.to_bytes(8, "big")
    return node


@given(st.integers(1, 2**256 - 1), st.integers(1, 2**64 - 1), addresses, weights)
def test_leaf__any_entry__is_the_truncated_hash_of_its_abi_encoding_and_its_weight(
    dataset_id: int, epoch: int, account: str, weight: int
) -> None:
    encoded = encode(
        ["uint256", "uint64", "address", "uint64"], [dataset_id, epoch, account, weight]
    )
    assert len(encoded) == 128  # an inner node hashes 64 bytes: neither can pass for the other
    assert leaf(dataset_id, epoch, account, weight) == keccak(encoded)[:24] + weight.to_bytes(
        8, "big"
    )


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ((0, 1, ANNA, 1), "dataset_id"),
        ((1, 0, ANNA, 1), "epoch"),
        ((1, 2**64, ANNA, 1), "epoch"),
        ((1, 1, "0x" + "11" * 19, 1), "account"),
        ((1, 1, "0x" + "1g" * 20, 1), "account"),
        ((1, 1, ANNA + "\n", 1), "account"),
        ((1, 1, "anna", 1), "account"),
        ((1, 1, ANNA, 0), "weight"),
        ((1, 1, ANNA, 2**64), "weight"),
        ((1, 1, ANNA, 1.0), "weight"),
    ],
)
def test_leaf__field_out_of_range__names_it(entry: tuple[int, int, str, int], field: str) -> None:
    with pytest.raises(TermsError, match=field):
        leaf(*entry)
    with pytest.raises(TermsError, match=field):
        Tree(entry[0], entry[1], [(BEN, 1), entry[2:]])


@given(st.integers(1, 2**256 - 1), st.integers(1, 2**64 - 1), lists)
def test_proof__every_leaf__leads_to_a_root_that_carries_the_total(
    dataset_id: int, epoch: int, entries: list[tuple[str, int]]
) -> None:
    tree = Tree(dataset_id, epoch, entries)
    assert total_weight(tree.root) == sum(weight for _, weight in entries)
    for index, (account, weight) in enumerate(entries):
        word, proof = leaf(dataset_id, epoch, account, weight), tree.proof(index)
        assert sum_tree_root(proof, word) == tree.root
        assert verify(tree.root, word, proof)
        assert len(proof) <= (len(entries) - 1).bit_length()


@given(lists, st.data())
def test_verify__another_weight_account_dataset_or_epoch__is_refused(
    entries: list[tuple[str, int]], data: st.DataObject
) -> None:
    tree = Tree(1, 1, entries)
    index = data.draw(st.integers(0, len(entries) - 1))
    account, weight = entries[index]
    other_weight, other_account = data.draw(weights), data.draw(addresses)
    assume(other_weight != weight and other_account != account)
    proof = tree.proof(index)
    assert verify(tree.root, leaf(1, 1, account, weight), proof)
    for entry in (
        (1, 1, account, other_weight),
        (1, 1, other_account, weight),
        (2, 1, account, weight),
    ):
        assert not verify(tree.root, leaf(*entry), proof)
    assert not verify(tree.root, leaf(1, 2, account, weight), proof)


@given(lists, st.data())
def test_verify__one_bit_of_a_proof_or_root_flipped__is_refused(
    entries: list[tuple[str, int]], data: st.DataObject
) -> None:
    assume(len(entries) > 1)
    tree = Tree(1, 1, entries)
    index = data.draw(st.integers(0, len(entries) - 1))
    path = [*tree.proof(index), tree.root]
    step, bit = data.draw(st.integers(0, len(path) - 1)), data.draw(st.integers(0, 255))
    path[step] = (int.from_bytes(path[step], "big") ^ 1 << bit).to_bytes(32, "big")
    assert not verify(path[-1], leaf(1, 1, *entries[index]), path[:-1])


@given(lists, st.data())
def test_verify__proof_cut_or_lengthened__is_refused(
    entries: list[tuple[str, int]], data: st.DataObject
) -> None:
    assume(len(entries) > 1)
    tree = Tree(1, 1, entries)
    index = data.draw(st.integers(0, len(entries) - 1))
    word, proof = leaf(1, 1, *entries[index]), tree.proof(index)
    assert not verify(tree.root, word, proof[:-1])
    assert not verify(tree.root, word, [*proof, data.draw(words)])


@settings(max_examples=300)
@given(st.lists(st.tuples(addresses, weights), min_size=2, max_size=6), st.data())
def test_forged_tree__any_lie_about_a_sum__lets_no_more_be_proved_than_the_root_says(
    entries: list[tuple[str, int]], data: st.DataObject
) -> None:
    """An owner who builds a tree by hand, with a false sum at any inner node: all that can be
    proved fits the root.
    """
    nodes = [(leaf(1, 1, account, weight), [weight], [[]]) for account, weight in entries]
    while len(nodes) > 1:
        (a, a_weights, a_proofs), (b, b_weights, b_proofs), *nodes = nodes
        low, high = sorted((a, b))
        said = data.draw(
            st.sampled_from([1, (total_weight(a) + total_weight(b)) % 2**64]) | weights
        )
        proofs = [[*proof, b] for proof in a_proofs] + [[*proof, a] for proof in b_proofs]
        nodes.append(
            (keccak(low + high)[:24] + said.to_bytes(8, "big"), a_weights + b_weights, proofs)
        )
    ((root, leaf_weights, proofs),) = nodes
    words_of = {leaf(1, 1, account, weight): weight for account, weight in entries}
    proved = {
        word: weight
        for word, weight in words_of.items()
        if any(
            verify(root, word, proof)
            for proof, own in zip(proofs, leaf_weights, strict=True)
            if own == weight
        )
    }
    assert sum(proved.values()) <= total_weight(root)


def test_forged_root__total_wrapped_around__proves_nothing() -> None:
    a, b = leaf(1, 1, ANNA, 3), leaf(1, 1, BEN, MAX_WEIGHT)
    root = keccak(b"".join(sorted((a, b))))[:24] + (2).to_bytes(
        8, "big"
    )  # 3 + 2**64 - 1, modulo 2**64
    assert not verify(root, a, [b])
    with pytest.raises(OverflowError):
        parent(a, b)


@given(lists, st.data())
def test_root__one_weight_changed__is_another_root(
    entries: list[tuple[str, int]], data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(entries) - 1))
    account, weight = entries[position]
    changed = [*entries[:position], (account, weight - 1 or 2), *entries[position + 1 :]]
    assert Tree(1, 1, entries).root != Tree(1, 1, changed).root


def test_root__another_dataset_or_epoch__is_another_root() -> None:
    roots = {Tree(d, e, [(ANNA, 1), (BEN, 1), (CARLA, 1)]).root for d in (1, 2) for e in (1, 2)}
    assert len(roots) == 4


def test_tree__no_entries__refuses() -> None:
    with pytest.raises(TermsError, match="at least one entry"):
        Tree(1, 1, [])


@given(lists, st.data())
def test_tree__account_twice_in_any_case__names_it(
    entries: list[tuple[str, int]], data: st.DataObject
) -> None:
    account, _ = data.draw(st.sampled_from(entries))
    again = "0x" + account[2:].upper()
    position = data.draw(st.integers(0, len(entries)))
    with pytest.raises(TermsError, match="(?i)" + account + " is on the list twice"):
        Tree(1, 1, [*entries[:position], (again, 1), *entries[position:]])


def test_tree__weights_that_sum_to_more_than_64_bits__refuses() -> None:
    with pytest.raises(TermsError, match=f"the weights sum to {2**64}"):
        Tree(1, 1, [(ANNA, MAX_WEIGHT), (BEN, 1)])
    assert total_weight(Tree(1, 1, [(ANNA, MAX_WEIGHT - 1), (BEN, 1)]).root) == MAX_WEIGHT


@pytest.mark.parametrize("index", [-1, 3])
def test_proof__no_such_leaf__names_it(index: int) -> None:
    with pytest.raises(IndexError, match=f"leaf {index} of 3"):
        Tree(1, 1, [(ANNA, 1), (BEN, 1), (CARLA, 1)]).proof(index)


def test_tree__ten_thousand_entries__has_proofs_of_14_steps() -> None:
    entries = [(f"0x{i:040x}", 1 + i % 5) for i in range(10_000)]
    tree = Tree(1, 1, entries)
    assert len(tree.proof(0)) == 14
    assert verify(tree.root, leaf(1, 1, *entries[9_999]), tree.proof(9_999))
