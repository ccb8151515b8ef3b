"""How good the final model is, in private numbers: noised counts of scores, and what follows from
them. Pure arithmetic.

Each patient puts one unit, in all, into a table of score cells by outcome, so that adding or
removing a patient moves the table by at most 1 in L2 norm; every cell gets Gaussian noise of the
plan's metric noise multiplier (Dwork & Roth 2014, appendix A). The cells are fixed intervals of the
logit, fine ones and groups of four of them: rare outcomes have small probabilities, which equal
intervals of probability would all throw together. A group costs one noise where its four cells
cost four, and least squares puts both together (a matrix mechanism of two levels: Li et al. 2010,
1009.5500).

Accuracy, AUC, the rate of events and calibration are computed from the noised table, which costs
nothing more. Their 95 % intervals cover the noise (Fieller 1954: for a quotient of noised sums they
hold however little signal there is) and, for the AUC, what is not known of the order within a cell.
They do not say how few the patients are: the exact figure that an interval holds is the one on the
patients that the model was trained on. Knows nothing of ledgers, messages or jobs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# edges of the logit; an edge at 0 is the threshold of accuracy
EDGES = np.concatenate([[-27.0, -18.0, -12.0], np.arange(-16, 17) / 2, [12.0, 18.0, 27.0]])
FINE = len(EDGES) + 1  # cells of one outcome
GROUP = 4  # fine cells of a group; the edges of groups are -8, -6, ..., 8
GROUPS = FINE // GROUP
CELLS = 2 * (GROUPS + FINE)  # outcome 0: groups, fine cells; then outcome 1
# a unit's part in its group and in its fine cell: squares sum to just under 1, exact in binary
IN_GROUP, IN_FINE = 3277 / 4096, 2457 / 4096
Z95 = 1.959964
LEAST_SIGNAL = 3.0  # a cell of calibration with fewer standard deviations of noise says nothing


def logits(outputs: np.ndarray, loss: str) -> np.ndarray:
    """The logit [n] of outcome 1 that outputs [n], [n, 1] or, by cross_entropy, [n, 2] stand for:
    never NaN, infinite where the model is certain.
    """
    given = outputs.astype(np.float64)
    with np.errstate(all="ignore"):
        if loss == "cross_entropy":
            found = given[:, 1] - given[:, 0]
        else:
            found = given.reshape(len(given))
    return np.where(np.isnan(found), 0.0, found)  # not a number is no opinion


def table(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Counts [CELLS] of logits [n] by target [n] (1 if above 0.5).

    `weights` [n] is each record's part of its patient's unit: 1 / records of the patient, 0 for a
    row that does not count; all 1 if left out. Any n, any numbers: never raises.
    """
    fine = np.searchsorted(EDGES, np.nan_to_num(logits, nan=0.0), side="right")
    outcome = (np.nan_to_num(targets, nan=0.0) > 0.5).astype(np.int64)
    parts = np.ones(len(fine)) if weights is None else weights.astype(np.float64)
    start = outcome * (GROUPS + FINE)
    groups = np.bincount(start + fine // GROUP, parts * IN_GROUP, minlength=CELLS)
    return groups + np.bincount(start + GROUPS + fine, parts * IN_FINE, minlength=CELLS)


def figures(tables: Sequence[Sequence[float]], noise_multiplier: float) -> dict[str, Any]:
    """Accuracy, AUC, event rate and calibration of the sum of several nodes' released tables, each
    {value, low, high}: the value and its 95 % interval.

    An interval from 0 to 1 says that the noise hides the figure. `calibration` has one entry per
    group of cells: its probabilities (`from`, `to`) and the part with outcome 1 (`rate`; None where
    hardly anybody is).
    """
    both = np.sum(np.asarray(tables, dtype=np.float64).reshape(-1, 2, CELLS // 2), axis=0)
    sd = noise_multiplier * math.sqrt(len(tables))
    everywhere, ones = np.ones(GROUPS), np.ones(FINE)
    no, yes = (_estimate(noised, everywhere, sd) for noised in both)
    near = _where_scores_are(no, yes)
    right = np.repeat([0.0, 1.0], FINE // 2)  # a yes from logit 0 on
    ends = _sigmoid(np.concatenate([[-math.inf], EDGES[GROUP - 1 :: GROUP], [math.inf]]))
    calibration = []
    for group in range(GROUPS):
        here = np.repeat(np.eye(GROUPS)[group], GROUP)
        seen = no.sum(here) + yes.sum(here)
        noise = math.sqrt(no.covariance(here, here) + yes.covariance(here, here))
        rate = _ratio((no, yes), (0 * ones, here), (here, here))
        rate_or_none = rate if seen > LEAST_SIGNAL * noise else None
        low, high = float(ends[group]), float(ends[group + 1])
        calibration.append({"from": low, "to": high, "rate": rate_or_none})
    return {
        "accuracy": _ratio((no, yes), (1 - right, right), (ones, ones)),
        "auc": _auc(_estimate(both[0], near[0], sd), _estimate(both[1], near[1], sd)),
        "event_rate": _ratio((no, yes), (0 * ones, ones), (ones, ones)),
        "calibration": calibration,
    }


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-logits)))


@dataclass(frozen=True)
class _Counts:
    """Unbiased estimates [FINE] of one outcome's counts; 0 outside the groups kept [FINE] (0 or 1).

    Within a group their covariance is `alone` * (identity - `shared`), between groups 0.
    """

    counts: np.ndarray
    kept: np.ndarray
    alone: float
    shared: float

    def sum(self, weights: np.ndarray) -> float:
        """Weighted sum of the counts."""
        return float((weights * self.counts).sum())

    def covariance(self, one: np.ndarray, other: np.ndarray) -> float:
        """Covariance of two weighted sums, by the noise."""
        one, other = one * self.kept, other * self.kept
        grouped = one.reshape(GROUPS, GROUP).sum(1) * other.reshape(GROUPS, GROUP).sum(1)
        return self.alone * (float((one * other).sum()) - self.shared * float(grouped.sum()))


def _estimate(noised: np.ndarray, kept: np.ndarray, sd: float) -> _Counts:
    """Least squares of a group's noised count and those of its cells: four cells of variance v and
    their sum of variance V give cell + k (sum - all four), k = v / (4 v + V).
    """
    groups, fine = noised[:GROUPS] / IN_GROUP, noised[GROUPS:].reshape(GROUPS, GROUP) / IN_FINE
    shared = IN_GROUP**2 / (GROUP * IN_GROUP**2 + IN_FINE**2)
    counts = fine + shared * (groups - fine.sum(1))[:, None]
    whole = np.repeat(kept, GROUP)
    return _Counts(counts.reshape(FINE) * whole, whole, (sd / IN_FINE) ** 2, shared)


def _where_scores_are(no: _Counts, yes: _Counts) -> tuple[np.ndarray, np.ndarray]:
    """Groups [GROUPS] that hold each outcome's patients: far cells hold noise alone, and an AUC
    that counts them is three times as uncertain.

    The more common outcome says where, so that the choice does not lean on the noise of the rarer
    one, which decides the AUC: its own groups with one more on each side, and the rarer one's
    where it reaches beyond them for certain.
    """
    sums = [one.counts.reshape(GROUPS, GROUP).sum(1) for one in (no, yes)]
    first = np.repeat(np.eye(GROUPS)[0], GROUP)
    variance = no.covariance(first, first)
    common = int(sums[1].sum() > sums[0].sum())
    main = _between(sums[common], variance, 1.5)
    main = np.convolve(main, np.ones(3), "same").clip(0, 1) if main.any() else np.ones(GROUPS)
    both = np.flatnonzero(main + _between(sums[1 - common], variance, 3.0))
    wide = np.zeros(GROUPS)
    wide[both[0] : both[-1] + 1] = 1.0
    return (wide, main) if common else (main, wide)


def _between(sums: np.ndarray, variance: float, least: float) -> np.ndarray:
    """Which groups [GROUPS] are left between the two ends when from each of them groups are taken
    off while their sum stays under `least` standard deviations of its noise.
    """
    noise = least * np.sqrt(variance * np.arange(1, GROUPS + 1))
    rising, falling = np.cumsum(sums) > noise, np.cumsum(sums[::-1]) > noise
    kept = np.zeros(GROUPS)
    if rising.any() and falling.any():
        kept[int(rising.argmax()) : GROUPS - int(falling.argmax())] = 1.0
    return kept


def quotient(
    top: float, below: float, variances: tuple[float, float, float], z: float = Z95
) -> dict[str, float]:
    """top / below with the set of t for which |top - t below| is at most `z` standard deviations;
    `variances` of top, of top with below, of below. 0 to 1 where that set has no end.
    """
    a = below**2 - z**2 * variances[2]
    if below <= 0 or a <= 0:
        return {"value": 0.5, "low": 0.0, "high": 1.0}
    b, c = top * below - z**2 * variances[1], top**2 - z**2 * variances[0]
    root = math.sqrt(max(0.0, b * b - a * c))
    low, value, high = (
        min(1.0, max(0.0, x)) for x in ((b - root) / a, top / below, (b + root) / a)
    )
    return {"value": value, "low": min(low, value), "high": max(high, value)}


def _ratio(
    classes: tuple[_Counts, _Counts],
    chosen: tuple[np.ndarray, np.ndarray],
    all_of: tuple[np.ndarray, np.ndarray],
) -> dict[str, float]:
    """Sum of the chosen over sum of all, of both outcomes' counts."""
    parts = list(zip(classes, chosen, all_of, strict=True))
    return quotient(
        sum(one.sum(c) for one, c, _ in parts),
        sum(one.sum(a) for one, _, a in parts),
        (
            sum(one.covariance(c, c) for one, c, _ in parts),
            sum(one.covariance(c, a) for one, c, a in parts),
            sum(one.covariance(a, a) for one, _, a in parts),
        ),
    )


def _auc(no: _Counts, yes: _Counts) -> dict[str, float]:
    """P(score of a yes > score of a no) + P(equal) / 2 on the same patients.

    Pairs in different cells are counted; those within a cell are taken to be ordered as the odds of
    a yes rise with the logit over the whole table (one slope: the difference of the two means over
    the common variance). That is a guess, so the interval is made wider by a part of those pairs
    that grows with the cell's part f of either outcome: f (1 + f) / 4, which is all that can be
    wrong where one cell holds everybody. Within cells, finite numbers of patients vary by chance as
    well: the variance of Mann & Whitney's statistic.
    """
    n, y = no.counts, yes.counts
    ones, total_n, total_y = np.ones(FINE), float(n.sum()), float(y.sum())
    some_n, some_y = np.maximum(n, 0.0), np.maximum(y, 0.0)
    if total_n <= 0 or total_y <= 0:
        return {"value": 0.5, "low": 0.0, "high": 1.0}
    within = 0.5 + _lean(_slope(no, yes) * np.diff(_ENDS))
    under = np.cumsum(n) - n + within * n  # no's under a yes of cell i
    over = total_y - np.cumsum(y) + within * y
    chance = (some_n * some_y) ** 2 / 12 * (1 / np.maximum(n, 1.0) + 1 / np.maximum(y, 1.0))
    found = quotient(
        float((y * under).sum()),
        total_n * total_y,
        (
            yes.covariance(under, under) + no.covariance(over, over) + float(chance.sum()),
            total_n * yes.covariance(under, ones) + total_y * no.covariance(over, ones),
            total_n**2 * yes.covariance(ones, ones) + total_y**2 * no.covariance(ones, ones),
        ),
    )
    of_n, of_y = some_n / some_n.sum(), some_y / some_y.sum()
    most = np.maximum(of_n, of_y)
    unsure = float((of_n * of_y * most * (1 + most) / 4).sum())
    low, high = max(0.0, found["low"] - unsure), min(1.0, found["high"] + unsure)
    return {"value": found["value"], "low": low, "high": high}


_ENDS = np.concatenate([[-40.0], EDGES, [40.0]])  # the outer cells end where float32 losses do
_MIDDLES = (_ENDS[:-1] + _ENDS[1:]) / 2
_LEAST_VARIANCE = 1 / 48  # of scores that are spread evenly over one cell of 1/2


def _slope(no: _Counts, yes: _Counts) -> float:
    """Rise of the log odds of a yes per unit of the logit (two normals of equal variance), made
    smaller by what the noise alone would make of it: James & Stein's factor, not below 0.
    """
    some = [np.maximum(one.counts, 0.0) for one in (no, yes)]
    means = [float((_MIDDLES * c).sum() / c.sum()) for c in some]
    squares = sum(float((c * (_MIDDLES - m) ** 2).sum()) for c, m in zip(some, means, strict=True))
    variance = squares / float(some[0].sum() + some[1].sum()) + _LEAST_VARIANCE
    slope, noise = (means[1] - means[0]) / variance, 0.0
    for one, c, mean in zip((no, yes), some, means, strict=True):
        pull = (_MIDDLES - mean) / (float(c.sum()) * variance)
        noise += one.covariance(pull, pull)
    return slope * max(0.0, 1 - noise / slope**2) if slope else 0.0


def _lean(tilt: np.ndarray) -> np.ndarray:
    """P(yes above no) - 1/2 in a cell with no's spread evenly and yes's by exp(tilt * place):
    1 / (1 - exp(-tilt)) - 1 / tilt - 1/2, which is tilt / 12 near 0.
    """
    small = np.abs(tilt) < 1e-3
    safe = np.where(small, 1.0, np.clip(tilt, -500.0, 500.0))
    return np.where(small, tilt / 12, 1 / -np.expm1(-safe) - 1 / safe - 0.5)


# -- before anything is trained --------------------------------------------------------------------

TYPICAL_AUC_DISTANCE = 1.19  # between the two outcomes' logits, in their sd: an AUC of 0.80
EVENT_RATES = {"balanced": 0.5, "one_in_five": 0.2}
NOTHING = 1.0  # the width of an interval that says nothing


def expected_intervals(
    persons: Sequence[int], score_noise_multiplier: float
) -> dict[str, dict[str, float]]:
    """How wide the report's 95 % intervals will be, {event rate: {"accuracy", "auc"}}: what a quote
    can say before money moves. A width of NOTHING (1) is "more noise than signal".

    For a typical, calibrated model (AUC 0.80: two normals of logits) over hospitals of so many
    released `persons`, at a balanced outcome and one in five; `score_noise_multiplier` is the
    plan's. The tables are what is expected, the noise what `figures` takes it to be.
    """
    tables = {
        name: _typical_table(sum(persons) / len(persons), rate)
        for name, rate in EVENT_RATES.items()
    }
    widths = {}
    for name, one in tables.items():
        found = figures([one] * len(persons), score_noise_multiplier)
        widths[name] = {
            figure: found[figure]["high"] - found[figure]["low"] for figure in ("accuracy", "auc")
        }
    return widths


def _typical_table(persons: float, rate: float) -> list[float]:
    """What `table` would count of so many patients on average [CELLS]."""
    spread = TYPICAL_AUC_DISTANCE
    counts = []
    for outcome, part in ((-1, 1 - rate), (1, rate)):
        # calibrated: log odds plus half the squared distance, to either side
        middle = math.log(rate / (1 - rate)) + outcome * spread**2 / 2
        under = [0.5 * (1 + math.erf((e - middle) / (spread * math.sqrt(2)))) for e in EDGES]
        fine = persons * part * np.diff([0.0, *under, 1.0])
        counts += [*(fine.reshape(GROUPS, GROUP).sum(1) * IN_GROUP), *(fine * IN_FINE)]
    return [float(count) for count in counts]
