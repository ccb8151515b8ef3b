"""Where drawn patients sit: batches whose shape follows from public numbers, places that are
secret.

A kernel rounds a row by where it stands and by how many rows there are, never by what the other
rows hold. So a batch has a number of slots that follows from the released count and the sampling
rate alone, every drawn patient gets a uniformly random free slot, afresh for each step, and empty
slots are masked. Then others can be given the same slots with and without one patient, since a
random placement of all, looked at without one of them, is a random placement of the rest: they
round alike, and the sums differ by that patient's vector.

Whoever finds no slot is left out at random; `accounting.OVERFLOW` bounds the chance that there is
such a patient, and is taken from delta. Knows nothing of models or ledgers.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
from scipy.stats import binom, norm

from fl_client.privacy.accounting import OVERFLOW
from fl_client.privacy.noise import SecureRandom
from fl_client.privacy.plan import PrivacyPlan

COUNT_NOISE = 5.0  # sd of the released person count; sensitivity 1, so also its noise multiplier


def needed(released: int, rate: float) -> int:
    """Slots for a Poisson sample at `rate` of a table whose noised count is `released`.

    More patients than these are drawn with a chance of at most OVERFLOW: half of it for a count
    that was released too low, half for the draw.
    """
    tail = OVERFLOW / 2
    most = max(1, released + math.ceil(COUNT_NOISE * float(norm.isf(tail)) + 0.5))
    # scipy's own inverse gives up so far out
    enough = bisect_left(range(most), True, key=lambda k: bool(binom.sf(k, most, rate) <= tail))
    return max(1, enough)


# multiplications and additions a second of the machine that compute is priced for: about what two
# cores of a server do; a faster one earns more in a real minute
REFERENCE = 1e10
CHECK_SECONDS = 60  # of one admission, by the estimate (costs.py) and by the clock


def round_seconds(
    plan: PrivacyPlan, local_steps: int, released: int, records: int, work: int
) -> float:
    """What one round is billed as, in seconds rounded up to a tenth: by its work, not by a clock,
    which one patient with many records or slow numbers would move.

    `work` is that of one sample's forward pass (graph.GraphModel.work); a training step takes three
    times that for every expected record, the look at the loss one.
    """
    passes = (3 * local_steps * plan.sampling_rate + 1) * released * records
    return math.ceil(10 * passes * work / REFERENCE) / 10


def seated(random: SecureRandom, persons: int, rate: float, slots: int) -> np.ndarray:
    """Who sits in each of `slots`: patients' numbers, or `persons` where nobody does; int64
    [slots].

    Each of `persons` is drawn with probability `rate`, independently (Poisson), and gets a slot of
    its own, all placements equally likely.
    """
    drawn = random.drawn(persons, rate)
    if len(drawn) > slots:
        drawn = drawn[random.order(len(drawn))]
    places = np.full(slots, persons, np.int64)
    places[random.order(slots)[: len(drawn)]] = drawn[:slots]
    return places
