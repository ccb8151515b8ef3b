"""The fields of documents that people write: each of its type and within its bounds, or a sentence
that names it. Knows nothing of what a document means.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fl_client.errors import DatasetError

Level = float | str


def show(level: Level) -> str:
    """A level as people write it, in full: 1, not 1.0."""
    return level if isinstance(level, str) else repr(level).removesuffix(".0")


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
            f"{field}={value!r} must be a finite number"
            + (f" above {show(above)}" if above > -math.inf else "")
        )
    return float(value)


def flag(field: str, value: object) -> bool:
    """`value`, if it is true or false. Raises DatasetError."""
    if not isinstance(value, bool):
        raise DatasetError(f"{field}={value!r} must be true or false")
    return value


def listed(field: str, value: Any) -> list[Any]:
    """`value`, if it is a list. Raises DatasetError."""
    if not isinstance(value, list):
        raise DatasetError(f"{field} must be a list")
    return value
