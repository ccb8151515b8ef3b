"""Private training on pictures that lie on the disk beside the same with all of them in memory:
seconds of a round, and the memory that it takes.

    python -m tests.benchmarks.picture_training [--quick] [--json FILE]

Made-up pictures of 224 x 224, expected batch 256, a small CNN, on the GPU where there is one:
20,000 both ways, and 100,000 from the disk, which memory would not hold. Each way is a process of
its own, as a node is; what it holds before it trains is told beside its peak.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tests.benchmarks.pictures import SIDE, made_up, peak_mb

BATCH = 256
FEW, MANY = 20_000, 100_000


def train(way: str, folder: Path, count: int, steps: int) -> dict[str, Any]:
    """A round of `steps`, after one that is not counted."""
    import torch
    from torch import nn

    from fl_client.data.shards import Shards
    from fl_client.model.export import export_model
    from fl_client.model.graph import load_model, parameters
    from fl_client.privacy.plan import PrivacyPlan
    from fl_client.privacy.training import by_patient, device, train_round

    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 16, 8, stride=4),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 1),
    )
    model = load_model(*export_model(module, torch.zeros(1, 1, SIDE, SIDE)))
    shards = Shards(folder).only(np.arange(count))
    before = peak_mb()
    features = shards if way == "disk" else shards[:]
    targets = np.arange(count, dtype=np.float32) % 2
    plan = PrivacyPlan(1.0, 1.0, min(1.0, BATCH / count), steps, 1e-5, 16.0, 1.0, 1)
    arrays = parameters(model)
    took = []
    for number in (1, steps):
        start = time.perf_counter()
        train_round(
            model,
            arrays,
            features,
            targets,
            plan,
            steps=number,
            learning_rate=0.1,
            loss="binary_cross_entropy",
            expected_persons=count,
        )
        took.append(time.perf_counter() - start)
    places = torch.from_numpy(np.random.default_rng(0).integers(0, count, BATCH))
    table = by_patient(features, targets, None, 1)
    start = time.perf_counter()
    for _ in range(5):
        table.seated(places)
    read = (time.perf_counter() - start) / 5
    return {
        "round_s": took[1],  # a look at everybody for the loss, and the steps
        "batch_read_s": read,
        "peak_mb": peak_mb(),
        "before_mb": before,
        "device": str(device()),
    }


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="1,000 pictures and 5,000")
    parser.add_argument("--json", type=Path, help="file to write the flat figures to")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        way, folder, many, steps = given.child
        sys.stdout.write(json.dumps(train(way, Path(folder), int(many), int(steps))))
        return
    from fl_client.data.pictures import PictureRules
    from fl_client.data.shards import write_shards

    console, figures = Console(width=110), {}
    few, count, steps = (1_000, 5_000, 8) if given.quick else (FEW, MANY, 40)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "shards"
        console.print(f"writing {count} pictures of {SIDE} x {SIDE}")
        write_shards(folder, made_up(count), PictureRules(1, (SIDE, SIDE)))
        for name, way, many in (
            ("memory", "memory", few),
            ("disk", "disk", few),
            ("all", "disk", count),
        ):
            here = [sys.executable, "-m", "tests.benchmarks.picture_training"]
            asked = [*here, "--child", way, str(folder), str(many), str(steps)]
            found = json.loads(subprocess.run(asked, check=True, capture_output=True).stdout)
            console.print(f"{name:8} {many} pictures: {found}", highlight=False)
            on = found.pop("device").split(":")[0]
            figures |= {f"{name}.{what}": value for what, value in found.items()}
            figures["gpu"] = float(on == "cuda")
    figures |= {"pictures": float(few), "all.pictures": float(count)}
    for name in ("round_s", "peak_mb"):
        figures[f"disk_over_memory.{name}"] = figures[f"disk.{name}"] / figures[f"memory.{name}"]
    longer, memory = (figures[f"disk_over_memory.{name}"] for name in ("round_s", "peak_mb"))
    console.print(
        f"a round from the disk takes {longer:.2f} of one from memory, its process {memory:.2f} of "
        f"the memory; with {count} pictures it takes {figures['all.peak_mb']:.0f} MB"
    )
    if given.json:
        rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
        given.json.write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main()
