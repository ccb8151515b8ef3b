"""Common clinical variables by the names that tables give them, from variables.toml: public numbers
for first drafts. Knows nothing of tables, files or schemas.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

FAR, NEAR = 2.0, 1.0  # of the centre, in scales: not a usual median, a usual one


@dataclass(frozen=True)
class Variable:
    """A number with its unit, or a category with its levels; the fields are variables.toml's."""

    names: tuple[str, ...]
    source: str
    unit: str = ""
    centre: float = 0.0
    scale: float = 1.0
    low: float = 0.0
    high: float = 0.0
    also: tuple[tuple[str, float, float], ...] = ()
    levels: tuple[str, ...] = ()

    def doubts(self, values: Sequence[float]) -> str:
        """Why `values` may be in another unit than `unit`, for their owner's eyes; "" for no
        doubt.
        """
        if not values:
            return ""
        middle = median(values)
        fits = {unit: self._off(middle * times + plus) for unit, times, plus in self.also}
        best = min(fits, key=lambda unit: fits[unit], default="")
        strange = self._off(middle) > FAR or not self.low <= middle <= self.high
        if strange and best and fits[best] < NEAR:
            return f"your values look like {best}, not {self.unit}"
        if beyond := sum(not self.low <= value <= self.high for value in values):
            return (
                f"{beyond} of {len(values)} values are not from {self.low:g} to {self.high:g} "
                f"{self.unit}: another unit, or slips"
            )
        return ""

    def _off(self, value: float) -> float:
        return abs(value - self.centre) / self.scale


def known(name: str) -> Variable | None:
    """The variable that a table's column of this name usually is."""
    return _by_name().get(_plain(name))


@cache
def every() -> tuple[Variable, ...]:
    """All of them."""
    groups = tomllib.loads(Path(__file__).with_name("variables.toml").read_text("utf-8"))["group"]
    return tuple(_read(group["source"], said) for group in groups for said in group["variables"])


def _read(source: str, said: dict[str, Any]) -> Variable:
    lists: dict[str, Any] = {name: tuple(said.get(name, ())) for name in ("names", "levels")}
    also = tuple((unit, *line) for unit, line in said.get("also", {}).items())
    return Variable(**{**said, **lists, "also": also, "source": source})


@cache
def _by_name() -> dict[str, Variable]:
    return {_plain(name): variable for variable in every() for name in variable.names}


def _plain(name: str) -> str:
    return re.sub(r"[\s\-./]+", "_", name.strip().casefold())
