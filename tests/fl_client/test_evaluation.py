"""Private figures of a model: sensitivity of the table, noise, intervals that hold as often as they
say.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fl_client.privacy.evaluation import (
    CELLS,
    EDGES,
    FINE,
    GROUPS,
    IN_FINE,
    IN_GROUP,
    NOTHING,
    expected_intervals,
    figures,
    logits,
    table,
)
from fl_client.privacy.noise import SecureRandom


def _cohort(n: int, seed: int, middle: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a well calibrated model around `middle`, and what happened."""
    random = np.random.default_rng(seed)
    scores = middle + 1.2 * random.standard_normal(n)
    return scores, (random.random(n) < 1 / (1 + np.exp(-scores))).astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-50, 50), st.integers(0, 1), st.integers(0, 5)),
        min_size=1,
        max_size=30,
    ),
    st.integers(0, 5),
)
def test_table__one_patient_less__moves_by_at_most_one(
    rows: list[tuple[float, int, int]], gone: int
) -> None:
    scores, targets, whose = (np.array(column) for column in zip(*rows, strict=True))
    weights = 1 / np.bincount(whose)[whose]
    rest = whose != gone
    moved = table(scores, targets, weights) - table(scores[rest], targets[rest], weights[rest])
    assert np.linalg.norm(moved) <= 1
    assert moved.sum() == pytest.approx((IN_GROUP + IN_FINE) * float(gone in whose))


def test_table__a_unit__is_exact_and_just_under_one() -> None:
    assert 0.9999 < IN_GROUP**2 + IN_FINE**2 < 1
    assert np.linalg.norm(table(np.array([3.0]), np.array([1.0]))) == math.hypot(IN_GROUP, IN_FINE)


def test_table__rare_outcomes__are_in_cells_of_their_own() -> None:
    chances = np.array([0.001, 0.005, 0.01, 0.03, 0.07, 0.2])
    found = table(np.log(chances / (1 - chances)), np.zeros(6))
    assert (found[GROUPS : GROUPS + FINE] > 0).sum() == 6


def test_table__logit_of_zero__is_a_yes() -> None:
    found = table(np.array([0.0, -1e-300]), np.zeros(2))
    assert list(np.flatnonzero(found[GROUPS : GROUPS + FINE])) == [FINE // 2 - 1, FINE // 2]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(width=32), st.floats(width=32), st.floats(0, 1, width=32)),
        max_size=20,
    )
)
def test_table__any_numbers__has_its_size_and_never_raises(
    rows: list[tuple[float, float, float]],
) -> None:
    scores, targets, weights = np.array(rows, np.float32).reshape(-1, 3).T
    found = table(scores, targets, weights)
    assert found.shape == (CELLS,) and np.isfinite(found).all()
    assert found.sum() == pytest.approx((IN_GROUP + IN_FINE) * weights.sum())


@pytest.mark.parametrize("middle", [-5.0, -2.5, 0.0])
def test_figures__without_noise__agree_with_a_library(middle: float) -> None:
    scores, targets = _cohort(50_000, 1, middle)
    found = figures([table(scores, targets)], 1e-9)
    exact = roc_auc_score(targets, scores)
    assert found["auc"]["value"] == pytest.approx(exact, abs=0.004)
    assert found["auc"]["low"] <= exact <= found["auc"]["high"] <= found["auc"]["low"] + 0.03
    assert found["accuracy"]["value"] == pytest.approx(((scores >= 0) == targets).mean(), abs=1e-9)
    assert found["event_rate"]["value"] == pytest.approx(targets.mean(), abs=1e-9)
    ends = [-np.inf, *EDGES[3::4], np.inf]
    for cell, low, high in zip(found["calibration"], ends[:-1], ends[1:], strict=True):
        assert cell["from"] == pytest.approx(1 / (1 + np.exp(-low)))
        here = (scores >= low) & (scores < high)
        if here.any():
            assert cell["rate"]["value"] == pytest.approx(targets[here].mean(), abs=1e-9)


@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize("middle", [-6.0, -3.0, 0.0])
@pytest.mark.parametrize("kind", ["calibrated", "saturated", "timid", "backwards"])
def test_figures__noised_again_and_again__the_interval_holds_the_truth_as_often_as_it_says(
    kind: str, middle: float, nodes: int
) -> None:
    scores, targets = _cohort(20_000, 5, middle)
    scores = {
        "calibrated": scores,
        "saturated": 20 * (scores - middle) + middle,
        "timid": middle + 0.05 * (scores - middle),
        "backwards": 2 * middle - scores,
    }[kind]
    exact = {
        "auc": roc_auc_score(targets, scores),
        "accuracy": float(((scores >= 0) == targets).mean()),
        "event_rate": float(targets.mean()),
    }
    parts = [table(scores[i::nodes], targets[i::nodes]) for i in range(nodes)]
    random, trials, noise = np.random.default_rng(0), 300, 8.0
    held = dict.fromkeys(exact, 0)
    for _ in range(trials):
        tables = [part + noise * random.standard_normal(CELLS) for part in parts]
        found = figures(tables, noise)
        for name in held:
            held[name] += found[name]["low"] <= exact[name] <= found[name]["high"]
    # 300 trials at 95 %: a standard deviation is 1.3 %, three of them 4 %
    assert all(count / trials >= 0.91 for count in held.values()), held


def test_figures__seven_in_a_hundred__the_interval_is_as_narrow_as_the_noise_allows() -> None:
    scores, targets = _cohort(9_812, 3, -3.1)
    assert 0.05 < targets.mean() < 0.09
    exact, random = roc_auc_score(targets, scores), np.random.default_rng(1)
    found = [
        figures([table(scores, targets) + 15.6 * random.standard_normal(CELLS)], 15.6)
        for _ in range(200)
    ]
    values = np.array([one["auc"]["value"] for one in found])
    widths = np.array([one["auc"]["high"] - one["auc"]["low"] for one in found])
    assert abs(values.mean() - exact) < 0.02 and widths.mean() < 0.18
    # 1.96 standard deviations to each side is what no interval can be narrower than
    assert widths.mean() < 1.4 * 2 * 1.96 * values.std()


def test_figures__more_noise_than_patients__an_interval_that_says_so() -> None:
    found = figures([table(*_cohort(30, 0)) + SecureRandom().normal(CELLS, 40.0)], 40.0)
    assert found["auc"]["low"] < 0.1 and found["auc"]["high"] > 0.9
    assert figures([[0.0] * CELLS], 5.0)["auc"] == {"value": 0.5, "low": 0.0, "high": 1.0}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-1e12, 1e12), min_size=CELLS, max_size=CELLS),
    st.floats(0.01, 1e5),
)
def test_figures__any_table__ordered_numbers_within_zero_and_one(
    cells: list[float], noise: float
) -> None:
    found = figures([cells], noise)
    for one in (
        found["auc"],
        found["accuracy"],
        found["event_rate"],
        *(cell["rate"] for cell in found["calibration"] if cell["rate"]),
    ):
        assert 0 <= one["low"] <= one["value"] <= one["high"] <= 1


@pytest.mark.parametrize(
    ("loss", "outputs", "expected"),
    [
        ("binary_cross_entropy", np.array([[0.0], [1e4], [-1e4], [np.nan]]), [0.0, 1e4, -1e4, 0.0]),
        ("binary_cross_entropy", np.array([0.0, np.inf]), [0.0, np.inf]),
        ("cross_entropy", np.array([[0.0, 0.0], [0.0, 1e4]]), [0.0, 1e4]),
        ("cross_entropy", np.full((1, 2), -np.inf), [0.0]),
    ],
)
def test_logits__every_loss__keep_what_a_probability_would_lose(
    loss: str, outputs: np.ndarray, expected: list[float]
) -> None:
    assert logits(outputs.astype(np.float32), loss) == pytest.approx(expected)


@pytest.mark.parametrize(("persons", "noise"), [([150] * 4, 3.0), ([1000] * 3, 8.0), ([5000], 8.0)])
def test_expected_intervals__reports_of_such_a_model__are_about_as_wide(
    persons: list[int], noise: float
) -> None:
    expected = expected_intervals(persons, noise)["balanced"]
    random, found = np.random.default_rng(1), []
    for _ in range(40):
        tables = []
        for count in persons:
            outcome = random.random(count) < 0.5
            scores = np.where(outcome, 1, -1) * 1.19**2 / 2 + 1.19 * random.standard_normal(count)
            exact = table(scores, outcome.astype(np.float32))
            tables.append(list(exact + noise * random.standard_normal(CELLS)))
        found.append(figures(tables, noise))
    for name in ("accuracy", "auc"):
        middle = float(np.median([f[name]["high"] - f[name]["low"] for f in found]))
        assert 0.6 * middle < expected[name] < 1.6 * middle


def test_expected_intervals__too_few_patients__say_nothing() -> None:
    for widths in expected_intervals([40], 20.0).values():
        assert widths == {"accuracy": NOTHING, "auc": NOTHING}
    many = expected_intervals([100_000], 3.0)["one_in_five"]
    assert many["accuracy"] < 0.01 and many["auc"] < 0.05
