"""The geometry of the pages' drawings: everything is inside its box."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datahub.web.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, bar, loss_curve

LOSS = st.floats(-1e6, 1e6)
ROUNDS = st.lists(st.tuples(LOSS, st.floats(0, 1e6)), min_size=1, max_size=40)


@given(ROUNDS)
def test_loss_curve__any_numbers__is_inside_its_box_and_higher_is_higher(
    rounds: list[tuple[float, float]],
) -> None:
    given = [
        {"number": i + 1, "loss": loss, "loss_interval95": wide}
        for i, (loss, wide) in enumerate(rounds)
    ]
    curve = loss_curve(given)
    assert curve is not None and len(curve.dots) == len(rounds)
    band = [tuple(map(float, one.split(","))) for one in curve.band.split()]
    for x, y in [*curve.dots, *band]:
        assert LEFT <= x <= WIDTH - RIGHT + 0.1 and TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1
    for (a, _), (_, at) in zip(rounds, curve.dots, strict=True):
        for (b, _), (_, other) in zip(rounds, curve.dots, strict=True):
            assert a <= b or at <= other


def test_loss_curve__before_the_first_round__is_none() -> None:
    assert loss_curve([]) is None


@given(st.lists(st.integers(0, 2**96), max_size=6))
def test_bar__any_amounts__pieces_follow_each_other_and_fill_it(amounts: list[int]) -> None:
    pieces = bar([(str(i), units) for i, units in enumerate(amounts)])
    assert [piece.units for piece in pieces] == [units for units in amounts if units]
    assert not pieces or sum(piece.width for piece in pieces) == pytest.approx(100, abs=0.1)
    for one, after in pairwise(pieces):
        assert one.start + one.width == pytest.approx(after.start, abs=0.03)
