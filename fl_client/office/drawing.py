"""A model's steps as a picture: one box below the other, lines for what each takes from which.
Pure; knows nothing of models or pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HIGH, GAP, WIDE, MARGIN = 26, 12, 250, 60


@dataclass(frozen=True)
class Box:
    """A step: where it stands, what it does, the shape that it makes."""

    y: int
    name: str
    shape: str


@dataclass(frozen=True)
class Drawing:
    """Boxes, lines (SVG paths), and the size of all of it."""

    boxes: tuple[Box, ...]
    lines: tuple[str, ...]
    width: int
    height: int


def drawing(steps: Sequence[Sequence[object]], given: str) -> Drawing:
    """Of [what it does, shape, numbers of the steps that it takes from, -1 for the input]; `given`
    is the input's shape in words.
    """
    boxes = [Box(0, "input", given)]
    lines = []
    for i, (name, shape, taken) in enumerate(steps):
        y = (i + 1) * (HIGH + GAP)
        boxes.append(Box(y, str(name), str(shape)))
        for before in taken if isinstance(taken, list | tuple) else ():
            start = (int(before) + 1) * (HIGH + GAP) + HIGH
            middle = WIDE // 2
            if before == i - 1:
                lines.append(f"M {middle} {start} V {y}")
            else:
                bend = WIDE + min(MARGIN - 8, 8 + 4 * (i - int(before)))
                top = start - HIGH // 2
                lines.append(f"M {WIDE} {top} H {bend} V {y + HIGH // 2} H {WIDE}")
    return Drawing(tuple(boxes), tuple(lines), WIDE + MARGIN, boxes[-1].y + HIGH + 2)
