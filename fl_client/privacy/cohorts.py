"""Who is in which version of which dataset, kept by classes of patients with the same history.

A cohort is what one version of a dataset held, withdrawn patients left out; it never changes. A
patient is everything that identity keys tie together (fl_client.data.identity): an identifier, and
all rows that a file has put under it, so that listing the rows alone finds the same patient. `held`
says for each class of patients which cohorts they are in, and with how many units: more than one
where a cohort of records holds several of a patient's. A new cohort splits classes; no charge is
ever copied, and answers cost per class, not per patient.

Whatever cannot be told apart is counted for everybody concerned: beyond MOST_CLASSES a class is not
split any more but counted as in the cohort as a whole, and classes in the same cohorts are answered
for together, by the most units that any of them has. Knows nothing of budgets.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np

from fl_client.data.identity import Members
from fl_client.privacy.plan import LEAST_NOISE, Charge

MOST_CLASSES = 4096
AT_ONCE = 30_000  # host parameters of one statement; SQLite takes 32,766
EVER = "ever"  # instead of a fingerprint: no version of the dataset
NOBODY = 0  # the class of patients in no cohort

SCHEMA = """
CREATE TABLE IF NOT EXISTS cohort (
  id INTEGER PRIMARY KEY, dataset TEXT NOT NULL REFERENCES dataset, who TEXT NOT NULL,
  content TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS cohort_of_dataset ON cohort (dataset);
CREATE TABLE IF NOT EXISTS identity (
  key BLOB PRIMARY KEY, patient INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS patient (id INTEGER PRIMARY KEY, class INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS merged (
  patient INTEGER PRIMARY KEY, root INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS held (
  class INTEGER NOT NULL, cohort INTEGER NOT NULL REFERENCES cohort, units INTEGER NOT NULL,
  PRIMARY KEY (class, cohort)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS held_by_cohort ON held (cohort);
"""

Held = dict[int, int]  # cohort -> units of one patient in it


def group_charge(charge: Charge, units: int) -> Charge:
    """What a mechanism costs a patient with `units` units in it: an upper bound at every order.

    With k units, each drawn with probability q, a sum of sensitivity 1 moves by at most k, and it
    moves at all with probability at most 1 - (1 - q)^k. That is never worse than one unit of k
    times the sensitivity, drawn with that probability: given that some unit was drawn, the output
    moved by a vector v, |v| <= k, is the output moved by k in one direction, turned, shrunk and
    noised up to the same variance, which is post-processing. Noise below what a Charge may have is
    written as steps of the least noise, without sampling: 1 / sigma^2 adds up.
    """
    if units <= 1:
        return charge
    noise, rate = charge.noise_multiplier / units, charge.sampling_rate
    if rate < 1:
        rate = min(1.0, -math.expm1(units * math.log1p(-rate)) * (1 + 1e-12))
    if noise >= LEAST_NOISE:
        return replace(charge, noise_multiplier=noise, sampling_rate=rate)
    steps = min(math.ceil(charge.steps * (LEAST_NOISE / noise) ** 2 * (1 + 1e-9)), 10**12)
    return Charge(LEAST_NOISE, 1.0, steps, charge.what)


def newest(db: sqlite3.Connection, dataset: str) -> int | None:
    """The cohort of the dataset as it is now; None before the first."""
    row = db.execute(
        "SELECT max(id) FROM cohort WHERE dataset=? AND who<>?", (dataset, EVER)
    ).fetchone()
    return None if row[0] is None else int(row[0])


def matching(db: sqlite3.Connection, dataset: str, members: Members) -> int | None:
    """The newest cohort of the dataset that held exactly these members; None if none did."""
    row = db.execute(
        "SELECT max(id) FROM cohort WHERE dataset=? AND who=? AND content=?",
        (dataset, members.who, members.content),
    ).fetchone()
    return None if row[0] is None else int(row[0])


def of_dataset(db: sqlite3.Connection, dataset: str) -> list[int]:
    """Every cohort that the dataset ever had, oldest first."""
    rows = db.execute("SELECT id FROM cohort WHERE dataset=? ORDER BY id", (dataset,))
    return [int(row[0]) for row in rows]


def holding(db: sqlite3.Connection, keys: Collection[bytes]) -> list[int]:
    """Every cohort with a patient whom one of `keys` names, as far as patients are told apart."""
    roots: dict[int, int] = dict(db.execute("SELECT patient, root FROM merged"))
    found: set[int] = set()
    for key in keys:
        row = db.execute("SELECT patient FROM identity WHERE key=?", (key,)).fetchone()
        patient = -1 if row is None else roots.get(row[0], row[0])
        cohorts = "SELECT cohort FROM held JOIN patient USING (class) WHERE id=?"
        found |= {int(one) for (one,) in db.execute(cohorts, (patient,))}
    return sorted(found)


def enter(db: sqlite3.Connection, dataset: str, members: Members) -> int:
    """Make `members` the newest cohort of the dataset; its id. The same again is a no-op."""
    now, who, content = newest(db, dataset), members.who, members.content
    if now is not None:
        same = db.execute("SELECT who, content FROM cohort WHERE id=?", (now,)).fetchone()
        if same == (who, content):
            return now
    made = db.execute(
        "INSERT INTO cohort (dataset, who, content, at) VALUES (?, ?, ?, ?)",
        (dataset, who, content, time.time()),
    ).lastrowid
    assert made is not None
    hold(db, made, members)
    return made


def ever(db: sqlite3.Connection, dataset: str) -> int:
    """A cohort of everybody whom the dataset has ever held, as what is charged afterwards is."""
    own = of_dataset(db, dataset)
    made = db.execute(
        "INSERT INTO cohort (dataset, who, content, at) VALUES (?, ?, ?, ?)",
        (dataset, EVER, EVER, time.time()),
    ).lastrowid
    assert made is not None
    marks = ",".join("?" * len(own))
    db.execute(
        "INSERT INTO held SELECT class, ?, max(units) FROM held "  # noqa: S608 question marks
        f"WHERE cohort IN ({marks}) GROUP BY class",
        (made, *own),
    )
    return made


def beside(db: sqlite3.Connection, dataset: str, members: Members) -> int:
    """A cohort of `members` that is no version of the dataset, whatever it holds now."""
    made = db.execute(
        "INSERT INTO cohort (dataset, who, content, at) VALUES (?, ?, ?, ?)",
        (dataset, EVER, EVER, time.time()),
    ).lastrowid
    assert made is not None
    hold(db, made, members)
    return made


def hold(db: sqlite3.Connection, cohort: int, members: Members) -> None:
    """Put those of `members` that are held into `cohort`, beside whoever is there already; of a
    patient who is, the larger number of units counts.
    """
    patients = _patients(db, members)
    ids, units = np.unique(patients[np.asarray(members.held, dtype=bool)], return_counts=True)
    _refine(db, cohort, ids, units)


def classes(db: sqlite3.Connection, cohorts: Collection[int]) -> list[Held]:
    """The histories of everybody who is in one of `cohorts`: one for each set of cohorts that
    somebody is in, with the most units that anybody of them has; those alone that are no part of
    another.
    """
    if not cohorts:
        return []
    marks = ",".join("?" * len(cohorts))
    rows = db.execute(
        "SELECT class, cohort, units FROM held WHERE class IN "  # noqa: S608 question marks
        f"(SELECT class FROM held WHERE cohort IN ({marks})) ORDER BY class, cohort",
        tuple(cohorts),
    )
    joined: dict[tuple[int, ...], np.ndarray] = {}
    for held in _by_class(rows).values():
        where, units = tuple(held), np.array(list(held.values()))
        joined[where] = np.maximum(joined[where], units) if where in joined else units
    return _largest(
        [dict(zip(where, units.tolist(), strict=True)) for where, units in joined.items()]
    )


def _largest(histories: list[Held]) -> list[Held]:
    """Those of `histories` that are no part of another: whoever has less has lost less, and is
    bound by no budget that does not bind who has more.
    """
    kept: list[tuple[int, Held]] = []
    for held in sorted(histories, key=len, reverse=True):
        where = sum(1 << cohort for cohort in held)
        if not any(
            where & other == where and all(held[c] <= more[c] for c in held) for other, more in kept
        ):
            kept.append((where, held))
    return [held for _, held in kept]


def _by_class(rows: Iterable[tuple[int, int, int]]) -> dict[int, Held]:
    found: dict[int, Held] = {}
    for one, cohort, units in rows:
        found.setdefault(one, {})[cohort] = units
    return found


def _patients(db: sqlite3.Connection, members: Members) -> np.ndarray:
    """The patient [units] that each unit belongs to: known, new, or several known ones made one."""
    units = members.units
    keys = [*units, *(key for key, _ in members.rows)]
    unit_of = [*range(len(units)), *(unit for _, unit in members.rows)]
    known: dict[bytes, int] = {}
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        marks = ",".join("?" * len(some))
        known.update(
            db.execute(f"SELECT key, patient FROM identity WHERE key IN ({marks})", some)  # noqa: S608
        )
    roots: dict[int, int] = dict(db.execute("SELECT patient, root FROM merged"))
    joined: dict[int, int] = {}

    def root(patient: int) -> int:
        patient = roots.get(patient, patient)
        while patient in joined:
            patient = joined[patient]
        return patient

    found = [-1] * len(units)
    for key, unit in zip(keys, unit_of, strict=True):
        if (patient := known.get(key)) is None:
            continue
        patient = root(patient)
        other = root(found[unit]) if found[unit] >= 0 else patient
        found[unit] = min(patient, other)
        if patient != other:
            joined[max(patient, other)] = min(patient, other)
    (next_id,) = db.execute("SELECT coalesce(max(id), 0) + 1 FROM patient").fetchone()
    # ids of patients who were made one with another are not given again
    next_id = max(next_id, *(p + 1 for p in roots)) if roots else next_id
    first_new = next_id
    for unit, patient in enumerate(found):
        if patient < 0:
            found[unit], next_id = next_id, next_id + 1
    db.executemany(
        "INSERT INTO patient VALUES (?, ?)", ((i, NOBODY) for i in range(first_new, next_id))
    )
    fresh = sorted((k, found[u]) for k, u in zip(keys, unit_of, strict=True) if k not in known)
    db.executemany("INSERT OR IGNORE INTO identity VALUES (?, ?)", fresh)
    if joined:
        _merge(db, {lost: root(lost) for lost in joined})
        return np.array([root(patient) for patient in found], dtype=np.int64)
    return np.array(found, dtype=np.int64)


def _merge(db: sqlite3.Connection, roots: dict[int, int]) -> None:
    """Make patients one: each key of `roots` with its value, whose units in a cohort add up."""
    ids, of = _everybody(db)
    place = {int(patient): i for i, patient in enumerate(ids)}
    held = _by_class(db.execute("SELECT class, cohort, units FROM held"))
    known = {tuple(sorted(one.items())): number for number, one in held.items()}
    sums: dict[int, Held] = {}
    for lost, kept in roots.items():
        total = sums.setdefault(kept, dict(held.get(int(of[place[kept]]), {})))
        for cohort, units in held.get(int(of[place[lost]]), {}).items():
            total[cohort] = total.get(cohort, 0) + units
    following = max([NOBODY, *held]) + 1
    moved = []
    for kept, total in sums.items():
        signature = tuple(sorted(total.items()))
        if signature and signature not in known:
            known[signature] = following
            _insert_class(db, following, total)
            following += 1
        moved.append((known[signature] if signature else NOBODY, kept))
    db.executemany("UPDATE patient SET class=? WHERE id=?", moved)
    db.executemany("DELETE FROM patient WHERE id=?", ((lost,) for lost in roots))
    db.executemany(
        "UPDATE merged SET root=? WHERE root=?", ((k, lost) for lost, k in roots.items())
    )
    db.executemany("INSERT INTO merged VALUES (?, ?)", roots.items())
    _forget_empty(db, _everybody(db)[1])


def _everybody(db: sqlite3.Connection) -> tuple[np.ndarray, np.ndarray]:
    """(ids ascending, classes) of all patients."""
    rows = db.execute("SELECT id, class FROM patient ORDER BY id").fetchall()
    both = np.array(rows, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1].copy()


def _refine(db: sqlite3.Connection, cohort: int, ids: np.ndarray, units: np.ndarray) -> None:
    """Split classes so that in each everybody has as many units in `cohort`, and note how many."""
    everybody, of = _everybody(db)
    here = np.zeros(len(everybody), dtype=np.int64)
    here[np.searchsorted(everybody, ids)] = units
    held = _by_class(db.execute("SELECT class, cohort, units FROM held"))
    following = max([NOBODY, *held]) + 1
    width = int(here.max(initial=0)) + 1
    codes, kind_of, sizes = np.unique(of * width + here, return_inverse=True, return_counts=True)
    kinds = np.stack([codes // width, codes % width])  # class and units of each kind of patient
    touched = np.unique(kinds[0, kinds[1] > 0])
    # the largest classes first: they gain most by being told apart
    order = sorted(touched.tolist(), key=lambda one: -int(sizes[kinds[0] == one].sum()))
    count = len(held)
    for one in order:
        of_one = np.flatnonzero(kinds[0] == one)
        before = held.get(one, {})
        if one == NOBODY:
            leaving: Sequence[int] = [int(i) for i in of_one if kinds[1, i] > 0]
        else:
            stays = of_one[np.argmax(sizes[of_one])]
            leaving = [int(i) for i in of_one if i != stays]
            if count + len(leaving) > MOST_CLASSES:
                most = max(int(kinds[1, of_one].max()), before.get(cohort, 0))
                _insert_class(db, one, {cohort: most})
                continue
            _insert_class(db, one, _with(before, cohort, int(kinds[1, stays]), only=True))
        for kind in leaving:
            _insert_class(db, following, _with(before, cohort, int(kinds[1, kind])))
            of[kind_of == kind] = following
            following, count = following + 1, count + 1
    changed = np.flatnonzero(of != kinds[0, kind_of]) if len(of) else np.array([], dtype=int)
    db.executemany(
        "UPDATE patient SET class=? WHERE id=?",
        zip(of[changed].tolist(), everybody[changed].tolist(), strict=True),
    )
    _forget_empty(db, of)


def _with(before: Held, cohort: int, units: int, only: bool = False) -> Held:
    """`before` with the larger of its units and `units` in `cohort`; that alone if `only`."""
    now = {cohort: max(units, before.get(cohort, 0))}
    return {c: k for c, k in (now if only else before | now).items() if k}


def _insert_class(db: sqlite3.Connection, number: int, held: Held) -> None:
    rows = ((number, cohort, units) for cohort, units in held.items())
    db.executemany("INSERT OR REPLACE INTO held VALUES (?, ?, ?)", rows)


def _forget_empty(db: sqlite3.Connection, of: np.ndarray) -> None:
    there = set(np.unique(of).tolist())
    gone = [one for (one,) in db.execute("SELECT DISTINCT class FROM held") if one not in there]
    db.executemany("DELETE FROM held WHERE class=?", ((one,) for one in gone))
