"""How often the 95 % intervals of a report hold the exact figure on the same patients, and how wide
they are.

Made-up scores of eleven kinds at event rates from 0.5 to 50 %, tables and figures by
`fl_client.privacy.evaluation`, noise of four sizes. Called by
`python -m tests.benchmarks.utility --coverage`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fl_client.privacy.evaluation import CELLS, figures, table

RATES = (0.005, 0.02, 0.07, 0.2, 0.5)
PATIENTS = (1_000, 10_000, 100_000)
NOISES = (1.0, 5.0, 15.0, 50.0)
NAMES = ("auc", "accuracy", "event_rate")
Draw = tuple[np.ndarray, np.ndarray, float]  # true logits, outcomes, the middle of the logits


def _logistic(patients: int, rate: float, random: np.random.Generator) -> Draw:
    spread = 1.2 * random.standard_normal(patients)
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if _chance(spread + middle).mean() > rate else (middle, high)
    logits = spread + middle
    return logits, (random.random(patients) < _chance(logits)).astype(np.float64), middle


def _chance(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -80, 80))))


def _two_groups(
    logits: np.ndarray, y: np.ndarray, middle: float, random: np.random.Generator
) -> np.ndarray:
    likely = random.random(len(y)) < np.where(y > 0, 0.7, 0.3)
    return middle + np.where(likely, 2.5, -0.8) + 0.2 * random.standard_normal(len(y))


Kind = Callable[[np.ndarray, np.ndarray, float, np.random.Generator], np.ndarray]
# from true logits, outcomes and the middle to the scores of a model
KINDS: Mapping[str, Kind] = {
    "calibrated": lambda x, y, m, r: x,
    "overconfident": lambda x, y, m, r: 3 * x,
    "timid": lambda x, y, m, r: m + 0.3 * (x - m),
    "shifted": lambda x, y, m, r: x + 2,
    "saturated": lambda x, y, m, r: m + 25 * (x - m),
    "nearly constant": lambda x, y, m, r: m + 0.01 * (x - m),
    "nearly random": lambda x, y, m, r: m + 0.15 * (x - m) + 0.5 * r.standard_normal(len(x)),
    "backwards": lambda x, y, m, r: 2 * m - x,
    "heavy tails": lambda x, y, m, r: x + r.standard_t(2, len(x)),
    "two groups": lambda x, y, m, r: _two_groups(x, y, m, r),
    "very good": lambda x, y, m, r: m + 2.5 * y + r.standard_normal(len(x)),
}


@dataclass(frozen=True)
class Cell:
    """Of one kind at one event rate, size and noise: part of the intervals that hold and their mean
    width, by figure.
    """

    kind: str
    rate: float
    patients: int
    noise: float
    held: Mapping[str, float]
    width: Mapping[str, float]


def measure(cohorts: int, draws: int) -> Iterator[Cell]:
    """Every cell with at least five expected events, `draws` noised tables of each of `cohorts`."""
    random = np.random.default_rng(0)
    for kind, score in KINDS.items():
        for rate in RATES:
            for patients in PATIENTS:
                if rate * patients < 5:
                    continue
                made = []
                while len(made) < cohorts:
                    logits, y, middle = _logistic(patients, rate, random)
                    if y.sum() >= 3:
                        scores = score(logits, y, middle, random)
                        made.append((table(scores, y), _exact(scores, y)))
                for noise in NOISES:
                    yield _cell(kind, rate, patients, noise, made, draws, random)


def _cell(
    kind: str,
    rate: float,
    patients: int,
    noise: float,
    made: list[tuple[np.ndarray, dict[str, float]]],
    draws: int,
    random: np.random.Generator,
) -> Cell:
    held, width = dict.fromkeys(NAMES, 0.0), dict.fromkeys(NAMES, 0.0)
    for counts, exact in made:
        for _ in range(draws):
            found = figures([counts + noise * random.standard_normal(CELLS)], noise)
            for name in NAMES:
                low, high = found[name]["low"], found[name]["high"]
                held[name] += (low - 1e-9 <= exact[name] <= high + 1e-9) / (len(made) * draws)
                width[name] += (high - low) / (len(made) * draws)
    return Cell(kind, rate, patients, noise, held, width)


def _exact(scores: np.ndarray, y: np.ndarray) -> dict[str, float]:
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    ill = float(y.sum())
    pairs = ill * (len(y) - ill)
    return {
        "auc": float((ranks[y > 0].sum() - ill * (ill + 1) / 2) / pairs),
        "accuracy": float(((scores >= 0) == (y > 0)).mean()),
        "event_rate": float(y.mean()),
    }
