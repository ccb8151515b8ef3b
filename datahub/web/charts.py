"""The geometry of the pages' drawings: a job's numbers become points, bars and labels in a box.
Pure; knows nothing of templates or of where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 640.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 12.0, 12.0, 28.0


@dataclass(frozen=True)
class Curve:
    """A line with its band: `points` and `band` as SVG takes them, labels at places."""

    points: str
    band: str
    dots: tuple[tuple[float, float], ...]
    y_labels: tuple[tuple[float, str], ...]
    x_labels: tuple[tuple[float, str], ...]


def loss_curve(rounds: Sequence[Mapping[str, Any]]) -> Curve | None:
    """The noised loss of each round with its 95 % interval; None before the first."""
    if not rounds:
        return None
    losses = [float(one["loss"]) for one in rounds]
    wide = [float(one["loss_interval95"]) for one in rounds]
    low = min(a - b for a, b in zip(losses, wide, strict=True))
    high = max(a + b for a, b in zip(losses, wide, strict=True))
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    span = max(1, len(rounds) - 1)

    def x(i: int) -> float:
        middle = (WIDTH - RIGHT - LEFT) / 2 if len(rounds) == 1 else 0.0
        return round(LEFT + middle + i * (WIDTH - LEFT - RIGHT) / span, 1)

    def y(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    dots = tuple((x(i), y(one)) for i, one in enumerate(losses))
    upper = [(x(i), y(a + b)) for i, (a, b) in enumerate(zip(losses, wide, strict=True))]
    lower = [(x(i), y(a - b)) for i, (a, b) in enumerate(zip(losses, wide, strict=True))]
    every = max(1, len(rounds) // 8)
    return Curve(
        points=_text(dots),
        band=_text([*upper, *reversed(lower)]),
        dots=dots,
        y_labels=tuple((y(v), f"{v:.3g}") for v in (low, (low + high) / 2, high)),
        x_labels=tuple((x(i), str(rounds[i]["number"])) for i in range(0, len(rounds), every)),
    )


def _text(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a},{b}" for a, b in points)


@dataclass(frozen=True)
class Piece:
    """A part of a bar: from where, how wide (of 100), what it is."""

    start: float
    width: float
    name: str
    units: int


def bar(parts: Sequence[tuple[str, int]]) -> tuple[Piece, ...]:
    """Amounts as pieces of one bar, in their order; nothing for nothing."""
    whole = sum(units for _, units in parts)
    pieces, start = [], 0.0
    for name, units in parts:
        if units > 0:
            width = 100 * units / whole
            pieces.append(Piece(round(start, 2), round(width, 2), name, units))
            start += width
    return tuple(pieces)
