"""How does a text file seem to be written? Proposed as a source's TOML file, for its owner to read
and correct; nothing is ever listed by a guess. Knows nothing of schemas.
"""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

from fl_client.data.readers import opened, rows
from fl_client.data.sources import Source, kind_of
from fl_client.errors import DatasetError

MARKS = {  # of a file's first bytes
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SAMPLE = 1 << 20  # bytes
SEPARATORS = ",;\t|"
SHOWN = 3  # rows


def describe(file: Path) -> str:
    """The text of a source's TOML file for a table, with its first rows as comments. Raises
    DatasetError.
    """
    if not file.exists():
        raise DatasetError(f"{file} is not there")
    kind = kind_of(file)
    said: dict[str, Any] = {"kind": kind}
    notes: list[str] = []
    if kind == "csv":
        found, notes = _dialect(file)
        said |= found
    source = Source(**{**said, "file": file})
    lines = [
        "# How this table seems to be written. Read it, correct it, keep it in the house.",
        "[source]",
        f"file = {json.dumps(str(file.resolve()), ensure_ascii=False)}",
        *(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in said.items()),
        "",
        "[patients]",
        "columns = []  # what tells patients apart; empty: each record is another person's",
        "",
        *(f"# {note}" for note in notes),
        *_first_rows(source),
    ]
    return "\n".join(lines) + "\n"


def _dialect(file: Path) -> tuple[dict[str, str], list[str]]:
    notes = []
    encoding, certain = _encoding(file)
    if not certain:
        notes.append(f"no mark says the encoding; {encoding} was tried: look at the letters below")
    with opened(file, encoding) as text:
        head = text.read(SAMPLE).splitlines()[:50]
    lines = [line for line in head if line.strip()]
    separator = _separator(lines)
    cells = [cell for line in lines[1:] for cell in line.split(separator)]
    commas = sum(_is_number(cell, ",") and "," in cell for cell in cells)
    points = sum(_is_number(cell, ".") and "." in cell for cell in cells)
    decimal = "," if commas > points else "."
    return {"encoding": encoding, "separator": separator, "decimal": decimal}, notes


def _encoding(file: Path) -> tuple[str, bool]:
    """(encoding, whether the file's bytes leave no doubt)."""
    start = file.open("rb").read(4) if not file.name.endswith(".gz") else b""
    for mark, name in MARKS.items():
        if start.startswith(mark):
            return name, True
    for name in ("utf-8", "cp1252", "latin-1"):
        try:
            with opened(file, name) as text:
                while text.read(SAMPLE):
                    pass
        except UnicodeDecodeError:
            continue
        return name, name == "utf-8"
    raise DatasetError(f"{file.name}: no encoding fits its bytes")


def _separator(lines: list[str]) -> str:
    """The one that stands in every line equally often outside of quotes, and most often."""
    if lines and lines[0].startswith("sep=") and len(lines[0]) == 5:
        return lines[0][4]

    bare = [re.sub(r'"[^"]*"', "", line) for line in lines]

    def fit(separator: str) -> tuple[bool, int]:
        times = [line.count(separator) for line in bare]
        return len(set(times)) == 1, min(times, default=0)

    return max(SEPARATORS, key=fit)


def _is_number(cell: str, decimal: str) -> bool:
    return cell.strip().strip('"').replace(decimal, "", 1).lstrip("+-").isdecimal()


def _first_rows(source: Source) -> list[str]:
    shown = []
    for number, (_, row) in enumerate(rows(source)):
        if number == 0:
            shown.append(f"# columns: {json.dumps(list(row), ensure_ascii=False)}")
        if number >= SHOWN:
            break
        shown.append(f"# {json.dumps(list(row.values()), ensure_ascii=False)}")
    return shown
