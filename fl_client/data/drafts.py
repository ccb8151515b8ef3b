"""A first draft of a schema for a table, and what a table becomes under one: for its owner's eyes.
Knows nothing of jobs or ledgers.

A draft takes names and types from the table and no number: centre, scale and unit come from the
dictionary of common clinical variables (variables.toml), or are left for people to fill in from
public knowledge. What was measured on the table must not become public unpaid: that values look
like another unit is said in a note to the owner, and the draft is the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fl_client.data.cells import WORDS, as_number
from fl_client.data.features import SCALED_LIMIT
from fl_client.data.fields import show
from fl_client.data.readers import rows
from fl_client.data.schemas import Schema
from fl_client.data.sources import Source
from fl_client.data.tables import Records
from fl_client.data.targets import Target
from fl_client.data.variables import known
from fl_client.errors import DatasetError

LOOKED_AT = 5000  # rows
MOST_LEVELS = 20  # of what may be a category


def draft(source: Source, target: str) -> tuple[dict[str, Any], list[str]]:
    """(a schema as JSON, what people have to do about it). Raises DatasetError."""
    cells: dict[str, list[str]] = {}
    for number, (_, row) in enumerate(rows(source)):
        if number >= LOOKED_AT:
            break
        for name, cell in row.items():
            cells.setdefault(name, []).append(cell)
    if target not in cells:
        raise DatasetError(
            f"target={target!r} must be one of the table's columns: {', '.join(list(cells)[:40])}"
        )
    features, notes = [], []
    for name, found in cells.items():
        if name == target or name in source.patients:
            continue
        feature, note = _feature(name, [c for c in found if c not in source.missing], source)
        if feature is not None:
            if any(cell in source.missing for cell in found):
                feature["missing"] = "drop"
            features.append(feature)
        if note:
            notes.append(f"{name}: {note}")
    words = {c for c in cells[target] if c not in source.missing}
    numbers = all(as_number(c, source.decimal, source.thousands) is not None for c in words)
    outcome = (
        {"name": target, "positive_above": 0} if numbers else {"name": target, "kind": "yes/no"}
    )
    if not numbers and not all(w.casefold() in WORDS for w in words):
        notes.append(f"{target}: say in the source's file which words are yes and which no")
    return {"features": features, "target": outcome}, notes


def _feature(name: str, cells: list[str], source: Source) -> tuple[dict[str, Any] | None, str]:
    words = sorted(set(cells))
    usual = known(name)
    if not cells:
        return None, "left out: every value that was looked at is missing"
    if all(word.casefold() in WORDS for word in words):
        return {"name": name, "kind": "yes/no"}, "say what yes means" if usual else ""
    if usual and usual.levels and len(words) <= MOST_LEVELS:
        strange = ", ".join(word for word in words if word not in usual.levels)
        note = f"levels of {usual.source}"
        if strange:
            note += f"; say in the source's file which of them is {strange}"
        return {"name": name, "categories": list(usual.levels)}, note
    numbers = [as_number(c, source.decimal, source.thousands) for c in cells]
    if all(one is not None for one in numbers):
        if usual and usual.unit:
            made = {"name": name, "centre": usual.centre, "scale": usual.scale, "unit": usual.unit}
            doubts = usual.doubts([one for one in numbers if one is not None])
            note = f"taken to be in {usual.unit} ({usual.source}): check the unit"
            return made, f"{note}; {doubts}" if doubts else note
        made = {"name": name, "centre": "FILL IN", "scale": "FILL IN"}
        return made, (
            "centre and scale must come from public knowledge, never from this table, unless they "
            "are paid for: datahub node measure"
        )
    if len(words) <= MOST_LEVELS:
        note = "these levels become public: they must be those of the form, not those seen here"
        return {"name": name, "categories": words}, note
    return None, (
        f"left out: {len(words)} different words; neither numbers nor a category. Of free text say "
        "kind text and a public vocabulary, never one that was taken from this table"
    )


def _outcomes(numbers: np.ndarray, target: Target) -> list[dict[str, Any]]:
    """What the target becomes, line by line: how many records, or what a number is like."""
    if target.kind == "number":
        unit = target.high - target.low
        span = {"mean": 0.0, "low": 0.0, "high": 0.0, "clipped": 0.0}
        if len(numbers):
            shown = target.low + unit * numbers.astype(np.float64)
            at_end = (numbers <= 0) | (numbers >= 1)
            span = {
                "mean": float(shown.mean()),
                "low": float(shown.min()),
                "high": float(shown.max()),
                "clipped": float(at_end.mean()),
            }
        return [{"what": target.name, **span}]
    if target.kind == "classes":
        counts = np.bincount(numbers.astype(np.int64), minlength=len(target.levels))
        pairs = zip(target.levels, counts, strict=True)
        return [{"what": f"{target.name} is {show(x)}", "records": int(n)} for x, n in pairs]
    sums = numbers.reshape(len(numbers), -1).sum(0)
    return [
        {"what": label, "records": int(n)} for label, n in zip(target.labels, sums, strict=True)
    ]


def becomes(records: Records, schema: Schema) -> dict[str, Any]:
    """What a table becomes: true counts, for its owner alone."""
    labels = [label for feature in schema.features for label in feature.labels]
    x = records.features
    lines = [
        {
            "input": label,
            "mean": float(x[:, i].mean()) if len(x) else 0.0,
            "low": float(x[:, i].min()) if len(x) else 0.0,
            "high": float(x[:, i].max()) if len(x) else 0.0,
            "clipped": float(np.mean(np.abs(x[:, i]) >= SCALED_LIMIT)) if len(x) else 0.0,
        }
        for i, label in enumerate(labels)
    ]
    return {
        "records": len(records.targets),
        "persons": records.persons,
        "by_patient": records.patients is not None,
        "dropped": records.dropped,
        "lacking": dict(records.lacking),
        "target": _outcomes(records.targets, schema.target),
        "inputs": lines,
    }
