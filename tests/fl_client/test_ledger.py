"""The ledger never under-counts: random histories against a plain model, kill -9, races for the
last budget.
"""

import contextlib
import os
import random
import signal
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fl_client.data.identity import Members, patient_key
from fl_client.errors import BudgetExceeded, LedgerError, PolicyRefusal
from fl_client.privacy import accounting
from fl_client.privacy.accounting import best_order, epsilon, lifetime_epsilon
from fl_client.privacy.affordable import Budget
from fl_client.privacy.ledger import Ledger
from fl_client.privacy.ledger_file import LedgerFile
from fl_client.privacy.plan import Charge

DELTA = 1e-5
TRAIN, METRIC = Charge(30.0, 1.0, 2, "training"), Charge(60.0, 1.0, 1, "loss metric")
ROUND = (TRAIN, METRIC)


def job_of(rounds: int) -> tuple[Charge, ...]:
    return (Charge(30.0, 1.0, 2 * rounds, "training"), Charge(60.0, 1.0, rounds, "loss metric"))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    opened = Ledger(tmp_path / "ledger.sqlite")
    opened.open_dataset("ward", 3.0, DELTA)
    opened.set_members("ward", patients("p1", "p2"))
    return opened


def lifetime(charges: Sequence[Charge], limit: float = 3.0) -> float:
    return lifetime_epsilon(charges, DELTA, best_order(limit, DELTA))


def patients(*names: str) -> Members:
    keys = [patient_key(b"secret", name) for name in names]
    return Members(keys, np.ones(len(keys), dtype=bool))


def _steps(charges: list[Charge]) -> Counter:
    """Steps per mechanism: what an RDP ledger counts."""
    counted: Counter = Counter()
    for c in charges:
        counted[c.noise_multiplier, c.sampling_rate, c.what] += c.steps
    return counted


# -- one job from reservation to close -------------------------------------------------------------


def test_begin_round__reserved_job__moves_the_charge_from_reserved_to_spent(ledger: Ledger) -> None:
    ledger.reserve("ward", "job", job_of(3))
    committed = ledger.epsilon_committed("ward")
    assert ledger.begin_round("job", 1, b"model", ROUND) is None
    assert ledger.history("ward") == list(ROUND)
    assert ledger.reserved("ward") == list(job_of(2))
    assert ledger.epsilon_committed("ward") == pytest.approx(committed, rel=1e-12)
    assert ledger.epsilon_spent("ward") == lifetime(ROUND)


def test_begin_round__answered_before__gives_the_stored_reply_without_a_charge(
    ledger: Ledger,
) -> None:
    ledger.reserve("ward", "job", job_of(3))
    ledger.begin_round("job", 1, b"model", ROUND)
    ledger.finish_round("job", 1, b"reply")
    spent = ledger.epsilon_spent("ward")
    assert ledger.begin_round("job", 1, b"model", ROUND) == b"reply"
    assert ledger.epsilon_spent("ward") == spent
    ledger.close_job("job")
    assert ledger.begin_round("job", 1, b"model", ROUND) == b"reply"


def test_begin_round__begun_but_never_finished__is_asked_again_without_a_second_charge(
    ledger: Ledger,
) -> None:
    ledger.reserve("ward", "job", job_of(3))
    for _ in range(3):
        assert ledger.begin_round("job", 1, b"model", ROUND) is None
    assert ledger.history("ward") == list(ROUND)


def test_begin_round__other_input__refuses(ledger: Ledger) -> None:
    ledger.reserve("ward", "job", job_of(3))
    ledger.begin_round("job", 1, b"model", ROUND)
    with pytest.raises(LedgerError, match="round 1 of job job was asked before with another model"):
        ledger.begin_round("job", 1, b"other", ROUND)
    ledger.finish_round("job", 1, b"reply")
    with pytest.raises(LedgerError, match="another model"):
        ledger.begin_round("job", 1, b"other", ROUND)


@pytest.mark.parametrize(
    "more",
    [
        (TRAIN, METRIC, METRIC),
        (Charge(30.0, 1.0, 3, "training"), METRIC),
        (TRAIN,),
        (METRIC, TRAIN),
    ],
)
def test_begin_round__begun_before_with_other_charges__refuses(
    ledger: Ledger, more: tuple[Charge, ...]
) -> None:
    ledger.reserve("ward", "job", job_of(3))
    ledger.begin_round("job", 1, b"model", ROUND)
    with pytest.raises(LedgerError, match="begun with other charges"):
        ledger.begin_round("job", 1, b"model", more)


@pytest.mark.parametrize(
    "charges",
    [
        (Charge(30.0, 1.0, 7, "training"),),
        (Charge(29.0, 1.0, 1, "training"),),
        (Charge(30.0, 0.5, 1, "training"),),
        (Charge(60.0, 1.0, 1, "another metric"),),
        (TRAIN, TRAIN, TRAIN, TRAIN),
    ],
)
def test_begin_round__more_than_reserved__refuses_and_charges_nothing(
    ledger: Ledger, charges: tuple
) -> None:
    ledger.reserve("ward", "job", job_of(3))
    with pytest.raises(LedgerError, match=r"more .* than the job reserved"):
        ledger.begin_round("job", 1, b"model", (METRIC, *charges))
    assert ledger.history("ward") == []
    assert ledger.reserved("ward") == list(job_of(3))
    assert ledger.rounds("job") == []


def test_begin_round__one_round_more_than_reserved__refuses(ledger: Ledger) -> None:
    ledger.reserve("ward", "job", job_of(2))
    for number in (1, 2):
        ledger.begin_round("job", number, b"model", ROUND)
    with pytest.raises(LedgerError, match="more training than the job reserved"):
        ledger.begin_round("job", 3, b"model", ROUND)


def test_begin_round__unknown_job_or_no_charge__refuses(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="job nobody has reserved nothing here"):
        ledger.begin_round("nobody", 1, b"model", ROUND)
    ledger.reserve("ward", "job", job_of(1))
    with pytest.raises(LedgerError, match="names no charge"):
        ledger.begin_round("job", 1, b"model", ())


def test_finish_round__twice_or_never_begun__refuses_so_that_one_reply_leaves(
    ledger: Ledger,
) -> None:
    ledger.reserve("ward", "job", job_of(2))
    ledger.begin_round("job", 1, b"model", ROUND)
    ledger.finish_round("job", 1, b"reply")
    for number in (1, 2):
        with pytest.raises(LedgerError, match="not begun, or is answered already"):
            ledger.finish_round("job", number, b"another draw of noise")
    assert ledger.reply("job", 1) == b"reply"


def test_close_job__half_way__frees_what_was_never_begun_and_keeps_what_was_spent(
    ledger: Ledger,
) -> None:
    ledger.reserve("ward", "job", job_of(3))
    ledger.begin_round("job", 1, b"model", ROUND)
    ledger.close_job("job")
    ledger.close_job("job")
    assert ledger.reserved("ward") == []
    assert ledger.history("ward") == list(ROUND)
    with pytest.raises(LedgerError, match="job job is closed"):
        ledger.begin_round("job", 2, b"model", ROUND)
    with pytest.raises(LedgerError, match="job job is closed"):
        ledger.reserve("ward", "job", job_of(3))
    ledger.finish_round("job", 1, b"late but paid")
    with pytest.raises(LedgerError, match="reserved nothing here"):
        ledger.close_job("nobody")


def test_jobs__after_some_rounds__show_their_own_epsilon(ledger: Ledger) -> None:
    ledger.reserve("ward", "first", job_of(2))
    ledger.begin_round("first", 1, b"model", ROUND)
    ledger.finish_round("first", 1, b"reply")
    ledger.close_job("first")
    ledger.reserve("ward", "second", job_of(2))
    second, first = ledger.jobs("ward")
    assert (first.job_id, first.rounds_answered, first.closed) == ("first", 1, True)
    assert first.epsilon == epsilon(ROUND, DELTA)
    assert (second.job_id, second.rounds_answered, second.closed, second.epsilon) == (
        "second",
        0,
        False,
        0.0,
    )


# -- the budget ------------------------------------------------------------------------------------


def test_reserve__does_not_fit__says_what_is_needed_spent_and_left(ledger: Ledger) -> None:
    ledger.reserve("ward", "job", job_of(50))
    with pytest.raises(BudgetExceeded) as refused:
        ledger.reserve("ward", "greedy", (Charge(1.0, 1.0, 5, "training"),))
    before = ledger.epsilon_committed("ward")
    alone = lifetime([Charge(1.0, 1.0, 5, "training")])
    sentence = str(refused.value)
    assert (
        f"this job needs epsilon={alone:.3f}, as a lifetime counts it, on top of {before:.3f} spent"
        in sentence
    )
    assert f"the lifetime budget of 3 at delta=1e-05 leaves {3 - before:.3f}" in sentence
    assert [line.job_id for line in ledger.jobs("ward")] == ["job"]


def test_reserve__same_again__is_counted_once_and_a_different_one_refused(ledger: Ledger) -> None:
    for charges in (job_of(3), job_of(3), (*job_of(2), *ROUND)):  # the last is the same, in pieces
        ledger.reserve("ward", "job", charges)
    assert ledger.reserved("ward") == list(job_of(3))
    with pytest.raises(LedgerError, match="another reservation"):
        ledger.reserve("ward", "job", job_of(4))
    ledger.open_dataset("other ward", 3.0, DELTA)
    with pytest.raises(LedgerError, match="another reservation"):
        ledger.reserve("other ward", "job", job_of(3))


def test_reserve__same_again_after_some_rounds__does_not_refill_the_reservation(
    ledger: Ledger,
) -> None:
    ledger.reserve("ward", "job", job_of(3))
    ledger.begin_round("job", 1, b"model", ROUND)
    ledger.reserve("ward", "job", job_of(3))
    assert ledger.reserved("ward") == list(job_of(2))


def test_reserve__nothing_or_unknown_patients__refuses(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="at least one charge"):
        ledger.reserve("ward", "job", ())
    with pytest.raises(LedgerError, match="dataset nowhere has no budget"):
        ledger.reserve("nowhere", "job", job_of(1))


def test_reserve__many_equal_jobs__compose_so_that_more_fit_than_the_sum_allows(
    ledger: Ledger,
) -> None:
    one = (Charge(40.0, 1.0, 60, "training"),)
    alone, admitted = lifetime(one), 0
    with contextlib.suppress(BudgetExceeded):
        while True:
            ledger.reserve("ward", f"job {admitted}", one)
            admitted += 1
    assert admitted > 1.5 * (3.0 / alone)
    assert lifetime(one * admitted) <= 3.0 < lifetime(one * (admitted + 1))


def test_charge__outside_a_job__is_spent_at_once_until_the_budget_is_gone(ledger: Ledger) -> None:
    count = Charge(5.0, 1.0, 1, "released count")
    with pytest.raises(BudgetExceeded, match="released count needs epsilon"):
        for _ in range(100):
            ledger.charge("ward", count)
    (spent,) = ledger.history("ward")
    assert lifetime([spent]) <= 3.0 < lifetime([spent, count])


def test_open_dataset__lowered__keeps_the_history_and_may_not_rise_again(ledger: Ledger) -> None:
    ledger.reserve("ward", "job", job_of(3))
    ledger.begin_round("job", 1, b"model", ROUND)
    ledger.open_dataset("ward", 0.01, 1e-6)  # below what is spent
    assert ledger.history("ward") == list(ROUND)
    with pytest.raises(BudgetExceeded, match=r"leaves 0\.000"):
        ledger.reserve("ward", "late", job_of(1))
    order = best_order(3.0, DELTA)  # of the budget as it was opened
    assert ledger.budget("ward") == Budget(0.01, 1e-6, order)
    assert ledger.epsilon_spent("ward") == lifetime_epsilon(ROUND, 1e-6, order)
    for limit, delta in ((0.02, 1e-6), (0.01, 1e-5)):
        with pytest.raises(LedgerError, match=r"epsilon 0\.01 at delta=1e-06 .* never rise to"):
            ledger.open_dataset("ward", limit, delta)
    assert ledger.budget("ward") == Budget(0.01, 1e-6, order)


@pytest.mark.parametrize(
    ("limit", "delta", "named"),
    [
        (0.0, 1e-5, "epsilon=0"),
        (float("nan"), 1e-5, "epsilon=nan"),
        (float("inf"), 1e-5, "epsilon=inf"),
        (1.0, 0.0, "delta=0"),
        (1.0, 0.5, "delta=0.5"),
        (1.0, float("nan"), "delta=nan"),
    ],
)
def test_open_dataset__number_out_of_range__refuses(
    ledger: Ledger, limit: float, delta: float, named: str
) -> None:
    with pytest.raises(LedgerError, match=named):
        ledger.open_dataset("ward", limit, delta)
    assert ledger.budget("ward") == Budget(3.0, DELTA, best_order(3.0, DELTA))


def test_budget__two_patient_sets__do_not_touch_each_other(ledger: Ledger) -> None:
    ledger.open_dataset("other ward", 1.0, DELTA)
    ledger.set_members("other ward", patients("p3"))
    ledger.charge("other ward", TRAIN)
    assert ledger.history("ward") == []
    assert ledger.epsilon_spent("ward") == 0.0
    assert ledger.history("other ward") == [TRAIN]


# -- one lifetime per patient ----------------------------------------------------------------------


def table_of(*rows: tuple[str, str]) -> Members:
    """A table of (patient, record): patients are the units."""
    units = list(dict.fromkeys(patient_key(b"secret", who) for who, _ in rows))
    tied = [(record.encode(), units.index(patient_key(b"secret", who))) for who, record in rows]
    return Members(units, np.ones(len(units), dtype=bool), tied)


def test_reserve__another_dataset_with_one_of_the_patients__shares_the_lifetime(
    ledger: Ledger,
) -> None:
    ledger.open_dataset("clinic", 2.0, DELTA)
    ledger.set_members("clinic", patients("p2", "p3"))
    ledger.charge("clinic", Charge(2.7, 1.0, 1, "training"))
    assert 1.5 < ledger.epsilon_spent("clinic") < 2.0
    assert ledger.epsilon_spent("ward") > 1.5, "p2 is in both"
    with pytest.raises(BudgetExceeded, match="of another dataset with some of the same patients"):
        ledger.reserve("ward", "job", [Charge(2.7, 1.0, 1, "training")])
    ledger.set_members("ward", patients("p1"))
    ledger.reserve("ward", "job", [Charge(2.7, 1.0, 1, "training")])


def test_reserve__records_of_patients_who_have_several__count_at_the_group_s_worst(
    ledger: Ledger,
) -> None:
    ledger.open_dataset("visits", 8.0, DELTA)
    records = [f"record {i}".encode() for i in range(10)]
    ledger.set_members("visits", Members(records, np.ones(10, dtype=bool)))
    job = Charge(30.0, 1.0, 1, "training")
    ledger.charge("visits", job)
    assert ledger.epsilon_spent("visits") == lifetime([job], 8.0), "nothing ties the records yet"
    ledger.open_dataset("ten each", 8.0, DELTA)
    ledger.set_members("ten each", table_of(*(("p9", f"record {i}") for i in range(10))))
    grouped = Charge(3.0, 1.0, 1, "training")
    assert ledger.epsilon_spent("ten each") == pytest.approx(lifetime([grouped], 8.0))
    assert ledger.epsilon_spent("visits") == pytest.approx(lifetime([grouped], 8.0))
    left = ledger.jobs_left("visits")
    assert left is None
    ledger.reserve("visits", "job", [job])
    assert ledger.epsilon_committed("visits") == pytest.approx(lifetime([grouped] * 2, 8.0))


def test_set_members__patients_come_and_go__a_dataset_s_figure_never_falls(ledger: Ledger) -> None:
    ledger.charge("ward", Charge(5.0, 1.0, 1, "training"))
    before = ledger.epsilon_spent("ward")
    ledger.set_members("ward", patients("p8", "p9"))
    assert ledger.epsilon_spent("ward") == before
    ledger.open_dataset("new ones", 3.0, DELTA)
    ledger.set_members("new ones", patients("p8", "p9"))
    assert ledger.epsilon_spent("new ones") == 0, "they have not been trained on"
    ledger.set_members("new ones", patients("p1"))
    assert ledger.epsilon_spent("new ones") == before


def test_begin_round__somebody_withdrew__is_charged_to_the_others_alone(ledger: Ledger) -> None:
    ledger.open_dataset("clinic", 9.0, DELTA)
    ledger.set_members("clinic", patients("p2"))
    ledger.reserve("ward", "job", job_of(2))
    ledger.begin_round("job", 1, b"model", ROUND)
    left = patients("p1", "p2").without(np.array([False, True]))
    ledger.set_members("ward", left)
    assert ledger.begin_round("job", 2, b"model", ROUND, "ward", left) is None
    assert ledger.epsilon_spent("clinic") == pytest.approx(
        lifetime_epsilon(ROUND, DELTA, best_order(9.0, DELTA))
    )
    assert ledger.epsilon_spent("ward") == pytest.approx(lifetime(job_of(2)))
    with pytest.raises(LedgerError, match="does not hold those who would be trained on"):
        ledger.begin_round("job", 3, b"model", ROUND, "ward", patients("p7"))


def test_begin_round__patients_joined_who_cannot_afford_the_rest__refused(ledger: Ledger) -> None:
    ledger.open_dataset("clinic", 3.0, DELTA)
    ledger.set_members("clinic", patients("p9"))
    ledger.charge("clinic", Charge(2.0, 1.0, 1, "training"))
    ledger.reserve("ward", "job", (Charge(3.0, 1.0, 2, "training"),))
    ledger.set_members("ward", patients("p1", "p2", "p9"))
    one = (Charge(3.0, 1.0, 1, "training"),)
    with pytest.raises(BudgetExceeded, match="what is left of this job needs"):
        ledger.begin_round("job", 1, b"model", one)
    assert ledger.reserved("ward") == [Charge(3.0, 1.0, 2, "training")]
    ledger.set_members("ward", patients("p1", "p2"))
    assert ledger.begin_round("job", 1, b"model", one) is None


def test_begin_round__begun_and_others_are_there_when_it_is_asked_again__are_charged_too(
    ledger: Ledger,
) -> None:
    ledger.open_dataset("clinic", 3.0, DELTA)
    ledger.set_members("clinic", patients("p9"))
    ledger.reserve("ward", "job", job_of(1))
    ledger.begin_round("job", 1, b"model", ROUND)
    ledger.set_members("ward", patients("p1", "p9"))
    assert ledger.epsilon_spent("clinic") == 0
    for _ in range(2):
        assert ledger.begin_round("job", 1, b"model", ROUND) is None
    assert ledger.epsilon_spent("clinic") == lifetime(ROUND)


def test_free_idle__no_round_for_an_hour__frees_and_the_next_round_reserves_again(
    ledger: Ledger,
) -> None:
    ledger.reserve("ward", "job", job_of(3))
    ledger.begin_round("job", 1, b"model", ROUND)
    assert ledger.free_idle(time.time() - 3600) == []
    assert ledger.free_idle(time.time() + 1) == ["job"] and ledger.reserved("ward") == []
    assert ledger.begin_round("job", 2, b"model", ROUND) is None
    assert ledger.reserved("ward") == list(ROUND)
    ledger.free_idle(time.time() + 1)
    ledger.charge("ward", Charge(1.54, 1.0, 1, "another's"))
    with pytest.raises(BudgetExceeded, match="what is left of this job"):
        ledger.begin_round("job", 3, b"model", ROUND)
    assert _steps(ledger.history("ward")) == _steps([*job_of(2), Charge(1.54, 1.0, 1, "another's")])


def test_reserve__buyer_with_enough_open_jobs__refused_until_one_is_done(ledger: Ledger) -> None:
    for name in ("a", "b"):
        ledger.reserve("ward", name, job_of(1), "0xB", 2)
    with pytest.raises(PolicyRefusal, match="has 2 jobs here that are not done; at most 2"):
        ledger.reserve("ward", "c", job_of(1), "0xB", 2)
    ledger.reserve("ward", "c", job_of(1), "0xC", 2)
    ledger.begin_round("a", 1, b"model", ROUND)  # nothing of it is reserved any more
    ledger.reserve("ward", "d", job_of(1), "0xB", 2)


some_members = st.sets(st.sampled_from(["p1", "p2", "p3", "p4"]), min_size=1)
histories = st.lists(
    st.one_of(
        st.tuples(st.just("list"), st.sampled_from("abc"), some_members),
        st.tuples(st.just("job"), st.sampled_from("abc"), st.sampled_from([2.0, 4.0, 9.0])),
    ),
    min_size=4,
    max_size=14,
)


@given(histories, st.tuples(*[st.floats(0.8, 4.0)] * 3))
@settings(max_examples=40, deadline=None)
def test_reserve__any_versions_of_any_datasets__nobody_goes_over_a_budget_that_binds_them(
    steps: list, limits: tuple
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        now: dict[str, set[str]] = {}
        ever: dict[str, set[str]] = {}
        spent: dict[str, list[Charge]] = {}
        for number, (kind, name, what) in enumerate(steps):
            if kind == "list":
                ledger.open_dataset(name, limits["abc".index(name)], DELTA)
                ledger.set_members(name, patients(*sorted(what)))
                now[name] = what
                ever.setdefault(name, set()).update(what)
                continue
            if name not in now:
                continue
            charge = Charge(what, 1.0, 1, "training")
            try:
                ledger.reserve(name, f"job {number}", [charge])
            except BudgetExceeded:
                # somebody in it, or who was in all of its versions, would go over
                continue
            ledger.begin_round(f"job {number}", 1, b"model", [charge])
            for who in now[name]:
                spent.setdefault(who, []).append(charge)
                for dataset, people in ever.items():
                    if who in people:
                        budget = ledger.budget(dataset)
                        lost = lifetime_epsilon(spent[who], budget.delta, budget.order)
                        assert lost <= budget.epsilon
                        assert lost <= ledger.epsilon_spent(dataset) * (1 + 1e-12)


# -- the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement", ["DELETE FROM spent", "UPDATE spent SET steps = 0", "DELETE FROM dataset"]
)
def test_file__someone_edits_history__sqlite_refuses(ledger: Ledger, statement: str) -> None:
    ledger.charge("ward", TRAIN)
    with (
        contextlib.closing(sqlite3.connect(ledger.path)) as db,
        pytest.raises(sqlite3.IntegrityError),
    ):
        db.execute("PRAGMA foreign_keys=ON")
        db.execute(statement)
    assert ledger.history("ward") == [TRAIN]


def test_file__is_not_a_database__refuses_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(
        b"not a database, but long enough to look like one " * 100
    )
    with pytest.raises(LedgerError, match="the privacy ledger cannot be used"):
        Ledger(tmp_path / "ledger.sqlite")


def test_file__read_while_a_writer_is_at_work__answers_at_once(ledger: Ledger) -> None:
    ledger.charge("ward", TRAIN)
    with ledger.file.change() as db:
        db.execute("UPDATE dataset SET epsilon = 2")
        started = time.monotonic()
        assert ledger.budget("ward") == Budget(3.0, DELTA, best_order(3.0, DELTA))
        assert ledger.epsilon_spent("ward") > 0
        assert time.monotonic() - started < 5  # a blocked reader would wait 30 s


def test_file__an_error_in_the_middle__leaves_nothing_half_done(
    ledger: Ledger, monkeypatch
) -> None:
    ledger.reserve("ward", "job", job_of(3))
    calls = []

    def fail_at_the_second(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError

    monkeypatch.setattr("fl_client.privacy.ledger._insert_spent", fail_at_the_second)
    with pytest.raises(MemoryError):
        ledger.begin_round("job", 1, b"model", ROUND)
    assert ledger.reserved("ward") == list(job_of(3))
    assert ledger.rounds("job") == []


def test_curves__a_new_process__takes_them_from_the_file_and_not_the_accountant(
    ledger: Ledger, monkeypatch
) -> None:
    ledger.reserve("ward", "job", (Charge(9.25, 0.3, 7, "training"),))
    before = ledger.epsilon_committed("ward")
    monkeypatch.setattr(accounting, "_CURVES", {})
    monkeypatch.setattr(accounting, "compute_rdp", None)
    assert Ledger(ledger.path).epsilon_committed("ward") == before


@pytest.mark.parametrize("spoiled", ["short", "zero", "falling", "negative", "NaN"])
def test_curves__cannot_be_right__are_computed_afresh(
    ledger: Ledger, monkeypatch, spoiled: str
) -> None:
    ledger.reserve("ward", "job", (Charge(9.5, 0.3, 7, "training"),))
    before = ledger.epsilon_committed("ward")
    rdp = np.frombuffer(accounting.curve(9.5, 0.3))
    wrong = {
        "short": rdp[:-1],
        "zero": rdp * 0,
        "falling": rdp[::-1],
        "negative": -rdp,
        "NaN": rdp * np.nan,
    }[spoiled]
    with sqlite3.connect(ledger.path) as db:
        db.execute("UPDATE curve SET rdp=?", (wrong.tobytes(),))
    monkeypatch.setattr(accounting, "_CURVES", {})
    assert Ledger(ledger.path).epsilon_committed("ward") == before


# -- never under-counts ----------------------------------------------------------------------------

JOBS = ("a", "b", "c")
some_charges = st.lists(
    st.builds(
        lambda m, steps: Charge(m[0], m[1], steps, m[2]),
        st.sampled_from(
            [(30.0, 1.0, "training"), (60.0, 1.0, "loss metric"), (2.0, 0.01, "training")]
        ),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=3,
)


class AgainstAPlainModel(RuleBasedStateMachine):
    """`released` is what a patient's data really went into: every round trained, whatever happened
    afterwards.
    """

    @initialize(limit=st.floats(0.5, 4.0))
    def start(self, limit: float) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.ledger = Ledger(Path(self.folder.name) / "ledger.sqlite")
        self.limit = limit
        self.ledger.open_dataset("ward", limit, DELTA)
        self.ledger.set_members("ward", patients("p1", "p2"))
        self.released: list[Charge] = []
        self.reservations: dict[str, Counter] = {}
        self.rounds: dict[tuple[str, int], tuple[bytes, list[Charge], bytes | None]] = {}
        self.closed: set[str] = set()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    @rule(job=st.sampled_from(JOBS), charges=some_charges)
    def reserve(self, job: str, charges: list[Charge]) -> None:
        with contextlib.suppress(BudgetExceeded, LedgerError):
            self.ledger.reserve("ward", job, charges)
            self.reservations.setdefault(job, _steps(charges))

    @rule(
        job=st.sampled_from(JOBS),
        number=st.integers(1, 3),
        model=st.sampled_from([b"x", b"y"]),
        charges=some_charges,
        crash=st.booleans(),
    )
    def one_round(
        self, job: str, number: int, model: bytes, charges: list[Charge], crash: bool
    ) -> None:
        known = self.rounds.get((job, number))
        try:
            answer = self.ledger.begin_round(job, number, model, charges)
        except LedgerError:
            return
        if answer is not None:
            assert known is not None
            assert known[0] == model
            assert known[2] == answer
            return
        assert job not in self.closed
        if known is None:
            self.released += charges
        else:
            assert known[0] == model
            assert known[2] is None
            assert _steps(known[1]) == _steps(charges)
        reply = None if crash else os.urandom(4)
        if reply is not None:
            self.ledger.finish_round(job, number, reply)
        self.rounds[job, number] = (model, charges, reply)

    @rule(job=st.sampled_from(JOBS))
    def close(self, job: str) -> None:
        with contextlib.suppress(LedgerError):
            self.ledger.close_job(job)
            self.closed.add(job)

    @rule(charges=some_charges)
    def charge_at_once(self, charges: list[Charge]) -> None:
        with contextlib.suppress(BudgetExceeded):
            self.ledger.charge("ward", charges[0])
            self.released.append(charges[0])

    @invariant()
    def everything_released_is_counted_and_within_the_budget(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert _steps(self.ledger.history("ward")) == _steps(self.released)
        assert self.ledger.epsilon_committed("ward") <= self.limit
        open_jobs: Counter = Counter()
        for job, steps in self.reservations.items():
            begun = _steps(
                [c for (j, _), (_, charges, _) in self.rounds.items() if j == job for c in charges]
            )
            assert not begun - steps, "a job spent more than it reserved"
            if job not in self.closed:
                open_jobs += steps - begun
        assert _steps(self.ledger.reserved("ward")) == open_jobs


TestAgainstAPlainModel = AgainstAPlainModel.TestCase
TestAgainstAPlainModel.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)


class Death(BaseException):
    """The process is gone: nothing after this statement happens, a rollback included."""


class Mortal:
    """A connection that dies at the n-th statement, before or after it is done."""

    def __init__(self, db: sqlite3.Connection, lives: list[int], after: bool):
        self._db, self._lives, self._after = db, lives, after

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)

    def execute(self, *arguments: object) -> object:
        if self._lives[0] < 0:
            raise Death
        self._lives[0] -= 1
        if self._lives[0] >= 0:
            return self._db.execute(*arguments)
        if self._after:
            self._db.execute(*arguments)
        raise Death


@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=4, max_size=12))
@settings(max_examples=250, deadline=None)
def test_death__at_thousands_of_random_statements__over_counts_at_most_the_round_in_flight(
    deaths: list,
) -> None:
    rounds, released, answered = 5, set(), {}
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if Path("/dev/shm").exists() else None
    ) as folder:
        path, own = Path(folder) / "ledger.sqlite", LedgerFile._connection
        for lives, after in [*deaths, (10**9, False)]:  # the last one lives
            left = [lives]

            @contextlib.contextmanager
            def connection(
                self: LedgerFile, left: list = left, after: bool = after
            ) -> Iterator[Mortal]:
                with own(self) as db:
                    yield Mortal(db, left, after)

            with patch.object(LedgerFile, "_connection", connection), contextlib.suppress(Death):
                ledger = Ledger(path)
                ledger.open_dataset("ward", 50.0, DELTA)
                ledger.set_members("ward", patients("p1", "p2"))
                ledger.reserve("ward", "job", job_of(rounds))
                for number in range(1, rounds + 1):
                    reply = ledger.begin_round("job", number, b"model", ROUND)
                    if reply is None:
                        released.add(number)  # patients' noise is drawn from here on
                        reply = os.urandom(4)
                        ledger.finish_round("job", number, reply)
                    assert answered.setdefault(number, reply) == reply
            if not path.exists():
                continue
            seen = Ledger(path)
            counted = {row.number for row in seen.rounds("job")}
            assert released <= counted and len(counted - released) <= 1
            assert _steps(seen.history("ward")) == _steps(
                list(job_of(len(counted))) if counted else []
            )
            open_job = False
            with contextlib.suppress(LedgerError):  # it died before there was a budget
                open_job = bool(seen.jobs("ward"))
            rest = rounds - len(counted)
            assert _steps(seen.reserved("ward")) == _steps(
                list(job_of(rest)) if open_job and rest else []
            )
        assert len(answered) == rounds


# -- real processes --------------------------------------------------------------------------------


def _fork(work: Callable[[int], None]) -> tuple[int, int]:
    """Run `work(write end of a pipe)` in a process of its own; (pid, read end)."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read_end)
            work(write_end)
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    return pid, read_end


def _said(read_end: int, already: bytes = b"") -> list[str]:
    """Every whole line that the process wrote before it ended."""
    with os.fdopen(read_end, "rb") as pipe:
        return [line for line in (already + pipe.read()).decode().split("\n")[:-1] if line]


def test_kill_9__at_fifty_random_moments__every_trained_round_is_charged_exactly_once(
    ledger: Ledger,
) -> None:
    ledger.open_dataset("large ward", 50.0, DELTA)
    ledger.set_members("large ward", patients("q1", "q2"))
    ledger.reserve("large ward", "job", job_of(1000))
    chance = random.Random(20261123)
    trained, answered, kills = set(), {}, 0

    def node(out: int) -> None:
        mine = Ledger(ledger.path)
        for number in range(max(1, len(mine.rounds("job")) - 2), 1001):
            reply = mine.begin_round("job", number, b"model", ROUND)
            if reply is None:
                os.write(
                    out, f"trained {number}\n".encode()
                )  # from here on, noise has been drawn on patients
                reply = os.urandom(8)
                mine.finish_round("job", number, reply)
            os.write(out, f"answered {number} {reply.hex()}\n".encode())

    while kills < 50:
        pid, read_end = _fork(node)
        heard, enough = b"", chance.randint(4, 10)
        while heard.count(b"\n") < enough and (more := os.read(read_end, 1)):
            heard += more
        time.sleep(chance.random() * 0.01)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the process must be killed at work, not end by itself"
        kills += 1
        for line in _said(read_end, heard):
            word, number, *rest = line.split()
            if word == "trained":
                trained.add(int(number))
            else:  # a reply that once left must be the reply ever after
                assert answered.setdefault(int(number), rest[0]) == rest[0]
        begun = ledger.rounds("job")
        assert trained <= {row.number for row in begun}
        assert len(begun) - len(trained) <= kills  # begun, and killed before training
        assert _steps(ledger.history("large ward")) == _steps(list(job_of(len(begun))))
        assert _steps(ledger.reserved("large ward")) == _steps(list(job_of(1000 - len(begun))))
        for number, reply in answered.items():
            assert ledger.reply("job", number).hex() == reply
    assert len(answered) > 50, "the processes must get some work done between the kills"


def test_reserve__two_processes_for_the_last_budget__one_wins(tmp_path: Path) -> None:
    last = (Charge(10.0, 1.0, 30, "training"),)  # more than half of 3
    assert lifetime(last) <= 3.0 < lifetime(last * 2)
    for attempt in range(5):
        path = tmp_path / f"{attempt}.sqlite"
        at = time.monotonic() + 0.1

        def buyer(out: int, path: Path = path, at: float = at) -> None:
            while time.monotonic() < at:  # both create the file and reserve at the same moment
                pass
            mine = Ledger(path)
            mine.open_dataset("ward", 3.0, DELTA)
            mine.set_members("ward", patients("p1", "p2"))
            try:
                mine.reserve("ward", f"job {os.getpid()}", last)
                os.write(out, b"won\n")
            except BudgetExceeded:
                os.write(out, b"refused\n")

        children = [_fork(buyer), _fork(buyer)]
        assert [os.waitpid(pid, 0)[1] for pid, _ in children] == [0, 0]
        assert sorted(word for _, read_end in children for word in _said(read_end)) == [
            "refused",
            "won",
        ]
        assert Ledger(path).reserved("ward") == list(last)


def test_begin_round__eight_threads_for_one_round__one_charge_and_one_reply(ledger: Ledger) -> None:
    ledger.reserve("ward", "job", job_of(5))
    start, left, refused = threading.Barrier(8), [], []

    def node(name: int) -> None:
        start.wait()
        reply = ledger.begin_round("job", 1, b"model", ROUND)
        if reply is None:
            reply = f"reply of {name}".encode()
            try:
                ledger.finish_round("job", 1, reply)
            except LedgerError:
                refused.append(reply)
                return
        left.append(reply)

    threads = [threading.Thread(target=node, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(left) + len(refused) == 8
    assert set(left) == {ledger.reply("job", 1)}
    assert ledger.history("ward") == list(ROUND)
