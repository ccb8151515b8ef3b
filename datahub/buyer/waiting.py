"""Show a job while it runs: stage, round, noised loss, epsilon of each hospital. For terminals and
for logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from datahub.buyer.sdk import Job
from datatokens.terminal import Terminal, visible


def _epsilons(spent: dict[str, float]) -> str:
    """'1.11 at each of 4 hospitals', or name by name where they differ."""
    shown = {f"{value:.2f}" for value in spent.values()}
    if len(shown) == 1:
        return f"{shown.pop()} at each of {len(spent)} hospitals"
    return ", ".join(f"{name} {value:.2f}" for name, value in sorted(spent.items()))


def evaluation_line(evaluation: Mapping[str, Any] | None) -> str:
    """What a report says of the final model, in one line."""
    if evaluation is None:
        return "no hospital has released a table of the final model's scores"

    def shown(figure: Mapping[str, float] | None) -> str:
        return (
            "more noise than signal"
            if figure is None or figure["high"] - figure["low"] > 0.9
            else "{value:.3f} ({low:.3f} to {high:.3f})".format(**figure)
        )

    accuracy, auc = shown(evaluation["accuracy"]), shown(evaluation["auc"])
    return f"accuracy {accuracy}, AUC {auc} (noised, 95 % interval)"


def follow(job: Job, console: Terminal, names: dict[int, str] | None = None) -> dict[str, Any]:
    """Wait until the job is settled or refunded; its last status. One line per round also goes to a
    log.
    """
    names = names or {}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rounds"),
        TimeElapsedColumn(),
    )
    shown, refusals = 0, set()
    status: dict[str, Any] = {}
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("paid", total=None)
        for status in job.watch():
            for line in status["datasets"]:
                if line["accepted"] is False and line["dataset_id"] not in refusals:
                    refusals.add(line["dataset_id"])
                    who = names.get(line["dataset_id"], f"dataset {line['dataset_id']}")
                    progress.console.print(f"  {who} refuses: {line['reason']}")
            for one in status["rounds"][shown:]:
                spent = _epsilons(
                    {
                        names.get(int(d), f"dataset {d}"): value
                        for d, value in one["epsilon"].items()
                    }
                )
                progress.console.print(
                    f"  round {one['number']:>2}/{one['rounds']}: loss {one['loss']:6.3f} ± "
                    f"{one['loss_interval95']:.3f}"
                    f" (noised), epsilon {spent}; {one['seconds']:.2f} s"
                )
            shown = len(status["rounds"])
            progress.update(
                task,
                description=visible(str(status["state"])),
                completed=shown,
                total=status["rounds_planned"],
            )
    return status
