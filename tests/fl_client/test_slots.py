"""Slots: enough of them by public numbers alone, and placements that say nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, chi2, norm

from fl_client.privacy.accounting import OVERFLOW
from fl_client.privacy.noise import SecureRandom
from fl_client.privacy.plan import PrivacyPlan
from fl_client.privacy.slots import COUNT_NOISE, needed, round_seconds, seated


@pytest.mark.parametrize("rate", [1e-6, 0.01, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("released", [1, 10, 300, 20_000, 10**7])
def test_needed__any_terms__leaves_somebody_out_once_in_two_to_the_sixty(
    released: int, rate: float
) -> None:
    slots = needed(released, rate)
    most = released + COUNT_NOISE * norm.isf(OVERFLOW / 2)  # the true count, but for half of it
    assert binom.sf(slots, math.floor(most), rate) <= OVERFLOW / 2
    mean = released * rate
    assert slots <= mean + 60 + 14 * math.sqrt(mean), "and not many more than that"


def test_needed__table_of_any_true_size__is_not_looked_at() -> None:
    assert needed(300, 0.2) == needed(300, 0.2) < needed(301, 0.9)


def test_seated__many_times__every_patient_in_every_slot_as_often() -> None:
    random, persons, slots, times = SecureRandom(), 5, 8, 20_000
    counts = np.zeros((persons + 1, slots))
    for _ in range(times):
        places = seated(random, persons, 0.6, slots)
        assert len(places) == slots
        there = places[places < persons]
        assert len(set(there.tolist())) == len(there)
        counts[places, np.arange(slots)] += 1
    expected = times * 0.6 / slots
    statistic = ((counts[:persons] - expected) ** 2 / expected).sum()
    assert statistic < chi2.ppf(1 - 1e-7, persons * slots)


def test_seated__placement_of_others__is_alike_with_and_without_one_patient() -> None:
    """The coupling that privacy rests on: the distribution of the others' slots, one patient in or
    out.
    """
    random, slots, times = SecureRandom(), 4, 30_000

    def others(persons: int) -> np.ndarray:
        counts = np.zeros((slots + 1, slots + 1))  # where patients 0 and 1 sit; slots: nowhere
        for _ in range(times):
            places = seated(random, persons, 0.5, slots)
            where = [np.flatnonzero(places == p) for p in (0, 1)]
            counts[tuple(int(w[0]) if len(w) else slots for w in where)] += 1
        return counts

    with_one, without = others(3), others(2)
    both = (with_one + without) / 2
    cells = both > 0
    with_one, without, both = with_one[cells], without[cells], both[cells]
    statistic = (((with_one - both) ** 2 + (without - both) ** 2) / both).sum()
    assert statistic < chi2.ppf(1 - 1e-7, cells.sum() - 1)


def test_seated__more_drawn_than_slots__leaves_out_at_random() -> None:
    random = SecureRandom()
    seen = np.zeros(6)
    for _ in range(6000):
        places = seated(random, 6, 1.0, 4)
        assert len(set(places.tolist())) == 4 and places.max() < 6
        seen[places] += 1
    assert ((seen - 4000) ** 2 / 4000).sum() < chi2.ppf(1 - 1e-7, 6)


def test_round_seconds__any_table__follows_from_the_terms_and_is_never_nothing() -> None:
    plan = PrivacyPlan(1.0, 1.0, 0.25, 40, 1e-5, 10.0, 1.0, 4)
    assert round_seconds(plan, 10, 300, 1, 28) == 0.1
    base = round_seconds(plan, 10, 10_000, 1, 10**7)
    assert base == pytest.approx((3 * 10 * 0.25 + 1) * 10_000 * 10**7 / 1e10, abs=0.1)
    assert round_seconds(plan, 10, 10_000, 4, 10**7) == pytest.approx(4 * base, abs=0.4)
