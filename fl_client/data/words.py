"""A schema in words, for pages and terminals. Knows nothing of rows, hubs or HTML."""

from __future__ import annotations

from dataclasses import dataclass

from fl_client.data.features import Feature
from fl_client.data.fields import show

ABSENT = {"drop": "the record is left out", "refuse": "not allowed"}


@dataclass(frozen=True)
class ColumnWords:
    """What a column's values are, how they become inputs, and what becomes of a missing one."""

    name: str
    kind: str
    unit: str
    levels: tuple[str, ...]
    inputs: str
    missing: str


def column(feature: Feature) -> ColumnWords:
    """A feature in words."""
    levels = tuple(map(show, feature.categories)) + ("any other",) * feature.other
    levels += feature.vocabulary
    kinds = {
        "category": f"one of {len(levels)} levels",
        "date": f"days since {feature.reference}",
        "text": f"a text, looked through for {len(feature.vocabulary)} words",
    }
    if feature.stands:
        missing = (
            f"counts as {show(feature.missing) or 'an empty text'}, and one more input says so"
        )
    else:
        missing = ABSENT[str(feature.missing)]
    scaled = f"(x - {show(feature.centre)}) / {show(feature.scale)}"
    inputs = scaled if feature.width == 1 else f"{feature.width} inputs, {scaled}"
    kind = kinds.get(feature.kind, feature.kind)
    return ColumnWords(feature.name, kind, feature.unit, levels, inputs, missing)
