"""Which private numbers tell how good a model of each loss is: one released table of counts, and
the figures that follow from it. Pure arithmetic.

Each patient puts a vector of L2 norm at most 1 into the table, so that its noise has the plan's
multiplier whatever the loss is (evaluation.py has the table of scores and its intervals). Weights
of a patient's records are float32 and add up to 1 within 1e-7, which noise.MARGIN has room for.

    loss                    a patient's vector
    binary_cross_entropy    a unit in the table of scores by outcome
    cross_entropy           the same for two classes; for more, a unit in the class they are of by
                            the class they are given
    squared_error           half of (1, y, y^2, e^2): target y and error e, within 0 and 1
    multilabel_soft_margin  a table of scores for each of m labels, a unit / sqrt(m) in each
    logistic_hazard         a unit / m, in one table of scores, for each of m intervals at risk
    output                  nothing: the model is the answer

Knows nothing of ledgers, messages or jobs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fl_client.privacy.evaluation import CELLS, Z95, logits, quotient
from fl_client.privacy.evaluation import figures as of_scores
from fl_client.privacy.evaluation import table as scores

MOMENTS = 4
HALF = 0.5
# 95 % for three intervals at once: each has a third of the 5 % (Bonferroni)
Z_OF_THREE = 2.393980


def cells(loss: str, outputs: int) -> int:
    """Numbers of the table of a model with so many outputs."""
    if loss == "output":
        return 0
    if loss == "squared_error":
        return MOMENTS
    if loss == "multilabel_soft_margin":
        return outputs * CELLS
    return outputs**2 if loss == "cross_entropy" and outputs > 2 else CELLS


def is_one_yes_no(loss: str, outputs: int) -> bool:
    """Whether the table is that of one yes or no of each patient with the plan's noise: what
    evaluation.expected_intervals tells beforehand. Of intervals of time it cannot: a patient adds
    less than a unit who is not at risk in all, and events of one interval are rarer than it takes.
    """
    return cells(loss, outputs) == CELLS and (loss != "logistic_hazard" or outputs == 1)


def table(loss: str, outputs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Counts [cells] of a model's outputs [n, ...] and targets [n, ...]; `weights` [n] is each
    record's part of its patient, 0 for a row that does not count. Any numbers: never raises.
    """
    if loss == "output":
        return np.zeros(0)
    n = len(outputs)
    given = np.nan_to_num(outputs.astype(np.float64).reshape(n, -1), nan=0.0)
    wanted = np.nan_to_num(targets.astype(np.float64).reshape(n, -1), nan=0.0)
    width = given.shape[1]
    if loss == "squared_error":
        y, error = (np.clip(x[:, 0], 0.0, 1.0) for x in (wanted, abs(_part(given) - wanted)))
        each = np.stack([np.ones(n), y, y * y, error * error], axis=1)
        return np.asarray(HALF * (each * weights[:, None]).sum(0))
    if loss == "cross_entropy" and width > 2:
        true = np.clip(wanted[:, 0], 0, width - 1).astype(np.int64)
        place = true * width + given.argmax(1)
        return np.asarray(np.bincount(place, weights, minlength=width * width))
    if loss == "multilabel_soft_margin":
        part = weights * _part_of(width)
        every = [scores(given[:, i], wanted[:, i], part) for i in range(width)]
        return np.concatenate(every)
    if loss == "logistic_hazard":
        event, at_risk = wanted[:, :width], wanted[:, width:] > 0
        part = weights[:, None] * at_risk / width
        return scores(given.ravel(), event.ravel(), part.ravel())
    return scores(logits(outputs, loss), wanted[:, 0], weights)


def _part(given: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(given[:, :1], 0.0, 1.0))


def _part_of(labels: int) -> float:
    """A label's part of a patient, just under 1 / sqrt(labels), exact in binary."""
    return math.floor(4096 / math.sqrt(labels)) / 4096


def figures(
    loss: str, outputs: int, tables: Sequence[Sequence[float]], noise_multiplier: float
) -> dict[str, Any]:
    """What the sum of several nodes' released tables says, each figure {value, low, high}: the
    value and its 95 % interval.

        loss                    figures
        of one yes/no           as evaluation.figures
        cross_entropy           accuracy; `classes`, for each its part of the patients (`share`) and
                                the part of them that is recognised (`recall`)
        squared_error           `mean` of the target, `rmse`, `r2`, in parts of the target's range
        multilabel_soft_margin  accuracy and auc, means over labels; `labels`, for each as yes/no
        logistic_hazard         as yes/no, of patients' intervals at risk
    """
    if loss == "squared_error":
        return _of_number(np.sum(np.asarray(tables), axis=0) / HALF, len(tables), noise_multiplier)
    if loss == "cross_entropy" and outputs > 2:
        counts = np.sum(np.asarray(tables), axis=0).reshape(outputs, outputs)
        return _of_classes(counts, noise_multiplier * math.sqrt(len(tables)))
    if loss == "multilabel_soft_margin":
        part = _part_of(outputs)
        split = np.asarray(tables, dtype=np.float64).reshape(len(tables), outputs, CELLS) / part
        labels = [of_scores(split[:, i].tolist(), noise_multiplier / part) for i in range(outputs)]
        return {**{name: _mean(labels, name) for name in ("accuracy", "auc")}, "labels": labels}
    scale = outputs if loss == "logistic_hazard" else 1
    whole = (np.asarray(tables, dtype=np.float64) * scale).tolist()
    return of_scores(whole, noise_multiplier * scale)


def _mean(labels: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    """Means of values and of ends: no narrower than the interval of the mean."""
    return {
        end: sum(one[name][end] for one in labels) / len(labels) for end in ("value", "low", "high")
    }


def _of_classes(counts: np.ndarray, sd: float) -> dict[str, Any]:
    """Of counts [k, k], class by guess, each with independent noise of this sd."""
    k, variance = len(counts), sd * sd
    whole, right = float(counts.sum()), float(np.trace(counts))
    rows = counts.sum(1)

    def part(top: float, below: float, of_top: int, of_below: int) -> dict[str, float]:
        # the cells of the top are among those below, so their covariance is the top's variance
        return quotient(top, below, (of_top * variance, of_top * variance, of_below * variance))

    return {
        "accuracy": part(right, whole, k, k * k),
        "classes": [
            {
                "share": part(float(rows[i]), whole, k, k * k),
                "recall": part(float(counts[i, i]), float(rows[i]), 1, k),
            }
            for i in range(k)
        ],
    }


def _of_number(sums: np.ndarray, nodes: int, noise_multiplier: float) -> dict[str, Any]:
    """Of the sums of 1, y, y^2 and e^2, each with independent noise."""
    n, y, squares, errors = (float(x) for x in sums)
    variance = nodes * (noise_multiplier / HALF) ** 2

    def mean(top: float, z: float = Z95) -> dict[str, float]:
        return quotient(top, n, (variance, 0.0, variance), z)

    error = mean(errors)
    first, second, off = (mean(x, Z_OF_THREE) for x in (y, squares, errors))
    least = second["low"] - first["high"] ** 2
    most = second["high"] - first["low"] ** 2
    spread = max(0.0, second["value"] - first["value"] ** 2)
    return {
        "mean": mean(y),
        "rmse": {end: math.sqrt(part) for end, part in error.items()},
        "r2": {
            "value": _explained(off["value"], spread),
            "low": _explained(off["high"], least),
            "high": _explained(off["low"], most),
        },
    }


def _explained(error: float, variance: float) -> float:
    """1 - error / variance, from -1 on: worse than the mean is no use, however much."""
    return max(-1.0, 1 - error / variance) if variance > 0 else -1.0
