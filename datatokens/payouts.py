"""Split a reward pool by weights, in integers that sum exactly. Knows nothing of where the weights
come from.

It lives in the lowest room so that a node can replay the split before it signs, and so can anyone
with the report.
"""

from __future__ import annotations

from collections.abc import Sequence


def split(pool_units: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Shares of `pool_units` proportional to `weights`, by largest remainder; ties go to the
    earlier position.

    The shares sum to `pool_units` exactly, unless every weight is 0: then every share is 0.
    Raises ValueError for a negative pool or weight.

    >>> split(100, [1, 1, 1])
    (34, 33, 33)
    """
    if pool_units < 0 or any(weight < 0 for weight in weights):
        raise ValueError(
            f"pool_units={pool_units} and weights={list(weights)} must not be negative"
        )
    total = sum(weights)
    if total == 0:
        return (0,) * len(weights)
    shares = [pool_units * weight // total for weight in weights]
    remainders = [pool_units * weight % total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-remainders[i], i))
    for position in by_remainder[: pool_units - sum(shares)]:
        shares[position] += 1
    return tuple(shares)
