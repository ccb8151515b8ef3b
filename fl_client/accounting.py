"""From mechanisms to epsilon: the only file that names an accountant. Knows nothing of jobs or datasets.

Renyi differential privacy by Opacus (Mironov 2017, 1702.07476; subsampled Gaussian: Mironov, Talwar, Zhang 2019,
1908.10530), composed by adding over the whole history. Buyers choose their plans after having seen earlier results;
adding RDP per order and comparing with the budget is a valid filter for such adaptive choices (Feldman & Zrnic 2021,
2008.11193), which adding epsilons tightly (PLD, PRV) is not.

>>> round(epsilon([Charge(1.0, 0.01, 1000, "doc")], 1e-5), 1)
2.1
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

from fl_client.errors import PlanError
from fl_client.privacy import Charge

# The bound holds at any order; that a finer list might be tighter is no news to whoever reads the log.
warnings.filterwarnings("ignore", message="Optimal order is the")

# Opacus stops at 63, which floors epsilon near 0.1 at delta 1e-5; a lifetime of small charges needs higher orders.
ORDERS = tuple([1 + x / 10.0 for x in range(1, 100)] + list(range(11, 64)) + [80, 96, 128, 192, 256, 384, 512, 768, 1024])


@lru_cache(maxsize=4096)
def _rdp_of_one_step(noise_multiplier: float, sampling_rate: float) -> np.ndarray:
    rdp = np.asarray(
        compute_rdp(q=sampling_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(ORDERS)), dtype=np.float64
    )
    rdp = np.where(np.isfinite(rdp), np.maximum(rdp, 0.0), np.inf)
    rdp.setflags(write=False)
    return rdp


def _rdp(charges: Iterable[Charge]) -> np.ndarray:
    total = np.zeros(len(ORDERS))
    for charge in charges:
        total = total + charge.steps * _rdp_of_one_step(charge.noise_multiplier, charge.sampling_rate)
    return total


def epsilon(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon at `delta` of everything in `charges` together; 0 for nothing."""
    rdp = _rdp(charges)
    if not rdp.any():
        return 0.0
    finite = np.isfinite(rdp)
    orders = [order for order, fine in zip(ORDERS, finite, strict=True) if fine]
    value, _ = get_privacy_spent(orders=orders, rdp=rdp[finite], delta=delta)
    return float(max(0.0, value))


def calibrate(
    target: float, delta: float, sampling_rate: float, steps: int, metric_steps: int, metric_share: float
) -> tuple[float, float]:
    """(noise_multiplier, metric_noise_multiplier) that together cost at most `target` epsilon, and more than 99 % of it.

    `metric_share` is the metrics' part of the budget in 1/sigma^2 (rho of zCDP), at sampling rate 1.
    Raises PlanError if no noise multiplier up to 10000 is enough.
    """
    if not (math.isfinite(target) and 0 < target <= 100):
        raise PlanError(f"epsilon={target!r} must be above 0 and at most 100")
    if not 0 < metric_share < 1:
        raise PlanError(f"metric_share={metric_share!r} must be between 0 and 1")
    # sum of steps / sigma^2 is split (1 - share) : share at q = 1; with q < 1 training only gets cheaper
    ratio = math.sqrt((1 - metric_share) / metric_share * metric_steps / (steps * sampling_rate**2))

    def cost(noise: float) -> float:
        charges = [Charge(noise, sampling_rate, steps, "training"), Charge(noise * ratio, 1.0, metric_steps, "metric")]
        return epsilon(charges, delta)

    low, high = 0.3, 1e4
    if ratio * low < 0.3:
        low = 0.3 / ratio
    if cost(high) > target:
        raise PlanError(f"epsilon={target:g} is too small for {steps} steps: even a noise multiplier of {high:g} costs more")
    if cost(low) <= target:
        return low, low * ratio
    while high / low > 1 + 1e-5:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) > target else (low, middle)
    return high, high * ratio
