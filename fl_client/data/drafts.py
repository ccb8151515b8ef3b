"""A first draft of a schema for a table, and what a table becomes under one: for its owner's eyes.
Knows nothing of jobs or ledgers.

A draft takes names and types from the table and no number: centre and scale come from the short
list below of common clinical variables, whose ranges are textbook ones, or are left for people to
fill in from public knowledge. What was measured on the table must not become public unpaid.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fl_client.data.readers import rows
from fl_client.data.schemas import SCALED_LIMIT, Schema
from fl_client.data.sources import Source
from fl_client.data.tables import WORDS, Records, as_number
from fl_client.errors import DatasetError

# names (in lower case, as tables have them) -> centre, scale, unit. Reference and usual ranges for
# adults in round numbers: MedlinePlus (US National Library of Medicine), "Vital signs" and "Blood
# tests"; the scale is about half the range seen in wards. None was measured on patients here.
COMMON: dict[tuple[str, ...], tuple[float, float, str]] = {
    ("age", "alter", "age_years"): (55, 15, "a"),
    ("height", "height_cm", "groesse"): (170, 10, "cm"),
    ("weight", "weight_kg", "gewicht"): (75, 15, "kg"),
    ("bmi",): (26, 5, "kg/m2"),
    ("sbp", "trestbps", "rsbp", "systolic", "systolic_bp"): (130, 20, "mm[Hg]"),
    ("dbp", "diastolic", "diastolic_bp"): (80, 12, "mm[Hg]"),
    ("heart_rate", "hr", "pulse", "puls"): (75, 15, "/min"),
    ("resp_rate", "rr", "respiratory_rate"): (16, 5, "/min"),
    ("temperature", "temp", "temp_c"): (37, 1, "Cel"),
    ("spo2", "o2sat", "sao2"): (96, 4, "%"),
    ("chol", "cholesterol"): (200, 50, "mg/dL"),
    ("glucose", "bg", "blutzucker"): (110, 40, "mg/dL"),
    ("hba1c",): (6, 1.5, "%"),
    ("creatinine", "kreatinin"): (1, 0.5, "mg/dL"),
    ("sodium", "na"): (140, 5, "mmol/L"),
    ("potassium", "k"): (4.2, 0.6, "mmol/L"),
    ("hemoglobin", "hb", "haemoglobin"): (13.5, 2, "g/dL"),
    ("wbc", "leukocytes"): (8, 4, "10*3/uL"),
    ("platelets", "plt"): (250, 80, "10*3/uL"),
    ("crp",): (10, 30, "mg/L"),
}
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
    if not cells:
        return None, "left out: every value that was looked at is missing"
    if all(word.casefold() in WORDS for word in words):
        return {"name": name, "kind": "yes/no"}, ""
    if all(as_number(c, source.decimal, source.thousands) is not None for c in words):
        for names, (centre, scale, unit) in COMMON.items():
            if name.lower() in names:
                made = {"name": name, "centre": centre, "scale": scale, "unit": unit}
                return made, f"taken to be in {unit}: check the unit"
        made = {"name": name, "centre": "FILL IN", "scale": "FILL IN"}
        return made, "centre and scale must come from public knowledge, never from this table"
    if len(words) <= MOST_LEVELS:
        note = "these levels become public: they must be those of the form, not those seen here"
        return {"name": name, "categories": words}, note
    return None, f"left out: {len(words)} different words; neither numbers nor a category"


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
        "positive": int(records.targets.sum()),
        "inputs": lines,
    }
