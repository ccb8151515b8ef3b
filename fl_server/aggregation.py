"""The average of the hospitals' updates, weighted by the released counts in the terms, and the step
that it makes.

Pure: arrays in, arrays out. Knows nothing of messages. Sums are float64 in the order given and are
rounded once, so that a run repeated after a crash reaches the same model bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fl_client.protocol import JobSpec

Arrays = Mapping[str, np.ndarray]


def weighted_mean(updates: Sequence[Arrays], weights: Sequence[int]) -> dict[str, np.ndarray]:
    """Sum of w_i x_i over sum of w_i for every name (McMahan et al. 2017, algorithm 1); float32.

    All updates have the names and shapes of the first. Raises ValueError for no updates, for other
    than one weight above 0 each, or for other names or shapes.

    >>> weighted_mean([{"w": np.array([1.0])}, {"w": np.array([4.0])}], [2, 1])
    {'w': array([2.], dtype=float32)}
    """
    total = sum(weights)
    if not updates or len(updates) != len(weights) or min(weights) <= 0:
        raise ValueError(f"{len(updates)} updates need a weight above 0 each, not {list(weights)}")
    shapes = {name: array.shape for name, array in updates[0].items()}
    for update in updates:
        if {name: array.shape for name, array in update.items()} != shapes:
            raise ValueError("the updates differ in names or shapes of their parameters")
    means = {}
    for name in updates[0]:
        summed = np.zeros(shapes[name], np.float64)
        for update, weight in zip(updates, weights, strict=True):
            summed += weight * update[name].astype(np.float64)
        means[name] = np.asarray(summed / total, np.float32)
    return means


def server_step(
    mean: Arrays,
    current: Arrays,
    previous: Arrays,
    momentum: float,
    rates: Mapping[str, float],
) -> dict[str, np.ndarray]:
    """The parameters (float32) after a round that led from `current` to the hospitals' weighted
    `mean`: that step, times the parameter's rate (1 unless `rates` names it), and `momentum` times
    the last step, which led from `previous` (`current` itself in the first round) to `current`.

    Polyak's heavy ball and a learning rate on the server (FedAvgM: Hsu et al. 2019, 1909.06335;
    FedOpt: Reddi et al. 2020, 2003.00295). It works on what the hospitals have noised and released,
    so it costs no privacy. Without momentum and rates it gives the mean itself.

    >>> one = [{"w": np.full(1, v)} for v in (2.0, 1.0, 0.0)]
    >>> server_step(*one, 0.5, {"w": 4.0})
    {'w': array([5.5], dtype=float32)}
    """
    found = {}
    for name, array in mean.items():
        before = current[name].astype(np.float64)
        more = (rates.get(name, 1.0) - 1.0) * (array - before)
        found[name] = np.asarray(array + more + momentum * (before - previous[name]), np.float32)
    return found


def longest_step(spec: JobSpec, persons: int, seats: int, parameters: int) -> float:
    """The longest way, in L2 norm, that a round of a hospital with `persons` released patients can
    move a model of so many `parameters`.

    Each of the T local steps moves by rate / (q n) times a sum of at most `seats` vectors
    (slots.needed) of norm at most the clip, plus noise of sd z * clip in each coordinate. The
    noises add up to one of sd z * clip * sqrt(T), whose norm passes
    sd * (sqrt(parameters) + 8) with a chance under exp(-32)
    (concentration of a 1-Lipschitz function of Gaussians). 1 % more is for rounding.
    """
    plan, steps = spec.plan, spec.local_steps
    noise = plan.noise_multiplier * math.sqrt(steps) * (math.sqrt(parameters) + 8)
    rate = spec.learning_rate / (plan.sampling_rate * persons)
    return 1.01 * rate * plan.clip_norm * (steps * seats + noise)


def moved(update: Arrays, current: Arrays) -> float:
    """L2 norm of update - current over all parameters; infinite where a number is not finite."""
    squares = 0.0
    for name, array in update.items():
        step = array.astype(np.float64) - current[name].astype(np.float64)
        squares += float(np.sum(step * step))
    return math.sqrt(squares) if math.isfinite(squares) else math.inf
