"""A hospital's table: its public schema, its manifest, and how rows become numbers. Knows nothing
of jobs or models.

Preprocessing uses only public constants written in the schema (centre, scale, categories): nothing
is fitted on patients, so nothing has to be paid for. What privacy protects is a patient where the
owner names the column that tells patients apart, otherwise a record, one row; every page says
which.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datatokens.errors import TermsError
from datatokens.terms import canonical_json, whole
from fl_client.errors import DatasetError

PLATFORM_MINIMUM_PERSONS = 10  # an owner can raise it, never lower it
MISSING = {"", "?", "NA", "NaN", "nan"}
SCALED_LIMIT = 10.0  # scaled values are clipped to +-10: one absurd cell cannot blow up a gradient
MAX_ROWS = 10_000_000
UNITS = ("patient", "record")


@dataclass(frozen=True)
class Feature:
    """A column. A number becomes (value - centre) / scale; a category one column per level but the
    first.
    """

    name: str
    centre: float
    scale: float
    categories: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        # 50 and 50.0 must be one schema with one hash, whoever wrote it
        for name in ("centre", "scale"):
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "categories", tuple(float(level) for level in self.categories))

    @property
    def width(self) -> int:
        """How many model inputs the column becomes."""
        return len(self.categories) - 1 if self.categories else 1


@dataclass(frozen=True)
class Schema:
    """The features in order, and the target column: positive where its value is above
    `positive_above`.
    """

    features: tuple[Feature, ...]
    target: str
    positive_above: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "positive_above", float(self.positive_above))

    @property
    def width(self) -> int:
        """Length of the model's input vector."""
        return sum(feature.width for feature in self.features)

    def as_dict(self) -> dict[str, Any]:
        """The schema as JSON."""
        return {
            "features": [
                {
                    "name": f.name,
                    "centre": f.centre,
                    "scale": f.scale,
                    "categories": list(f.categories),
                }
                for f in self.features
            ],
            "target": {"name": self.target, "positive_above": self.positive_above},
        }

    @classmethod
    def from_dict(cls, value: Any) -> Schema:
        """The schema in `value`; raises DatasetError naming the field that is wrong."""
        try:
            features = tuple(
                Feature(
                    _text("features.name", item["name"]),
                    _number(f"centre of {item['name']}", item["centre"]),
                    _number(f"scale of {item['name']}", item["scale"], above=0),
                    tuple(
                        _number(f"categories of {item['name']}", c)
                        for c in item.get("categories", ())
                    ),
                )
                for item in value["features"]
            )
            target = value["target"]
            schema = cls(
                features,
                _text("target.name", target["name"]),
                _number("target.positive_above", target["positive_above"]),
            )
        except (KeyError, TypeError) as error:
            raise DatasetError(
                "schema must look like {features: [{name, centre, scale, categories?}], "
                f"target: {{name, positive_above}}}}; look at {error}"
            ) from error
        names = [f.name for f in schema.features]
        if not names or len(set(names)) != len(names) or schema.target in names:
            raise DatasetError(
                "features: names must be there, all different, and not contain the target"
            )
        if any(len(f.categories) == 1 for f in schema.features):
            raise DatasetError("categories: a category column needs at least two levels")
        return schema

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits: two datasets fit one job if it is
        equal.
        """
        return hashlib.sha256(canonical_json(self.as_dict())).hexdigest()


@dataclass(frozen=True)
class Records:
    """features [n, width] float32, targets [n] float32 in {0, 1}; `dropped` rows had a missing
    value.

    patients [n]: whose record each is, numbers from 0 without gaps; None where every record is
    somebody else's.
    """

    features: np.ndarray
    targets: np.ndarray
    dropped: int
    patients: np.ndarray | None = None

    @property
    def persons(self) -> int:
        """The true number of patients (or records). It stays in the room: only a noised count
        leaves.
        """
        return len(self.targets) if self.patients is None else len(np.unique(self.patients))

    @property
    def patient_set(self) -> str:
        """Key of the privacy ledger: a hash of the records, so that listing the same file twice
        shares one budget.
        """
        table = np.column_stack([self.features, self.targets]).astype("<f4")
        return hashlib.sha256(b"".join(sorted(row.tobytes() for row in table))).hexdigest()


def load(path: Path, schema: Schema, patient_column: str = "") -> Records:
    """Read a CSV file with a header row. Rows with a missing value in a used column are dropped.

    Rows with the same text in `patient_column` are one patient's.

    Raises DatasetError naming the file, line and column of anything else that is wrong.
    """
    features: list[list[float]] = []
    targets: list[float] = []
    dropped = 0
    patients: dict[str, int] = {}
    whose: list[int] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
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
                if any((row[name] or "").strip() in MISSING for name in needed):
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
        np.asarray(whose) if len(patients) < len(whose) else None,
    )


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


def _text(field: str, value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 200:
        raise DatasetError(f"{field}={value!r} must be text of 1 to 200 characters")
    return value


def _number(field: str, value: object, above: float = -math.inf) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value <= above
    ):
        raise DatasetError(
            f"{field}={value!r} must be a finite number" + (f" above {above}" if above == 0 else "")
        )
    return float(value)


@dataclass(frozen=True)
class Manifest:
    """What the world may know of a dataset. Its hash is on-chain; `persons` is noised (see README,
    guarantees).
    """

    hospital: str
    name: str
    description: str
    persons: int
    minimum_persons: int
    lifetime_epsilon: float
    delta: float
    schema: Schema
    compute_rate_units: int = (
        0  # base units of the payment token for every started minute of training
    )
    unit: str = "record"  # what privacy protects: a patient with all records, or one record

    def __post_init__(self) -> None:
        for name in ("lifetime_epsilon", "delta"):
            object.__setattr__(self, name, float(getattr(self, name)))

    def as_dict(self) -> dict[str, Any]:
        """The public document."""
        return {
            "version": 1,
            "hospital": self.hospital,
            "name": self.name,
            "description": self.description,
            "unit": self.unit,
            "persons": self.persons,
            "minimum_persons": self.minimum_persons,
            "lifetime_epsilon": self.lifetime_epsilon,
            "delta": self.delta,
            "compute_rate_units": self.compute_rate_units,
            "schema": self.schema.as_dict(),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Manifest:
        """The manifest in `value`; raises DatasetError for anything missing or out of range."""
        try:
            if value["version"] != 1 or value["unit"] not in UNITS:
                raise DatasetError(
                    f"version={value['version']!r} must be 1 and unit={value['unit']!r} one of "
                    f"{', '.join(UNITS)}"
                )
            return cls(
                _text("hospital", value["hospital"]),
                _text("name", value["name"]),
                str(value["description"])[:2000],
                whole("persons", value["persons"], 1, 10**9),
                whole("minimum_persons", value["minimum_persons"], PLATFORM_MINIMUM_PERSONS, 10**9),
                _number("lifetime_epsilon", value["lifetime_epsilon"], above=0),
                _number("delta", value["delta"], above=0),
                Schema.from_dict(value["schema"]),
                whole("compute_rate_units", value["compute_rate_units"], 0, 2**88 - 1),
                value["unit"],
            )
        except (KeyError, TypeError) as error:
            raise DatasetError(f"manifest: look at {error}") from error
        except TermsError as error:
            raise DatasetError(f"manifest: {error}") from error

    @property
    def hash(self) -> bytes:
        """SHA-256 of the canonical JSON: the manifestHash on-chain."""
        return hashlib.sha256(canonical_json(self.as_dict())).digest()


def check_cohort(persons: int, minimum_persons: int) -> None:
    """Raises DatasetError where a cohort is under the owner's floor or the platform's."""
    floor = max(minimum_persons, PLATFORM_MINIMUM_PERSONS)
    if persons < floor:
        raise DatasetError(
            f"persons={persons} is under the floor of {floor}: a cohort this small cannot be listed"
        )
