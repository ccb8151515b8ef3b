"""Who is in a table: a key for each patient, the same in every file, version and schema of a node.

A key is HMAC-SHA256 under the node's own secret, cut to 16 bytes, so that who reads the ledger or a
dataset's file cannot try identifiers out. Of a patient it is taken over the text in the patient
column, without the blanks around it and otherwise as it stands ("007" is not "7"); of a record over
all columns of its row in the order of their names, numbers written in one way ("60" is "60.0"), so
that another schema over the same file finds the same records. Equal rows of a file are told apart
by their order among equals. Knows nothing of what is done with keys.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

KEY_BYTES = 16


def patient_key(secret: bytes, identifier: str) -> bytes:
    """The key of the patient with this text in the patient column."""
    return _keyed(secret, b"patient " + identifier.strip().encode())


def record_key(secret: bytes, cells: bytes, before: int) -> bytes:
    """The key of a record, by its `canonical_row`; `before` equal ones came first in the file."""
    return _keyed(secret, b"record %d " % before + cells)


def canonical_row(row: Mapping[str, str]) -> bytes:
    """A row's cells in the order of their columns' names, blanks cut, numbers written one way."""
    cells = sorted((str(name), _cell(value)) for name, value in row.items())
    return json.dumps(cells, separators=(",", ":")).encode()


def _cell(value: object) -> str:
    text = str(value if value is not None else "").strip()
    try:
        number = float(text)
    except ValueError:
        return text
    return repr(number) if math.isfinite(number) else text


def _keyed(secret: bytes, message: bytes) -> bytes:
    return hmac.digest(secret, message, "sha256")[:KEY_BYTES]


@dataclass(frozen=True)
class Members:
    """Who is in a version of a table.

    units   keys, each once: of patients where a patient column is named, else of records
    held    [units] whether the version holds it: not who has withdrawn or lacks a value
    rows    (key of a record, index of the unit that it belongs to); empty where records are units
    lacking  keys of the units that the table names without one complete record; records that are
             units of their own are among `units` only where they are complete
    """

    units: Sequence[bytes]
    held: np.ndarray
    rows: Sequence[tuple[bytes, int]] = ()
    lacking: Sequence[bytes] = ()

    @cached_property
    def who(self) -> str:
        """A fingerprint of the units that are held, in any order."""
        there = sorted(self.units[int(i)] for i in np.flatnonzero(self.held))
        return hashlib.sha256(b"".join(there)).hexdigest()

    @cached_property
    def who_apart(self) -> str:
        """A fingerprint of the units that are held and, apart from them, of those that lack."""
        lacking = b"".join(sorted(self.lacking))
        return hashlib.sha256(self.who.encode() + b"|" + lacking).hexdigest()

    @property
    def counted(self) -> Members:
        """Those who are held and those who lack, as members alike."""
        kept = dict.fromkeys([self.units[int(i)] for i in np.flatnonzero(self.held)])
        index = {key: i for i, key in enumerate(kept | dict.fromkeys(self.lacking))}
        rows = [(key, self.units[unit]) for key, unit in self.rows]
        return Members(
            list(index),
            np.ones(len(index), dtype=bool),
            [(key, index[unit]) for key, unit in rows if unit in index],
        )

    @cached_property
    def content(self) -> str:
        """A fingerprint of the table: of all its units and rows, in any order, whoever is held."""
        rows = sorted(key + self.units[unit] for key, unit in self.rows)
        return hashlib.sha256(b"".join([*sorted(self.units), b"|", *rows])).hexdigest()

    def without(self, withdrawn: np.ndarray) -> Members:
        """The same without those marked in `withdrawn` [units], whose keys stay known."""
        return replace(self, held=self.held & ~withdrawn)
