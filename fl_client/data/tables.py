"""How a hospital's rows become numbers: reading a CSV file by a schema. Knows nothing of jobs,
models or ledgers.

Whether rows are grouped into patients follows from the manifest alone (a patient column is named,
or not), never from what the rows hold: the answer to a job must not depend on one patient.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_client.data.identity import Members, canonical_row, patient_key, record_key
from fl_client.data.schemas import Feature, Schema
from fl_client.errors import DatasetError

MISSING = {"", "?", "NA", "NaN", "nan"}
SCALED_LIMIT = 10.0  # scaled values are clipped to +-10: one absurd cell cannot blow up a gradient
MAX_ROWS = 10_000_000


@dataclass(frozen=True)
class Records:
    """features [n, width] float32, targets [n] float32 in {0, 1}; `dropped` rows had a missing
    value.

    patients [n]: whose record each is, numbers from 0 without gaps in the order of the file; None
    where the owner declares that records are patients (no patient column).
    members: who that is; None where the table was read without the node's secret.
    """

    features: np.ndarray
    targets: np.ndarray
    dropped: int
    patients: np.ndarray | None = None
    members: Members | None = None

    @property
    def persons(self) -> int:
        """The true number of patients (or records). It stays in the room: only a noised count
        leaves.
        """
        return len(self.targets) if self.patients is None else len(np.unique(self.patients))

    @property
    def patient_set(self) -> str:
        """What ledgers before identities were kept by: a hash of the scaled records."""
        table = np.column_stack([self.features, self.targets]).astype("<f4")
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
        return Records(
            self.features[stay],
            self.targets[stay],
            self.dropped,
            patients,
            self.members.without(gone),
        )


def load(
    path: Path, schema: Schema, patient_column: str = "", secret: bytes | None = None
) -> Records:
    """Read a CSV file with a header row. Rows with a missing value in a used column are dropped.

    Rows with the same text in `patient_column` (blanks around it do not count) are one patient's.
    With the node's `secret` it is also told who they are (identity.py).

    Raises DatasetError naming the file, line and column of anything else that is wrong.
    """
    features: list[list[float]] = []
    targets: list[float] = []
    dropped = 0
    patients: dict[str, int] = {}
    whose: list[int] = []
    seen = _Seen(secret, patient_column) if secret is not None else None
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="")
            header = set(reader.fieldnames or ())
            needed = (
                [f.name for f in schema.features]
                + [schema.target]
                + [patient_column] * bool(patient_column)
            )
            if missing := [name for name in needed if name not in header]:
                raise DatasetError(
                    f"{path.name}: the header lacks the column(s) {', '.join(missing)}"
                )
            for row in reader:
                complete = not any((row[name] or "").strip() in MISSING for name in needed)
                if seen is not None:
                    seen.add(row, complete)
                if not complete:
                    dropped += 1
                    continue
                where = f"{path.name} line {reader.line_num}"
                if patient_column:
                    whose.append(patients.setdefault(row[patient_column].strip(), len(patients)))
                features.append(
                    [x for f in schema.features for x in _scaled(f, row[f.name], where)]
                )
                targets.append(
                    float(_cell(schema.target, row[schema.target], where) > schema.positive_above)
                )
                if len(targets) > MAX_ROWS:
                    raise DatasetError(f"{path.name}: more than {MAX_ROWS} rows")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as a CSV file: {error}") from error
    matrix = np.asarray(features, dtype=np.float32).reshape(len(targets), schema.width)
    return Records(
        matrix,
        np.asarray(targets, dtype=np.float32),
        dropped,
        np.asarray(whose, dtype=np.int64) if patient_column else None,
        None if seen is None else seen.members(),
    )


class _Seen:
    """Collects who the rows of a file belong to, those that hold a complete row first."""

    def __init__(self, secret: bytes, patient_column: str):
        self.secret, self.column = secret, patient_column
        self.equal: Counter[bytes] = Counter()
        self.complete: dict[bytes, None] = {}
        self.rows: list[tuple[bytes, bytes]] = []

    def add(self, row: Mapping[str, str], complete: bool) -> None:
        cells = canonical_row(row)
        record = record_key(self.secret, cells, self.equal[cells])
        self.equal[cells] += 1
        if self.column:
            identifier = (row[self.column] or "").strip()
            if identifier in MISSING:
                return
            unit = patient_key(self.secret, identifier)
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


def _cell(column: str, text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DatasetError(f"{where}: {column}={text!r} is not a number")
    return value


def _scaled(feature: Feature, text: str, where: str) -> list[float]:
    value = _cell(feature.name, text, where)
    if not feature.categories:
        raw = [value]
    elif value in feature.categories:
        raw = [float(value == level) for level in feature.categories[1:]]
    else:
        raise DatasetError(
            f"{where}: {feature.name}={text} is not one of {list(feature.categories)}"
        )
    return [
        min(SCALED_LIMIT, max(-SCALED_LIMIT, (x - feature.centre) / feature.scale)) for x in raw
    ]
