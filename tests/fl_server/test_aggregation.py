"""The weighted mean: exact where float64 is, the same in every run, refused where it makes no
sense."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_server.aggregation import server_step, weighted_mean


def test_weighted_mean__three_hospitals__by_their_released_counts() -> None:
    updates = [{"w": np.full((2, 2), v, np.float32), "b": np.float32([v])} for v in (1, 2, 4)]
    mean = weighted_mean(updates, [2, 1, 1])
    assert mean["w"].dtype == mean["b"].dtype == np.float32 and list(mean) == ["w", "b"]
    assert (mean["w"] == 2.0).all() and mean["b"] == 2.0


def test_weighted_mean__one_hospital__gives_back_its_update_bit_for_bit() -> None:
    update = {"w": np.random.default_rng(0).normal(size=1000).astype(np.float32)}
    assert (weighted_mean([update], [7])["w"] == update["w"]).all()


def test_weighted_mean__a_scalar_parameter__keeps_its_shape() -> None:
    mean = weighted_mean([{"s": np.float32(1)}, {"s": np.float32(3)}], [1, 1])  # type: ignore[dict-item]
    assert mean["s"].shape == () and mean["s"] == 2.0


@given(
    st.lists(
        st.tuples(st.floats(-1e6, 1e6, width=32), st.integers(1, 10**9)), min_size=1, max_size=64
    )
)
def test_weighted_mean__any_values_and_counts__within_one_rounding_of_the_exact_mean(
    pairs: list[tuple[float, int]],
) -> None:
    mean = weighted_mean([{"w": np.float32([v])} for v, _ in pairs], [n for _, n in pairs])["w"][0]
    exact = sum(Fraction(v) * n for v, n in pairs) / sum(n for _, n in pairs)
    largest = max(abs(v) for v, _ in pairs)
    assert abs(Fraction(float(mean)) - exact) <= abs(exact) * Fraction(2**-23) + Fraction(
        largest * 2**-45
    ) + Fraction(2**-149)


@pytest.mark.parametrize(
    ("updates", "weights"),
    [
        ([], []),
        ([{"w": np.zeros(2)}], [0]),
        ([{"w": np.zeros(2)}], [1, 1]),
        ([{"w": np.zeros(2)}, {"v": np.zeros(2)}], [1, 1]),
        ([{"w": np.zeros(2)}, {"w": np.zeros(3)}], [1, 1]),
    ],
)
def test_weighted_mean__no_updates_or_such_as_do_not_fit__refuses(
    updates: list[dict[str, np.ndarray]], weights: list[int]
) -> None:
    with pytest.raises(ValueError, match=r"weight above 0|differ in names"):
        weighted_mean(updates, weights)


def test_server_step__nothing_named__is_the_mean_bit_for_bit() -> None:
    random = np.random.default_rng(0)
    mean, current, previous = (
        {"w": random.normal(size=1000).astype(np.float32) * scale} for scale in (1, 1e30, 1e-30)
    )
    assert (server_step(mean, current, previous, 0.0, {"b": 4.0})["w"] == mean["w"]).all()


def test_server_step__steps_of_equal_length__grow_by_the_geometric_series() -> None:
    before = now = {"w": np.zeros(1, np.float32)}
    for number in range(1, 30):
        mean = {"w": now["w"] + np.float32(1)}
        before, now = now, server_step(mean, now, before, 0.5, {})
        step = float((now["w"] - before["w"])[0])
        assert step == pytest.approx(2 - 0.5 ** (number - 1), rel=1e-5)


def test_server_step__a_parameter_that_stays__is_left_alone() -> None:
    still = {"w": np.random.default_rng(1).normal(size=100).astype(np.float32)}
    assert (server_step(still, still, still, 0.99, {"w": 9.0})["w"] == still["w"]).all()


def test_server_step__a_rate_of_four__goes_four_times_as_far_and_moves_nothing_else() -> None:
    mean = {"w": np.float32([1.0, 3.0]), "bias": np.float32([2.0])}
    current = {"w": np.float32([0.0, 1.0]), "bias": np.float32([1.5])}
    found = server_step(mean, current, current, 0.0, {"bias": 4.0})
    assert (found["w"] == mean["w"]).all() and found["bias"] == 3.5
