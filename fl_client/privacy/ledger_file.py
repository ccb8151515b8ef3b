"""The ledger's one SQLite file: opening it, changing it whole or not at all, older versions of it.

WAL, synchronous=FULL, one IMMEDIATE transaction for a change, so that several threads or processes,
and kill -9 at any point, are safe. Every change is marked here and in the counter beside the file,
before it is done (counter.py): a file that is not the one that was written last changes no more
until it is mended. Knows nothing of what is affordable.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

from fl_client.errors import LedgerError
from fl_client.privacy import accounting, cohorts
from fl_client.privacy.counter import RESTORED, Counter, Mark

BUSY_TIMEOUT_S = 30.0
FORMAT = 2

SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS dataset (
  name TEXT PRIMARY KEY, epsilon REAL NOT NULL, delta REAL NOT NULL, rdp_order REAL NOT NULL);
"""
    + cohorts.SCHEMA
    + """
CREATE TABLE IF NOT EXISTS spent (
  id INTEGER PRIMARY KEY, cohort INTEGER NOT NULL REFERENCES cohort, job_id TEXT NOT NULL,
  round INTEGER NOT NULL,
  noise_multiplier REAL NOT NULL, sampling_rate REAL NOT NULL, steps INTEGER NOT NULL,
  what TEXT NOT NULL,
  at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS reserved (
  id INTEGER PRIMARY KEY, cohort INTEGER NOT NULL REFERENCES cohort, job_id TEXT NOT NULL,
  noise_multiplier REAL NOT NULL, sampling_rate REAL NOT NULL, steps INTEGER NOT NULL,
  what TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS job (
  job_id TEXT PRIMARY KEY, dataset TEXT NOT NULL REFERENCES dataset, charges TEXT NOT NULL,
  closed INTEGER NOT NULL DEFAULT 0, at REAL NOT NULL, buyer TEXT NOT NULL DEFAULT '',
  moved_at REAL NOT NULL, lapsed INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS round (
  job_id TEXT NOT NULL REFERENCES job, number INTEGER NOT NULL, input_hash BLOB NOT NULL,
  reply BLOB,
  PRIMARY KEY (job_id, number));
CREATE TABLE IF NOT EXISTS counted (who TEXT PRIMARY KEY, persons INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS counted_apart (
  who TEXT PRIMARY KEY, persons INTEGER NOT NULL, left_out INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS curve (
  noise_multiplier REAL NOT NULL, sampling_rate REAL NOT NULL, version TEXT NOT NULL,
  rdp BLOB NOT NULL,
  PRIMARY KEY (noise_multiplier, sampling_rate, version)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS spent_by_job ON spent (job_id, round);
CREATE TRIGGER IF NOT EXISTS spent_is_kept BEFORE DELETE ON spent
  BEGIN SELECT RAISE(ABORT, 'spent rows stay'); END;
CREATE TRIGGER IF NOT EXISTS spent_is_fixed BEFORE UPDATE ON spent
  BEGIN SELECT RAISE(ABORT, 'spent rows stay'); END;
"""
)
# of format 1, in which a patient set was a hash of scaled records: children before parents
FORMAT_1 = ("spent", "reserved", "round", "job", "patient_set")


class LedgerFile:
    """The file at `path`. Every method opens its own connection and raises LedgerError if SQLite
    fails.
    """

    def __init__(self, path: Path):
        self.path = path
        self.counter = Counter(path.with_suffix(".counter"))
        self._mending = False
        # before SQLite makes it for everybody to read; what it puts beside it gets the same bits
        try:
            path.touch(mode=0o600)  # the umask can only take away from it
        except OSError as error:
            raise LedgerError(
                f"the privacy ledger cannot be used ({error.strerror}); nothing was released"
            ) from error
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            with _whole(db):
                _create(db)
            # derived from the rows and kept only for speed: a new process answers at once
            kept = "SELECT noise_multiplier, sampling_rate, rdp FROM curve WHERE version=?"
            for noise_multiplier, sampling_rate, rdp in db.execute(kept, (accounting.CURVES,)):
                accounting.remember(noise_multiplier, sampling_rate, rdp)

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One change: what is read in it is still true when it commits, and nothing may leave the
        node before it has. Raises LedgerError where the file is not the one that was written last,
        unless that is being mended.
        """
        with self.counter.locked(), self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            with _whole(db):
                mark = _mark(db)
                if not self._mending:
                    self._settle(mark)
                changes = db.total_changes
                yield db
                if db.total_changes > changes and not self._mending:
                    self._commit(db, mark)

    @contextmanager
    def mending(self) -> Iterator[None]:
        """Changes in here are those that make this file the one to go on with: when they are all
        done, its mark is the counter's. Cut off before, they are to be made again.
        """
        self._mending = True
        try:
            yield
        finally:
            self._mending = False
        with self.counter.locked(), self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            with _whole(db):
                self._commit(db, _mark(db))

    def _commit(self, db: sqlite3.Connection, mark: Mark) -> None:
        highest = max((m.number for m in self._marks()), default=0)
        following = Mark(max(mark.number, highest)).following()
        db.execute("UPDATE meta SET value=? WHERE name='mark'", (str(following),))
        self.counter.write(mark, following)
        db.execute("COMMIT")
        self.counter.write(following)

    def check(self) -> None:
        """Raises LedgerError where this is not the file that was written last."""
        with self.counter.locked(), self.snapshot() as db:
            self._settle(_mark(db))

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """One consistent view for reading; waits for no writer."""
        with self._connection() as db:
            db.execute("BEGIN")
            yield db

    def behind(self) -> str:
        """Why this is not the file that was written last, as a clause; "" if it is."""
        with self.counter.locked(), self.snapshot() as db:
            return self._behind(_mark(db))

    def copy(self) -> BinaryIO:
        """The file as it is between two changes: a copy under no name, for this process alone.
        Raises LedgerError.
        """
        beside = self.path.with_name(f".{self.path.stem}.copy")
        with self.counter.locked(), self.snapshot() as db:  # nobody else makes one now either
            try:
                beside.unlink(missing_ok=True)  # what a killed process has left
                beside.touch(mode=0o600)
                with closing(sqlite3.connect(beside)) as copy:
                    db.backup(copy)
                return beside.open("rb")
            finally:
                beside.unlink(missing_ok=True)

    def note_secret(self, secret: bytes) -> None:
        """`bind_secret` in a file that is to be mended."""
        self._mending = True
        try:
            self.bind_secret(secret)
        finally:
            self._mending = False

    def bind_secret(self, secret: bytes) -> None:
        """Note which secret the identities are keyed with. Raises LedgerError for another one."""
        fingerprint = hashlib.sha256(b"datahub ledger secret " + secret).hexdigest()[:32]
        with self.snapshot() as db:
            known = _meta(db, "secret")
        if known is None:
            with self.change() as db:
                db.execute("INSERT OR IGNORE INTO meta VALUES ('secret', ?)", (fingerprint,))
                known = _meta(db, "secret")
        if known != fingerprint:
            raise LedgerError(
                "keys/patients.key is not the secret that this ledger knows its patients by; put "
                "the right one back"
            )

    @property
    def has_secret(self) -> bool:
        """Whether identities here are keyed already."""
        with self.snapshot() as db:
            return _meta(db, "secret") is not None

    @property
    def has_log(self) -> bool:
        """Whether an audit log stands beside the ledger since some change of it."""
        with self.snapshot() as db:
            return _meta(db, "log") is not None

    def note_log(self) -> None:
        """Remember that there is an audit log, so that it cannot be taken away as a whole."""
        with self.change() as db:
            db.execute("INSERT OR IGNORE INTO meta VALUES ('log', 'begun')")

    def _marks(self) -> tuple[Mark, ...]:
        try:
            return self.counter.marks()
        except ValueError:
            return ()

    def _behind(self, mark: Mark) -> str:
        try:
            marks = self.counter.marks()
        except ValueError:
            return f"{self.counter.path.name} cannot be read"
        if RESTORED in marks:
            return "it was put back from a backup"
        if not marks and mark.number:
            return f"{self.counter.path.name} is missing"
        if marks and mark not in marks:
            return (
                f"it was last changed {mark.number} times, {self.counter.path.name} says "
                f"{marks[-1].number}, so it is another copy than the node worked with last"
            )
        return ""

    def _settle(self, mark: Mark) -> None:
        """Raises LedgerError unless the counter knows this file; decides on what was cut off."""
        if why := self._behind(mark):
            raise LedgerError(
                f"the privacy ledger is not what this node wrote last: {why}; nothing is released "
                "before the difference is charged: datahub node reconcile FOLDER"
            )
        if self._marks() != (mark,):
            self.counter.write(mark)

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


@contextmanager
def _whole(db: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
        if db.in_transaction:
            db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite has rolled back by itself when the disk is full
            db.execute("ROLLBACK")
        raise


def _meta(db: sqlite3.Connection, name: str) -> str | None:
    row = db.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
    return None if row is None else str(row[0])


def _mark(db: sqlite3.Connection) -> Mark:
    return Mark.parse(_meta(db, "mark") or "0 ")


def _create(db: sqlite3.Connection) -> None:
    """The tables, where they are missing; those of format 1 become those of this one."""
    there = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    old = "patient_set" in there and "meta" not in there
    if old:
        for name in ("spent_is_kept", "spent_is_fixed"):
            db.execute(f"DROP TRIGGER IF EXISTS {name}")
        for name in FORMAT_1:
            db.execute(f"ALTER TABLE {name} RENAME TO old_{name}")
    for statement in SCHEMA.split(";\n"):
        if statement.strip():
            db.execute(statement)
    db.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?)", (str(FORMAT),))
    db.execute("INSERT OR IGNORE INTO meta VALUES ('mark', ?)", (str(Mark()),))
    if (found := _meta(db, "format")) != str(FORMAT):
        raise LedgerError(f"the privacy ledger has format {found}; this version reads {FORMAT}")
    if old:
        _from_format_1(db)


def _from_format_1(db: sqlite3.Connection) -> None:
    """Each patient set becomes a dataset of one cohort whose members are not known yet: what it has
    spent binds everybody in the datasets that had it, once they are loaded (Ledger.inherit).
    """
    now = time.time()
    cohort_of = {}
    for key, limit, delta in db.execute("SELECT key, epsilon, delta FROM old_patient_set"):
        order = accounting.best_order(limit, delta)
        db.execute("INSERT INTO dataset VALUES (?, ?, ?, ?)", (key, limit, delta, order))
        cohort_of[key] = db.execute(
            "INSERT INTO cohort (dataset, who, content, at) VALUES (?, '', '', ?)", (key, now)
        ).lastrowid
    for key, cohort in cohort_of.items():
        for table, more in (("spent", "round, at, "), ("reserved", "")):
            columns = f"job_id, {more}noise_multiplier, sampling_rate, steps, what"
            db.execute(
                f"INSERT INTO {table} (id, cohort, {columns}) SELECT id, ?, {columns} "  # noqa: S608
                f"FROM old_{table} WHERE key=?",
                (cohort, key),
            )
    db.execute(
        "INSERT INTO job (job_id, dataset, charges, closed, at, moved_at) "
        "SELECT job_id, key, charges, closed, at, at FROM old_job"
    )
    db.execute("INSERT INTO round SELECT job_id, number, input_hash, reply FROM old_round")
    for name in FORMAT_1:
        db.execute(f"DROP TABLE old_{name}")


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
