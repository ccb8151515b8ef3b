"""The average of the hospitals' updates, weighted by the released counts in the terms.

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
