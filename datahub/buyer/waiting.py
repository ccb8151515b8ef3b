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

from datahub.buyer import changes
from datahub.buyer.jobs import Job
from datahub.comparison import FIGURES, shown_figure
from datatokens.terminal import Terminal, visible

# of a report's evaluation (fl_client.privacy.looks) -> its name for people


def evaluation_line(evaluation: Mapping[str, Any] | None) -> str:
    """What a report says of the final model, in one line."""
    if evaluation is None:
        return "no hospital has released a table of the final model's scores"
    figures = [
        f"{name} {shown_figure(evaluation[key])}"
        for key, name in FIGURES.items()
        if key in evaluation
    ]
    return f"{', '.join(figures)} (noised, 95 % interval)"


def follow(job: Job, console: Terminal, names: dict[int, str] | None = None) -> dict[str, Any]:
    """Wait until the job is settled or refunded; its last status. One line per round also goes to a
    log.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rounds"),
        TimeElapsedColumn(),
    )
    before: dict[str, Any] = {}
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("paid", total=None)
        for status in job.watch():
            for change in changes.new(before, status):
                if change["change"] != "state":  # the bar says it
                    progress.console.print(changes.line(change, names or {}))
            progress.update(
                task,
                description=visible(str(status["state"])),
                completed=len(status["rounds"]),
                total=status["rounds_planned"],
            )
            before = status
    return before
