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
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path

import numpy as np

from fl_client.data.album import UNREADABLE, Album
from fl_client.data.identity import Members, canonical_row, patient_key, record_key
from fl_client.data.readers import Row, rows
from fl_client.data.schemas import DROP, NO, PICTURE, YES, Feature, Level, Schema
from fl_client.data.shards import Pictures
from fl_client.data.sources import Column, Source
from fl_client.errors import DatasetError

NO_PATIENT = "(who it is)"  # a record that names nobody
WORDS = {
    **dict.fromkeys(("yes", "y", "true", "t", "1"), YES),
    **dict.fromkeys(("no", "n", "false", "f", "0"), NO),
}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
SHOWN = 3  # cells that are wrong are named at once, before one gives up


@dataclass(frozen=True)
class Records:
    """features [n, width] float32, or pictures that are read when they are asked for; targets [n]
    float32 in {0, 1}; `dropped` rows had a missing value.

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

    def without(self, withdrawn: Collection[bytes]) -> Records:
        """The records of everybody but those whose keys are in `withdrawn`."""
        if self.members is None or not withdrawn:
            return self
        gone = np.array([key in withdrawn for key in self.members.units], dtype=bool)
        if self.patients is None:
            stay = ~gone
            patients = None
        else:
            stay = ~gone[self.patients]
            patients = np.unique(self.patients[stay], return_inverse=True)[1]
        kept = self.features
        return Records(
            kept[stay] if isinstance(kept, np.ndarray) else kept.only(stay),
            self.targets[stay],
            self.dropped,
            patients,
            self.members.without(gone),
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
    cells = [_Cell(f, source.column(f.name), source) for f in schema.features]
    outcome = _Cell(_outcome(schema), source.column(schema.target.name), source)
    above = schema.target.positive_above
    identifiers = _Identifiers(source)
    patients: dict[str, int] = {}
    seen = None if secret is None else _Seen(secret, bool(source.patients))
    lacking: Counter[str] = Counter()
    problems: list[str] = []
    for where, row in rows(source) if album is None else album.rows():
        if not targets and not lacking:
            _check_columns(source, schema, row)
        whom = identifiers.of(row, where)
        try:
            found = [cell.inputs(row, where) for cell in cells]
            known = outcome.value(row, where)
        except DatasetError as error:
            problems.append(str(error))
            if len(problems) >= SHOWN:
                break
            continue
        lacks = NO_PATIENT if source.patients and whom is None else ""
        if album is not None and (place := album.at(row[picture])) is None:
            lacks = lacks or (UNREADABLE if row[picture] == UNREADABLE else PICTURE)
        missing = (c.feature.name for c, x in zip(cells, found, strict=True) if x is None)
        lacks = lacks or next(missing, "") or (schema.target.name if known is None else "")
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
        targets.append(known == YES if above is None else float(known or 0) > above)
    if problems:
        raise DatasetError("; ".join(problems))
    if album is not None:
        inputs: np.ndarray | Pictures = album.shards.only(np.array(shown, dtype=np.int64))
    else:
        inputs = np.array(features, dtype=np.float32).reshape(len(targets), schema.width)
    return Records(
        inputs,
        np.array(targets, dtype=np.float32),
        lacking.total(),
        np.array(whose, dtype=np.int64) if source.patients else None,
        None if seen is None else seen.members(),
        dict(lacking.most_common()),
    )


def _outcome(schema: Schema) -> Feature:
    """The target read as a column is: yes/no, or a number."""
    target = schema.target
    return Feature(target.name, kind="yes/no" if target.positive_above is None else "number")


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


class _Cell:
    """Reads one of the schema's columns."""

    def __init__(self, feature: Feature, column: Column, source: Source):
        self.feature, self.column, self.source = feature, column, source
        self._absent = frozenset(("", *source.missing, *column.missing))
        kinds: dict[str, Callable[[str], Level]] = {
            "number": self._number,
            "date": self._days,
            "yes/no": self._yes_no,
            "category": self._level,
        }
        self._read = kinds[feature.kind]
        texts = [x for x in feature.categories if isinstance(x, str)]
        self._texts = {**{x: x for x in texts}, **column.levels}
        # 1 and 1.0 are one level where nothing says otherwise
        numbers = {x: _plain(x) for x in self._texts if _plain(x) is not None}
        once = Counter(numbers.values())
        self._numbers = {n: self._texts[x] for x, n in numbers.items() if once[n] == 1}
        self._numeric = bool(feature.categories) and not texts
        self._reference = date.fromisoformat(feature.reference) if feature.reference else None

    def value(self, row: Row, where: str) -> Level | None:
        """What the schema takes; None where it is missing. Raises DatasetError."""
        said = row[self.column.column]
        if said in self._absent:
            if self.feature.missing != DROP and not self.feature.stands:
                raise DatasetError(f"{where}: {self.column.column} is missing")
            return None
        try:
            return self._read(said)
        except ValueError as error:
            shown = said if len(said) <= 80 else said[:80] + "..."
            raise DatasetError(f"{where}: {self.column.column}={shown!r} {error}") from None

    def inputs(self, row: Row, where: str) -> list[float] | None:
        """The model inputs; None where the record has to be dropped. Raises DatasetError."""
        value = self.value(row, where)
        if value is None and not self.feature.stands:
            return None
        try:
            return self.feature.inputs(value)
        except DatasetError as error:
            raise DatasetError(f"{where}: {error}") from None

    def _number(self, said: str) -> float:
        said = self.column.levels.get(said, said)
        number = as_number(said, self.source.decimal, self.source.thousands)
        if number is None:
            raise ValueError("is not a number")
        return number

    def _days(self, said: str) -> float:
        try:
            if self.column.format:
                day = datetime.strptime(said, self.column.format).date()
            else:
                day = datetime.fromisoformat(said).date()
        except ValueError:
            form = self.column.format or "YYYY-MM-DD"
            raise ValueError(f"is not a date of the form {form}") from None
        assert self._reference is not None
        return float((day - self._reference).days)

    def _yes_no(self, said: str) -> str:
        found = self.column.levels.get(said)
        if found is None and not self.column.levels:
            number = _plain(said)
            found = WORDS.get(said.casefold() if number is None else f"{number:g}")
        if found not in (YES, NO):
            raise ValueError("is not yes or no")
        return found

    def _level(self, said: str) -> Level:
        if self._numeric:
            return self._number(said)
        found = self._texts.get(said)
        if found is None and (number := _plain(said)) is not None:
            found = self._numbers.get(number)
        return said if found is None else found


def as_number(said: str, decimal: str = ".", thousands: str = "") -> float | None:
    """A cell as a finite number; None for anything else: no words, no hexadecimal, and thousands
    in groups of three or not at all.
    """
    if thousands and thousands in said:
        whole, _, part = said.partition(decimal)
        if thousands in part or not re.fullmatch(
            rf"[+-]?\d{{1,3}}({re.escape(thousands)}\d{{3}})+", whole, re.ASCII
        ):
            return None
        said = said.replace(thousands, "")
    if decimal != ".":
        if "." in said:
            return None
        said = said.replace(decimal, ".")
    return _plain(said)


def _plain(said: str) -> float | None:
    if not _NUMBER.fullmatch(said):
        return None
    number = float(said)
    return number if abs(number) < float("inf") else None


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
        if complete:
            self.complete.setdefault(unit)

    def members(self) -> Members:
        units = dict.fromkeys([*self.complete, *(unit for _, unit in self.rows)])
        index = {key: i for i, key in enumerate(units)}
        held = np.arange(len(index)) < len(self.complete)
        return Members(list(index), held, [(record, index[unit]) for record, unit in self.rows])
