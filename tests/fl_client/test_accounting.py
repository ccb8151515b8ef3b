"""Epsilon against independent oracles: exact hockey-stick divergences and numerical integrals, not
the accountant.
"""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants.analysis.rdp import get_privacy_spent
from scipy.stats import norm

from fl_client.errors import PlanError
from fl_client.privacy import accounting
from fl_client.privacy.accounting import (
    LIFETIME_ORDERS,
    ORDERS,
    OVERFLOW,
    best_order,
    calibrate,
    epsilon,
    fits,
    how_many_fit,
    lifetime_epsilon,
    pld_epsilon,
)
from fl_client.privacy.plan import Charge

DELTA = 1e-5
# few distinct mechanisms, so that hypothesis spends its time on histories and not on cold series
MECHANISMS = [(0.8, 0.02), (1.5, 0.1), (2.0, 1.0), (7.5, 0.5), (40.0, 1.0)]
charges = st.builds(
    lambda mechanism, steps: Charge(*mechanism, steps, "x"),
    st.sampled_from(MECHANISMS),
    st.integers(1, 500),
)
histories = st.lists(charges, max_size=8)


def _exact_gaussian_delta(eps: float, mu: float) -> float:
    """Balle & Wang 2018, theorem 8: the exact delta of a Gaussian mechanism with sensitivity/sigma
    = mu.
    """
    return float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu))


@given(st.floats(0.5, 50.0), st.integers(1, 200), st.floats(1e-8, 1e-3))
@settings(max_examples=60, deadline=None)
def test_epsilon__full_batch__is_sound_and_near_the_exact_gaussian(
    sigma: float, steps: int, delta: float
) -> None:
    value = epsilon([Charge(sigma, 1.0, steps, "x")], delta)
    mu = math.sqrt(steps) / sigma  # `steps` Gaussian mechanisms are one with sigma / sqrt(steps)
    if value > 100:
        return  # exp overflows in the oracle; no plan is that loose
    assert _exact_gaussian_delta(value, mu) <= delta * (1 + 1e-9)
    if value > 0.1:  # below, the highest order (1024) is what limits the bound
        assert _exact_gaussian_delta(value / 1.35, mu) > delta


@given(st.floats(0.5, 6.0), st.floats(0.001, 0.9))
@settings(max_examples=25, deadline=None)
def test_epsilon__one_subsampled_step__is_sound_for_adding_and_for_removing(
    sigma: float, rate: float
) -> None:
    value = epsilon([Charge(sigma, rate, 1, "x")], DELTA)
    x = np.linspace(-12 * sigma, 1 + 12 * sigma, 200_001)
    without = norm.pdf(x, 0, sigma)
    with_one = (1 - rate) * without + rate * norm.pdf(x, 1, sigma)
    for p, q in ((with_one, without), (without, with_one)):
        lost = np.maximum(p - math.exp(value) * q, 0.0)
        assert np.trapezoid(lost, x) <= DELTA * (1 + 1e-6)


@pytest.mark.parametrize(("sigma", "rate"), [(0.7, 0.01), (1.1, 0.25), (3.0, 0.6)])
def test_rdp__orders_whole_and_fractional__equals_the_integral_that_defines_it(
    sigma: float, rate: float
) -> None:
    ours = dict(zip(ORDERS, accounting._rdp_of_one_step(sigma, rate), strict=True))
    for order in (1.5, 2.5, 4.0, 10.9, 16):
        z = np.linspace(-20 * sigma, order + 20 * sigma, 400_001)
        log_ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * z - 1) / (2 * sigma**2))
        moment = np.trapezoid(np.exp(norm.logpdf(z, 0, sigma) + order * log_ratio), z)
        assert ours[order] == pytest.approx(math.log(moment) / (order - 1), rel=1e-6, abs=1e-9)


@pytest.mark.filterwarnings("ignore:Optimal order is")
@given(histories.filter(bool))
@settings(max_examples=50, deadline=None)
def test_epsilon__any_history__converts_as_opacus_does(history: list[Charge]) -> None:
    rdp = accounting.rdp(history)
    theirs, _ = get_privacy_spent(orders=list(ORDERS), rdp=rdp, delta=DELTA)
    # the slots' part of delta is all that is ours
    assert epsilon(history, DELTA) == pytest.approx(max(0.0, theirs), rel=1e-6)


def test_epsilon__nothing__is_zero() -> None:
    assert epsilon([], DELTA) == 0.0


@given(histories, charges)
@settings(max_examples=60, deadline=None)
def test_epsilon__one_more_charge__never_falls_and_never_costs_more_than_alone(
    history: list, new: Charge
) -> None:
    before, after = epsilon(history, DELTA), epsilon([*history, new], DELTA)
    assert after >= before
    assert after >= epsilon([new], DELTA)


@given(histories, st.randoms())
@settings(max_examples=60, deadline=None)
def test_epsilon__shuffled_and_cut_in_pieces__is_the_same(
    history: list[Charge], random: object
) -> None:
    pieces = []
    for c in history:
        first = random.randint(0, c.steps)  # type: ignore[attr-defined]
        pieces += [
            Charge(c.noise_multiplier, c.sampling_rate, n, "piece")
            for n in (first, c.steps - first)
            if n
        ]
    random.shuffle(pieces)  # type: ignore[attr-defined]
    assert epsilon(pieces, DELTA) == pytest.approx(epsilon(history, DELTA), rel=1e-9)


def test_epsilon__twenty_equal_jobs__compose_far_below_their_sum() -> None:
    job = Charge(
        1.8945, 0.02, 500, "x"
    )  # the job of the literature's table: RDP gives 1.090 for one, 5.53 for twenty
    assert epsilon([job], DELTA) == pytest.approx(1.090, abs=0.005)
    assert epsilon([job] * 20, DELTA) == pytest.approx(5.53, abs=0.03)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_epsilon__delta_out_of_range__refuses(delta: float) -> None:
    with pytest.raises(PlanError, match="delta="):
        epsilon([], delta)


@pytest.mark.parametrize("rate", [1e-9, 1e-6, 0.5, 1 - 1e-12, 1.0])
@pytest.mark.parametrize("sigma", [1e-2, 0.3, 1e4, 1e6])
def test_epsilon__corners_of_the_range__are_numbers_or_infinity_never_nan(
    sigma: float, rate: float
) -> None:
    value = epsilon([Charge(sigma, rate, 100_000, "x")], DELTA)
    assert value >= 0.0
    if rate == 1.0 and sigma == 1e-2:
        assert value > 1e6


def test_epsilon__series_fails_at_every_order__is_infinite_and_fits_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(**_: object) -> None:
        raise ValueError("math domain error")

    monkeypatch.setattr(accounting, "compute_rdp", fail)
    unheard = Charge(3.14159, 0.271828, 1, "x")  # not in the cache of another test
    assert epsilon([unheard], DELTA) == math.inf
    assert not fits([], [unheard], 1e308, DELTA, 8)
    del accounting._CURVES[unheard.noise_multiplier, unheard.sampling_rate]


def test_epsilon__a_thousand_mixed_charges__takes_under_50_ms_when_warm() -> None:
    history = [Charge(*MECHANISMS[i % len(MECHANISMS)], 1 + i, "x") for i in range(1000)]
    epsilon(history, DELTA)
    times = []
    for _ in range(5):
        started = time.process_time()
        epsilon(history, DELTA)
        times.append(time.process_time() - started)
    assert min(times) < 0.05


@given(histories, histories.filter(bool), st.floats(0.1, 20.0))
@settings(max_examples=60, deadline=None)
def test_fits__any_history__exactly_when_the_joint_epsilon_is_within_the_limit(
    history: list[Charge], new: list[Charge], limit: float
) -> None:
    order = best_order(limit, DELTA)
    both = lifetime_epsilon(history + new, DELTA, order)
    assert fits(history, new, limit, DELTA, order) == (both <= limit)
    assert both >= epsilon(history + new, DELTA)


@given(
    st.floats(0.05, 12.0),
    st.sampled_from([1e-7, 1e-5, 1e-3]),
    st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    st.integers(1, 2000),
    st.integers(1, 100),
    st.floats(0.01, 0.5),
)
@settings(max_examples=6, deadline=None)
def test_calibrate__any_target__costs_at_most_it_and_over_99_percent(
    target: float, delta: float, rate: float, steps: int, metric_steps: int, share: float
) -> None:
    noise, metric_noise = calibrate(target, delta, rate, steps, metric_steps, share)
    scores = Charge(metric_noise / metric_steps**0.5, 1.0, 1, "s")
    cost = epsilon(
        [Charge(noise, rate, steps, "t"), Charge(metric_noise, 1.0, metric_steps, "m"), scores],
        delta,
    )
    assert cost <= target
    assert cost > 0.99 * target or noise == 0.3


@given(st.floats(0.1, 8.0), st.integers(1, 500), st.integers(1, 100), st.floats(0.01, 0.5))
@settings(max_examples=25, deadline=None)
def test_calibrate__full_batch__gives_the_metrics_their_share(
    target: float, steps: int, metric_steps: int, share: float
) -> None:
    noise, metric_noise = calibrate(target, DELTA, 1.0, steps, metric_steps, share)
    if noise == 0.3 or metric_noise == 0.3:
        return  # a floor of the plan
    training, metric = steps / noise**2, 2 * metric_steps / metric_noise**2
    assert metric / (metric + training) == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize("target", [0.0, -1.0, 101.0, math.nan, math.inf, 1e-9])
def test_calibrate__target_out_of_reach__refuses_and_names_it(target: float) -> None:
    with pytest.raises(PlanError, match=f"epsilon={target:g}"):
        calibrate(target, DELTA, 1.0, 60, 10)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, math.nan])
def test_calibrate__share_out_of_range__refuses(share: float) -> None:
    with pytest.raises(PlanError, match="metric_share="):
        calibrate(1.0, DELTA, 1.0, 60, 10, share)


# -- how many more, and the figure beside it -------------------------------------------------------

JOB = (Charge(1.8945, 0.02, 500, "training"),)


@given(histories, st.lists(charges, min_size=1, max_size=3), st.floats(0.05, 20.0))
@settings(max_examples=60, deadline=None)
def test_how_many_fit__that_many_fit_and_one_more_does_not(
    history: list[Charge], new: list[Charge], limit: float
) -> None:
    order = best_order(limit, DELTA)
    count = how_many_fit(history, new, limit, DELTA, order)
    assert count == 0 or fits(history, new * count, limit, DELTA, order)
    assert not fits(history, new * (count + 1), limit, DELTA, order)


def test_how_many_fit__small_jobs_in_a_budget_of_8__many_times_what_adding_epsilons_admits() -> (
    None
):
    alone = epsilon(JOB, DELTA)
    assert how_many_fit([], JOB, 8.0, DELTA, best_order(8.0, DELTA)) >= 36 > 4 * (8.0 // alone)


def test_how_many_fit__bad_question__is_refused() -> None:
    with pytest.raises(PlanError, match="without charges"):
        how_many_fit([], [], 1.0, DELTA, 8)
    with pytest.raises(PlanError, match="delta"):
        how_many_fit([], JOB, 1.0, 0.0, 8)


@given(histories)
@settings(max_examples=15, deadline=None)
def test_pld_epsilon__same_history__is_never_above_the_renyi_figure(history: list[Charge]) -> None:
    assert pld_epsilon(history, DELTA) <= epsilon(history, DELTA) + 2e-3  # its grid


@pytest.mark.parametrize(("noise", "delta"), [(1.0, 1e-5), (4.0, 1e-3), (30.0, 1e-6)])
def test_pld_epsilon__one_plain_gaussian__is_the_exact_figure(noise: float, delta: float) -> None:
    # delta(eps) of the Gaussian mechanism: Balle & Wang 2018 (1805.06530), theorem 8
    found = pld_epsilon([Charge(noise, 1.0, 1, "x")], delta)

    def exact(eps: float) -> float:
        upper, lower = norm.cdf(0.5 / noise - eps * noise), norm.cdf(-0.5 / noise - eps * noise)
        return float(upper - math.exp(eps) * lower)

    assert exact(found) <= delta * (1 + 1e-6)
    assert exact(found - 2e-3) >= delta * (1 - 1e-6) or found < 2e-3


def test_pld_epsilon__nothing__costs_nothing() -> None:
    assert pld_epsilon([], DELTA) == 0.0
    with pytest.raises(PlanError, match="delta"):
        pld_epsilon(JOB, 1.0)


# -- a lifetime, whose jobs are chosen after results -----------------------------------------------


def test_lifetime_epsilon__parts_of_delta__add_up_to_delta() -> None:
    for order in LIFETIME_ORDERS:
        parts = np.exp(accounting._log_parts(order))
        assert parts.sum() == pytest.approx(1.0)
        assert parts.argmax() == ORDERS.index(order) and parts.max() > 0.5
        assert {ORDERS[i] for i in np.flatnonzero(parts)} == set(LIFETIME_ORDERS)


@given(histories, st.sampled_from(LIFETIME_ORDERS))
@settings(max_examples=60, deadline=None)
def test_lifetime_epsilon__any_history__is_the_bound_at_the_best_order_for_its_part_of_delta(
    history: list[Charge], order: float
) -> None:
    found = lifetime_epsilon(history, DELTA, order)
    if not history:
        assert found == 0.0
        return
    at = LIFETIME_ORDERS.index(order)
    parts = [4.0 ** -abs(i - at) for i in range(len(LIFETIME_ORDERS))]
    bounds = []
    for a, part in zip(LIFETIME_ORDERS, parts, strict=True):
        rdp = sum(
            c.steps * accounting._rdp_at(a, c.noise_multiplier, c.sampling_rate) for c in history
        )
        log_delta = math.log(DELTA * part / sum(parts))
        bounds.append(rdp + math.log((a - 1) / a) - (log_delta + math.log(a)) / (a - 1))
    assert found == pytest.approx(max(0.0, min(bounds)), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("limit", [1.0, 2.0, 4.0, 8.0])
def test_best_order__the_end_of_a_budget__loses_under_a_tenth_by_paying_for_the_choice(
    limit: float,
) -> None:
    order, sigma = best_order(limit, DELTA), 20.0
    paid = how_many_fit([], [Charge(sigma, 1.0, 1, "training")], limit, DELTA, order)

    def bound(n: int, a: float) -> float:
        rdp = n * a / (2 * sigma**2)
        return rdp + math.log((a - 1) / a) - (math.log(DELTA) + math.log(a)) / (a - 1)

    free = max(n for n in range(1, 5000) if min(bound(n, a) for a in LIFETIME_ORDERS) <= limit)
    assert 0.9 * free - 1 <= paid <= free


def test_epsilon__many_steps__pays_for_the_chance_that_a_slot_is_missing() -> None:
    steps = 10**6
    charge = [Charge(1e4, 1e-3, steps, "training")]
    assert epsilon(charge, 2 * OVERFLOW * steps) > epsilon(
        [Charge(1e4, 1e-3, 1, "t")], OVERFLOW * steps
    )
    assert epsilon(charge, OVERFLOW * steps / 2) == math.inf
    assert not fits([], charge, 1e6, OVERFLOW * steps / 2, 8)


@pytest.mark.parametrize("order", [7, 0, math.nan, 1.5000001])
def test_lifetime_epsilon__order_that_is_none__is_refused(order: float) -> None:
    with pytest.raises(PlanError, match="order="):
        lifetime_epsilon(JOB, DELTA, order)


@given(st.lists(st.lists(charges, max_size=4), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_lifetime_epsilons__many_histories_at_once__are_each_what_it_would_be_alone(
    histories: list,
) -> None:
    rdps = np.array([accounting.rdp(history) for history in histories])
    steps = np.array([sum(c.steps for c in history) for history in histories])
    found = accounting.lifetime_epsilons(rdps, steps, 1e-5, 12)
    assert found.tolist() == [accounting.lifetime_epsilon(h, 1e-5, 12) for h in histories]
