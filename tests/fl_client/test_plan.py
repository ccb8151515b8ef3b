"""The plan is strict about every field, and lists every mechanism of a job."""

import json
import math
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_client.errors import NodeError, PlanError
from fl_client.privacy.plan import Charge, PrivacyPlan

PLAN = PrivacyPlan(
    noise_multiplier=1.5,
    clip_norm=1.0,
    sampling_rate=0.5,
    steps=60,
    delta=1e-5,
    metric_noise_multiplier=20.0,
    metric_clip=2.0,
    metric_steps=10,
)

RANGES = {
    "noise_multiplier": (0.3, 1e4),
    "clip_norm": (1e-4, 1e4),
    "sampling_rate": (1e-6, 1.0),
    "steps": (1, 100_000),
    "delta": (1e-12, 1e-2),
    "metric_noise_multiplier": (0.3, 1e5),
    "metric_clip": (1e-3, 1e4),
    "metric_steps": (1, 100_000),
}


def _in_range(name: str) -> st.SearchStrategy:
    low, high = RANGES[name]
    return st.integers(low, high) if isinstance(low, int) else st.floats(low, high)


fields = st.fixed_dictionaries({name: _in_range(name) for name in RANGES})
enough_noise = fields.filter(
    lambda f: f["metric_noise_multiplier"] / math.sqrt(f["metric_steps"]) >= 0.01
)
plans = enough_noise.map(lambda f: PrivacyPlan(**f))


def test_plan__table_of_scores_almost_without_noise__refuses() -> None:
    with pytest.raises(
        PlanError, match=r"metric_noise_multiplier=0\.3 is too small for metric_steps=1000"
    ):
        replace(PLAN, metric_noise_multiplier=0.3, metric_steps=1000)


@given(plans)
def test_from_dict__through_json__gives_the_same_plan(plan: PrivacyPlan) -> None:
    assert PrivacyPlan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan


@given(plans)
def test_charges__any_plan__name_every_mechanism_with_all_its_steps(plan: PrivacyPlan) -> None:
    training, metric, scores = plan.charges()
    # the one table at the end costs as much as all losses: rho adds up as 1 / sigma^2
    assert scores.steps == 1 and scores.noise_multiplier**-2 == pytest.approx(
        metric.steps / metric.noise_multiplier**2
    )
    assert (training.noise_multiplier, training.sampling_rate, training.steps) == (
        plan.noise_multiplier,
        plan.sampling_rate,
        plan.steps,
    )
    # losses are summed over all patients, so the metric enjoys no amplification by sampling
    assert (metric.noise_multiplier, metric.sampling_rate, metric.steps) == (
        plan.metric_noise_multiplier,
        1.0,
        plan.metric_steps,
    )


def _outside(name: str) -> list[object]:
    low, high = RANGES[name]
    if isinstance(low, int):
        return [low - 1, high + 1, True, float(low), "7", None, [low], math.nan]
    return [
        low * 0.99,
        high * 1.01,
        0.0,
        -low,
        1,
        True,
        "1.0",
        None,
        math.nan,
        math.inf,
        -math.inf,
        [low],
        10**400,
    ]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in RANGES for value in _outside(name)]
)
def test_from_dict__one_field_wrong__names_field_value_and_range(name: str, value: object) -> None:
    with pytest.raises(PlanError) as refused:
        PrivacyPlan.from_dict({**PLAN.as_dict(), name: value})
    low, high = RANGES[name]
    assert f"{name}={repr(value)[:80]} must be" in str(refused.value)
    assert f"from {low:g} to {high:g}" in str(refused.value) or f"from {low} to {high}" in str(
        refused.value
    )


@pytest.mark.parametrize("value", [None, 3, "plan", [], [("steps", 1)]])
def test_from_dict__not_an_object__refuses(value: object) -> None:
    with pytest.raises(PlanError, match="must be an object"):
        PrivacyPlan.from_dict(value)


@pytest.mark.parametrize("extra", ["epsilon", 7, ("steps",)])
def test_from_dict__unknown_field__is_named(extra: object) -> None:
    with pytest.raises(PlanError, match="look at") as refused:
        PrivacyPlan.from_dict({**PLAN.as_dict(), extra: 1.0})
    assert repr(extra) in str(refused.value)


@pytest.mark.parametrize("name", list(RANGES))
def test_from_dict__missing_field__is_named(name: str) -> None:
    with pytest.raises(PlanError, match=f"look at '{name}'"):
        PrivacyPlan.from_dict({k: v for k, v in PLAN.as_dict().items() if k != name})


def test_plan__assigned_to__stays_as_it_is() -> None:
    with pytest.raises(FrozenInstanceError):
        PLAN.steps = 1  # type: ignore[misc]


def test_replace__out_of_range__refuses_like_a_new_plan() -> None:
    with pytest.raises(PlanError, match=r"delta=0\.5 must be"):
        replace(PLAN, delta=0.5)


@pytest.mark.parametrize(
    "charge",
    [
        (0.0, 0.1, 1),
        (math.nan, 0.1, 1),
        (1.0, 0.0, 1),
        (1.0, 1.1, 1),
        (1.0, 0.1, 0),
        (1.0, 0.1, True),
        (1, 0.1, 1),
    ],
)
def test_charge__out_of_range__refuses(charge: tuple) -> None:
    with pytest.raises(PlanError):
        Charge(*charge, what="test")


def test_plan_error__caught_as_node_error__at_the_door() -> None:
    assert issubclass(PlanError, NodeError)
