"""What the wall around a job costs: the same round in this process and in a worker, side by side.

    python -m tests.benchmarks.wall [--quick] [--json FILE]

Three models over 569 patients of 30 inputs, one step a round, everybody in it, in turns; medians.
Keys: MODEL.inside_s (of a call without a wall), MODEL.worker_s, MODEL.wall_s (the difference),
MODEL.mb (of the parameters, each way), start_s (a new worker, ready), first_s (its first round:
tracing), zygote_s (what workers are forked from, ready; once for a node).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from datatokens.terms import canonical_json
from fl_client.data.features import Feature
from fl_client.data.schemas import Schema
from fl_client.data.targets import Target
from fl_client.model.export import export_model
from fl_client.model.families import build
from fl_client.privacy.plan import PrivacyPlan
from fl_client.protocol import JobSpec, sha256_hex
from fl_client.worker.serve import Desk
from fl_client.worker.tasks import Check, Data, Round, cohort
from fl_client.worker.workers import ZYGOTE, Job, Workers

PERSONS, INPUTS = 569, 30
MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "logistic": lambda: build("logistic_regression", INPUTS),
    "mlp": lambda: build("mlp", INPUTS),
    "wide": lambda: torch.nn.Sequential(
        torch.nn.Linear(INPUTS, 1500), torch.nn.ReLU(), torch.nn.Linear(1500, 1500),
        torch.nn.ReLU(), torch.nn.Linear(1500, 1),
    ),
}  # fmt: skip
SCHEMA = Schema(tuple(Feature(f"x{i}", 0, 1) for i in range(INPUTS)), Target("y", 0))


def a_job(name: str) -> tuple[Job, bytes]:
    """A job that this hospital may train, and its first parameters."""
    graph, weights = export_model(MODELS[name](), torch.zeros(1, INPUTS))
    plan = PrivacyPlan(1.0, 1.0, 1.0, 1000, 1e-5, 16.0, 1.0, 1000)
    spec = JobSpec(
        purpose="benchmark", buyer_public_key="11" * 32, schema_hash=SCHEMA.hash,
        graph_hash=sha256_hex(graph), weights_hash=sha256_hex(weights),
        loss="binary_cross_entropy", outputs=1, rounds=1000, local_steps=1, learning_rate=0.1,
        average_last=1, server_momentum=0.0, server_rates={}, plan=plan, persons={1: PERSONS},
        salt="55" * 32,
    )  # fmt: skip
    check = Check(
        canonical_json(spec.as_dict()), canonical_json(SCHEMA.as_dict()), graph, weights,
        PERSONS, 1, "book-keeping", 600, 8, -1.0,
    )  # fmt: skip
    return Job(name, lambda: check, 600, 8), weights


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(quick: bool) -> dict[str, float]:
    """Every figure."""
    ZYGOTE.start()
    draws = np.random.default_rng(0)
    features = draws.normal(size=(PERSONS, INPUTS)).astype(np.float32)
    targets = (features[:, 0] > 0).astype(np.float32)
    data = Data(features, targets, None, of=targets)
    workers = Workers()
    found: dict[str, float] = {"zygote_s": timed(lambda: ZYGOTE.fork(SMALL))}
    for name in MODELS:
        job, weights = a_job(name)
        desk = Desk()
        desk.check(job.check())
        desk.take(cohort(data))
        found["start_s"] = timed(lambda job=job: workers._worker(job, ""))
        workers.check(job, 600)
        found["first_s"] = timed(lambda j=job, w=weights: workers.train(j, data, w, []))
        ways = {
            "inside_s": lambda desk=desk, weights=weights: desk.train(Round(weights)),
            "worker_s": lambda j=job, w=weights: workers.train(j, data, w, []),
        }
        ways["inside_s"]()
        rounds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(5 if quick else 40):
            for way, work in ways.items():
                rounds[way].append(timed(work))
        for way, seconds in rounds.items():
            found[f"{name}.{way}"] = statistics.median(seconds)
        found[f"{name}.wall_s"] = found[f"{name}.worker_s"] - found[f"{name}.inside_s"]
        found[f"{name}.mb"] = len(weights) / 1e6
        workers.end(name)
    return found


SMALL: dict[str, object] = {"memory": 1 << 30, "seconds": 60, "threads": 1, "folders": []}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = measure(given.quick)
    table = Table(
        "model", "MB each way", "no wall, s", "worker, s", "the wall, s", "ratio", box=None
    )
    for name in MODELS:
        inside, worker, wall, size = (
            found[f"{name}.{key}"] for key in ("inside_s", "worker_s", "wall_s", "mb")
        )
        table.add_row(
            name, f"{size:.3f}", f"{inside:.4f}", f"{worker:.4f}", f"{wall:.4f}",
            f"{worker / inside:.2f}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(
        f"a new worker is ready in {found['start_s']:.3f} s, its first round takes "
        f"{found['first_s']:.2f} s; what workers are forked from, {found['zygote_s']:.1f} s"
    )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
