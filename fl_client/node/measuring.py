"""A column's usual value and spread where no public source has them: noised, and charged to the
lifetime of every patient in the table before it is drawn, whether the table is listed yet or not.
Knows nothing of chains, hubs or jobs.

Values are clipped to bounds that the owner states from public knowledge, and averaged over each
patient's records, so that a patient adds one vector (1, z, z^2) with z from -1 to 1, whose length
is at most the root of 3, to a sum that leaves with Gaussian noise. The budget that is opened for
it binds the same patients when the table is listed (cohorts follow patients, not names).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fl_client.data.features import Feature
from fl_client.data.fields import number
from fl_client.data.manifests import PLATFORM_MINIMUM_PERSONS, check_cohort
from fl_client.data.schemas import Schema
from fl_client.data.sources import Source
from fl_client.data.tables import Records, load
from fl_client.data.targets import Target
from fl_client.errors import DatasetError
from fl_client.node.config import NodeConfig
from fl_client.node.served import members_of, open_ledger, say_dropped
from fl_client.privacy.accounting import gaussian_noise
from fl_client.privacy.evaluation import Z95
from fl_client.privacy.noise import SecureRandom, released
from fl_client.privacy.plan import Charge

SENSITIVITY = math.sqrt(3)  # the longest (1, z, z^2)
DIGITS = 3
CLEAR = 10  # patients for every one of the noise's standard deviation


@dataclass(frozen=True)
class Figure:
    """A figure and the 95 % interval that covers its noise."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """Mean and standard deviation over patients, or more noise than signal where `vague`.
    `epsilon_spent` is the largest lifetime epsilon of anybody in the table, this included, at
    `delta`.
    """

    column: str
    centre: Figure
    scale: Figure
    vague: bool
    epsilon_spent: float
    delta: float


def measure(
    config: NodeConfig,
    source: Source,
    column: str,
    low: float,
    high: float,
    epsilon: float,
    lifetime_epsilon: float,
    delta: float,
) -> Measured:
    """Measure `column` of a table between `low` and `high` for `epsilon`, out of a lifetime that
    binds everybody in it from here on. Raises DatasetError, PlanError for an epsilon out of range,
    BudgetExceeded before anything is drawn.
    """
    low, high = number("low", low), number("high", high)
    number("high - low", high - low)
    if low >= high:
        raise DatasetError(f"low={low:g} must be less than high={high:g}: what a patient can have")
    noise = gaussian_noise(epsilon, delta)
    ledger, secret = open_ledger(config.folder)
    records = load(_only(source, column), _schema(column, low, high), secret)
    say_dropped(records, source)
    # who has withdrawn from what is listed takes no part in this either
    records = records.without({key for one in config.datasets for key in one.withdrawn_keys})
    check_cohort(records.persons, PLATFORM_MINIMUM_PERSONS)
    total = [math.fsum(one) for one in contributions(records).T]
    members = members_of(records)
    name = f"measuring {members.content[:22]}"
    ledger.open_dataset(name, lifetime_epsilon, delta)
    ledger.set_members(name, members)
    ledger.charge(name, Charge(noise, 1.0, 1, f"measuring {column}"[:200]))
    noised = released(np.array(total), SENSITIVITY, noise, SecureRandom())
    sd = noise * SENSITIVITY
    centre, scale = _figures(noised, sd, low, high)
    vague = bool(noised[0] < CLEAR * sd) or scale.low <= 0
    return Measured(column, centre, scale, vague, ledger.epsilon_spent(name), delta)


def _only(source: Source, column: str) -> Source:
    """The source with nothing said of columns that are not asked for."""
    return replace(source, columns={column: source.column(column)})


def _schema(column: str, low: float, high: float) -> Schema:
    """One input: from -1 at `low` to 1 at `high`. Nothing is learned, so the target is the same."""
    half = (high - low) / 2
    return Schema((Feature(column, low + half, half),), Target(column, 0.0))


def contributions(records: Records) -> np.ndarray:
    """float64 [persons, 3]: what each patient adds."""
    z = np.clip(np.asarray(records.features[:, 0], dtype=np.float64), -1, 1)
    if records.patients is not None:
        each = np.bincount(records.patients)
        z = np.clip(np.bincount(records.patients, weights=z) / each, -1, 1)
    return np.column_stack([np.ones_like(z), z, z * z])


def _figures(noised: np.ndarray, sd: float, low: float, high: float) -> tuple[Figure, Figure]:
    """Mean and standard deviation of what the noised sums say, each with all that it can be where
    the true sums lie within Z95 standard deviations of the noise, in whatever direction: of a
    quotient that is Fieller's interval. Post-processing: it costs nothing.
    """
    half = (high - low) / 2
    if noised[0] <= Z95 * sd:  # perhaps nobody: nothing is known
        return _figure(low + half, np.array([low, high])), _figure(half / 2, np.array([0.0, half]))
    mean, spread = _moments(noised[None])
    means, spreads = _moments(noised + Z95 * sd * _DIRECTIONS)
    return (
        _figure(low + half + half * float(mean[0]), low + half + half * means),
        _figure(half * float(spread[0]), half * spreads),
    )


def _moments(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = np.clip(sums[:, 1] / sums[:, 0], -1, 1)
    return mean, np.sqrt(np.clip(sums[:, 2] / sums[:, 0] - mean * mean, 0, 1))


def _figure(value: float, around: np.ndarray) -> Figure:
    # ends are rounded outwards: to the nearest, an interval narrower than a digit would lie beside
    # what it holds
    ends = _rounded(float(around.min()), math.floor), _rounded(float(around.max()), math.ceil)
    return Figure(_rounded(value, round), *ends)


def _rounded(value: float, how: Callable[[float], int]) -> float:
    """To so many DIGITS."""
    if value == 0:
        return 0.0
    digits = DIGITS - 1 - math.floor(math.log10(abs(value)))
    return float(f"{how(value * 10.0**digits) / 10.0**digits:.{DIGITS}g}")


def _directions() -> np.ndarray:
    """Points [4000, 3] all over a sphere, evenly (a Fibonacci lattice)."""
    number = np.arange(4000) + 0.5
    z, turn = 1 - number / 2000, number * math.pi * (1 + math.sqrt(5))
    flat = np.sqrt(1 - z * z)
    return np.column_stack([flat * np.cos(turn), flat * np.sin(turn), z])


_DIRECTIONS = _directions()
