"""The lifetime privacy ledger: what every patient set has spent, over all jobs, written before the
act.

Knows nothing of training or money. Rows are mechanisms (noise multiplier, sampling rate, steps),
never a bare epsilon, and rows of spent privacy are never changed or deleted. One SQLite file (WAL,
synchronous=FULL); every change is one IMMEDIATE transaction, so several threads or processes, and
kill -9 at any point, are safe.

A round goes: `begin_round` (the charge is on disk) -> train -> `finish_round` (the reply is on
disk) -> the reply leaves. A round that was answered before gets its stored reply again, which costs
nothing; a round whose reply was never stored has released nothing, so running it again is covered
by the charge already written.
"""

from __future__ import annotations

import math
import sqlite3
import time
from ast import literal_eval
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fl_client.errors import BudgetExceeded, LedgerError
from fl_client.privacy import accounting
from fl_client.privacy.accounting import best_order, epsilon, fits, how_many_fit
from fl_client.privacy.plan import Charge

BUSY_TIMEOUT_S = 30.0
FINAL_LOOK = (
    0  # the number of the one round that trains nothing: the table of the final model's scores
)
COLUMNS = "noise_multiplier, sampling_rate, steps, what"  # in the order of Charge's fields

SCHEMA = """
CREATE TABLE IF NOT EXISTS patient_set (
  key TEXT PRIMARY KEY, epsilon REAL NOT NULL, delta REAL NOT NULL);
CREATE TABLE IF NOT EXISTS spent (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL REFERENCES patient_set, job_id TEXT NOT NULL,
  round INTEGER NOT NULL,
  noise_multiplier REAL NOT NULL, sampling_rate REAL NOT NULL, steps INTEGER NOT NULL,
  what TEXT NOT NULL,
  at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS reserved (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL REFERENCES patient_set, job_id TEXT NOT NULL,
  noise_multiplier REAL NOT NULL, sampling_rate REAL NOT NULL, steps INTEGER NOT NULL,
  what TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS job (
  job_id TEXT PRIMARY KEY, key TEXT NOT NULL REFERENCES patient_set, charges TEXT NOT NULL,
  closed INTEGER NOT NULL DEFAULT 0, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS round (
  job_id TEXT NOT NULL REFERENCES job, number INTEGER NOT NULL, input_hash BLOB NOT NULL,
  reply BLOB,
  PRIMARY KEY (job_id, number));
CREATE TABLE IF NOT EXISTS curve (
  noise_multiplier REAL NOT NULL, sampling_rate REAL NOT NULL, version TEXT NOT NULL,
  rdp BLOB NOT NULL,
  PRIMARY KEY (noise_multiplier, sampling_rate, version)) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS spent_is_kept BEFORE DELETE ON spent
  BEGIN SELECT RAISE(ABORT, 'spent rows stay'); END;
CREATE TRIGGER IF NOT EXISTS spent_is_fixed BEFORE UPDATE ON spent
  BEGIN SELECT RAISE(ABORT, 'spent rows stay'); END;
"""


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


class Ledger:
    """The ledger in one file. Every method opens its own connection and raises LedgerError if
    SQLite fails.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._transaction() as db:
            for statement in SCHEMA.split(";\n"):
                if statement.strip():
                    db.execute(statement)
            # derived from the rows and kept only for speed: a new process answers at once
            kept = "SELECT noise_multiplier, sampling_rate, rdp FROM curve WHERE version=?"
            for noise_multiplier, sampling_rate, rdp in db.execute(kept, (accounting.CURVES,)):
                accounting.remember(noise_multiplier, sampling_rate, rdp)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One IMMEDIATE transaction: what is read in it is still true when it commits."""
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # SQLite has rolled back by itself when the disk is full
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """One consistent view for reading; waits for no writer."""
        with self._connection() as db:
            db.execute("BEGIN")
            yield db

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            db = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            try:
                _use_wal(db)
                db.execute("PRAGMA synchronous=FULL")
                db.execute("PRAGMA foreign_keys=ON")
                yield db
            finally:
                db.close()
        except sqlite3.Error as error:
            raise LedgerError(
                f"the privacy ledger cannot be used ({error}); nothing was released"
            ) from error

    # -- budgets -----------------------------------------------------------------------------------

    def open_patient_set(self, key: str, epsilon_limit: float, delta: float) -> None:
        """Name the lifetime budget of a patient set; naming it again changes the budget, never the
        history.

        A budget may go below what is spent: then nothing more fits. Raises LedgerError for a number
        out of range.
        """
        if type(key) is not str or not key:
            raise LedgerError(f"patient set {key!r} must be a name")
        if not (
            isinstance(epsilon_limit, int | float)
            and math.isfinite(epsilon_limit)
            and 0 < epsilon_limit <= 1e4
        ):
            raise LedgerError(f"epsilon={epsilon_limit!r} must be above 0 and at most 10000")
        if not (isinstance(delta, int | float) and 0 < delta <= 1e-2):
            raise LedgerError(f"delta={delta!r} must be above 0 and at most 0.01")
        with self._transaction() as db:
            db.execute(
                "INSERT INTO patient_set VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
                "epsilon=excluded.epsilon,"
                " delta=excluded.delta",
                (key, epsilon_limit, delta),
            )

    def budget(self, key: str) -> tuple[float, float]:
        """(epsilon, delta) of a patient set. Raises LedgerError for an unknown one."""
        with self._snapshot() as db:
            return _budget(db, key)

    def history(self, key: str) -> list[Charge]:
        """Everything spent, oldest first; equal mechanisms are one Charge with their steps added
        up.
        """
        with self._snapshot() as db:
            return _charges(db, "spent", key)

    def reserved(self, key: str) -> list[Charge]:
        """Everything set aside for admitted jobs and not begun; equal mechanisms added up."""
        with self._snapshot() as db:
            return _charges(db, "reserved", key)

    def epsilon_spent(self, key: str) -> float:
        """Epsilon of everything spent, at the patient set's delta."""
        with self._snapshot() as db:
            return epsilon(_charges(db, "spent", key), _budget(db, key)[1])

    def jobs_left(self, key: str) -> int | None:
        """How many more jobs like the newest one fit; None before the first."""
        with self._snapshot() as db:
            row = db.execute(
                "SELECT charges FROM job WHERE key=? ORDER BY at DESC LIMIT 1", (key,)
            ).fetchone()
            if row is None:
                return None
            limit, delta = _budget(db, key)
            like = [Charge(*fields) for fields in literal_eval(row[0])]
            committed = _charges(db, "spent", key) + _charges(db, "reserved", key)
            return how_many_fit(committed, like, limit, delta, best_order(limit, delta))

    def epsilon_committed(self, key: str) -> float:
        """Epsilon of everything spent or reserved together."""
        with self._snapshot() as db:
            return epsilon(
                _charges(db, "spent", key) + _charges(db, "reserved", key), _budget(db, key)[1]
            )

    # -- spending ----------------------------------------------------------------------------------

    def charge(self, key: str, charge: Charge) -> None:
        """Spend at once, outside a job (the catalogue's noised count). Raises BudgetExceeded."""
        with self._transaction() as db:
            _check_fits(db, key, [charge], charge.what)
            _keep_curves(db, [charge])
            _insert_spent(db, key, "", 0, charge)

    def reserve(self, key: str, job_id: str, charges: Sequence[Charge]) -> None:
        """Set aside the worst case of a whole job. The same again is a no-op.

        Raises BudgetExceeded if it does not fit, LedgerError for a second, different reservation of
        the same job, for
        a job that is closed and for a job without charges.
        """
        if not job_id or not charges:
            raise LedgerError(
                f"job {job_id[:12]!r} must have a name and at least one charge to reserve"
            )
        charges = _added_up(charges)
        described = repr([(c.noise_multiplier, c.sampling_rate, c.steps, c.what) for c in charges])
        with self._transaction() as db:
            known = db.execute(
                "SELECT key, charges, closed FROM job WHERE job_id=?", (job_id,)
            ).fetchone()
            if known and known[:2] != (key, described):
                raise LedgerError(f"job {job_id[:12]} has another reservation already")
            if known and known[2]:
                raise LedgerError(f"job {job_id[:12]} is closed; its reservation is not made again")
            if known:
                return
            _check_fits(db, key, charges, "this job")
            _keep_curves(db, charges)
            db.execute(
                "INSERT INTO job VALUES (?, ?, ?, 0, ?)", (job_id, key, described, time.time())
            )
            for c in charges:
                db.execute(
                    "INSERT INTO reserved (key, job_id, noise_multiplier, sampling_rate, steps, "
                    "what)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (key, job_id, c.noise_multiplier, c.sampling_rate, c.steps, c.what),
                )

    def begin_round(
        self, job_id: str, number: int, input_hash: bytes, charges: Sequence[Charge]
    ) -> bytes | None:
        """Write the round's charge before anything is trained; the stored reply if the round was
        answered before.

        None means: train, then `finish_round`. It is also the answer for a round that was begun
        with the same input
        and never finished, whose charge is on disk already; if two callers train it at once,
        `finish_round` lets one
        of the two replies leave. Raises LedgerError if the job is unknown or closed, the round was
        asked with another
        input or other charges, or the charges are more than what the job still has reserved.
        """
        if not charges:
            raise LedgerError(f"round {number} of job {job_id[:12]} names no charge")
        charges = _added_up(charges)
        with self._transaction() as db:
            row = db.execute(
                "SELECT input_hash, reply FROM round WHERE job_id=? AND number=?", (job_id, number)
            ).fetchone()
            if row is not None:
                if bytes(row[0]) != input_hash:
                    raise LedgerError(
                        f"round {number} of job {job_id[:12]} was asked before with another model"
                    )
                if row[1] is not None:
                    return bytes(row[1])
            key, closed = _job(db, job_id)
            if closed:
                raise LedgerError(f"job {job_id[:12]} is closed; no further round is answered")
            if (
                row is not None
            ):  # begun, never answered: nothing left the room, the charge on disk covers it
                paid = db.execute(
                    f"SELECT {COLUMNS} FROM spent WHERE job_id=? AND round=? ORDER BY id",  # noqa: S608 fixed text
                    (job_id, number),
                )
                if [Charge(*r) for r in paid] != charges:
                    raise LedgerError(
                        f"round {number} of job {job_id[:12]} was begun with other charges"
                    )
                return None
            for charge in charges:
                _take_reserved(db, job_id, number, charge)
                _insert_spent(db, key, job_id, number, charge)
            db.execute("INSERT INTO round VALUES (?, ?, ?, NULL)", (job_id, number, input_hash))
            return None

    def finish_round(self, job_id: str, number: int, reply: bytes) -> None:
        """Store a round's reply; only then may it leave. Raises LedgerError for a round not begun,
        or answered.
        """
        with self._transaction() as db:
            done = db.execute(
                "UPDATE round SET reply=? WHERE job_id=? AND number=? AND reply IS NULL",
                (reply, job_id, number),
            )
            if done.rowcount != 1:
                raise LedgerError(
                    f"round {number} of job {job_id[:12]} was not begun, or is answered already"
                )

    def close_job(self, job_id: str) -> None:
        """End a job: what was reserved and never begun is free again; what was spent stays. Again
        is a no-op.

        A round in training may still be finished, since its charge is spent. Raises LedgerError for
        an unknown job.
        """
        with self._transaction() as db:
            _job(db, job_id)
            db.execute("DELETE FROM reserved WHERE job_id=?", (job_id,))
            db.execute("UPDATE job SET closed=1 WHERE job_id=?", (job_id,))

    # -- looking -----------------------------------------------------------------------------------

    def rounds(self, job_id: str) -> list[RoundRow]:
        """The rounds of a job that were begun."""
        with self._snapshot() as db:
            rows = db.execute(
                "SELECT number, reply IS NOT NULL FROM round WHERE job_id=? ORDER BY number",
                (job_id,),
            ).fetchall()
        return [RoundRow(number, bool(answered)) for number, answered in rows]

    def reply(self, job_id: str, number: int) -> bytes | None:
        """The stored reply of a round, if it was answered."""
        with self._snapshot() as db:
            row = db.execute(
                "SELECT reply FROM round WHERE job_id=? AND number=?", (job_id, number)
            ).fetchone()
        return bytes(row[0]) if row and row[0] is not None else None

    def jobs(self, key: str) -> list[JobLine]:
        """Every job of a patient set, newest first."""
        with self._snapshot() as db:
            delta = _budget(db, key)[1]
            lines = []
            for job_id, closed in db.execute(
                "SELECT job_id, closed FROM job WHERE key=? ORDER BY at DESC", (key,)
            ):
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


def _budget(db: sqlite3.Connection, key: str) -> tuple[float, float]:
    row = db.execute("SELECT epsilon, delta FROM patient_set WHERE key=?", (key,)).fetchone()
    if row is None:
        raise LedgerError(f"patient set {key[:12]} has no budget")
    return float(row[0]), float(row[1])


def _charges(db: sqlite3.Connection, table: str, key: str) -> list[Charge]:
    """Charges of `spent` or `reserved`, equal mechanisms added up (RDP adds per step, so the order
    does not matter).
    """
    rows = db.execute(
        f"SELECT noise_multiplier, sampling_rate, sum(steps), what FROM {table}"  # noqa: S608 fixed
        " WHERE key=? GROUP BY noise_multiplier, sampling_rate, what ORDER BY min(id)",
        (key,),
    )
    return [Charge(*row) for row in rows]


def _job(db: sqlite3.Connection, job_id: str) -> tuple[str, bool]:
    row = db.execute("SELECT key, closed FROM job WHERE job_id=?", (job_id,)).fetchone()
    if row is None:
        raise LedgerError(f"job {job_id[:12]} has reserved nothing here")
    return str(row[0]), bool(row[1])


def _check_fits(db: sqlite3.Connection, key: str, charges: Sequence[Charge], who: str) -> None:
    limit, delta = _budget(db, key)
    committed = _charges(db, "spent", key) + _charges(db, "reserved", key)
    if not fits(committed, charges, limit, delta, best_order(limit, delta)):
        before, alone = epsilon(committed, delta), epsilon(charges, delta)
        raise BudgetExceeded(
            f"{who} needs epsilon={alone:.3f} on top of {before:.3f} spent or reserved, together "
            f"{epsilon([*committed, *charges], delta):.3f}; the lifetime budget of {limit:g} at "
            f"delta={delta:g} "
            f"leaves {max(0.0, limit - before):.3f}"
        )


def _keep_curves(db: sqlite3.Connection, charges: Sequence[Charge]) -> None:
    for noise_multiplier, sampling_rate in {(c.noise_multiplier, c.sampling_rate) for c in charges}:
        if sampling_rate < 1:  # without sampling it is one division
            rdp = accounting.curve(noise_multiplier, sampling_rate)
            row = (noise_multiplier, sampling_rate, accounting.CURVES, rdp)
            db.execute("INSERT OR IGNORE INTO curve VALUES (?, ?, ?, ?)", row)


def _added_up(charges: Sequence[Charge]) -> list[Charge]:
    """Equal mechanisms as one Charge each, first come first, so that a reservation has one row per
    mechanism.
    """
    steps: dict[tuple[float, float, str], int] = {}
    for c in charges:
        mechanism = (c.noise_multiplier, c.sampling_rate, c.what)
        steps[mechanism] = steps.get(mechanism, 0) + c.steps
    return [Charge(noise, rate, total, what) for (noise, rate, what), total in steps.items()]


def _use_wal(db: sqlite3.Connection) -> None:
    """Switch to WAL. Two openers of a new file collide here, and SQLite does not wait by itself for
    this one lock.
    """
    give_up = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            (mode,) = db.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.01)
            continue
        if mode != "wal":
            raise sqlite3.OperationalError(
                f"journal mode {mode} instead of wal: keep the file on a local disk"
            )
        return


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
        raise LedgerError(
            f"round {number} of job {job_id[:12]} would spend more {charge.what} than the job "
            "reserved"
        )
    if row[1] == charge.steps:
        db.execute("DELETE FROM reserved WHERE id=?", (row[0],))
    else:
        db.execute("UPDATE reserved SET steps=steps-? WHERE id=?", (charge.steps, row[0]))


def _insert_spent(
    db: sqlite3.Connection, key: str, job_id: str, number: int, charge: Charge
) -> None:
    db.execute(
        "INSERT INTO spent (key, job_id, round, noise_multiplier, sampling_rate, steps, what, at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            key,
            job_id,
            number,
            charge.noise_multiplier,
            charge.sampling_rate,
            charge.steps,
            charge.what,
            time.time(),
        ),
    )
