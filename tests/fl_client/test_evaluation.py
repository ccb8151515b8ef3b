"""Private figures of a model: sensitivity of the table, noise, intervals that hold as often as they
say.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fl_client.privacy.evaluation import BINS, CELLS, figures, probabilities, released, table
from fl_client.privacy.noise import SecureRandom


def _cohort(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    scores = random.random(n)
    return scores, (random.random(n) < scores).astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=30
    ),
    st.integers(0, 5),
)
def test_table__one_patient_less__moves_by_at_most_one(
    rows: list[tuple[float, int, int]], gone: int
) -> None:
    scores, targets, whose = (np.array(column) for column in zip(*rows, strict=True))
    rest = whose != gone
    moved = table(scores, targets, whose) - table(scores[rest], targets[rest], whose[rest])
    assert np.linalg.norm(moved) <= 1 + 1e-12
    assert moved.sum() == pytest.approx(float(gone in whose))


def test_table__everyone_has_one_record__counts_them_all() -> None:
    scores, targets = np.array([0.0, 0.49, 0.5, 1.0]), np.array([0, 1, 0, 1.0])
    found = table(scores, targets)
    assert (
        found.sum() == 4
        and found[0] == 1
        and found[BINS + 3] == 1
        and found[4] == 1
        and found[-1] == 1
    )


def test_released__many_times__has_the_noise_that_is_charged() -> None:
    random = SecureRandom()
    draws = np.array([released(np.zeros(CELLS), random.normal(CELLS, 7.0)) for _ in range(500)])
    # 8,000 draws: the sd of the estimated sd is 0.8 %, five of them 4 %
    assert draws.std() == pytest.approx(7.0, rel=0.04)
    assert abs(draws.mean()) < 5 * 7.0 / np.sqrt(draws.size)


def test_figures__without_noise__agree_with_a_library() -> None:
    scores, targets = _cohort(5000, 1)
    found = figures([table(scores, targets)], 1e-9)
    binned = np.minimum((scores * BINS).astype(int), BINS - 1)
    assert found["auc"]["value"] == pytest.approx(roc_auc_score(targets, binned), abs=1e-9)
    assert found["accuracy"]["value"] == pytest.approx(
        ((scores >= 0.5) == targets).mean(), abs=1e-9
    )
    for i, cell in enumerate(found["calibration"]):
        assert cell["rate"]["value"] == pytest.approx(targets[binned == i].mean(), abs=1e-9)


@pytest.mark.parametrize(("nodes", "noise"), [(1, 20.0), (4, 10.0)])
def test_figures__noised_again_and_again__the_interval_holds_the_truth_95_times_in_100(
    nodes: int, noise: float
) -> None:
    parts = [table(*_cohort(1500, seed)) for seed in range(nodes)]
    truth = figures([np.sum(parts, axis=0)], 1e-9)
    random, trials = SecureRandom(), 600
    held = {"auc": 0, "accuracy": 0}
    for _ in range(trials):
        found = figures([released(part, random.normal(CELLS, noise)) for part in parts], noise)
        for name in held:
            held[name] += found[name]["low"] <= truth[name]["value"] <= found[name]["high"]
    # five standard deviations of 600 trials at 95 %, and the delta method's own error
    assert all(0.90 <= count / trials <= 0.99 for count in held.values()), held


def test_figures__more_noise_than_patients__says_nothing_rather_than_anything() -> None:
    found = figures([released(table(*_cohort(30, 0)), SecureRandom().normal(CELLS, 40.0))], 40.0)
    assert found["auc"] is None


@pytest.mark.parametrize(
    ("loss", "outputs", "expected"),
    [
        ("binary_cross_entropy", np.array([[0.0], [1e4], [-1e4], [np.nan]]), [0.5, 1.0, 0.0, 0.5]),
        ("binary_cross_entropy", np.array([0.0, np.inf]), [0.5, 1.0]),
        ("squared_error", np.array([[-3.0], [0.25], [9.0]]), [0.0, 0.25, 1.0]),
        ("cross_entropy", np.array([[0.0, 0.0], [0.0, 1e4]]), [0.5, 1.0]),
    ],
)
def test_probabilities__every_loss__are_within_zero_and_one(
    loss: str, outputs: np.ndarray, expected: list[float]
) -> None:
    assert probabilities(outputs, loss) == pytest.approx(expected)
