"""How a hospital's columns become a model's inputs and a target, as a public document with a hash.
Knows nothing of rows, files or how a hospital calls its columns.

Preprocessing uses only public constants written here (centre, scale, levels): nothing is fitted on
patients, so nothing has to be paid for. A schema is made once, by whoever wants hospitals to train
together; each hospital maps its own columns and words to it in private (sources.py).

    kind      a value becomes
    number    (value - centre) / scale, clipped to +-10
    date      the same of the days since `reference`
    yes/no    the same of 1 or 0
    category  one input per level but the first, the same of 1 or 0; one more for `other`

Or every record is one picture by public rules (pictures.py), and the schema has no columns but the
target.

A value that is missing drops its record, is refused, or stands as `missing` says with one more
input that is 1; documents from before there were kinds keep their hash.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import date
from typing import Any

from datatokens.terms import canonical_json
from fl_client.data.pictures import PictureRules
from fl_client.errors import DatasetError

PICTURE = "picture"  # the column that names a record's file
KINDS = ("number", "category", "yes/no", "date")
DROP, REFUSE = "drop", "refuse"
NO, YES = "no", "yes"
MOST_FEATURES = 2000
MOST_LEVELS = 1000  # of one feature
SCALED_LIMIT = 10.0  # one absurd cell cannot blow up a gradient

Level = float | str


@dataclass(frozen=True)
class Feature:
    """A column.

    categories  a category's levels, all numbers or all texts; the first is the reference
    other       a category takes any other level, too, as one more
    unit        of a number, in UCUM ("mm[Hg]"); for people
    reference   of a date: the public day that is counted from
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
        else:
            named = [self.name]
        return (*named, *[f"{self.name} is missing"] * self.stands)

    @property
    def width(self) -> int:
        """How many model inputs the column becomes."""
        return len(self.labels)

    def inputs(self, value: Level | None) -> list[float]:
        """The model inputs of a value that `Schema` takes: a number (of a date its days), a level,
        "yes" or "no"; None where it is missing. Raises DatasetError for a level that is none.
        """
        absent = value is None
        known = self.missing if value is None else value
        if self.kind == "category":
            at = self._level(known)
            raw = [float(i == at) for i in range(1, len(self.categories) + self.other)]
        elif self.kind == "yes/no":
            if known not in (YES, NO):
                raise DatasetError(f"{self.name}={known!r} must be yes or no")
            raw = [float(known == YES)]
        else:
            raw = [float(known)]
        scaled = [(x - self.centre) / self.scale for x in raw]
        bounded = [min(SCALED_LIMIT, max(-SCALED_LIMIT, x)) for x in scaled]
        return bounded + [float(absent)] * self.stands

    def _level(self, value: Level) -> int:
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
            "kind": self.kind if self.kind in ("yes/no", "date") else "",
            "other": self.other,
            "unit": self.unit,
            "reference": self.reference,
            "missing": {"value": self.missing} if self.stands else self.missing,
        }
        usual = {"kind": "", "other": False, "unit": "", "reference": "", "missing": DROP}
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
        centre, scale = {"yes/no": (0.5, 0.5), "category": (0.0, 1.0)}.get(kind, (None, None))
        missing, stands = _missing(name, kind, value.get("missing", DROP))
        made = cls(
            name,
            number(f"centre of {name}", value.get("centre", centre)),
            number(f"scale of {name}", value.get("scale", scale), above=0),
            _levels(name, kind, levels),
            kind,
            _flag(f"other of {name}", value.get("other", False)),
            text(f"unit of {name}", value.get("unit", ""), least=0),
            _reference(name, kind, value.get("reference", "")),
            missing,
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


@dataclass(frozen=True)
class Target:
    """What is learned: yes/no, or 1 where the column's number is above `positive_above`."""

    name: str
    positive_above: float | None = None

    def __post_init__(self) -> None:
        if self.positive_above is not None:
            object.__setattr__(self, "positive_above", float(self.positive_above))

    def as_dict(self) -> dict[str, Any]:
        """The target as JSON."""
        if self.positive_above is None:
            return {"name": self.name, "kind": "yes/no"}
        return {"name": self.name, "positive_above": self.positive_above}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Target:
        """The target in `value`; raises DatasetError naming the field that is wrong."""
        refuse_unknown("target", value, {"name", "kind", "positive_above"})
        name = text("target.name", value["name"])
        if (kind := value.get("kind", "")) not in ("", "yes/no"):
            raise DatasetError(f"kind of {name}={kind!r} must be yes/no")
        if not kind:
            return cls(name, number("target.positive_above", value["positive_above"]))
        if "positive_above" in value:
            raise DatasetError(f"{name} is yes/no: positive_above is of a number")
        return cls(name)


@dataclass(frozen=True)
class Schema:
    """The features in order, or what becomes of a picture, and the target."""

    features: tuple[Feature, ...]
    target: Target
    picture: PictureRules | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the model's input: (inputs,), or that of a picture."""
        if self.picture is not None:
            return self.picture.shape
        return (sum(feature.width for feature in self.features),)

    @property
    def width(self) -> int:
        """How many numbers the model's input has."""
        return math.prod(self.shape)

    @property
    def names(self) -> tuple[str, ...]:
        """What is wanted of a hospital's table: features in order or a picture's file, then the
        target.
        """
        given = (PICTURE,) if self.picture else tuple(feature.name for feature in self.features)
        return (*given, self.target.name)

    def as_dict(self) -> dict[str, Any]:
        """The schema as JSON."""
        if self.picture is not None:
            return {PICTURE: self.picture.as_dict(), "target": self.target.as_dict()}
        return {
            "features": [feature.as_dict() for feature in self.features],
            "target": self.target.as_dict(),
        }

    @classmethod
    def from_dict(cls, value: Any) -> Schema:
        """The schema in `value`; raises DatasetError naming the field that is wrong."""
        try:
            refuse_unknown("schema", value, {"features", PICTURE, "target"})
            if PICTURE in value:
                if "features" in value:
                    raise DatasetError("schema: features or a picture, and not both")
                rules = PictureRules.from_dict(value[PICTURE])
                return cls((), Target.from_dict(value["target"]), rules)
            if len(value["features"]) > MOST_FEATURES:
                raise DatasetError(
                    f"features: {len(value['features'])} columns; {MOST_FEATURES} are the most"
                )
            schema = cls(
                tuple(Feature.from_dict(item) for item in value["features"]),
                Target.from_dict(value["target"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                "schema must look like {features: [{name, centre, scale, categories?}], "
                f"target: {{name, positive_above}}}}; look at {error}"
            ) from error
        if not schema.features or len(set(schema.names)) != len(schema.names):
            raise DatasetError(
                "features: names must be there, all different, and not contain the target"
            )
        return schema

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits: two datasets fit one job if it is
        equal.
        """
        return hashlib.sha256(canonical_json(self.as_dict())).hexdigest()


def show(level: Level) -> str:
    """A level as people write it, in full: 1, not 1.0."""
    return level if isinstance(level, str) else repr(level).removesuffix(".0")


def _levels(name: str, kind: str, levels: list[Any]) -> tuple[Level, ...]:
    if kind != "category":
        if levels:
            raise DatasetError(f"categories of {name}: a {kind} has none")
        return ()
    if not 2 <= len(levels) <= MOST_LEVELS:
        raise DatasetError(
            f"categories of {name}: {len(levels)} levels; a category column has 2 to {MOST_LEVELS}"
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
    if kind in ("number", "date") or not isinstance(stands, str):
        return number(f"missing of {name}", stands), True
    return text(f"missing of {name}", stands), True


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


def _flag(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise DatasetError(f"{field}={value!r} must be true or false")
    return value


def refuse_unknown(where: str, value: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises DatasetError for a field that nobody reads: it would be believed to do something."""
    if unknown := sorted(set(value) - set(known)):
        raise DatasetError(
            f"{where}: {unknown[0]!r} is not known; there are {', '.join(sorted(known))}"
        )


def text(field: str, value: object, least: int = 1) -> str:
    """`value`, if it is text of at most 200 characters. Raises DatasetError."""
    if not isinstance(value, str) or not least <= len(value) <= 200:
        raise DatasetError(f"{field}={value!r} must be text of {least} to 200 characters")
    return value


def number(field: str, value: object, above: float = -math.inf) -> float:
    """`value`, if it is a finite number above `above`. Raises DatasetError."""
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
