"""Does the audit convict a broken engine, and acquit ours? The node's own audit beside two planted
faults.

    python -m tests.benchmarks.audit [--quick] [--json FILE]

`honest`: the engine as it is; `noise_tenth`: a tenth of the noise that is charged; `no_clipping`:
gradients as they come. Keys: KIND.EPSILON.disproved is the median over runs of the epsilon that one
run disproves, KIND.EPSILON.convicted the part of runs that find it above the claim.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from fl_client.privacy import training
from fl_client.privacy.accounting import calibrate
from fl_client.privacy.audit import audit

DELTA, STEPS = 1e-5, 10
FAULTS: Mapping[str, Mapping[str, float]] = {
    "honest": {"noise": 1.0, "clip": 1.0},
    "noise_tenth": {"noise": 0.1, "clip": 1.0},
    "no_clipping": {"noise": 1.0, "clip": 1e6},
}


@contextmanager
def planted(noise: float, clip: float) -> Iterator[None]:
    """The engine with this factor on its noise and on its clip norm; what it charges stays."""
    scale, total = training._scale, training.clipped_total

    def less_noise(*given: Any) -> Tensor:
        found = scale(*given)
        return found * found.new_tensor([1.0, noise, 1.0])

    def other_clip(
        run: Any, theta: Tensor, frozen: Any, table: Any, places: Tensor, norm: Tensor
    ) -> Tensor:
        return total(run, theta, frozen, table, places, norm * clip)

    with (
        patch.object(training, "_scale", less_noise),
        patch.object(training, "clipped_total", other_clip),
    ):
        yield


def measure(quick: bool, console: Console) -> dict[str, float]:
    """The figures of every fault and epsilon."""
    figures: dict[str, float] = {}
    runs, canaries = (3, 1000) if quick else (20, 5000)
    for epsilon in (1.0, 4.0):
        noise, _ = calibrate(epsilon, DELTA, 1.0, STEPS, 1, 1e-3)
        for name, fault in FAULTS.items():
            with planted(**fault):
                description = f"{name}, epsilon {epsilon:g}"
                found = [
                    audit(noise, 1.0, STEPS, DELTA, canaries=canaries)
                    for _ in track(range(runs), description, console=console, transient=True)
                ]
            figures[f"{name}.{epsilon:g}.disproved"] = statistics.median(
                a.epsilon_disproved for a in found
            )
            figures[f"{name}.{epsilon:g}.convicted"] = sum(a.convicted for a in found) / runs
    return figures | {"runs": runs, "canaries": canaries}


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three runs of 1,000 canaries")
    parser.add_argument("--json", type=Path, help="file to write the flat figures to")
    given = parser.parse_args()
    console = Console(width=110)
    figures = measure(given.quick, console)
    table = Table("engine", "claim", "disproved (median)", "convicted", box=None, pad_edge=False)
    for epsilon in ("1", "4"):
        for name in FAULTS:
            part = figures[f"{name}.{epsilon}.convicted"]
            table.add_row(
                name,
                epsilon,
                f"{figures[f'{name}.{epsilon}.disproved']:.2f}",
                f"{part:.0%} of runs",
            )
    console.print(table)
    if given.json:
        given.json.write_text(
            json.dumps({k: round(v, 4) for k, v in figures.items()}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
