"""What is to be learned of each record, as numbers that a loss takes: a part of a schema. Knows
nothing of rows, files or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fl_client.data.features import YES, Feature, levels_of
from fl_client.data.fields import Level, listed, number, refuse_unknown, show, text
from fl_client.errors import DatasetError

# what leaves of a model's scores has so many cells (privacy/looks.py)
MOST_CLASSES, MOST_LABELS, MOST_INTERVALS = 64, 40, 64


@dataclass(frozen=True)
class Target:
    """What is learned of each record, as numbers that a loss takes (model/losses.py).

        kind           columns                 numbers of a record
        yes/no         `name`                  1 or 0; of `positive_above`, whether a number is more
        classes        `name`                  which of `levels`, from 0
        number         `name`                  (value - low) / (high - low), cut to 0 and 1
        several yes/no `columns`               1 or 0 for each
        time to event  `columns`: time, event  for each interval up to an edge, an event in it; then
                                               for each, whether the patient was at risk in it

    An event after the last edge is none. Who is lost to sight within an interval counts in it from
    its middle on (Gensheimer & Narasimhan 2019, 1805.00917): events count from its first day, so
    that the hazards would be too high if nobody else did.
    """

    name: str
    positive_above: float | None = None
    kind: str = "yes/no"
    levels: tuple[Level, ...] = ()
    low: float = 0.0
    high: float = 1.0
    unit: str = ""
    columns: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.positive_above is not None:
            object.__setattr__(self, "positive_above", float(self.positive_above))

    @property
    def reads(self) -> tuple[Feature, ...]:
        """The columns that are read for it, in order, each as a feature is."""
        if self.kind == "classes":
            return (Feature(self.name, categories=self.levels),)
        if self.kind == "number" or self.positive_above is not None:
            return (Feature(self.name, kind="number"),)
        if self.kind == "time to event":
            time, event = self.columns
            return (Feature(time, kind="number"), Feature(event, kind="yes/no"))
        return tuple(Feature(name, kind="yes/no") for name in self.columns or (self.name,))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a record's numbers: () is one number."""
        several = {"several yes/no": len(self.columns), "time to event": 2 * len(self.edges)}
        return (several[self.kind],) if self.kind in several else ()

    @property
    def losses(self) -> dict[str, int]:
        """Loss that it can be learned by -> how many outputs that takes; the usual one first."""
        if self.kind == "classes":
            return {"cross_entropy": len(self.levels)}
        if self.kind == "number":
            return {"squared_error": 1}
        if self.kind == "several yes/no":
            return {"multilabel_soft_margin": len(self.columns)}
        if self.kind == "time to event":
            return {"logistic_hazard": len(self.edges)}
        return {"binary_cross_entropy": 1, "cross_entropy": 2, "squared_error": 1}

    @property
    def labels(self) -> tuple[str, ...]:
        """What each number of a record says, in words."""
        if self.kind == "time to event":
            time, event = self.columns
            parts = [f"{show(low)} to {show(high)}" for low, high in self._intervals]
            return (
                *(f"{event} at {time} {part}" for part in parts),
                *(f"at risk at {time} {part}" for part in parts),
            )
        return self.columns or (self.name,)

    @property
    def words(self) -> str:
        """What it is, for people."""
        if self.positive_above is not None:
            return f"1 where it is above {show(self.positive_above)}, else 0"
        unit = f" {self.unit}" * bool(self.unit)
        if self.kind == "time to event":
            time, event = self.columns
            parts = ", ".join(f"{show(low)} to {show(high)}" for low, high in self._intervals)
            return f"whether there is {event} when {time} is {parts}{unit}"
        return {
            "classes": f"one of {', '.join(map(show, self.levels))}",
            "number": f"a number from {show(self.low)} to {show(self.high)}{unit}",
            "several yes/no": f"yes or no for each of {', '.join(self.columns)}",
        }.get(self.kind, "yes or no")

    @property
    def _intervals(self) -> list[tuple[float, float]]:
        return list(zip((0.0, *self.edges), self.edges, strict=False))

    def numbers(self, values: Sequence[Level]) -> list[float]:
        """The numbers of a record whose columns hold `values`, as `Feature.inputs` takes them.
        Raises DatasetError for a level that is none, or a time below 0.
        """
        if self.kind == "classes":
            return [float(self.reads[0].level(values[0]))]
        if self.kind == "time to event":
            return self._survival(float(values[0]), values[1] == YES)
        if self.kind == "number":
            part = (float(values[0]) - self.low) / (self.high - self.low)
            return [min(1.0, max(0.0, part))]
        if self.positive_above is not None:
            return [float(float(values[0]) > self.positive_above)]
        return [float(value == YES) for value in values]

    def _survival(self, time: float, event: bool) -> list[float]:
        if time < 0:
            raise DatasetError(f"{self.columns[0]}={show(time)} must be 0 or more")
        happened = [
            float(event and (low < time or low == 0.0) and time <= high)
            for low, high in self._intervals
        ]
        seen = [float(2 * time >= low + high) for low, high in self._intervals]
        return happened + [max(one, other) for one, other in zip(happened, seen, strict=True)]

    def as_dict(self) -> dict[str, Any]:
        """The target as JSON."""
        if self.positive_above is not None:
            return {"name": self.name, "positive_above": self.positive_above}
        more: dict[str, dict[str, Any]] = {
            "classes": {"levels": list(self.levels)},
            "number": {"low": self.low, "high": self.high, "unit": self.unit},
            "several yes/no": {"columns": list(self.columns)},
            "time to event": {
                "time": self.columns[0] if self.columns else "",
                "event": self.columns[-1] if self.columns else "",
                "edges": list(self.edges),
                "unit": self.unit,
            },
        }
        return {"name": self.name, "kind": self.kind} | more.get(self.kind, {})

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Target:
        """The target in `value`; raises DatasetError naming the field that is wrong."""
        name, kind = text("target.name", value["name"]), value.get("kind", "")
        known: dict[str, set[str]] = {
            "": {"positive_above"},
            "yes/no": set(),
            "classes": {"levels"},
            "number": {"low", "high", "unit"},
            "several yes/no": {"columns"},
            "time to event": {"time", "event", "edges", "unit"},
        }
        if not isinstance(kind, str) or kind not in known:
            raise DatasetError(
                f"kind of {name}={kind!r} must be one of {', '.join(list(known)[1:])}"
            )
        refuse_unknown("target", value, {"name", "kind"} | known[kind])
        if lacking := sorted(known[kind] - {"unit"} - set(value)):
            raise DatasetError(
                f"target {name}: a target {f'of kind {kind}' if kind else 'without a kind'} must "
                f"say {', '.join(lacking)}, too"
            )
        unit = text(f"unit of {name}", value.get("unit", ""), least=0)
        if not kind:
            return cls(name, number("target.positive_above", value["positive_above"]))
        if kind == "classes":
            levels = listed(f"levels of {name}", value["levels"])
            return cls(name, None, kind, levels_of(name, "category", levels, MOST_CLASSES))
        if kind == "number":
            low = number(f"low of {name}", value["low"])
            high = number(f"high of {name}", value["high"], above=low)
            return cls(name, None, kind, low=low, high=high, unit=unit)
        if kind == "several yes/no":
            given = listed(f"columns of {name}", value["columns"])
            columns = tuple(text(f"columns of {name}", one) for one in given)
            if not 2 <= len(columns) <= MOST_LABELS:
                raise DatasetError(
                    f"columns of {name}: {len(columns)}; there must be 2 to {MOST_LABELS}"
                )
            return cls(name, None, kind, columns=columns)
        if kind == "time to event":
            given = listed(f"edges of {name}", value["edges"])
            edges = tuple(number(f"edges of {name}", one, above=0) for one in given)
            if not 1 <= len(edges) <= MOST_INTERVALS or sorted(set(edges)) != list(edges):
                raise DatasetError(
                    f"edges of {name}: there must be 1 to {MOST_INTERVALS}, each above the last"
                )
            pair = text("target.time", value["time"]), text("target.event", value["event"])
            return cls(name, None, kind, unit=unit, columns=pair, edges=edges)
        return cls(name)
