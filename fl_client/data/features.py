"""How a column's values become a model's inputs, by public constants: a part of a schema. Knows
nothing of rows, files or how a hospital calls its columns.

    kind      a value becomes
    number    (value - centre) / scale, clipped to +-10
    date      the same of the days since `reference`
    yes/no    the same of 1 or 0
    category  one input per level but the first, the same of 1 or 0; one more for `other`
    text      one input per word of the vocabulary, the same of 1 where the text has it, or 0

A value that is missing drops its record, is refused, or stands as `missing` says with one more
input that is 1; documents from before there were kinds keep their hash.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from typing import Any

from fl_client.data.fields import Level, flag, number, refuse_unknown, show, text
from fl_client.errors import DatasetError

KINDS = ("number", "category", "yes/no", "date", "text")
DROP, REFUSE = "drop", "refuse"
NO, YES = "no", "yes"
MOST_LEVELS = 1000  # of one feature, or words
SCALED_LIMIT = 10.0  # one absurd cell cannot blow up a gradient


@dataclass(frozen=True)
class Feature:
    """A column.

    categories  a category's levels, all numbers or all texts; the first is the reference
    other       a category takes any other level, too, as one more
    unit        of a number, in UCUM ("mm[Hg]"); for people
    reference   of a date: the public day that is counted from
    vocabulary  of a text: the words that are looked for, as `words_of` writes them
    missing     "drop", "refuse", or {"value": v}: v stands for what is missing, and one more input
                says so
    """

    name: str
    centre: float = 0.0
    scale: float = 1.0
    categories: tuple[Level, ...] = ()
    kind: str = ""
    other: bool = False
    unit: str = ""
    reference: str = ""
    missing: str | Level = DROP
    vocabulary: tuple[str, ...] = ()
    stands: bool = False  # `missing` is the value that stands for what is missing

    def __post_init__(self) -> None:
        # 50 and 50.0 must be one schema with one hash, whoever wrote it
        for name in ("centre", "scale"):
            object.__setattr__(self, name, float(getattr(self, name)))
        levels = tuple(x if isinstance(x, str) else float(x) for x in self.categories)
        object.__setattr__(self, "categories", levels)
        usual = "category" if levels else "number"
        object.__setattr__(self, "kind", self.kind or usual)

    @property
    def labels(self) -> tuple[str, ...]:
        """What each model input of the column says, in words."""
        if self.kind == "category":
            named = [f"{self.name} is {show(level)}" for level in self.categories[1:]]
            named += [f"{self.name} is another"] * self.other
        elif self.kind == "yes/no":
            named = [f"{self.name} is yes"]
        elif self.kind == "text":
            named = [f"{self.name} says {word}" for word in self.vocabulary]
        else:
            named = [self.name]
        return (*named, *[f"{self.name} is missing"] * self.stands)

    @property
    def width(self) -> int:
        """How many model inputs the column becomes."""
        return len(self.labels)

    def inputs(self, value: Level | None) -> list[float]:
        """The model inputs of a value that `Schema` takes: a number (of a date its days), a level,
        "yes" or "no", a text; None where it is missing. Raises DatasetError for a level that is
        none.
        """
        absent = value is None
        known = self.missing if value is None else value
        if self.kind == "category":
            at = self.level(known)
            raw = [float(i == at) for i in range(1, len(self.categories) + self.other)]
        elif self.kind == "yes/no":
            if known not in (YES, NO):
                raise DatasetError(f"{self.name}={known!r} must be yes or no")
            raw = [float(known == YES)]
        elif self.kind == "text":
            said = frozenset(words_of(str(known)))
            raw = [float(word in said) for word in self.vocabulary]
        else:
            raw = [float(known)]
        scaled = [(x - self.centre) / self.scale for x in raw]
        bounded = [min(SCALED_LIMIT, max(-SCALED_LIMIT, x)) for x in scaled]
        return bounded + [float(absent)] * self.stands

    def level(self, value: Level) -> int:
        """Which of a category's levels it is, from 0; the one after the last for another, where
        that is allowed. Raises DatasetError.
        """
        if value in self.categories:
            return self.categories.index(value)
        if self.other:
            return len(self.categories)
        raise DatasetError(
            f"{self.name}={show(value)} is not one of {', '.join(map(show, self.categories))}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The column as JSON; what is as usual is left out of what came later."""
        old = {
            "name": self.name,
            "centre": self.centre,
            "scale": self.scale,
            "categories": list(self.categories),
        }
        later = {
            "kind": self.kind if self.kind in ("yes/no", "date", "text") else "",
            "other": self.other,
            "unit": self.unit,
            "reference": self.reference,
            "missing": {"value": self.missing} if self.stands else self.missing,
            "vocabulary": list(self.vocabulary),
        }
        usual = {"kind": "", "other": False, "unit": "", "reference": "", "missing": DROP}
        usual |= {"vocabulary": []}
        return old | {name: value for name, value in later.items() if value != usual[name]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Feature:
        """The column in `value`; raises DatasetError naming the field that is wrong."""
        known = {field.name for field in fields(cls)} - {"stands"}
        refuse_unknown("features", value, known)
        name = text("features.name", value["name"])
        levels = value.get("categories", [])
        if not isinstance(levels, list):
            raise DatasetError(f"categories of {name} must be a list of levels")
        kind = value.get("kind") or ("category" if levels else "number")
        if kind not in KINDS:
            raise DatasetError(f"kind of {name}={kind!r} must be one of {', '.join(KINDS)}")
        usual = {"yes/no": (0.5, 0.5), "text": (0.5, 0.5), "category": (0.0, 1.0)}
        centre, scale = usual.get(kind, (None, None))
        missing, stands = _missing(name, kind, value.get("missing", DROP))
        made = cls(
            name,
            number(f"centre of {name}", value.get("centre", centre)),
            number(f"scale of {name}", value.get("scale", scale), above=0),
            levels_of(name, kind, levels),
            kind,
            flag(f"other of {name}", value.get("other", False)),
            text(f"unit of {name}", value.get("unit", ""), least=0),
            _reference(name, kind, value.get("reference", "")),
            missing,
            _vocabulary(name, kind, value.get("vocabulary", [])),
            stands,
        )
        if made.other and kind != "category":
            raise DatasetError(f"other of {name}: only a category has other levels")
        if made.stands and kind != "number" and kind != "date":
            try:
                made.inputs(None)
            except DatasetError as error:
                raise DatasetError(f"missing of {name}: {error}") from error
        return made


class _Letters(dict[int, str]):
    """Letters as they are, with the marks that belong to them; a blank for whatever is none."""

    def __missing__(self, code: int) -> str:
        kept = self[code] = chr(code) if unicodedata.category(chr(code))[0] in "LM" else " "
        return kept


_LETTERS = _Letters()


def words_of(said: str) -> list[str]:
    """The words of a text: runs of letters of any script, in one case and one spelling (NFKC)."""
    one_case = unicodedata.normalize("NFKC", said).casefold()  # some spellings hide capitals
    return unicodedata.normalize("NFKC", one_case).translate(_LETTERS).split()


def _vocabulary(name: str, kind: str, words: Any) -> tuple[str, ...]:
    if kind != "text":
        if words:
            raise DatasetError(f"vocabulary of {name}: a {kind} has none")
        return ()
    if not isinstance(words, list) or not 1 <= len(words) <= MOST_LEVELS:
        raise DatasetError(f"vocabulary of {name} must be a list of 1 to {MOST_LEVELS} words")
    for word in words:
        written = words_of(text(f"vocabulary of {name}", word))
        if written != [word]:
            raise DatasetError(
                f"vocabulary of {name}: {word!r} must be one word of letters, in small ones"
                + (f": {written[0]!r}" if len(written) == 1 else "")
            )
    if len(set(words)) != len(words):
        raise DatasetError(f"vocabulary of {name}: a word is there twice")
    return tuple(words)


def levels_of(
    name: str, kind: str, levels: list[Any], most: int = MOST_LEVELS
) -> tuple[Level, ...]:
    """A category's levels, all numbers or all texts, 2 to `most` of them. Raises DatasetError."""
    if kind != "category":
        if levels:
            raise DatasetError(f"categories of {name}: a {kind} has none")
        return ()
    if not 2 <= len(levels) <= most:
        raise DatasetError(
            f"categories of {name}: {len(levels)} levels; a category column has 2 to {most}"
        )
    texts = isinstance(levels[0], str)
    read = text if texts else number
    found = tuple(read(f"categories of {name}", level) for level in levels)
    if len(set(found)) != len(found):
        raise DatasetError(f"categories of {name}: a level is there twice")
    return found


def _missing(name: str, kind: str, value: Any) -> tuple[str | Level, bool]:
    """(what is done or stands, whether it stands)."""
    if value in (DROP, REFUSE):
        return value, False
    if not isinstance(value, dict) or set(value) != {"value"}:
        raise DatasetError(
            f'missing of {name}={value!r} must be "drop", "refuse" or {{"value": ...}}'
        )
    stands = value["value"]
    if kind in ("number", "date") or (kind != "text" and not isinstance(stands, str)):
        return number(f"missing of {name}", stands), True
    # of a text, nothing said is what usually stands
    return text(f"missing of {name}", stands, least=int(kind != "text")), True


def _reference(name: str, kind: str, value: Any) -> str:
    if kind != "date":
        if value:
            raise DatasetError(f"reference of {name}: only a date is counted from a day")
        return ""
    try:
        return date.fromisoformat(value).isoformat()
    except (ValueError, TypeError) as error:
        raise DatasetError(
            f"reference of {name}={value!r} must be a day like 2000-01-01"
        ) from error
