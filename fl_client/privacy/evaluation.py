"""How good the final model is, in private numbers: noised counts of scores, and what follows from
them. Pure arithmetic.

Each patient puts one unit, in all, into a table of score bins by outcome, so that adding or
removing a patient moves the table by at most 1 in L2 norm; every cell gets Gaussian noise of the
plan's metric noise multiplier (Dwork & Roth 2014, appendix A). Accuracy, AUC and calibration are
computed from the noised table, which costs nothing more, and their 95 % intervals from the known
noise (delta method): they say how wide the noise is, not how few the patients are. The patients are
those that the model was trained on. Knows nothing of ledgers, messages or jobs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = (
    8  # of predicted probability, equally wide; the edge in the middle is the threshold of accuracy
)
CELLS = 2 * BINS  # outcome 0 by bin, then outcome 1 by bin
Z95 = 1.959964
LEAST_SIGNAL = 3.0  # a denominator of fewer standard deviations of noise says nothing


def probabilities(outputs: np.ndarray, loss: str) -> np.ndarray:
    """The probability [n] of outcome 1 that outputs [n], [n, 1] or [n, classes] of a model trained
    by `loss` stand for.
    """
    if loss == "cross_entropy":
        shifted = np.exp(outputs - outputs.max(1, keepdims=True))
        found = shifted[:, 1] / shifted.sum(1)
    elif loss == "squared_error":
        found = np.clip(outputs.reshape(len(outputs)), 0.0, 1.0)
    else:
        with np.errstate(over="ignore"):
            found = 1 / (1 + np.exp(-outputs.reshape(len(outputs)).astype(np.float64)))
    return np.asarray(np.nan_to_num(found, nan=0.5))  # not a number is no opinion


def table(
    scores: np.ndarray, targets: np.ndarray, patients: np.ndarray | None = None
) -> np.ndarray:
    """Counts [CELLS] of scores [n] in 0..1 by target [n] (1 if above 0.5); a patient's records
    share one unit.
    """
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    cells = np.where(targets > 0.5, BINS + bins, bins)
    weights = np.ones(len(cells))
    if patients is not None:
        weights = 1 / np.bincount(patients)[patients]
    return np.bincount(cells, weights, minlength=CELLS)


def released(counts: np.ndarray, noise: np.ndarray) -> list[float]:
    """The table with noise [CELLS] in every cell, rounded to float32 (see noise.py): what may leave
    the node.
    """
    return [float(np.float32(c)) for c in counts + noise]


def figures(tables: Sequence[Sequence[float]], noise_multiplier: float) -> dict[str, Any]:
    """Accuracy, AUC and calibration of the sum of several nodes' released tables, each {value, low,
    high} or None.

    None: so much noise that the figure would say nothing. `calibration` has one entry per bin, its
    scores and its part
    with outcome 1.
    """
    counts = np.sum(np.asarray(tables, dtype=np.float64).reshape(-1, CELLS), axis=0)
    sd = noise_multiplier * math.sqrt(len(tables))
    no, yes = counts[:BINS], counts[BINS:]
    right = np.concatenate([np.arange(BINS) < BINS // 2, np.arange(BINS) >= BINS // 2]).astype(
        float
    )
    calibration = []
    for i in range(BINS):
        cell = _ratio(np.array([0.0, 1.0]), np.array([no[i], yes[i]]), sd)
        calibration.append({"from": i / BINS, "to": (i + 1) / BINS, "rate": cell})
    return {
        "accuracy": _ratio(right, counts, sd),
        "auc": _auc(no, yes, sd),
        "calibration": calibration,
    }


def _interval(value: float, error: float) -> dict[str, float]:
    low, high = max(0.0, value - Z95 * error), min(1.0, value + Z95 * error)
    return {"value": min(1.0, max(0.0, value)), "low": min(low, 1.0), "high": max(high, 0.0)}


def _ratio(chosen: np.ndarray, counts: np.ndarray, sd: float) -> dict[str, float] | None:
    """sum(chosen * counts) / sum(counts)."""
    total = float(counts.sum())
    if total <= LEAST_SIGNAL * sd * math.sqrt(len(counts)):
        return None
    value = float(chosen @ counts) / total
    return _interval(value, sd * float(np.linalg.norm(chosen - value)) / total)


def _auc(no: np.ndarray, yes: np.ndarray, sd: float) -> dict[str, float] | None:
    """P(score of a yes > score of a no) + P(equal) / 2, pairs within a bin counted as equal."""
    n, p = float(no.sum()), float(yes.sum())
    if min(n, p) <= LEAST_SIGNAL * sd * math.sqrt(BINS):
        return None
    below = np.cumsum(no) - no / 2  # no's under a yes of bin i
    above = np.cumsum(yes[::-1])[::-1] - yes / 2
    value = float(yes @ below) / (n * p)
    by_yes, by_no = below / (n * p) - value / p, above / (n * p) - value / n
    return _interval(value, sd * float(np.sqrt(by_yes @ by_yes + by_no @ by_no)))
