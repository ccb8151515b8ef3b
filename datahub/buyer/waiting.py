"""Show a job while it runs: stage, round, noised loss, epsilon of each hospital. For terminals and
for logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from datahub.buyer.jobs import Job
from datatokens.terminal import Terminal, visible


def _epsilons(spent: dict[str, float]) -> str:
    """'1.11 at each of 4 hospitals', or name by name where they differ."""
    shown = {f"{value:.2f}" for value in spent.values()}
    if len(shown) == 1:
        return f"{shown.pop()} at each of {len(spent)} hospitals"
    return ", ".join(f"{name} {value:.2f}" for name, value in sorted(spent.items()))


# of a report's evaluation (fl_client.privacy.looks) -> its name for people
FIGURES = {
    "accuracy": "accuracy",
    "auc": "AUC",
    "rmse": "root mean squared error, in parts of the range,",
    "r2": "R²",
}


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

    figures = [
        f"{name} {shown(evaluation[key])}" for key, name in FIGURES.items() if key in evaluation
    ]
    return f"{', '.join(figures)} (noised, 95 % interval)"


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
    shown, refusals, waits = 0, set(), set()
    status: dict[str, Any] = {}
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("paid", total=None)
        for status in job.watch():
            for line in status["datasets"]:
                who = names.get(line["dataset_id"], f"dataset {line['dataset_id']}")
                if line.get("waiting_until") and line["dataset_id"] not in waits:
                    waits.add(line["dataset_id"])
                    until = f"{datetime.fromtimestamp(line['waiting_until'], UTC):%Y-%m-%d %H:%M}"
                    progress.console.print(
                        f"  {who}: waiting for the hospital, a person decides until {until} UTC"
                    )
                if line["accepted"] is False and line["dataset_id"] not in refusals:
                    refusals.add(line["dataset_id"])
                    progress.console.print(f"  {who} refuses: {line['reason']}")
            for one in status["rounds"][shown:]:
                spent = _epsilons(
                    {
                        names.get(int(d), f"dataset {d}"): value
                        for d, value in one["epsilon"].items()
                    }
                )
                loss = f"loss {one['loss']:6.3f} ± {one['loss_interval95']:.3f} (noised), "
                progress.console.print(
                    f"  round {one['number']:>2}/{one['rounds']}: "
                    f"{'' if job.question else loss}epsilon {spent}; {one['seconds']:.2f} s"
                )
            shown = len(status["rounds"])
            progress.update(
                task,
                description=visible(str(status["state"])),
                completed=shown,
                total=status["rounds_planned"],
            )
    return status
