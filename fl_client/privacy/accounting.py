"""From mechanisms to epsilon: the only file that names an accountant. Knows nothing of jobs or
datasets.

Renyi differential privacy by Opacus (Mironov 2017, 1702.07476; subsampled Gaussian: Mironov,
Talwar, Zhang 2019, 1908.10530), composed by adding over the whole history. Buyers choose their
plans after having seen earlier results; adding RDP at one order and comparing with the budget is a
valid filter for such adaptive choices (Feldman & Zrnic 2021, 2008.11193), which adding epsilons
tightly (PLD, PRV) is not. That theorem is for one order, fixed beforehand. A lifetime that is to
be judged by the best of several orders pays for the choice (`lifetime_epsilon`): each order gets
its own part of delta, and the chances that any of them fails add up. Neighbours: add or remove one
patient.

Importing this file costs about two seconds, because importing any part of Opacus imports torch.

>>> round(epsilon([Charge(1.0, 0.01, 1000, "doc")], 1e-5), 1)
2.1
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable
from importlib.metadata import version

import numpy as np
from opacus.accountants.analysis.rdp import compute_rdp

from fl_client.errors import PlanError
from fl_client.privacy.plan import METRICS, Charge

# Opacus stops at 63, which floors epsilon near 0.1 at delta 1e-5; a lifetime of small charges needs
# higher orders. 1024 is its last order: binom(1024, 512) is the largest that a double holds.
_HIGH = (80, 96, 128, 192, 256, 384, 512, 768, 1024)
ORDERS = (*(1 + x / 10.0 for x in range(1, 100)), *range(11, 64), *_HIGH)
_ORDERS = np.array(ORDERS)

# The orders that a lifetime is judged by: few, because each takes a part of delta.
LIFETIME_ORDERS = (1.5, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 63, 96, 128, 256, 512, 1024)

# The chance, for each step of each mechanism, that not every drawn patient finds a slot (slots.py).
# It is taken from delta.
OVERFLOW = 2.0**-60

# Above this noise the series of the fractional orders takes seconds, and whole orders
# give the same epsilon to 1 % as long as it is under 10.
SLOW_SERIES_NOISE = 30.0

MIN_NOISE, MAX_NOISE = 0.3, 1e4  # what a PrivacyPlan allows
MAX_METRIC_NOISE = 1e5


_CURVES: dict[tuple[float, float], np.ndarray] = {}
# what a stored curve depends on; another version's is not used
CURVES = hashlib.sha256(
    f"{ORDERS} {SLOW_SERIES_NOISE} opacus {version('opacus')}".encode()
).hexdigest()[:16]


def _rdp_of_one_step(noise_multiplier: float, sampling_rate: float) -> np.ndarray:
    key = (noise_multiplier, sampling_rate)
    if key not in _CURVES:
        _CURVES[key] = np.array(
            [_rdp_at(order, noise_multiplier, sampling_rate) for order in ORDERS]
        )
    return _CURVES[key]


def curve(noise_multiplier: float, sampling_rate: float) -> bytes:
    """RDP of one step at every order, for a ledger to keep: a subsampled mechanism takes up to half
    a second to compute.
    """
    return _rdp_of_one_step(noise_multiplier, sampling_rate).astype("<f8").tobytes()


def remember(noise_multiplier: float, sampling_rate: float, raw: bytes) -> None:
    """Take a kept curve of this version (CURVES) for granted; one that cannot be right is computed
    afresh.
    """
    rdp = np.frombuffer(raw, "<f8")
    finite = rdp[np.isfinite(rdp)]
    # RDP is above 0 and grows with the order (van Erven & Harremoes 2014, theorem 3)
    if (
        len(rdp) == len(ORDERS)
        and len(finite) > 0
        and finite.min() > 0
        and not (np.diff(finite) < -1e-9 * finite[1:]).any()
    ):
        _CURVES.setdefault((noise_multiplier, sampling_rate), rdp)


def _rdp_at(order: float, noise_multiplier: float, sampling_rate: float) -> float:
    """RDP at one order; infinity, which leaves the order out, where it costs too much or fails
    numerically.
    """
    if sampling_rate < 1 and noise_multiplier > SLOW_SERIES_NOISE and not float(order).is_integer():
        return math.inf
    try:
        with np.errstate(all="ignore"):  # a result that is not finite is caught below
            value = float(
                compute_rdp(
                    q=sampling_rate, noise_multiplier=noise_multiplier, steps=1, orders=[order]
                )[0]
            )
    except (ValueError, OverflowError, ZeroDivisionError):
        return math.inf
    return max(value, 0.0) if math.isfinite(value) else math.inf


def rdp(charges: Iterable[Charge]) -> np.ndarray:
    """RDP of everything in `charges` together at each of ORDERS."""
    total = np.zeros(len(ORDERS))
    for charge in charges:
        total += charge.steps * _rdp_of_one_step(charge.noise_multiplier, charge.sampling_rate)
    return total


def _epsilon_of(rdp: np.ndarray, log_delta: np.ndarray | float) -> float:
    """The smallest epsilon over the orders: Balle et al. 2020 (1905.09982), theorem 21. Infinite if
    no order holds. `log_delta` may be one for each order.
    """
    bound = rdp + np.log1p(-1 / _ORDERS) - (log_delta + np.log(_ORDERS)) / (_ORDERS - 1)
    return max(0.0, float(bound.min()))


def _delta_left(charges: Iterable[Charge], delta: float) -> float:
    """What the slots leave of delta; 0 or less if nothing. Raises PlanError for a wrong delta."""
    if not 0 < delta < 1:
        raise PlanError(f"delta={delta!r} must be between 0 and 1")
    return delta - OVERFLOW * sum(charge.steps for charge in charges)


def epsilon(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon at `delta` of everything in `charges` together, all of it fixed beforehand; 0 for
    nothing.

    The best order may be chosen afterwards, as nothing depends on results: one job's figure. For a
    history of jobs see `lifetime_epsilon`. Raises PlanError for a delta not between 0 and 1.
    """
    charges = list(charges)
    left = _delta_left(charges, delta)
    if not charges:
        return 0.0
    return _epsilon_of(rdp(charges), math.log(left)) if left > 0 else math.inf


def best_order(limit: float, delta: float) -> float:
    """The order at which most fits into the budget (`limit`, `delta`): which of LIFETIME_ORDERS
    lets a Gaussian mechanism (RDP rho * order) spend the largest rho.

    A ledger names it when a budget is opened and keeps it: chosen after results it would not count.
    Raises PlanError for a number out of range.
    """
    if not (limit > 0 and 0 < delta < 1):
        raise PlanError(f"limit={limit!r} must be above 0 and delta={delta!r} between 0 and 1")
    orders = np.array(LIFETIME_ORDERS)
    cost = np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return float(orders[np.argmax((limit - cost) / orders)])


def _log_parts(order: float) -> np.ndarray:
    """Log of each order's part of delta: most for `order`, a quarter of that for its neighbours in
    LIFETIME_ORDERS, a quarter of that for theirs; all parts add up to 1, other orders have none.
    """
    if order not in LIFETIME_ORDERS:
        raise PlanError(f"order={order!r} must be one of {LIFETIME_ORDERS}")
    distances = np.abs(np.arange(len(LIFETIME_ORDERS)) - LIFETIME_ORDERS.index(order))
    parts = np.zeros(len(ORDERS))
    parts[np.searchsorted(_ORDERS, LIFETIME_ORDERS)] = 0.25**distances / (0.25**distances).sum()
    with np.errstate(divide="ignore"):
        return np.log(parts)


def lifetime_epsilon(charges: Iterable[Charge], delta: float, order: float) -> float:
    """Epsilon at `delta` of a history whose jobs were chosen one after the other, by people who had
    seen what came before; 0 for nothing. `order` is `best_order` of the budget when it was opened.

    For every order a, the history stopped where its RDP at a passes what a's part d_a of delta
    allows is (limit, d_a)-private (Feldman & Zrnic 2021, theorem 3.1). A history in which some
    order is within its part is one of these, and E[(1 - e^(limit - loss))+] over it is at most the
    sum of all d_a = delta. Raises PlanError for a delta not between 0 and 1 or another order.
    """
    charges = list(charges)
    steps = np.array([sum(charge.steps for charge in charges)])
    return float(lifetime_epsilons(rdp(charges)[None], steps, delta, order)[0])


def lifetime_epsilons(
    rdps: np.ndarray, steps: np.ndarray, delta: float, order: float
) -> np.ndarray:
    """`lifetime_epsilon` of many histories at once: [n] for their `rdp` [n, orders] and the sums of
    their steps [n].
    """
    if not 0 < delta < 1:
        raise PlanError(f"delta={delta!r} must be between 0 and 1")
    left = delta - OVERFLOW * steps.astype(np.float64)
    log_delta = np.log(np.maximum(left, 1e-300))[:, None] + _log_parts(order)
    bound = rdps + np.log1p(-1 / _ORDERS) - (log_delta + np.log(_ORDERS)) / (_ORDERS - 1)
    found = np.maximum(0.0, bound.min(1))
    return np.where(left > 0, np.where(steps > 0, found, 0.0), math.inf)


def fits(
    history: Iterable[Charge], new: Iterable[Charge], limit: float, delta: float, order: float
) -> bool:
    """Whether `new` may follow `history` under the lifetime budget (`limit`, `delta`): the RDP
    filter of `lifetime_epsilon`.
    """
    return lifetime_epsilon([*history, *new], delta, order) <= limit


def how_many_fit(
    history: Iterable[Charge], new: Iterable[Charge], limit: float, delta: float, order: float
) -> int:
    """How many jobs of the charges `new` may still follow `history`, one after the other, under
    (`limit`, `delta`).

    RDP adds up, so at each order the number is a quotient, and the best order counts. Exact: that
    many pass `fits` together, and one more does not. Raises PlanError for a job that costs nothing.
    """
    history, new = list(history), list(new)
    if not new:
        raise PlanError("a job without charges always fits; name what it would cost")
    spent, each, parts = rdp(history), rdp(new), _log_parts(order)
    # theorem 21 of Balle et al. solved for n; an order that left the sum as infinity gives minus
    # infinity or NaN
    with np.errstate(all="ignore"):
        log_delta = math.log(max(_delta_left(history, delta), 1e-300)) + parts
        room = (
            limit - np.log1p(-1 / _ORDERS) + (log_delta + np.log(_ORDERS)) / (_ORDERS - 1) - spent
        )
        quotients = room / each
    most = math.floor(np.nanmax(np.where(np.isfinite(quotients), quotients, -1.0))) + 1
    # what the slots take of delta, and rounding, may make it fewer
    steps = sum(charge.steps for charge in new)

    def too_many(count: int) -> bool:
        left = _delta_left(history, delta) - OVERFLOW * steps * count
        return left <= 0 or _epsilon_of(spent + count * each, math.log(left) + parts) > limit

    return max(0, bisect_left(range(1, max(0, most) + 1), True, key=too_many))


def pld_epsilon(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon of the same history by privacy loss distributions (Google's dp-accounting), for
    people to look at.

    Tighter than `epsilon`, but a bound only for plans that were all fixed in advance. Buyers choose
    after they have seen results, so nothing is ever admitted by this figure. Poisson sampling, add
    or remove one; from above, on a grid of 1e-3. Raises PlanError as `epsilon`.
    """
    if not 0 < delta < 1:
        raise PlanError(f"delta={delta!r} must be between 0 and 1")
    together: dict[tuple[float, float], int] = {}
    for charge in charges:
        mechanism = (charge.noise_multiplier, charge.sampling_rate)
        together[mechanism] = together.get(mechanism, 0) + charge.steps
    if not together:
        return 0.0
    from dp_accounting import dp_event  # half a second, which only those who look pay
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=1e-3)
    for (noise, rate), steps in together.items():
        event = dp_event.GaussianDpEvent(noise)
        accountant.compose(
            event if rate == 1.0 else dp_event.PoissonSampledDpEvent(rate, event), steps
        )
    return float(accountant.get_epsilon(delta))


def calibrate(
    target: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    metric_steps: int,
    metric_share: float = 0.05,
) -> tuple[float, float]:
    """(noise_multiplier, metric_noise_multiplier) that together cost at most `target` epsilon and
    over 99 % of it.

    `metric_share` is the metrics' part of rho, where rho is what the whole budget would be if it
    were spent on
    unsubsampled Gaussian mechanisms (rho = 1/(2 sigma^2) each and adds up). Only when the least
    noise that a plan
    allows (0.3) costs less than 99 % of the target, less is spent. Raises PlanError for an argument
    out of range, or
    if no noise multiplier that a plan allows is enough.
    """
    _check_target(target)
    if not 0 < metric_share < 1:
        raise PlanError(f"metric_share={metric_share!r} must be between 0 and 1")
    too_small = PlanError(
        f"epsilon={target:g} at delta={delta:g} is too small for {steps} steps and {metric_steps} "
        "metrics: "
        f"even a noise multiplier of {MAX_NOISE:g} costs more"
    )

    whole = _gaussian_noise(target, delta)
    if math.isinf(whole):
        raise too_small
    # half of the share for the losses, half for the one table of scores at the end
    metric_noise = min(
        max(whole * math.sqrt(2 * metric_steps / metric_share), MIN_NOISE), MAX_METRIC_NOISE
    )
    metrics = [
        Charge(metric_noise, 1.0, metric_steps, METRICS),
        Charge(metric_noise / math.sqrt(metric_steps), 1.0, 1, METRICS),
    ]

    def cost(sigma: float) -> float:
        return epsilon([Charge(sigma, sampling_rate, steps, "training"), *metrics], delta)

    noise = _least_noise(cost, target, MIN_NOISE, 0.998)
    if math.isinf(noise):
        raise too_small
    return noise, metric_noise


def gaussian_noise(target: float, delta: float) -> float:
    """The noise multiplier of one Gaussian mechanism over everybody that costs at most `target`
    epsilon at `delta`, and nearly all of it. Raises PlanError for a number out of range.
    """
    _check_target(target)
    if not 0 < delta <= 1e-2:
        raise PlanError(f"delta={delta!r} must be above 0 and at most 0.01")
    noise = _gaussian_noise(target, delta)
    if math.isinf(noise):
        raise PlanError(f"epsilon={target:g} is too small: the noise would be above {MAX_NOISE:g}")
    return noise


def _check_target(target: float) -> None:
    if not (math.isfinite(target) and 0 < target <= 100):
        raise PlanError(f"epsilon={target!r} must be above 0 and at most 100")


def _gaussian_noise(target: float, delta: float) -> float:
    def cost(sigma: float) -> float:
        return epsilon([Charge(sigma, 1.0, 1, "whole budget")], delta)

    return _least_noise(cost, target, 1e-2, 0.9999)


def _least_noise(cost: Callable[[float], float], target: float, low: float, enough: float) -> float:
    """A noise multiplier from `low` up whose cost is from enough*target to target.

    `low` itself if that costs less; infinity if even MAX_NOISE costs more than the target.
    """
    if cost(low) <= target:
        return low
    high = low
    while cost(high) > target:
        if high >= MAX_NOISE:
            return math.inf
        low, high = high, min(2 * high, MAX_NOISE)
    while cost(high) < enough * target and high / low > 1 + 1e-12:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) > target else (low, middle)
    return high
