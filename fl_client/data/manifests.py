"""What the world may know of a hospital's dataset: its schema, how many are in it, what it may
cost of privacy, the floors of cohorts. Knows nothing of rows.

What privacy protects is a patient where the owner names the columns that tell patients apart,
otherwise a record, one row; every page says which.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datatokens.errors import TermsError
from datatokens.terms import canonical_json, whole
from fl_client.data.fields import number, text
from fl_client.data.schemas import Schema
from fl_client.errors import DatasetError

PLATFORM_MINIMUM_PERSONS = 10  # an owner can raise it, never lower it
UNITS = ("patient", "record")
MOST_RECORDS = 64  # of one patient that may count
USUAL_RECORDS = 4  # of one patient, where the owner says nothing else
# everybody who looks at a catalogue gets every manifest in it
MAX_MANIFEST_BYTES = 128 * 1024
MOST_CONDITIONS = 8


@dataclass(frozen=True)
class Manifest:
    """What the world may know of a dataset. Its hash is on-chain; `persons` is noised (see README,
    guarantees), and so is `left_out`: how many more the source names without one record that has
    every value; None, and not in the document, where that was not counted.

    `records_per_patient` is how many records of one patient count, the first ones of the file: a
    constant, so that nothing depends on how many somebody has. 1 where the unit is a record.
    `version` 1 documents were published before there was that constant and keep their hash.
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
    records_per_patient: int = 1
    version: int = 2
    left_out: int | None = None
    country: str = ""  # where the patients were treated, ISO 3166-1 alpha-2; "" is not said
    conditions: tuple[str, ...] = ()  # what they have, in the owner's words or codes

    def __post_init__(self) -> None:
        check_about(self.country, self.conditions)
        for name in ("lifetime_epsilon", "delta"):
            object.__setattr__(self, name, float(getattr(self, name)))
        check_records_per_patient(self.records_per_patient, self.unit)
        if (size := len(canonical_json(self.as_dict()))) > MAX_MANIFEST_BYTES:
            raise DatasetError(
                f"manifest: {size} bytes; {MAX_MANIFEST_BYTES} are the most, so name fewer or "
                "shorter columns"
            )

    def as_dict(self) -> dict[str, Any]:
        """The public document."""
        later: dict[str, Any] = {}
        later |= {} if self.version == 1 else {"records_per_patient": self.records_per_patient}
        later |= {} if self.left_out is None else {"left_out": self.left_out}
        later |= {"country": self.country} if self.country else {}
        later |= {"conditions": list(self.conditions)} if self.conditions else {}
        return later | {
            "version": self.version,
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
            version, unit = value["version"], value["unit"]
            if type(version) is not int or version not in (1, 2) or unit not in UNITS:
                raise DatasetError(
                    f"version={version!r} must be 1 or 2 and unit={unit!r} one of "
                    f"{', '.join(UNITS)}"
                )
            usual = USUAL_RECORDS if unit == "patient" else 1
            left_out = value.get("left_out")
            return cls(
                text("hospital", value["hospital"]),
                text("name", value["name"]),
                str(value["description"])[:2000],
                whole("persons", value["persons"], 1, 10**9),
                whole("minimum_persons", value["minimum_persons"], PLATFORM_MINIMUM_PERSONS, 10**9),
                number("lifetime_epsilon", value["lifetime_epsilon"], above=0),
                number("delta", value["delta"], above=0),
                Schema.from_dict(value["schema"]),
                whole("compute_rate_units", value["compute_rate_units"], 0, 2**88 - 1),
                unit,
                usual if version == 1 else value["records_per_patient"],
                version,
                None if left_out is None else whole("left_out", left_out, 0, 10**9),
                value.get("country", ""),
                tuple(value.get("conditions", ())),
            )
        except (KeyError, TypeError) as error:
            raise DatasetError(f"manifest: look at {error}") from error
        except TermsError as error:
            raise DatasetError(f"manifest: {error}") from error

    @property
    def hash(self) -> bytes:
        """SHA-256 of the canonical JSON: the manifestHash on-chain."""
        return hashlib.sha256(canonical_json(self.as_dict())).digest()


def check_about(country: object, conditions: tuple[object, ...]) -> None:
    """Raises DatasetError for a country or a condition that nobody could look for."""
    if country != "" and not (isinstance(country, str) and re.fullmatch("[A-Z]{2}", country)):
        raise DatasetError(f"country={country!r:.40} must be two capital letters, as DE (ISO 3166)")
    for one in conditions:
        text("condition", one)
    if len(conditions) > MOST_CONDITIONS or len(set(conditions)) < len(conditions):
        raise DatasetError(
            f"conditions: at most {MOST_CONDITIONS} different ones, not {len(conditions)}"
        )


def check_records_per_patient(records: object, unit: str) -> None:
    """Raises DatasetError unless so many records of one patient may count: 1 to 64, or just 1."""
    most = MOST_RECORDS if unit == "patient" else 1
    if type(records) is not int or not 1 <= records <= most:
        raise DatasetError(
            f"records_per_patient={records!r} must be a whole number from 1 to {most} where the "
            f"unit is a {unit}"
        )


def check_cohort(persons: int, minimum_persons: int) -> None:
    """Raises DatasetError where a cohort is under the owner's floor or the platform's."""
    floor = max(minimum_persons, PLATFORM_MINIMUM_PERSONS)
    if persons < floor:
        raise DatasetError(
            f"persons={persons} is under the floor of {floor}: a cohort this small cannot be listed"
        )
