"""Default plans: what they do with more patients, inputs and epsilon, and that a buyer's own values
win.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_client.errors import PlanError
from fl_client.model.export import export_model
from fl_client.model.families import build
from fl_client.model.graph import load_model, parameters
from fl_client.privacy import accounting
from fl_client.privacy.defaults import MODEL, Plan, distance, metric_clip, plan, whole_noise
from fl_client.privacy.plan import Charge
from tests.conftest import spec

hospitals = st.lists(st.integers(10, 10**6), min_size=1, max_size=64)


@given(
    st.sampled_from([MODEL, "mlp", None]),
    hospitals,
    st.integers(1, 10_000),
    st.floats(1e-3, 100),
    st.floats(1e-12, 1e-2),
)
def test_plan__anything_public__is_one_that_a_job_may_have(
    model: str | None, persons: list[int], inputs: int, epsilon: float, delta: float
) -> None:
    found = plan(model, persons, inputs, epsilon, delta)
    assert 10 <= found.rounds <= 60 and 1 <= found.local_steps <= 2
    assert 0 < found.learning_rate <= 1e4 and math.isfinite(found.learning_rate)
    assert 1 <= found.clip_norm <= 4 and found.sampling_rate == 1.0
    assert 0 <= found.server_momentum <= 0.99 and 1 <= found.average_last <= found.rounds
    assert spec(
        server_momentum=found.server_momentum,
        server_rates=found.server_rates,
        learning_rate=found.learning_rate,
    )


@given(hospitals, st.integers(1, 200), st.floats(0.1, 8))
def test_distance__more_patients_or_epsilon__never_shorter(
    persons: list[int], inputs: int, epsilon: float
) -> None:
    far = distance(persons, inputs, epsilon, 1e-5)
    assert distance([2 * n for n in persons], inputs, epsilon, 1e-5) >= far
    assert distance(persons, inputs, 2 * epsilon, 1e-5) >= far
    assert distance(persons, 2 * inputs, epsilon, 1e-5) <= far


@given(
    st.integers(1, 100),
    st.integers(1, 10),
    st.floats(0.1, 10),
    st.floats(0, 0.95),
)
def test_plan__the_buyers_shape__travels_as_far_as_the_default(
    rounds: int, local_steps: int, clip_norm: float, momentum: float
) -> None:
    found = plan(
        MODEL,
        [500, 700],
        13,
        2.0,
        1e-5,
        rounds=rounds,
        local_steps=local_steps,
        clip_norm=clip_norm,
        server_momentum=momentum,
    )
    step = far = 0.0
    for _ in range(rounds):  # every gradient of full length in one direction
        step = momentum * step + local_steps * found.learning_rate * clip_norm
        far += step
    assert far == pytest.approx(distance([500, 700], 13, 2.0, 1e-5))


def test_plan__everything_named__is_what_was_named() -> None:
    named = {
        "rounds": 7,
        "local_steps": 3,
        "learning_rate": 0.25,
        "clip_norm": 2.0,
        "server_momentum": 0.5,
        "server_rates": {"w": 2.0},
    }
    for model in (MODEL, None):
        found = plan(model, [100], 5, 1.0, 1e-5, **named)  # type: ignore[arg-type]
        assert found == Plan(7, 3, 0.25, 2.0, 1.0, 0.5, {"w": 2.0}, 3 if model else 1)


def test_plan__a_model_of_ones_own__ten_plain_rounds() -> None:
    assert plan(None, [100], 5, 1.0, 1e-5) == Plan(10, 1, 1.0, 1.0, 1.0, 0.0, {}, 2)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf, 101.0])
def test_plan__epsilon_out_of_range__is_refused_by_name(epsilon: float) -> None:
    with pytest.raises(PlanError, match=r"epsilon=.* must be above 0 and at most 100"):
        plan(MODEL, [100], 5, epsilon, 1e-5)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0, 8.0])
def test_whole_noise__beside_the_accountant__costs_less_and_hardly_less(epsilon: float) -> None:
    noise = whole_noise(epsilon, 1e-5)
    assert accounting.epsilon([Charge(noise, 1.0, 1, "whole budget")], 1e-5) <= epsilon
    assert accounting.epsilon([Charge(noise / 1.3, 1.0, 1, "whole budget")], 1e-5) > epsilon


def test_metric_clip__little_noise__leaves_rare_events_visible() -> None:
    assert metric_clip(20.0, [100_000] * 4) == 4.0  # an event that was given 2 % counts in full
    assert metric_clip(500.0, [100, 200]) == 1.0
    assert 1.0 < metric_clip(100.0, [2_500] * 4) < 4.0


def test_plan__logistic_regression__the_rates_name_its_parameters() -> None:
    model = load_model(*export_model(build(MODEL, 3), torch.zeros(1, 3)))
    assert set(plan(MODEL, [100], 3, 1.0, 1e-5).server_rates) == {"bias"} < set(parameters(model))
