"""Do this machine's kernels round a row by its place alone? What slots.py takes for granted, asked
of every architecture of the tests, traced and compiled, on a GPU where there is one.

    python -m tests.benchmarks.premise [--quick] [--json FILE]

A figure is 0 where no row's gradient moved by a bit when all other patients' records became zeros,
other numbers, 1e30 or NaN, and 1 where one did (or nothing could be compiled: -1).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fl_client.model.export import export_model
from fl_client.model.graph import load_model
from fl_client.model.losses import LOSSES
from fl_client.privacy.compiling import frozen_of, made_up, rows_depend_on_others
from fl_client.privacy.training import ENGINES, deterministic, device
from tests.benchmarks.dp_step import CASES

LONG = 10**12


def measure(quick: bool, console: Console) -> dict[str, float]:
    """{case_slots.engine: 0, 1 or -1}."""
    figures: dict[str, float] = {}
    for name, case in CASES.items():
        model = load_model(*export_model(case.make(), torch.zeros(1, *case.shape))).to(device())
        for slots, records in ((7, 1), (64, 1), (21, 3))[: 1 if quick else 3]:
            for engine, steps in (("traced", 1), ("compiled", LONG), ("hooks", 1)):
                make = ENGINES["hooks" if engine == "hooks" else "book-keeping"]
                with torch.no_grad(), deterministic():
                    run = make(model, LOSSES[case.loss], slots, records, steps)
                    x, y, weight, _ = made_up(model, LOSSES[case.loss], slots, records, device())
                    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
                    moved = rows_depend_on_others(
                        lambda theta, x, y, w, *frozen, run=run: run.rows(theta, frozen, x, y, w),
                        slots, theta, frozen_of(model), x, y, weight,
                    )  # fmt: skip
                found = (
                    -1.0 if engine == "compiled" and not run.compiled else float(moved is not None)
                )
                figures[f"{name}_{slots}x{records}.{engine}"] = found
                console.print(f"{name}, {slots} patients of {records}, {engine}: {found:g}")
    return figures


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one size of each")
    parser.add_argument("--json", type=Path, help="file to write the flat figures to")
    given = parser.parse_args()
    console = Console(width=100)
    figures = measure(given.quick, console)
    table = Table("case", "a row moved with others' records", box=None)
    for name, value in figures.items():
        table.add_row(name, {0.0: "no", 1.0: "YES", -1.0: "not compiled"}[value])
    console.print(table)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
