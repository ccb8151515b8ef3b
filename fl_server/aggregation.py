"""The average of the hospitals' updates, weighted by the released counts in the terms, and the step
that it makes.

Pure: arrays in, arrays out. Knows nothing of messages. Sums are float64 in the order given and are
rounded once, so that a run repeated after a crash reaches the same model bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

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


def with_momentum(
    mean: Arrays, current: Arrays, previous: Arrays, momentum: float
) -> dict[str, np.ndarray]:
    """The parameters after a round: its weighted mean and `momentum` times the last step, which led
    from `previous` (of the round before last; `current` itself in the first) to `current`.

    Polyak's heavy ball on the server (FedAvgM: Hsu et al. 2019, 1909.06335), float32. It works on
    what the hospitals have noised and released, so it costs no privacy. 0 gives the mean itself.

    >>> one = [{"w": np.full(1, v)} for v in (2.0, 1.0, 0.0)]
    >>> with_momentum(*one, 0.5)
    {'w': array([2.5], dtype=float32)}
    """
    step = {n: array.astype(np.float64) - previous[n] for n, array in current.items()}
    return {n: np.asarray(array + momentum * step[n], np.float32) for n, array in mean.items()}
