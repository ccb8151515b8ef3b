"""How one cell becomes what a schema takes: a text as it stands in a table, by the column's kind
and the owner's words for it. A node and a buyer read their tables by this alike. Knows nothing of
files, records or patients.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime

from fl_client.data.features import DROP, NO, YES, Feature
from fl_client.data.fields import Level
from fl_client.data.readers import Row
from fl_client.data.sources import Column, Source
from fl_client.errors import DatasetError

WORDS = {
    **dict.fromkeys(("yes", "y", "true", "t", "1"), YES),
    **dict.fromkeys(("no", "n", "false", "f", "0"), NO),
}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


class Cell:
    """Reads one of the schema's columns."""

    def __init__(self, feature: Feature, column: Column, source: Source):
        self.feature, self.column, self.source = feature, column, source
        self._absent = frozenset(("", *source.missing, *column.missing))
        kinds: dict[str, Callable[[str], Level]] = {
            "number": self._number,
            "date": self._days,
            "yes/no": self._yes_no,
            "category": self._level,
            "text": self._text,
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
                raise DatasetError(
                    f"{where}: {self.column.column} is missing, which the schema refuses"
                )
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

    def _text(self, said: str) -> str:
        return self.column.levels.get(said, said)

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
