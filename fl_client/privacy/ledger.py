"""The lifetime privacy ledger: what every patient has spent, over all datasets, versions and jobs,
written before the act.

Charges stand against cohorts, which say who was there (cohorts.py). A patient's history is what was
charged to every cohort that holds them, whatever the dataset, its version, schema or unit, at as
many units as they have in it; every dataset's budget (epsilon, delta, and the order of the RDP
filter, fixed when the budget was opened) binds everybody whom the dataset ever held. Budgets may
fall, never rise. What fits is in affordable.py.

Rows are mechanisms (noise multiplier, sampling rate, steps), never a bare epsilon, and rows of
spent privacy are never changed or deleted. A round goes: `begin_round` (the charge is on disk) ->
train -> `finish_round` (the reply is on disk) -> the reply leaves. A round that was answered before
gets its stored reply again, which costs nothing; a round whose reply was never stored has released
nothing, so running it again is covered by the charge already written. Knows nothing of training or
money.
"""

from __future__ import annotations

import math
import sqlite3
import time
from ast import literal_eval
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_client.data.identity import Members
from fl_client.errors import LedgerError, LedgerRefusal, PolicyRefusal
from fl_client.privacy import accounting, cohorts
from fl_client.privacy.accounting import epsilon
from fl_client.privacy.affordable import (
    Budget,
    Room,
    budget_of,
    check_fits,
    epsilon_of,
    refuse_over,
)
from fl_client.privacy.ledger_file import LedgerFile
from fl_client.privacy.plan import LEAST_NOISE, Charge

FINAL_LOOK = (
    0  # the number of the one round that trains nothing: the table of the final model's scores
)
UNSEEN = -1  # the number of rounds that the ledger has not seen and counts all the same
COLUMNS = "noise_multiplier, sampling_rate, steps, what"  # in the order of Charge's fields


@dataclass(frozen=True)
class RoundRow:
    """One round that was begun; `answered` once its reply is stored."""

    number: int
    answered: bool


@dataclass(frozen=True)
class JobLine:
    """A job in the ledger, for display: rounds answered, epsilon spent by it alone, whether it is
    closed.
    """

    job_id: str
    rounds_answered: int
    epsilon: float
    closed: bool


@dataclass(frozen=True)
class JobOfPatient:
    """A job that some patient was charged for: the ledger's name of its dataset, when it was
    admitted (unix seconds).
    """

    job_id: str
    dataset: str
    at: float


class Ledger:
    """The ledger in one file. Every method opens its own connection and raises LedgerError if
    SQLite fails, and, where it changes something, if the file is not the one written last.
    """

    def __init__(self, path: Path):
        self.path = path
        self.file = LedgerFile(path)

    # -- datasets ----------------------------------------------------------------------------------

    def open_dataset(self, dataset: str, limit: float, delta: float) -> None:
        """Name the lifetime budget of a dataset; naming it again may lower it.

        It may go below what is spent: then nothing more fits. Raises LedgerError for a number out
        of range, or above what it was.
        """
        if type(dataset) is not str or not dataset:
            raise LedgerError(f"dataset {dataset!r} must be a name")
        if not (isinstance(limit, int | float) and math.isfinite(limit) and 0 < limit <= 1e4):
            raise LedgerError(f"epsilon={limit!r} must be above 0 and at most 10000")
        if not (isinstance(delta, int | float) and 0 < delta <= 1e-2):
            raise LedgerError(f"delta={delta!r} must be above 0 and at most 0.01")
        with self.file.change() as db:
            known = db.execute(
                "SELECT epsilon, delta FROM dataset WHERE name=?", (dataset,)
            ).fetchone()
            if known is None:
                order = accounting.best_order(limit, delta)
                db.execute(
                    "INSERT INTO dataset VALUES (?, ?, ?, ?)", (dataset, limit, delta, order)
                )
            elif limit > known[0] or delta > known[1]:
                raise LedgerRefusal(
                    f"the lifetime budget of epsilon {known[0]:g} at delta={known[1]:g} that was "
                    f"promised for dataset {dataset} may fall, never rise to {limit:g} at "
                    f"delta={delta:g}"
                )
            elif known != (limit, delta):
                db.execute(
                    "UPDATE dataset SET epsilon=?, delta=? WHERE name=?", (limit, delta, dataset)
                )

    def set_members(self, dataset: str, members: Members) -> None:
        """Say who is in the dataset from now on. The same again is a no-op."""
        with self.file.change() as db:
            budget_of(db, dataset)
            cohorts.enter(db, dataset, members)

    def inherit(self, patient_set: str, members: Members) -> None:
        """Have everybody in `members` bound by what an older ledger knows of `patient_set`, if
        anything: by its budget, and by all that it has spent.
        """
        with self.file.change() as db:
            for cohort in cohorts.of_dataset(db, patient_set):
                cohorts.hold(db, cohort, members)

    def members(self, dataset: str) -> tuple[str, str] | None:
        """(who, content) of the dataset as it is now: fingerprints as of Members."""
        with self.file.snapshot() as db:
            now = cohorts.newest(db, dataset)
            row = db.execute("SELECT who, content FROM cohort WHERE id=?", (now,)).fetchone()
        return None if row is None else (str(row[0]), str(row[1]))

    def datasets(self) -> list[str]:
        """Every dataset with a budget."""
        with self.file.snapshot() as db:
            return [str(row[0]) for row in db.execute("SELECT name FROM dataset ORDER BY name")]

    def counted(self, members: Members) -> tuple[int, int | None] | None:
        """The noised numbers of exactly those who are held and of exactly those who lack a value,
        if they were drawn before; a ledger of before drew the first alone.
        """
        with self.file.snapshot() as db:
            both = "SELECT persons, left_out FROM counted_apart WHERE who=?"
            row = db.execute(both, (members.who_apart,)).fetchone()
            if row is not None:
                return int(row[0]), int(row[1])
            alone = "SELECT persons FROM counted WHERE who=?"
            row = db.execute(alone, (members.who,)).fetchone()
        return None if row is None else (int(row[0]), None)

    def keep_count(self, members: Members, persons: int, left_out: int) -> None:
        """Keep noised numbers, which are what is said of these patients ever after."""
        with self.file.change() as db:
            db.execute(
                "INSERT OR IGNORE INTO counted_apart VALUES (?, ?, ?)",
                (members.who_apart, persons, left_out),
            )

    # -- figures -----------------------------------------------------------------------------------

    def budget(self, dataset: str) -> Budget:
        """The budget of a dataset. Raises LedgerError for an unknown one."""
        with self.file.snapshot() as db:
            return budget_of(db, dataset)

    def history(self, dataset: str) -> list[Charge]:
        """Everything spent on the dataset, oldest first; equal mechanisms are one Charge with their
        steps added up.
        """
        with self.file.snapshot() as db:
            return _charges(db, "spent", cohorts.of_dataset(db, dataset))

    def reserved(self, dataset: str) -> list[Charge]:
        """Everything set aside for admitted jobs and not begun; equal mechanisms added up."""
        with self.file.snapshot() as db:
            return _charges(db, "reserved", cohorts.of_dataset(db, dataset))

    def epsilon_spent(self, dataset: str) -> float:
        """What any patient whom the dataset ever held may have lost over everything: the largest,
        at the dataset's delta. Never falls.
        """
        with self.file.snapshot() as db:
            return epsilon_of(db, dataset, ("spent",))

    def epsilon_committed(self, dataset: str) -> float:
        """The same with what is reserved."""
        with self.file.snapshot() as db:
            return epsilon_of(db, dataset, ("spent", "reserved"))

    def jobs_left(self, dataset: str) -> int | None:
        """How many more jobs like the newest one fit; None before the first."""
        with self.file.snapshot() as db:
            row = db.execute(
                "SELECT charges FROM job WHERE dataset=? AND charges<>'[]' "
                "ORDER BY at DESC LIMIT 1",
                (dataset,),
            ).fetchone()
            if row is None:
                return None
            return Room(db, _newest(db, dataset), _charges_of(row[0])).how_many()

    def epsilon_left(self, dataset: str) -> float:
        """The largest epsilon, at the dataset's delta, of one more job that draws everybody in
        every step: what everybody's history, reservations included, leaves of every budget; 0 for
        nothing.
        """
        with self.file.snapshot() as db:
            room = Room(db, _newest(db, dataset), [Charge(1.0, 1.0, 1, "another job")])
            delta = room.budgets[room.dataset].delta
            times = room.how_much()
        if times <= 0:
            return 0.0
        return accounting.epsilon([Charge(times**-0.5, 1.0, 1, "another job")], delta)

    def forecast(self, dataset: str, job_id: str, charges: Sequence[Charge]) -> tuple[float, float]:
        """What any patient may have lost, reservations included, without and with a job that is
        not reserved yet; twice the same for one that is. Raises BudgetExceeded if it does not fit.
        """
        with self.file.snapshot() as db:
            if db.execute("SELECT 1 FROM job WHERE job_id=?", (job_id,)).fetchone():
                now = epsilon_of(db, dataset, ("spent", "reserved"))
                return now, now
            room = Room(db, _newest(db, dataset), _added_up(charges))
            refuse_over(room, charges, "this job")
            return room.worst(dataset, 0), room.worst(dataset, 1)

    def charged_since(self, dataset: str, at: float, besides: str = "") -> list[Charge]:
        """All that was charged to anybody of the dataset since then (unix seconds), and all that is
        reserved or may be reserved again (a reservation that lapsed comes back with the job's next
        round), but for the job `besides`: at least what any one patient has lost in that time, and
        will have lost by these jobs.
        """
        found: list[Charge] = []
        with self.file.snapshot() as db:
            own = [*cohorts.of_dataset(db, dataset)]
            for table, since in (("reserved", "1"), ("spent", "at >= ?")):
                rows = db.execute(
                    f"SELECT noise_multiplier, sampling_rate, sum(steps), what FROM {table} "  # noqa: S608 fixed
                    f"WHERE {since} AND job_id <> ? AND cohort IN ({','.join('?' * len(own))}) "
                    "GROUP BY noise_multiplier, sampling_rate, what",
                    (*((at,) if table == "spent" else ()), besides, *own),
                )
                found += [Charge(*row) for row in rows]
            lapsed = db.execute(
                "SELECT job_id, charges FROM job WHERE dataset=? AND lapsed AND NOT closed "
                "AND job_id <> ?",
                (dataset, besides),
            ).fetchall()
            for job_id, described in lapsed:
                gone = db.execute(f"SELECT {COLUMNS} FROM spent WHERE job_id=?", (job_id,))  # noqa: S608
                found += _less(_charges_of(described), [Charge(*row) for row in gone])
        return found

    # -- spending ----------------------------------------------------------------------------------

    def charge(
        self,
        dataset: str,
        charge: Charge,
        even_over: bool = False,
        members: Members | None = None,
    ) -> None:
        """Spend at once, outside a job (the catalogue's noised counts), for `members`, or whoever
        is in the dataset now. Raises BudgetExceeded, unless it has been spent already and counts
        `even_over` the budget.
        """
        with self.file.change() as db:
            cohort = _newest(db, dataset)
            if members is not None:
                cohort = cohorts.beside(db, dataset, members)
            if not even_over:
                check_fits(db, cohort, [charge], charge.what)
            _insert_spent(db, cohort, "", 0, charge)

    def reserve(
        self,
        dataset: str,
        job_id: str,
        charges: Sequence[Charge],
        buyer: str = "",
        most_of_buyer: int | None = None,
    ) -> None:
        """Set aside the worst case of a whole job. The same again is a no-op.

        Raises BudgetExceeded if it does not fit, PolicyRefusal if `buyer` has `most_of_buyer` open
        reservations already, LedgerError for a second, different reservation of the same job, for a
        job that is closed and for a job without charges.
        """
        if not job_id or not charges:
            raise LedgerRefusal(
                f"job {job_id[:12]!r} must have a name and at least one charge to reserve"
            )
        charges = _added_up(charges)
        described = repr([(c.noise_multiplier, c.sampling_rate, c.steps, c.what) for c in charges])
        with self.file.change() as db:
            known = db.execute(
                "SELECT dataset, charges, closed FROM job WHERE job_id=?", (job_id,)
            ).fetchone()
            if known and known[:2] != (dataset, described):
                raise LedgerRefusal(f"job {job_id[:12]} has another reservation already")
            if known and known[2]:
                raise LedgerRefusal(
                    f"job {job_id[:12]} is closed; its reservation is not made again"
                )
            if known:
                return
            if most_of_buyer is not None:
                (held,) = db.execute(
                    "SELECT count(DISTINCT job_id) FROM reserved JOIN job USING (job_id) "
                    "WHERE buyer=?",
                    (buyer,),
                ).fetchone()
                if held >= most_of_buyer:
                    raise PolicyRefusal(
                        f"buyer={buyer} has {held} jobs here that are not done; at most "
                        f"{most_of_buyer} at a time hold a reservation"
                    )
            cohort = _newest(db, dataset)
            check_fits(db, cohort, charges, "this job")
            now = time.time()
            db.execute(
                "INSERT INTO job VALUES (?, ?, ?, 0, ?, ?, ?, 0)",
                (job_id, dataset, described, now, buyer, now),
            )
            _insert_reserved(db, cohort, job_id, charges)

    def begin_round(
        self,
        job_id: str,
        number: int,
        input_hash: bytes,
        charges: Sequence[Charge],
        dataset: str = "",
        members: Members | None = None,
    ) -> bytes | None:
        """Write the round's charge before anything is trained; the stored reply if the round was
        answered before.

        None means: train, then `finish_round`. It is also the answer for a round that was begun
        with the same input and never finished, whose charge is on disk already; if two callers
        train it at once, `finish_round` lets one of the two replies leave. The round is charged to
        those whom it trains on, `members` of `dataset`, or whoever is in the job's dataset now;
        where that is not whom the job was admitted for, or its reservation lapsed, the rest of the
        job must fit again. Raises LedgerError if the job is unknown or closed, the round was asked
        with another input or other charges, the charges are more than what the job still has
        reserved, or the dataset never held `members`; BudgetExceeded if it does not fit again.
        """
        if not charges:
            raise LedgerRefusal(f"round {number} of job {job_id[:12]} names no charge")
        charges = _added_up(charges)
        with self.file.change() as db:
            row = db.execute(
                "SELECT input_hash, reply FROM round WHERE job_id=? AND number=?", (job_id, number)
            ).fetchone()
            if row is not None:
                if bytes(row[0]) != input_hash:
                    raise LedgerRefusal(
                        f"round {number} of job {job_id[:12]} was asked before with another model"
                    )
                if row[1] is not None:
                    return bytes(row[1])
            admitted_for, closed = _job(db, job_id)
            if closed:
                raise LedgerRefusal(f"job {job_id[:12]} is closed; no further round is answered")
            cohort = (
                _newest(db, dataset or admitted_for)
                if members is None
                else cohorts.matching(db, dataset or admitted_for, members)
            )
            if cohort is None:
                raise LedgerError(f"dataset {dataset} does not hold those who would be trained on")
            if row is not None:  # begun, never answered: nothing left the room
                _charge_begun(db, cohort, job_id, number, charges)
                return None
            _reserve_again(db, cohort, job_id)
            for charge in charges:
                _take_reserved(db, job_id, number, charge)
                _insert_spent(db, cohort, job_id, number, charge)
            db.execute("INSERT INTO round VALUES (?, ?, ?, NULL)", (job_id, number, input_hash))
            db.execute("UPDATE job SET moved_at=? WHERE job_id=?", (time.time(), job_id))
            return None

    def finish_round(self, job_id: str, number: int, reply: bytes) -> None:
        """Store a round's reply; only then may it leave. Raises LedgerError for a round not begun,
        or answered.
        """
        with self.file.change() as db:
            done = db.execute(
                "UPDATE round SET reply=? WHERE job_id=? AND number=? AND reply IS NULL",
                (reply, job_id, number),
            )
            if done.rowcount != 1:
                raise LedgerRefusal(
                    f"round {number} of job {job_id[:12]} was not begun, or is answered already"
                )

    def close_job(self, job_id: str) -> None:
        """End a job: what was reserved and never begun is free again; what was spent stays. Again
        is a no-op.

        A round in training may still be finished, since its charge is spent. Raises LedgerError for
        an unknown job.
        """
        with self.file.change() as db:
            if not _job(db, job_id)[1]:
                db.execute("DELETE FROM reserved WHERE job_id=?", (job_id,))
                db.execute("UPDATE job SET closed=1 WHERE job_id=?", (job_id,))

    def free_idle(self, since: float) -> list[str]:
        """Free the reservations of jobs that no round was begun of since then (unix seconds); their
        ids. Such a job is not over: its next round reserves what is left of it again, if it fits.
        """
        with self.file.change() as db:
            rows = db.execute(
                "SELECT job_id FROM job WHERE NOT closed AND NOT lapsed AND moved_at < ?", (since,)
            )
            idle = [str(row[0]) for row in rows]
            for job_id in idle:
                db.execute("DELETE FROM reserved WHERE job_id=?", (job_id,))
                db.execute("UPDATE job SET lapsed=1 WHERE job_id=?", (job_id,))
        return idle

    # -- mending -----------------------------------------------------------------------------------

    def forfeit(self, job_id: str) -> list[Charge]:
        """Count all that is left of a job as spent, and close it; what that was."""
        with self.file.change() as db:
            dataset, closed = _job(db, job_id)
            if closed:
                return []
            (charges,) = db.execute("SELECT charges FROM job WHERE job_id=?", (job_id,)).fetchone()
            spent = db.execute(f"SELECT {COLUMNS} FROM spent WHERE job_id=?", (job_id,))  # noqa: S608
            rest = _less(_charges_of(charges), [Charge(*row) for row in spent])
            db.execute("DELETE FROM reserved WHERE job_id=?", (job_id,))
            db.execute("UPDATE job SET closed=1 WHERE job_id=?", (job_id,))
            cohort = cohorts.ever(db, dataset)
            for charge in rest:
                _insert_spent(db, cohort, job_id, UNSEEN, charge)
        return rest

    def charge_lost(self, dataset: str, job_id: str, charges: Sequence[Charge]) -> None:
        """Count a whole job that the ledger does not know as spent by everybody whom the dataset
        ever held, and as closed, whether it fits or not.
        """
        charges = _added_up(charges)
        described = repr([(c.noise_multiplier, c.sampling_rate, c.steps, c.what) for c in charges])
        with self.file.change() as db:
            budget_of(db, dataset)
            now = time.time()
            db.execute(
                "INSERT INTO job VALUES (?, ?, ?, 1, ?, '', ?, 0)",
                (job_id, dataset, described, now, now),
            )
            cohort = cohorts.ever(db, dataset)
            for charge in charges:
                _insert_spent(db, cohort, job_id, UNSEEN, charge)

    def top_up(self, dataset: str, epsilon: float, what: str) -> Charge | None:
        """Charge everybody whom the dataset ever held with as much as takes its figure to `epsilon`
        at least; the charge, None where it is there already.
        """
        with self.file.change() as db:
            if epsilon_of(db, dataset, ("spent",)) >= epsilon:
                return None
            cohort = cohorts.ever(db, dataset)
            low, high = LEAST_NOISE, 1e5  # the first is enough for whatever a budget may be

            def enough(noise: float) -> bool:
                db.execute("SAVEPOINT attempt")
                _insert_spent(db, cohort, "", UNSEEN, Charge(noise, 1.0, 1, what))
                reached = epsilon_of(db, dataset, ("spent",)) >= epsilon
                db.execute("ROLLBACK TO attempt")
                db.execute("RELEASE attempt")
                return reached

            while high / low > 1.001:
                middle = math.sqrt(low * high)
                low, high = (middle, high) if enough(middle) else (low, middle)
            charge = Charge(low, 1.0, 1, what)
            _insert_spent(db, cohort, "", UNSEEN, charge)
        return charge

    def knows(self, job_id: str) -> bool:
        """Whether the ledger has ever reserved or counted this job."""
        with self.file.snapshot() as db:
            return db.execute("SELECT 1 FROM job WHERE job_id=?", (job_id,)).fetchone() is not None

    # -- looking -----------------------------------------------------------------------------------

    def rounds(self, job_id: str) -> list[RoundRow]:
        """The rounds of a job that were begun."""
        with self.file.snapshot() as db:
            rows = db.execute(
                "SELECT number, reply IS NOT NULL FROM round WHERE job_id=? ORDER BY number",
                (job_id,),
            ).fetchall()
        return [RoundRow(number, bool(answered)) for number, answered in rows]

    def reply(self, job_id: str, number: int) -> bytes | None:
        """The stored reply of a round, if it was answered."""
        with self.file.snapshot() as db:
            row = db.execute(
                "SELECT reply FROM round WHERE job_id=? AND number=?", (job_id, number)
            ).fetchone()
        return bytes(row[0]) if row and row[0] is not None else None

    def jobs(self, dataset: str) -> list[JobLine]:
        """Every job of a dataset, newest first."""
        with self.file.snapshot() as db:
            delta = budget_of(db, dataset).delta
            lines = []
            for job_id, closed in db.execute(
                "SELECT job_id, closed FROM job WHERE dataset=? ORDER BY at DESC", (dataset,)
            ).fetchall():
                answered = db.execute(
                    "SELECT count(*) FROM round WHERE job_id=? AND number>0 AND reply IS NOT NULL",
                    (job_id,),
                ).fetchone()[0]
                rows = db.execute(f"SELECT {COLUMNS} FROM spent WHERE job_id=?", (job_id,))  # noqa: S608 fixed text
                lines.append(
                    JobLine(
                        job_id, answered, epsilon([Charge(*r) for r in rows], delta), bool(closed)
                    )
                )
            return lines

    def jobs_of_patient(self, keys: Collection[bytes]) -> list[JobOfPatient] | None:
        """The jobs that a patient with one of these keys was charged for, oldest first: whatever
        dataset or version they were over; None for somebody whom no version of any dataset held.

        Those of others are among them where patients are not told apart any more (cohorts.py), or
        where a lost ledger was mended at its worst.
        """
        with self.file.snapshot() as db:
            held = cohorts.holding(db, keys)
            marks = ",".join("?" * len(held))
            rows = db.execute(
                "SELECT job_id, dataset, at FROM job WHERE job_id IN "  # noqa: S608 question marks
                f"(SELECT job_id FROM spent WHERE cohort IN ({marks})) ORDER BY at",
                held,
            ).fetchall()
        return [JobOfPatient(*row) for row in rows] if held else None

    def open_jobs(self) -> list[str]:
        """Every job that is not closed."""
        with self.file.snapshot() as db:
            rows = db.execute("SELECT job_id FROM job WHERE NOT closed ORDER BY at")
            return [str(row[0]) for row in rows]


def _newest(db: sqlite3.Connection, dataset: str) -> int:
    budget_of(db, dataset)
    cohort = cohorts.newest(db, dataset)
    if cohort is None:
        raise LedgerError(f"dataset {dataset} has no members yet")
    return cohort


def _charge_begun(
    db: sqlite3.Connection, cohort: int, job_id: str, number: int, charges: Sequence[Charge]
) -> None:
    """Have a round that was begun and never answered charged to `cohort`: it is on disk already,
    unless others are in the dataset since. Raises LedgerError for other charges, BudgetExceeded.
    """
    paid: dict[int, list[Charge]] = {}
    for of, *row in db.execute(
        f"SELECT cohort, {COLUMNS} FROM spent WHERE job_id=? AND round=? ORDER BY id",  # noqa: S608
        (job_id, number),
    ):
        paid.setdefault(of, []).append(Charge(*row))
    if any(each != charges for each in paid.values()):
        raise LedgerRefusal(f"round {number} of job {job_id[:12]} was begun with other charges")
    if cohort not in paid:
        check_fits(db, cohort, charges, "this round, for those who have joined since,")
        for charge in charges:
            _insert_spent(db, cohort, job_id, number, charge)


def _reserve_again(db: sqlite3.Connection, cohort: int, job_id: str) -> None:
    """Have what is left of the job reserved for `cohort`: anew where the reservation lapsed or is
    another cohort's. Raises BudgetExceeded.
    """
    mine = f"SELECT cohort, {COLUMNS} FROM reserved WHERE job_id=?"  # noqa: S608 fixed text
    rows = db.execute(mine, (job_id,)).fetchall()
    charges, lapsed = db.execute(
        "SELECT charges, lapsed FROM job WHERE job_id=?", (job_id,)
    ).fetchone()
    if not lapsed and all(row[0] == cohort for row in rows):
        return
    rest = [Charge(*row[1:]) for row in rows]
    if lapsed:
        spent = db.execute(f"SELECT {COLUMNS} FROM spent WHERE job_id=?", (job_id,))  # noqa: S608
        rest = _less(_charges_of(charges), [Charge(*row) for row in spent])
    db.execute("DELETE FROM reserved WHERE job_id=?", (job_id,))
    if rest:
        check_fits(db, cohort, rest, "what is left of this job")
        _insert_reserved(db, cohort, job_id, rest)
    db.execute("UPDATE job SET lapsed=0 WHERE job_id=?", (job_id,))


def _less(whole: Sequence[Charge], part: Sequence[Charge]) -> list[Charge]:
    """What is left of `whole` without `part`, mechanism by mechanism."""
    steps = {(c.noise_multiplier, c.sampling_rate, c.what): 0 for c in whole}
    for sign, charges in ((1, whole), (-1, part)):
        for c in charges:
            steps[c.noise_multiplier, c.sampling_rate, c.what] += sign * c.steps
    return [Charge(noise, rate, n, what) for (noise, rate, what), n in steps.items() if n > 0]


def _charges(db: sqlite3.Connection, table: str, of: Collection[int]) -> list[Charge]:
    """Charges of `spent` or `reserved`, equal mechanisms added up (RDP adds per step, so the order
    does not matter).
    """
    marks = ",".join("?" * len(of))
    rows = db.execute(
        f"SELECT noise_multiplier, sampling_rate, sum(steps), what FROM {table}"  # noqa: S608 fixed
        f" WHERE cohort IN ({marks})"
        " GROUP BY noise_multiplier, sampling_rate, what ORDER BY min(id)",
        tuple(of),
    )
    return [Charge(*row) for row in rows]


def _charges_of(described: str) -> list[Charge]:
    return [Charge(*fields) for fields in literal_eval(described)]


def _job(db: sqlite3.Connection, job_id: str) -> tuple[str, bool]:
    row = db.execute("SELECT dataset, closed FROM job WHERE job_id=?", (job_id,)).fetchone()
    if row is None:
        raise LedgerRefusal(f"job {job_id[:12]} has reserved nothing here")
    return str(row[0]), bool(row[1])


def _added_up(charges: Sequence[Charge]) -> list[Charge]:
    """Equal mechanisms as one Charge each, first come first, so that a reservation has one row per
    mechanism.
    """
    steps: dict[tuple[float, float, str], int] = {}
    for c in charges:
        mechanism = (c.noise_multiplier, c.sampling_rate, c.what)
        steps[mechanism] = steps.get(mechanism, 0) + c.steps
    return [Charge(noise, rate, total, what) for (noise, rate, what), total in steps.items()]


def _take_reserved(db: sqlite3.Connection, job_id: str, number: int, charge: Charge) -> None:
    """Take one round's steps out of the job's reservation. An existing row shrinks; it never goes
    below zero.
    """
    row = db.execute(
        "SELECT id, steps FROM reserved WHERE job_id=? AND noise_multiplier=? AND sampling_rate=? "
        "AND what=?",
        (job_id, charge.noise_multiplier, charge.sampling_rate, charge.what),
    ).fetchone()
    if row is None or row[1] < charge.steps:
        raise LedgerRefusal(
            f"round {number} of job {job_id[:12]} would spend more {charge.what} than the job "
            "reserved"
        )
    if row[1] == charge.steps:
        db.execute("DELETE FROM reserved WHERE id=?", (row[0],))
    else:
        db.execute("UPDATE reserved SET steps=steps-? WHERE id=?", (charge.steps, row[0]))


def _insert_reserved(
    db: sqlite3.Connection, cohort: int, job_id: str, charges: Sequence[Charge]
) -> None:
    for c in charges:
        db.execute(
            "INSERT INTO reserved (cohort, job_id, noise_multiplier, sampling_rate, steps, what)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (cohort, job_id, c.noise_multiplier, c.sampling_rate, c.steps, c.what),
        )


def _insert_spent(
    db: sqlite3.Connection, cohort: int, job_id: str, number: int, charge: Charge
) -> None:
    db.execute(
        "INSERT INTO spent (cohort, job_id, round, noise_multiplier, sampling_rate, steps, what, "
        "at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            cohort,
            job_id,
            number,
            charge.noise_multiplier,
            charge.sampling_rate,
            charge.steps,
            charge.what,
            time.time(),
        ),
    )
