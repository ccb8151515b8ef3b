"""Who is in which cohort, against a plain model: keys tied together by rows are one patient."""

import math
import sqlite3
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_client.data.identity import Members
from fl_client.privacy import accounting, cohorts
from fl_client.privacy.cohorts import group_charge
from fl_client.privacy.plan import Charge

ROWS = [f"row {i}".encode().ljust(16) for i in range(12)]
PEOPLE = [f"person {i}".encode().ljust(16) for i in range(5)]
WARDS = [f"ward {i}".encode().ljust(16) for i in range(2)]


def database() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("CREATE TABLE dataset (name TEXT PRIMARY KEY)")
    db.executescript(cohorts.SCHEMA)
    db.executemany("INSERT INTO dataset VALUES (?)", (("a",), ("b",)))
    return db


def listed(unit: str, rows: set[int]) -> Members:
    """A table of these rows: row i is person i % 5's, person p is in ward p % 2."""
    there = sorted(rows)
    if unit == "record":
        return Members([ROWS[i] for i in there], np.ones(len(there), dtype=bool))
    of = [PEOPLE[i % 5] if unit == "patient" else WARDS[i % 5 % 2] for i in there]
    units = list(dict.fromkeys(of))
    tied = [(ROWS[i], units.index(key)) for i, key in zip(there, of, strict=True)]
    return Members(units, np.ones(len(units), dtype=bool), tied)


class Model:
    """Keys that are tied are in one set; a cohort is a list of units."""

    def __init__(self) -> None:
        self.ties: list[set[bytes]] = []
        self.cohorts: dict[int, list[bytes]] = {}

    def enter(self, cohort: int, members: Members) -> None:
        self.cohorts[cohort] = [members.units[i] for i in np.flatnonzero(members.held)]
        for together in [{key} for key in members.units] + [
            {row, members.units[unit]} for row, unit in members.rows
        ]:
            touched = [tie for tie in self.ties if tie & together]
            self.ties = [t for t in self.ties if t not in touched] + [together.union(*touched)]

    def held(self, key: bytes) -> dict[int, int]:
        tie = next(t for t in self.ties if key in t)
        counts = {c: sum(unit in tie for unit in units) for c, units in self.cohorts.items()}
        return {cohort: n for cohort, n in counts.items() if n}


def held_in(db: sqlite3.Connection, key: bytes) -> dict[int, int]:
    (patient,) = db.execute("SELECT patient FROM identity WHERE key=?", (key,)).fetchone()
    root = db.execute("SELECT root FROM merged WHERE patient=?", (patient,)).fetchone()
    patient = root[0] if root else patient
    (one,) = db.execute("SELECT class FROM patient WHERE id=?", (patient,)).fetchone()
    return dict(db.execute("SELECT cohort, units FROM held WHERE class=?", (one,)))


versions = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.sampled_from(["patient", "patient", "record", "ward"]),
        st.sets(st.integers(0, len(ROWS) - 1), min_size=1),
        st.sets(st.integers(0, 4)),
    ),
    min_size=1,
    max_size=7,
)


@given(versions, st.sampled_from([2, 4096]))
@settings(max_examples=150, deadline=None)
def test_enter__any_versions_of_any_unit__everybody_is_held_as_the_plain_model_says(
    given_versions: list, most: int
) -> None:
    db, model = database(), Model()
    with patch.object(cohorts, "MOST_CLASSES", most):
        for dataset, unit, rows, gone in given_versions:
            members = listed(unit, rows)
            withdrawn = np.array([i in gone for i in range(len(members.units))])
            members = members.without(withdrawn)
            cohort = cohorts.enter(db, dataset, members)
            assert cohorts.enter(db, dataset, members) == cohort
            model.enter(cohort, members)
    keys = [key for (key,) in db.execute("SELECT key FROM identity")]
    assert set(keys) == {key for tie in model.ties for key in tie}
    for key in keys:
        found, expected = held_in(db, key), model.held(key)
        if most > 1000:
            assert found == expected and cohorts.holding(db, [key]) == sorted(expected)
        else:  # coarser, never less
            assert all(found.get(cohort, 0) >= n for cohort, n in expected.items())
    answered = cohorts.classes(db, list(model.cohorts))
    for key in keys:
        held = model.held(key)
        assert not held or any(
            all(one.get(c, 0) >= n for c, n in held.items()) for one in answered
        ), "somebody's history is in no answer"


def test_classes__same_cohorts__are_answered_together_by_the_most_units() -> None:
    db = database()
    cohorts.enter(db, "a", listed("patient", {0, 1, 5}))  # person 0 has two rows
    cohort = cohorts.enter(db, "b", listed("record", {0, 1, 5}))
    assert cohorts.classes(db, [cohort]) == [{1: 1, 2: 2}]
    assert cohorts.classes(db, []) == []


def test_hold__twice__counts_the_larger_number_of_units() -> None:
    db = database()
    old = cohorts.enter(db, "a", listed("patient", {0, 1, 5}))
    cohorts.hold(db, old, listed("record", {0, 5}))
    assert held_in(db, PEOPLE[0]) == {old: 2} and held_in(db, PEOPLE[1]) == {old: 1}
    cohorts.hold(db, old, listed("patient", {0}))
    assert held_in(db, PEOPLE[0]) == {old: 2}


def test_enter__many_patients_and_one_withdrawal_in_fifty__are_two_classes() -> None:
    db = database()
    keys = [i.to_bytes(16, "big") for i in range(100_000)]
    everybody = np.ones(len(keys), dtype=bool)
    cohorts.enter(db, "a", Members(keys, everybody))
    fewer = everybody.copy()
    fewer[::50] = False
    second = cohorts.enter(db, "a", Members(keys, fewer))
    assert len(cohorts.classes(db, [second])) == 1
    assert db.execute("SELECT count(DISTINCT class) FROM patient").fetchone() == (2,)


@given(st.floats(0.3, 50.0), st.floats(1e-4, 1.0), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_group_charge__k_units__bounds_the_divergence_of_k_independent_draws(
    noise: float, rate: float, units: int
) -> None:
    """Order 2 in closed form: k units in one direction, each drawn by itself."""
    bound = group_charge(Charge(noise, rate, 1, "t"), units)
    shifts = np.arange(units + 1)
    weights = np.array([math.comb(units, j) * rate**j * (1 - rate) ** (units - j) for j in shifts])
    exponents = np.outer(shifts, shifts) / noise**2
    if exponents.max() < 500:
        exact = math.log(float((np.outer(weights, weights) * np.exp(exponents)).sum()))
        at_two = accounting.ORDERS.index(2.0)
        assert accounting.rdp([bound])[at_two] >= exact * (1 - 1e-9) - 1e-12


@pytest.mark.parametrize("units", [2, 10, 1000, 10**6])
def test_group_charge__full_batch__costs_the_square_of_the_units(units: int) -> None:
    one, many = Charge(2.0, 1.0, 3, "t"), group_charge(Charge(2.0, 1.0, 3, "t"), units)
    ratio = accounting.rdp([many])[0] / accounting.rdp([one])[0]
    assert units**2 * (1 - 1e-9) <= ratio <= units**2 * (1 + 1e-6) + 13334
    assert group_charge(one, 1) is one
