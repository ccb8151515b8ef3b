"""What a job may take from each patient: one frozen plan for training, ledger and report. Pure;
knows no accountant.

Neighbouring relation: add or remove one patient with all records (one record, where no patient
column is named). Every number that leaves a node is the output of one of the Gaussian mechanisms
that `PrivacyPlan.charges` lists, and of nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fl_client.errors import PlanError

METRICS = "metrics"
LEAST_NOISE = 0.01  # of any mechanism in a ledger


@dataclass(frozen=True)
class Charge:
    """`steps` runs of a Poisson-subsampled Gaussian mechanism: noise sd = noise_multiplier *
    sensitivity.

    Sensitivity is the largest change of the sum when one patient is added or removed. `what` is for
    people to read.
    Raises PlanError for a number out of range.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int
    what: str

    def __post_init__(self) -> None:
        _number(
            "noise_multiplier", self.noise_multiplier, LEAST_NOISE, 1e6
        )  # wider than a plan's: history must stay readable
        _number("sampling_rate", self.sampling_rate, 1e-9, 1.0)
        _whole("steps", self.steps, 1, 10**12)  # a ledger adds equal mechanisms up over a lifetime


@dataclass(frozen=True)
class PrivacyPlan:
    """The privacy terms of one job at each hospital.

    noise_multiplier        noise sd of a summed gradient, in units of clip_norm
    clip_norm               largest L2 norm of one patient's gradient
    sampling_rate           chance of each patient to be in a step (Poisson)
    steps                   noisy gradient steps over the whole job
    delta                   the delta at which epsilon is stated
    metric_noise_multiplier noise sd of a summed loss, in units of metric_clip
    metric_clip             largest loss that one patient counts with
    metric_steps            how many noisy loss sums are released
    """

    noise_multiplier: float
    clip_norm: float
    sampling_rate: float
    steps: int
    delta: float
    metric_noise_multiplier: float
    metric_clip: float
    metric_steps: int

    def __post_init__(self) -> None:
        _number("noise_multiplier", self.noise_multiplier, 0.3, 1e4)
        _number("clip_norm", self.clip_norm, 1e-4, 1e4)
        _number("sampling_rate", self.sampling_rate, 1e-6, 1.0)
        _whole("steps", self.steps, 1, 100_000)
        _number("delta", self.delta, 1e-12, 1e-2)
        _number("metric_noise_multiplier", self.metric_noise_multiplier, 0.3, 1e5)
        _number("metric_clip", self.metric_clip, 1e-3, 1e4)
        _whole("metric_steps", self.metric_steps, 1, 100_000)
        if self.score_noise_multiplier < LEAST_NOISE:
            raise PlanError(
                f"metric_noise_multiplier={self.metric_noise_multiplier:g} is too small for "
                "metric_steps="
                f"{self.metric_steps}: divided by their root it must be at least {LEAST_NOISE}"
            )

    def charges(self) -> tuple[Charge, ...]:
        """Every mechanism of the whole job."""
        return (
            Charge(self.noise_multiplier, self.sampling_rate, self.steps, "training"),
            Charge(self.metric_noise_multiplier, 1.0, self.metric_steps, METRICS),
            Charge(self.score_noise_multiplier, 1.0, 1, METRICS),
        )

    @property
    def score_noise_multiplier(self) -> float:
        """Noise sd of each count of the table of scores that is released once, at the end.

        That one table costs as much as all the losses together: rho = 1 / (2 sigma^2) adds up.
        """
        return self.metric_noise_multiplier / math.sqrt(self.metric_steps)

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Any) -> PrivacyPlan:
        """The plan in `value`; raises PlanError naming the field that is missing, unknown or out of
        range.
        """
        fields = set(cls.__dataclass_fields__)
        if not isinstance(value, Mapping):
            raise PlanError(
                f"plan={_shown(value)} must be an object with the fields {sorted(fields)}"
            )
        if wrong := sorted(_shown(name) for name in set(value) ^ fields):
            raise PlanError(
                f"plan must have exactly the fields {sorted(fields)}; look at {', '.join(wrong)}"
            )
        return cls(**value)


def _shown(value: object) -> str:
    return repr(value)[:80]


def _number(name: str, value: object, low: float, high: float) -> None:
    if type(value) is not float or not math.isfinite(value) or not low <= value <= high:
        raise PlanError(
            f"{name}={_shown(value)} must be a number (with a decimal point) from {low:g} to "
            f"{high:g}"
        )


def _whole(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise PlanError(f"{name}={_shown(value)} must be a whole number from {low} to {high}")
