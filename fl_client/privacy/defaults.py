"""The plan that a job gets where its buyer names none: from public counts to rounds and step sizes.

Pure arithmetic on what the catalogue shows (released counts, width of the schema) and on what the
buyer asks for (epsilon, delta); nothing here depends on a patient. Knows nothing of orders or
models beyond their names. A buyer's own arguments always win.

How far a model travels, D = clip_norm * (sum of the learning rates of all steps, each with what
momentum carries on), decides: with everybody in every step, a fixed budget and no curvature, the
noise in each weight is D / S whatever the number of steps, where S = persons / (w sqrt(hospitals)),
w is the noise multiplier of the whole budget spent at once, and each hospital adds its own noise.
Few patients or a small epsilon gain nothing from a long way, many inputs pay for it in every
weight, and rare outcomes need a long one, since their gradients are small; how rare they are is not
public. Until the constant term is where it belongs, every patient pulls the same way, and rare
outcomes keep it far from there; so the server takes its noised step four times, which no patient
pays for and no ranking of patients sees. Local steps would save messages but let hospitals
drift apart (0.004 AUC over 18 sites); momentum saves rounds for nothing.

The constants were fitted on 60 made-up tables (200 to 16,000 patients, 5 to 200 inputs, 1 to 50 %
events, 1 to 10 hospitals) with a heart disease and a stroke data set in view, at epsilon 0.5 to 8;
`python -m tests.benchmarks.utility --plans` measures on held-out patients what they lose to the
best plan of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fl_client.errors import PlanError

MODEL = "logistic_regression"  # the model that the fitted rule is for
RATES = {"bias": 4.0}  # of its parameters, on the server


@dataclass(frozen=True)
class Plan:
    """What the buyer may name and has not: `learning_rate` is of each local step, `average_last`
    the number of last rounds whose models the result is the mean of.
    """

    rounds: int
    local_steps: int
    learning_rate: float
    clip_norm: float
    sampling_rate: float
    server_momentum: float
    server_rates: Mapping[str, float]
    average_last: int


def plan(
    model: str | None,
    persons: Sequence[int],
    inputs: int,
    epsilon: float,
    delta: float,
    *,
    rounds: int | None = None,
    local_steps: int | None = None,
    learning_rate: float | None = None,
    clip_norm: float | None = None,
    server_momentum: float | None = None,
    server_rates: Mapping[str, float] | None = None,
) -> Plan:
    """The plan for `model` (a built-in name; None for a model of the buyer's own) over hospitals of
    so many released `persons`, with the buyer's own values wherever they are given.

    Logistic regression: D by `distance`; D / 8 steps (more change nothing that was measured, fewer
    are too long) in 20 to 60 rounds, as a round costs about a second of messages, of one or two
    steps each; clip sqrt(S / 2,000) within 1 and 4, as clipping hides rare outcomes where noise no
    longer does; everybody in every step (sampling pays where a step is too slow, not
    before), momentum 0.5, the constant term's steps times 4, and the mean of the later half of the
    models, which costs nothing and makes too long a way harmless. Other models: 10 rounds of one
    step of 1.0 without momentum, and the last quarter. Raises PlanError for an epsilon or delta out
    of range.
    """
    if not 0 < epsilon <= 100:
        raise PlanError(f"epsilon={epsilon!r} must be above 0 and at most 100")
    if not 0 < delta < 1:
        raise PlanError(f"delta={delta!r} must be between 0 and 1")
    fitted = model == MODEL
    far = distance(persons, inputs, epsilon, delta)
    steps = math.ceil(far / 8) if fitted else 10
    usual = min(60, max(20, steps)) if fitted else 10
    number = usual if rounds is None else rounds
    local = (
        min(2, max(1, math.ceil(steps / max(1, number)))) if local_steps is None else local_steps
    )
    wide = min(4.0, max(1.0, math.sqrt(signal(persons, epsilon, delta) / 2000))) if fitted else 1.0
    clip = wide if clip_norm is None else clip_norm
    momentum = (0.5 if fitted else 0.0) if server_momentum is None else server_momentum
    rate = learning_rate
    if rate is None:
        rate = step_length(far, number, local, clip, momentum) if fitted else 1.0
    last = max(1, number // (2 if fitted else 4))
    rates = (RATES if fitted else {}) if server_rates is None else server_rates
    return Plan(number, local, rate, clip, 1.0, momentum, dict(rates), last)


def step_length(
    far: float, rounds: int, local_steps: int, clip_norm: float, momentum: float
) -> float:
    """The learning rate that travels `far` in all: round t of `rounds` moves by its own steps and
    by momentum^k of those of k rounds before. Numbers that no plan allows are taken to the nearest.
    """
    m, number = min(0.99, max(0.0, momentum)), max(1, rounds)
    steps = (number - m * (1 - m**number) / (1 - m)) / (1 - m)
    return far / (steps * max(1, local_steps) * max(1e-4, clip_norm))


def distance(persons: Sequence[int], inputs: int, epsilon: float, delta: float) -> float:
    """D of a logistic regression: S^1.5 / (13 inputs^0.25), from 2 up to 2,000 and to a fifth of
    the patients, since a few fit too well even without noise (see the top).
    """
    far = math.pow(signal(persons, epsilon, delta), 1.5) / (13 * math.pow(max(1, inputs), 0.25))
    return max(2.0, min(2000.0, sum(persons) / 5, far))


def signal(persons: Sequence[int], epsilon: float, delta: float) -> float:
    """S: how many patients there are for one unit of noise (see the top)."""
    return sum(persons) / (whole_noise(epsilon, delta) * math.sqrt(len(persons)))


def whole_noise(epsilon: float, delta: float) -> float:
    """The noise multiplier of a budget that is spent on one Gaussian mechanism, a little too large:
    epsilon = rho + 2 sqrt(rho ln(1 / delta)), rho = 1 / (2 w^2) (Bun & Steinke 2016, 1605.02065,
    proposition 1.3).
    """
    log = -math.log(delta)
    return 1 / (math.sqrt(2) * (math.sqrt(log + epsilon) - math.sqrt(log)))


def metric_clip(metric_noise_multiplier: float, persons: Sequence[int]) -> float:
    """The largest loss that one patient counts with in the mean losses that are released.

    A small clip hides rare events (one that was given 1 % has a loss of 4.6), a large one has
    proportionally more noise: sqrt(0.04 / noise of the mean at a clip of 1) within 1 and 4 keeps
    the error of both together near its least for 1 to 50 % events.
    """
    noise: float = metric_noise_multiplier * math.sqrt(len(persons)) / sum(persons)
    return min(4.0, max(1.0, math.sqrt(0.04 / noise)))
