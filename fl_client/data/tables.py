"""How a hospital's rows become numbers: cells by the public schema, columns and words by the
hospital's own source. Knows nothing of jobs, models or ledgers.

Whether rows are grouped into patients follows from the manifest alone (columns are named that tell
patients apart, or not), never from what the rows hold: the answer to a job must not depend on one
patient.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fl_client.data.album import UNREADABLE, Album
from fl_client.data.cells import Cell
from fl_client.data.fields import Level
from fl_client.data.identity import Members, canonical_row, patient_key, record_key
from fl_client.data.readers import Row, rows
from fl_client.data.schemas import OUTPUT, PICTURE, Schema
from fl_client.data.shards import Pictures
from fl_client.data.sources import Source
from fl_client.errors import DatasetError

NO_PATIENT = "(who it is)"  # a record that names nobody
SHOWN = 3  # cells that are wrong are named at once, before one gives up


@dataclass(frozen=True)
class Records:
    """features [n, width] float32, or pictures that are read when they are asked for; targets
    [n, *schema.target.shape] float32; `dropped` rows had a missing value.

    patients [n]: whose record each is, numbers from 0 without gaps in the order of the file; None
    where the owner declares that records are patients (no patient column).
    members: who that is; None where the table was read without the node's secret.
    lacking: column -> how many of the dropped lacked it first.
    """

    features: np.ndarray | Pictures
    targets: np.ndarray
    dropped: int
    patients: np.ndarray | None = None
    members: Members | None = None
    lacking: Mapping[str, int] = field(default_factory=dict)

    @property
    def persons(self) -> int:
        """The true number of patients (or records). It stays in the room: only a noised count
        leaves.
        """
        return len(self.targets) if self.patients is None else len(np.unique(self.patients))

    @property
    def patient_set(self) -> str:
        """What ledgers before identities were kept by: a hash of the scaled records."""
        table = np.column_stack([self.features[:], self.targets]).astype("<f4")
        return hashlib.sha256(b"".join(sorted(row.tobytes() for row in table))).hexdigest()

    def inputs(self, loss: str) -> tuple[np.ndarray | Pictures, np.ndarray]:
        """A model's inputs, of `Schema.inputs(loss)`, and the targets of that loss."""
        if loss != OUTPUT:
            return self.features, self.targets
        count = len(self.targets)
        numbers = self.targets.reshape(count, -1)
        if isinstance(self.features, np.ndarray):
            numbers = np.concatenate([self.features, numbers], axis=1)
        return numbers, np.zeros(count, np.float32)

    def without(self, withdrawn: Collection[bytes]) -> Records:
        """The records of everybody but those whose keys are in `withdrawn`; again is the same."""
        if self.members is None or not withdrawn:
            return self
        gone = np.array([key in withdrawn for key in self.members.units], dtype=bool)
        there = ~gone[self.members.held]  # whose records are here, in their order
        if self.patients is None:
            stay = there
            patients = None
        else:
            stay = there[self.patients]
            patients = np.unique(self.patients[stay], return_inverse=True)[1]
        kept = self.features
        return Records(
            kept[stay] if isinstance(kept, np.ndarray) else kept.only(stay),
            self.targets[stay],
            self.dropped,
            patients,
            replace(
                self.members.without(gone),
                lacking=[key for key in self.members.lacking if key not in withdrawn],
            ),
            self.lacking,
        )


def load(
    source: Source, schema: Schema, secret: bytes | None = None, store: Path | None = None
) -> Records:
    """Read a table by a schema; its pictures are kept in `store`. Records that lack a value that
    the schema does not do without, or that name no patient where they should, are dropped and
    counted.

    With the node's `secret` it is also told who is in it (identity.py). Raises DatasetError naming
    file, line, column and value of what is wrong.
    """
    features, targets, whose, shown = array("f"), array("f"), array("q"), array("q")
    album = None if schema.picture is None else Album(source, schema.picture, store)
    picture = source.column(PICTURE).column
    cells = [Cell(f, source.column(f.name), source) for f in schema.features]
    outcomes = [Cell(f, source.column(f.name), source) for f in schema.target.reads]
    identifiers = _Identifiers(source)
    patients: dict[str, int] = {}
    seen = None if secret is None else _Seen(secret, bool(source.patients))
    lacking: Counter[str] = Counter()
    problems: list[str] = []
    count = 0
    for where, row in rows(source) if album is None else album.rows():
        if not count and not lacking:
            _check_columns(source, schema, row)
        whom = identifiers.of(row, where)
        try:
            found = [cell.inputs(row, where) for cell in cells]
            known = [cell.value(row, where) for cell in outcomes]
            numbers = _numbers(schema, known, where)
        except DatasetError as error:
            problems.append(str(error))
            if len(problems) >= SHOWN:
                break
            continue
        lacks = NO_PATIENT if source.patients and whom is None else ""
        if album is not None and (place := album.at(row[picture])) is None:
            lacks = lacks or (UNREADABLE if row[picture] == UNREADABLE else PICTURE)
        every = zip([*cells, *outcomes], [*found, *known], strict=True)
        lacks = lacks or next((cell.feature.name for cell, x in every if x is None), "")
        if seen is not None:
            seen.add(row, whom, complete=not lacks)
        if lacks:
            lacking[lacks] += 1
            continue
        if source.patients:
            whose.append(patients.setdefault(str(whom), len(patients)))
        if album is not None and place is not None:
            shown.append(place)
        for one in found:
            features.extend(one or ())
        targets.extend(numbers)
        count += 1
    if problems:
        raise DatasetError("; ".join(problems))
    if album is not None:
        inputs: np.ndarray | Pictures = album.shards.only(np.array(shown, dtype=np.int64))
    else:
        inputs = np.array(features, dtype=np.float32).reshape(count, schema.width)
    return Records(
        inputs,
        np.array(targets, dtype=np.float32).reshape(count, *schema.target.shape),
        lacking.total(),
        np.array(whose, dtype=np.int64) if source.patients else None,
        None if seen is None else seen.members(),
        dict(lacking.most_common()),
    )


def _numbers(schema: Schema, known: Sequence[Level | None], where: str) -> list[float]:
    """The target's numbers; none where a value is missing. Raises DatasetError."""
    given = [value for value in known if value is not None]
    if len(given) < len(known):
        return []
    try:
        return schema.target.numbers(given)
    except DatasetError as error:
        raise DatasetError(f"{where}: {error}") from None


def _check_columns(source: Source, schema: Schema, row: Row) -> None:
    if unknown := sorted(set(source.columns) - set(schema.names)):
        raise DatasetError(
            f"[columns.{unknown[0]}]: the schema has no column of that name; it has "
            f"{', '.join(schema.names)}"
        )
    wanted = [*(source.column(name).column for name in schema.names), *source.patients]
    if missing := [name for name in wanted if name not in row]:
        raise DatasetError(
            f"{source.where}: the header lacks the column(s) {', '.join(missing)}; it has "
            f"{', '.join(list(row)[:40])}"
        )


class _Identifiers:
    """Who a row is of: the text in the patient columns."""

    def __init__(self, source: Source):
        self.columns, self.how, self.name = source.patients, source.identifier, source.where
        self._absent = frozenset(("", *source.missing))
        self._spelt: list[dict[int, tuple[str, str]]] = [{} for _ in self.columns]

    def of(self, row: Row, where: str) -> str | None:
        """None where a row names nobody, or no columns are declared. Raises DatasetError for two
        spellings of one number, unless the source says what they are.
        """
        parts: list[str] = []
        for column, spelt in zip(self.columns, self._spelt, strict=True):
            if (said := row[column]) in self._absent:
                return None
            parts.append(self._one(column, said, spelt, where))
        return "\x1f".join(parts) if parts else None

    def _one(self, column: str, said: str, spelt: dict[int, tuple[str, str]], where: str) -> str:
        number = int(said.partition(".")[0]) if re.fullmatch(r"\d{1,30}(\.0+)?", said, re.A) else -1
        if number < 0 or self.how == "text":
            return said
        if self.how == "number":
            return str(number)
        first, at = spelt.setdefault(number, (said, where))
        if first != said:
            raise DatasetError(
                f"{where}: {column}={said!r}, and {first!r} in {at}: one patient or two? Say "
                'patients.identifier = "number" for one, "text" for two'
            )
        return said


class _Seen:
    """Collects who the rows of a file belong to, those that hold a complete row first."""

    def __init__(self, secret: bytes, by_patient: bool):
        self.secret, self.by_patient = secret, by_patient
        self.equal: Counter[bytes] = Counter()
        self.complete: dict[bytes, None] = {}
        self.lacking: dict[bytes, None] = {}
        self.rows: list[tuple[bytes, bytes]] = []

    def add(self, row: Row, whom: str | None, complete: bool) -> None:
        cells = canonical_row(row)
        record = record_key(self.secret, cells, self.equal[cells])
        self.equal[cells] += 1
        if self.by_patient:
            if whom is None:
                return
            unit = patient_key(self.secret, whom)
            self.rows.append((record, unit))
        else:
            unit = record
        (self.complete if complete else self.lacking).setdefault(unit)

    def members(self) -> Members:
        units = dict.fromkeys([*self.complete, *(unit for _, unit in self.rows)])
        index = {key: i for i, key in enumerate(units)}
        held = np.arange(len(index)) < len(self.complete)
        return Members(
            list(index),
            held,
            [(record, index[unit]) for record, unit in self.rows],
            [unit for unit in self.lacking if unit not in self.complete],
        )
