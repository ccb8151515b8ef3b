"""Where a hospital's table is and how it is written: the private half of a listing, a TOML file
that stays in the house. Knows nothing of schemas' meaning, privacy or jobs.

    [source]
    file = "stroke.csv.gz"     # or: url = "postgresql://reader@db/ward", query = "select ..."
    separator = ";"            # of a text file; also quote, encoding, decimal, thousands
    [patients]
    columns = ["ward", "id"]   # what tells patients apart; left out, each record is one's own
    [columns.age]              # the schema's name -> what it is called and how it is written here
    column = "ALTER"
    [columns.sex]
    levels = { M = "male", W = "female" }

Of pictures, the column "picture" names each record's file, in the folder of the table or in
source.pictures; a folder itself is a table, too, with the columns picture and folder. The patient
column "dicom:PatientID" is read from the file. `unreadable = "leave out"` lists without the
pictures that cannot be read, after the owner has seen which.

Nothing in it is guessed: dialects.py proposes one for people to read first.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from datatokens.terms import canonical_json
from fl_client.data.fields import refuse_unknown, text
from fl_client.errors import DatasetError

KINDS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".data": "csv",
    ".parquet": "parquet",
    ".jsonl": "json-lines",
    ".ndjson": "json-lines",
    ".xlsx": "excel",
    ".npz": "npz",
}
SQL, FOLDER = "sql", "folder"
DICOM_ID = "dicom:PatientID"
PATHS = ("file", "password_file", "pictures")
PLACES = ("url", *PATHS)
MISSING = ("", "?", "NA", "NaN", "nan")
MOST_TEXT = 64 * 1024  # of a query


@dataclass(frozen=True)
class Column:
    """How one of the schema's columns is called and written in a table.

    levels   word there -> the schema's level (or "yes", "no", or a number)
    format   of dates there, as strptime reads them; "" is ISO 8601
    missing  words that stand for a missing value, besides the table's
    """

    column: str
    levels: Mapping[str, str] = field(default_factory=dict)
    format: str = ""
    missing: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As in the TOML file."""
        return {
            "column": self.column,
            "levels": dict(self.levels),
            "format": self.format,
            "missing": list(self.missing),
        }


@dataclass(frozen=True)
class Source:
    """A table. `names` stand for the header row of a text file that has none; `identifier` says
    whether patients' identifiers are "text" (007 is not 7) or "number" (it is); "" refuses a table
    where that matters.
    """

    kind: str
    file: Path | None = None
    url: str = ""
    password_file: Path | None = None
    query: str = ""
    sheet: str = ""
    separator: str = ","
    quote: str = '"'
    encoding: str = "utf-8"
    decimal: str = "."
    thousands: str = ""
    names: tuple[str, ...] = ()
    pictures: Path | None = None
    unreadable: str = ""
    missing: tuple[str, ...] = MISSING
    patients: tuple[str, ...] = ()
    identifier: str = ""
    columns: Mapping[str, Column] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise DatasetError(problem)

    @property
    def where(self) -> str:
        """What to call it in a sentence."""
        return self.file.name if self.file else "the query"

    def picture(self, cell: str) -> Path:
        """The file that a record's cell names."""
        there = self.pictures or (self.file if self.kind == FOLDER else None)
        return (there or (self.file.parent if self.file else Path())) / cell

    def column(self, name: str) -> Column:
        """What the schema's column `name` is here; by its own name where nothing is said."""
        return self.columns.get(name) or Column(name)

    def as_dict(self) -> dict[str, Any]:
        """As in the TOML file, in full."""
        said = {
            one.name: list(value) if isinstance(value, tuple) else value
            for one in fields(self)
            if one.name not in ("patients", "identifier", "columns")
            and (value := getattr(self, one.name)) not in (None, "", ())
        }
        for name in PATHS:
            if name in said:
                said[name] = str(said[name])
        return {
            "source": said,
            "patients": {"columns": list(self.patients), "identifier": self.identifier},
            "columns": {name: column.as_dict() for name, column in self.columns.items()},
        }

    @property
    def reading(self) -> str:
        """SHA-256 of what is read and how, the query included, wherever it lies."""
        said = self.as_dict()
        said["source"] = {name: said["source"][name] for name in said["source"].keys() - PLACES}
        return hashlib.sha256(canonical_json(said)).hexdigest()

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], folder: Path = Path()) -> Source:
        """The source in `value`; paths are relative to `folder`. Raises DatasetError naming what is
        wrong.
        """
        refuse_unknown("the source's file", value, ("source", "patients", "columns"))
        said, patients = _table(value, "source"), _table(value, "patients")
        refuse_unknown("patients", patients, ("columns", "identifier"))
        own = {one.name for one in fields(cls)} - {"patients", "identifier", "columns"}
        refuse_unknown("source", said, own)
        paths: dict[str, Any] = {
            name: (folder / text(f"source.{name}", said[name], least=1)).resolve()
            for name in PATHS
            if name in said
        }
        texts: dict[str, Any] = {
            name: _words(f"source.{name}", found)
            if name in ("names", "missing")
            else _text(f"source.{name}", found)
            for name, found in said.items()
            if name not in paths
        }
        if "kind" not in texts:
            texts["kind"] = kind_of(paths["file"]) if "file" in paths else SQL
        columns = {name: _column(name, found) for name, found in _table(value, "columns").items()}
        return cls(
            **texts,
            **paths,
            patients=_words("patients.columns", patients.get("columns", [])),
            identifier=_text("patients.identifier", patients.get("identifier", "")),
            columns=columns,
        )


def read_source(path: Path) -> Source:
    """The source that a TOML file describes. Raises DatasetError."""
    try:
        return Source.from_dict(tomllib.loads(path.read_text(encoding="utf-8")), path.parent)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DatasetError(f"{path} is not a readable TOML file: {error}") from error


def plain(file: Path, patient_column: str = "") -> Source:
    """A table of which nothing is said: by the ending of its name, written as usual."""
    return Source(kind_of(file), file, patients=(patient_column,) if patient_column else ())


def moved(source: Source, file: Path) -> Source:
    """The same source in another file of the same kind."""
    if source.file is None:
        raise DatasetError("this dataset comes from a query and has no file")
    return replace(source, file=file)


def kind_of(file: Path) -> str:
    """What kind of table a file is by its name. Raises DatasetError."""
    if file.is_dir():
        return FOLDER
    ending = Path(file.name.removesuffix(".gz")).suffix.lower()
    if ending not in KINDS:
        raise DatasetError(
            f"{file.name}: the name must end in one of {', '.join(KINDS)}, or source.kind say what "
            "it is"
        )
    return KINDS[ending]


def _problems(source: Source) -> list[str]:
    found = []
    kinds = sorted({*KINDS.values(), SQL, FOLDER})
    if source.kind not in kinds:
        found.append(f"source.kind={source.kind!r} must be one of {', '.join(kinds)}")
    asked = {bool(source.url), bool(source.query), source.kind == SQL, source.file is None}
    if len(asked) > 1:
        found.append("source: say file, or url and query, and not both")
    for name in ("separator", "quote", "decimal"):
        if len(getattr(source, name)) != 1:
            found.append(f"source.{name}={getattr(source, name)!r} must be one character")
    if source.decimal not in ".,":
        found.append(f"source.decimal={source.decimal!r} must be . or ,")
    if len(source.thousands) > 1 or source.thousands == source.decimal:
        found.append(
            f"source.thousands={source.thousands!r} must be one character that is not the decimal "
            "sign, or left out"
        )
    if source.unreadable not in ("", "leave out"):
        found.append(f'source.unreadable={source.unreadable!r} must be "leave out", or not there')
    if source.identifier not in ("", "text", "number"):
        found.append(f"patients.identifier={source.identifier!r} must be text or number")
    if len(set(source.patients)) != len(source.patients) or not all(source.patients):
        found.append("patients.columns must be names, each once")
    return found


def _table(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name, {})
    if not isinstance(found, dict):
        raise DatasetError(f"[{name}] must be a table")
    return found


def _column(name: str, value: Any) -> Column:
    where = f"columns.{name}"
    if not isinstance(value, dict):
        raise DatasetError(f"[{where}] must be a table")
    refuse_unknown(where, value, ("column", "levels", "format", "missing"))
    levels = value.get("levels", {})
    if not isinstance(levels, dict):
        raise DatasetError(f"{where}.levels must be a table of word = level")
    return Column(
        text(f"{where}.column", value.get("column", name)),
        {word: _text(f"{where}.levels.{word}", level) for word, level in levels.items()},
        _text(f"{where}.format", value.get("format", "")),
        _words(f"{where}.missing", value.get("missing", [])),
    )


def _text(where: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        raise DatasetError(f"{where} must be text of at most {MOST_TEXT} characters")
    return value


def _words(where: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise DatasetError(f"{where} must be a list of words")
    return tuple(value)
