"""The answer to a question (questions.py) as a table for people. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from datahub.buyer.questions import ANY


def table(answer: Mapping[str, Any]) -> Table:
    """A line for each cell; every figure with its 95 % interval."""
    made = Table(box=None, header_style="bold")
    made.add_column("who")
    first: Mapping[str, Any] = answer["rows"][0]
    of = "at risk at first" if "survival" in first else "patients"
    made.add_column(f"{of} (95 %)", justify="right")
    heads = {
        "mean": ["mean (95 %)"],
        "quantiles": [f"{100 * one['part']:g} % (95 %)" for one in _known(answer, "quantiles")],
        "survival": [f"without, {one['until']}" for one in _known(answer, "survival")],
    }
    for name, titles in heads.items():
        for title in titles if name in first else ():
            made.add_column(title, justify="right")
    for row in answer["rows"]:
        cells = [", ".join(row["group"]) or ANY, _count(row["count"], answer["small"])]
        if "mean" in row:
            cells.append(_figure(row["mean"], 4))
        for name in ("quantiles", "survival"):
            if name in row:
                some = row[name] or [None] * len(heads[name])
                cells += [_figure(one, 4 if name == "quantiles" else 3) for one in some]
        made.add_row(*cells)
    return made


def _known(answer: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return next((row[name] for row in answer["rows"] if row.get(name)), [])


def _count(count: Mapping[str, Any], small: int) -> str:
    if count["value"] is None:
        return f"under {small} or unknown (up to {count['high']:.0f})"
    return f"{count['value']:.0f} ({count['low']:.0f} to {count['high']:.0f})"


def _figure(figure: Mapping[str, Any] | None, digits: int) -> str:
    if figure is None or figure["value"] is None:
        return "too few"
    return " ".join(
        (
            f"{figure['value']:.{digits}g}",
            f"({figure['low']:.{digits}g} to {figure['high']:.{digits}g})",
        )
    )
