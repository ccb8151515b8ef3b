"""The split of a reward pool: exact, proportional, deterministic."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datatokens.payouts import split

pools = st.integers(0, 10**24)
weights = st.lists(st.integers(0, 10**9), min_size=1, max_size=64)


@given(pools, weights)
def test_split__any_weights__sums_exactly(pool: int, given_weights: list[int]) -> None:
    shares = split(pool, given_weights)
    assert sum(shares) == (pool if any(given_weights) else 0)
    assert all(share >= 0 for share in shares)


@given(pools, weights)
def test_split__each_share__is_within_one_unit_of_its_proportion(
    pool: int, given_weights: list[int]
) -> None:
    total = sum(given_weights)
    for share, weight in zip(split(pool, given_weights), given_weights, strict=True):
        if total:
            assert 0 <= share * total - pool * weight + total <= 2 * total


@given(pools, weights)
def test_split__larger_weight__never_gets_less(pool: int, given_weights: list[int]) -> None:
    ranked = sorted(zip(given_weights, split(pool, given_weights), strict=True))
    for (w1, s1), (w2, s2) in pairwise(ranked):
        assert w1 == w2 or s1 <= s2


def test_split__negative__refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        split(-1, [1])
    with pytest.raises(ValueError, match="must not be negative"):
        split(1, [1, -1])
