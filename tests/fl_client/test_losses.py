"""Every loss on one sample is what its formula says, fits its target, trains under the clip; its
table of the final model holds one unit of each patient.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fl_client.data.schemas import Schema
from fl_client.data.targets import Target
from fl_client.errors import DatasetError, GraphRefused
from fl_client.model.export import export_model
from fl_client.model.fit import check_fit
from fl_client.model.graph import GraphModel, load_model, parameters
from fl_client.model.losses import LOSSES
from fl_client.privacy import looks, selfcheck, training
from fl_client.privacy.evaluation import CELLS, expected_intervals
from fl_client.privacy.plan import PrivacyPlan
from fl_client.privacy.training import by_patient, score_sum, train_round
from fl_client.protocol import MAX_OUTPUTS, MAX_SCORES

WIDTH, N = 4, 30
PLAN = PrivacyPlan(1.0, 0.5, 1.0, 1, 1e-5, 1.0, 1.0, 1)
TARGETS: dict[str, tuple[Target, int]] = {
    "binary_cross_entropy": (Target("y"), 1),
    "cross_entropy": (Target("y", None, "classes", ("a", "b", "c")), 3),
    "squared_error": (Target("y", None, "number", low=0, high=10), 1),
    "multilabel_soft_margin": (Target("y", None, "several yes/no", columns=("a", "b", "c")), 3),
    "logistic_hazard": (
        Target("y", None, "time to event", columns=("time", "dead"), edges=(10.0, 20.0, 40.0)),
        3,
    ),
    "output": (Target("y"), 1),
}


def model_of(loss: str) -> GraphModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = nn.Linear(WIDTH, TARGETS[loss][1])
    return load_model(*export_model(layer, torch.zeros(1, WIDTH)))


def people(loss: str, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, WIDTH] and targets [n, ...] of made-up patients, by the target itself."""
    target, _ = TARGETS[loss]
    chance = np.random.default_rng(3)
    x = chance.normal(size=(n, WIDTH)).astype(np.float32)
    values = {
        "yes/no": lambda: [("no", "yes")[chance.integers(2)] for _ in target.reads],
        "several yes/no": lambda: [("no", "yes")[chance.integers(2)] for _ in target.reads],
        "classes": lambda: [target.levels[chance.integers(3)]],
        "number": lambda: [float(chance.uniform(-2, 12))],
        "time to event": lambda: [float(chance.uniform(0, 50)), ("no", "yes")[chance.integers(2)]],
    }[target.kind]
    numbers = [target.numbers(values()) for _ in range(n)]
    return x, np.array(numbers, dtype=np.float32).reshape(n, *target.shape)


def test_every_loss_has_a_target_here() -> None:
    assert set(TARGETS) == set(LOSSES)


@pytest.mark.parametrize("loss", TARGETS)
def test_target__its_losses_and_shape__are_those_of_the_loss(loss: str) -> None:
    target, outputs = TARGETS[loss]
    if loss != "output":
        assert target.losses[loss] == outputs
        assert LOSSES[loss].target((outputs,)) == target.shape
    for name, wanted in target.losses.items():
        assert LOSSES[name].takes((wanted,))


LARGEST = {
    "classes": {"levels": list(range(64))},
    "several yes/no": {"columns": [f"c{i}" for i in range(40)]},
    "time to event": {"time": "t", "event": "e", "edges": list(range(1, 65))},
}


@pytest.mark.parametrize("kind", LARGEST)
def test_target__as_large_as_a_schema_may_say__fits_its_loss_the_terms_and_the_wire(
    kind: str,
) -> None:
    """The rooms know these limits each by itself: a target that could be listed and not bought."""
    features = [{"name": "a", "centre": 0, "scale": 1}]
    document = {"features": features, "target": {"name": "y", "kind": kind, **LARGEST[kind]}}
    target = Schema.from_dict(document).target
    ((loss, outputs),) = target.losses.items()
    assert LOSSES[loss].takes((outputs,)) and outputs == LOSSES[loss].most <= MAX_OUTPUTS
    assert looks.cells(loss, outputs) <= MAX_SCORES
    for value in document["target"].values():
        if isinstance(value, list):
            value.append(999 if kind != "several yes/no" else "one more")
    with pytest.raises(DatasetError, match=r"to 64|to 40"):
        Schema.from_dict(document)


def test_check_fit__another_loss_or_another_number_of_outputs__is_named() -> None:
    stages = Target("stage", None, "classes", ("I", "II", "III"))
    model = model_of("cross_entropy")
    check_fit(model, "cross_entropy", (WIDTH,), stages.losses)
    with pytest.raises(
        GraphRefused, match="multilabel_soft_margin' does not fit the dataset's target"
    ):
        check_fit(model, "multilabel_soft_margin", (WIDTH,), stages.losses)
    four = Target("stage", None, "classes", ("I", "II", "III", "IV"))
    with pytest.raises(GraphRefused, match="has 3 outputs, the dataset's target takes 4"):
        check_fit(model, "cross_entropy", (WIDTH,), four.losses)


# -- formulas --------------------------------------------------------------------------------------


def test_logistic_hazard__is_the_likelihood_of_what_was_seen() -> None:
    target, _ = TARGETS["logistic_hazard"]
    output = torch.tensor([-1.0, 0.3, 0.8])
    hazard = output.sigmoid().tolist()
    cases = {
        # died at 15: through the first interval, then an event in the second
        (15.0, "yes"): -math.log(1 - hazard[0]) - math.log(hazard[1]),
        (20.0, "yes"): -math.log(1 - hazard[0]) - math.log(hazard[1]),
        (10.0, "no"): -math.log(1 - hazard[0]),
        (4.9, "no"): 0.0,  # lost to sight early in the first: nothing is known of it
        (5.0, "no"): -math.log(1 - hazard[0]),  # from its middle on: without an event
        (9.9, "no"): -math.log(1 - hazard[0]),
        (11.0, "yes"): -math.log(1 - hazard[0]) - math.log(hazard[1]),
        (0.0, "yes"): -math.log(hazard[0]),
        (29.0, "no"): -math.log(1 - hazard[0]) - math.log(1 - hazard[1]),
        (39.0, "no"): -sum(math.log(1 - h) for h in hazard),
        (90.0, "yes"): -sum(math.log(1 - h) for h in hazard),  # after the last edge: none
        (90.0, "no"): -sum(math.log(1 - h) for h in hazard),
    }
    for values, expected in cases.items():
        numbers = torch.tensor(target.numbers(values))
        assert float(LOSSES["logistic_hazard"](output, numbers)) == pytest.approx(
            expected, rel=1e-5, abs=1e-7
        ), values


@pytest.mark.parametrize("intervals", [3, 10])
def test_survival__many_are_lost_to_sight__is_near_kaplan_and_meiers(intervals: int) -> None:
    """By end of the interval alone, 0.10 instead of 0.22 would be left after three."""
    chance = np.random.default_rng(1)
    until, lost = chance.exponential(10, 5000), chance.exponential(5, 5000)
    edges = tuple(15.0 * (i + 1) / intervals for i in range(intervals))
    target = Target("y", None, "time to event", columns=("time", "dead"), edges=edges)
    said = [("no", "yes")[int(event)] for event in until <= lost]
    time = np.minimum(until, lost)
    numbers = [target.numbers([float(t), d]) for t, d in zip(time, said, strict=True)]
    events, at_risk = np.sum(numbers, axis=0).reshape(2, intervals)
    order = np.argsort(time)
    left = 1.0
    for number, i in enumerate(order):  # Kaplan & Meier: no two times are the same
        if time[i] <= 15 and until[i] <= lost[i]:
            left *= 1 - 1 / (5000 - number)
    assert np.prod(1 - events / at_risk) == pytest.approx(left, abs=0.015)


def test_logistic_hazard__infinite_where_nobody_is_at_risk__does_not_count() -> None:
    numbers = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    value = LOSSES["logistic_hazard"](torch.tensor([0.0, math.inf, math.nan]), numbers)
    assert float(value) == pytest.approx(math.log(2))


def test_multilabel_soft_margin__is_torchs() -> None:
    output, target = torch.randn(5), torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    expected = nn.functional.multilabel_soft_margin_loss(output[None], target[None])
    assert float(LOSSES["multilabel_soft_margin"](output, target)) == pytest.approx(
        float(expected), abs=1e-6
    )


def test_output__is_the_output_whatever_the_target() -> None:
    assert float(LOSSES["output"](torch.tensor([2.5]), torch.tensor(math.nan))) == 2.5


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["book-keeping", "hooks"])
@pytest.mark.parametrize("loss", TARGETS)
def test_train_round__noise_off__is_the_sum_of_clipped_gradients_by_autograd(
    loss: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(theta, total, words, scale):
        return theta.copy_(theta - total * scale[2])

    monkeypatch.setattr(training, "_update", without)
    monkeypatch.setattr(training, "_compiled_update", lambda *_: without)
    model, (x, y) = model_of(loss), people(loss)
    selfcheck.check(model, LOSSES[loss], 7, 1, engine)
    result = train_round(
        model, parameters(model), x, y, PLAN, steps=1, learning_rate=1.0, loss=loss,
        expected_persons=N, engine=engine,
    )  # fmt: skip
    start = parameters(model)
    moved = np.concatenate([(start[n].astype(float) - result.arrays[n]).ravel() for n in start])
    summed = np.zeros(len(moved))
    for sample, numbers in zip(torch.from_numpy(x), torch.from_numpy(y), strict=True):
        model.zero_grad()
        LOSSES[loss](model(sample[None])[0], numbers).backward()
        own = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).double()
        summed += (own * min(1.0, PLAN.clip_norm / max(1e-9, float(own.norm())))).numpy()
    assert moved * N == pytest.approx(summed, abs=2e-4)
    assert np.isfinite(result.loss_mean)


# -- the table of the final model ------------------------------------------------------------------

ODD = [math.nan, math.inf, -math.inf, 3e38, -3e38, 0.0, 1.0, -1.0, 77.0, 0.5]
number = st.one_of(st.sampled_from(ODD), st.floats(width=32))


@pytest.mark.parametrize("loss", TARGETS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_table__one_patient_with_any_numbers__is_at_most_one_unit_long(
    loss: str, data: st.DataObject
) -> None:
    _, outputs = TARGETS[loss]
    records = data.draw(st.integers(1, 4))
    width = math.prod(LOSSES[loss].target((outputs,)))
    given_ = data.draw(st.lists(number, min_size=records * outputs, max_size=records * outputs))
    wanted = data.draw(st.lists(number, min_size=records * width, max_size=records * width))
    shape = (records, *LOSSES[loss].target((outputs,)))
    counted = looks.table(
        loss,
        np.array(given_, np.float32).reshape(records, outputs),
        np.array(wanted, np.float32).reshape(shape),
        np.full(records, 1 / records),
    )
    assert counted.shape == (looks.cells(loss, outputs),)
    assert np.isfinite(counted).all() and np.linalg.norm(counted) <= 1 + 1e-12


@pytest.mark.parametrize("loss", [name for name in TARGETS if name != "output"])
def test_score_sum__batches_in_secret_slots__is_the_table_of_everybody(loss: str) -> None:
    model, (x, y) = model_of(loss), people(loss)
    total = score_sum(model, by_patient(x, y, None, 1), loss, N, training.SecureRandom())
    with torch.no_grad():
        outputs = model(torch.from_numpy(x)).numpy()
    # outputs are float32, rounded by the batch that they are worked out in
    assert total.numpy() == pytest.approx(looks.table(loss, outputs, y, np.ones(N)), abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "outputs", "one"),
    [
        ("binary_cross_entropy", 1, True),
        ("cross_entropy", 2, True),
        ("cross_entropy", 3, False),
        ("squared_error", 1, False),
        ("multilabel_soft_margin", 2, False),
        ("logistic_hazard", 1, True),
        ("logistic_hazard", 3, False),
        ("output", 1, False),
    ],
)
def test_is_one_yes_no__intervals_as_wide_as_expected__where_it_is(
    loss: str, outputs: int, one: bool
) -> None:
    assert looks.is_one_yes_no(loss, outputs) == one
    if loss != "logistic_hazard":
        return
    # 3,000 patients, one in five with an event in the first interval, and no later one at risk
    seen = np.zeros((3000, outputs))
    seen[:, 0] = 1
    events = seen * (np.arange(3000) % 5 == 0)[:, None]
    wanted = np.concatenate([events, seen], axis=1)
    counts = looks.table(loss, np.zeros((3000, outputs)), wanted, np.ones(3000))
    found = looks.figures(loss, outputs, [counts.tolist()], 10.0)["accuracy"]
    expected = expected_intervals([3000], 10.0)["one_in_five"]["accuracy"]
    assert (found["high"] - found["low"] < 1.5 * expected) == one


def test_figures__of_classes__are_exact_without_noise_and_hold_the_truth_with_it() -> None:
    chance = np.random.default_rng(5)
    outputs = chance.normal(size=(4000, 5))
    y = np.where(chance.random(4000) < 0.6, outputs.argmax(1), chance.integers(0, 5, 4000))
    counts = looks.table("cross_entropy", outputs, y, np.ones(4000))
    exact = looks.figures("cross_entropy", 5, [counts.tolist()], 1e-9)
    right = outputs.argmax(1) == y
    assert exact["accuracy"]["value"] == pytest.approx(right.mean())
    for i, one in enumerate(exact["classes"]):
        assert one["share"]["value"] == pytest.approx((y == i).mean())
        assert one["recall"]["value"] == pytest.approx(right[y == i].mean())
    held = 0
    for _ in range(400):
        noised = [counts + 8 * chance.normal(size=25), 8 * chance.normal(size=25)]
        found = looks.figures("cross_entropy", 5, [t.tolist() for t in noised], 8.0)
        held += found["accuracy"]["low"] <= right.mean() <= found["accuracy"]["high"]
        recall = found["classes"][2]["recall"]
        held += recall["low"] <= right[y == 2].mean() <= recall["high"]
    assert 0.93 < held / 800 < 0.97


def test_figures__of_a_number__are_exact_without_noise_and_hold_the_truth_with_it() -> None:
    chance = np.random.default_rng(6)
    y = chance.uniform(size=3000)
    outputs = (y + 0.1 * chance.normal(size=3000))[:, None]
    counts = looks.table("squared_error", outputs, y, np.ones(3000))
    errors = (np.clip(outputs[:, 0], 0, 1) - y) ** 2
    truth = {
        "mean": y.mean(),
        "rmse": math.sqrt(errors.mean()),
        "r2": 1 - errors.mean() / y.var(),
    }
    exact = looks.figures("squared_error", 1, [counts.tolist()], 1e-9)
    assert {name: figure["value"] for name, figure in exact.items()} == pytest.approx(truth)
    held = dict.fromkeys(truth, 0)
    for _ in range(300):
        noised = [counts + 4 * chance.normal(size=4), 4 * chance.normal(size=4)]
        found = looks.figures("squared_error", 1, [t.tolist() for t in noised], 4.0)
        for name, figure in found.items():
            held[name] += figure["low"] <= truth[name] <= figure["high"]
    assert 0.91 < held["mean"] / 300 < 0.99 and 0.91 < held["rmse"] / 300 < 0.99
    assert held["r2"] / 300 > 0.95  # three intervals at once: wider than need be


def test_figures__labels_and_hazards__are_those_of_each_yes_and_no() -> None:
    chance = np.random.default_rng(7)
    outputs = chance.normal(size=(2000, 3)) * 2
    y = (chance.random((2000, 3)) < 1 / (1 + np.exp(-outputs))).astype(float)
    counts = looks.table("multilabel_soft_margin", outputs, y, np.ones(2000))
    found = looks.figures("multilabel_soft_margin", 3, [counts.tolist()], 1e-9)
    for i, one in enumerate(found["labels"]):
        right = ((outputs[:, i] >= 0) == (y[:, i] > 0)).mean()
        assert one["accuracy"]["value"] == pytest.approx(right, abs=1e-6)
    assert found["accuracy"]["value"] == pytest.approx(
        np.mean([one["accuracy"]["value"] for one in found["labels"]])
    )
    at_risk = np.ones_like(y)
    hazards = looks.table("logistic_hazard", outputs, np.hstack([y, at_risk]), np.ones(2000))
    assert len(hazards) == CELLS
    rate = looks.figures("logistic_hazard", 3, [hazards.tolist()], 1e-9)["event_rate"]["value"]
    assert rate == pytest.approx(y.mean(), abs=1e-6)


# -- schemas of statistics -------------------------------------------------------------------------


def test_schema__under_output__the_targets_numbers_follow_the_features() -> None:
    features = [{"name": "age", "centre": 50, "scale": 10}]
    several = {"name": "found", "kind": "several yes/no", "columns": ["a", "b"]}
    schema = Schema.from_dict({"features": features, "target": several})
    assert schema.inputs("multilabel_soft_margin") == (1,) and schema.inputs("output") == (3,)
    assert schema.losses == {"multilabel_soft_margin": 2, "output": 1}
