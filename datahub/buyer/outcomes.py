"""What a model's outputs say of each record, in the target's own words and units: the way back of
fl_client/data/targets.py. Knows nothing of models, tables or files.

    target          answers
    yes/no          its name -> the probability of yes
    classes         each level -> its probability
    number          its name -> the number in the target's unit, within its public range
    several yes/no  each column -> the probability of yes
    time to event   "no EVENT until EDGE" for each edge -> the probability of that
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from fl_client.data.fields import show
from fl_client.data.targets import Target

Answers = Mapping[str, np.ndarray]  # column -> [n], as float64


def answers(target: Target, loss: str, outputs: np.ndarray) -> dict[str, np.ndarray]:
    """The answers for outputs [n, ...] of a model that was trained by `loss`, one of
    `target.losses`.
    """
    given = outputs.astype(np.float64).reshape(len(outputs), target.losses[loss])
    names = answered(target)
    if loss == "cross_entropy":
        parts = np.exp(given - given.max(axis=1, keepdims=True, initial=-np.inf))
        parts /= parts.sum(axis=1, keepdims=True)
        given = parts if target.kind == "classes" else parts[:, 1:]
    elif loss == "squared_error":
        low, high = (target.low, target.high) if target.kind == "number" else (0.0, 1.0)
        part = np.clip(given, 0.0, 1.0)
        given = low * (1 - part) + high * part  # high - low may be beyond a float
    elif loss == "logistic_hazard":
        given = np.cumprod(sigmoid(-given), axis=1)
    else:
        given = sigmoid(given)
    return {name: given[:, i] for i, name in enumerate(names)}


def answered(target: Target) -> tuple[str, ...]:
    """The names of the answers."""
    if target.kind == "classes":
        return tuple(map(show, target.levels))
    if target.kind == "time to event":
        unit = f" {target.unit}" * bool(target.unit)
        return tuple(f"no {target.columns[1]} until {show(edge)}{unit}" for edge in target.edges)
    return target.columns or (target.name,)


def raw(target: Target, loss: str) -> tuple[str, ...]:
    """What each of the model's own outputs is, before it becomes an answer."""
    if loss == "logistic_hazard":
        event, edges = target.columns[1], [0.0, *target.edges]
        unit = f" {target.unit}" * bool(target.unit)
        parts = pairwise(edges)
        return tuple(
            f"log odds of {event} from {show(low)} to {show(high)}{unit}" for low, high in parts
        )
    if loss == "squared_error":
        return (f"{target.name}, as a part of its range",)
    if loss == "cross_entropy":
        names = answered(target) if target.kind == "classes" else ("no", "yes")
        return tuple(f"score of {name}" for name in names)
    return tuple(f"log odds of {name}" for name in answered(target))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x), for numbers of any size."""
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, small) / (1.0 + small))
