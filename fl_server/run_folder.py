"""The folder between the hub and the runs of one job: what the hub hands over, what a run leaves.

Every file is written whole or not at all. Knows nothing of what the files decide: app.py conducts,
settlement.py and the hub act on the outcome.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from datatokens.terms import JobTerms
from fl_client.node.job_folder import write_whole
from fl_client.protocol import JobSpec
from fl_server.errors import RunFailed

STATES = ("attested", "refused", "failed")


class RunFolder:
    """One job's folder; it may not exist yet."""

    def __init__(self, path: Path):
        self.path = path

    # -- what the hub hands over -------------------------------------------------------------------

    def hand_over(
        self, terms: bytes, graph: bytes, weights: bytes, nodes: Mapping[str, int]
    ) -> None:
        """Everything that a run needs; `nodes` are node key -> the SuperLink's id."""
        files = {
            "terms.json": terms,
            "graph.json": graph,
            "weights.safetensors": weights,
            "nodes.json": json.dumps(dict(nodes)).encode(),
        }
        for name, content in files.items():
            write_whole(self.path / name, content)

    @cached_property
    def terms(self) -> JobTerms:
        """The job's terms."""
        return JobTerms.from_json((self.path / "terms.json").read_bytes())

    @cached_property
    def spec(self) -> JobSpec:
        """The training part of the terms."""
        return JobSpec.from_dict(self.terms.spec)

    @property
    def id(self) -> str:
        """Job id, 64 hexadecimal digits."""
        return self.terms.job_id.hex()

    @property
    def graph(self) -> bytes:
        """The model's graph."""
        return (self.path / "graph.json").read_bytes()

    @property
    def weights(self) -> bytes:
        """The model's first parameters."""
        return (self.path / "weights.safetensors").read_bytes()

    @cached_property
    def supernodes(self) -> dict[int, int]:
        """Dataset id -> the SuperLink's id of its node."""
        nodes: dict[str, int] = json.loads((self.path / "nodes.json").read_text())
        return {line.dataset_id: nodes[line.node] for line in self.terms.datasets}

    # -- what a run leaves -------------------------------------------------------------------------

    def progress(self, event: str, **facts: Any) -> None:
        """Append one line to progress.jsonl, for people who wait."""
        with (self.path / "progress.jsonl").open("a") as file:
            file.write(json.dumps({"at": time.time(), "event": event, **facts}) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """The lines of progress.jsonl, newest run included; [] before the run has begun."""
        try:
            text = (self.path / "progress.jsonl").read_text(errors="replace")
        except FileNotFoundError:
            return []
        lines = []
        for line in text.splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue  # the last line is being written right now, or a disk was full
            if isinstance(found, dict) and all(name in found for name in ("at", "event")):
                lines.append(found)
        return lines

    @property
    def quiet_s(self) -> float:
        """Seconds since a run has last written progress; infinite before the first."""
        try:
            return time.time() - (self.path / "progress.jsonl").stat().st_mtime
        except FileNotFoundError:
            return math.inf

    def keep_acceptances(self, acceptances: Mapping[str, str]) -> None:
        """Node key -> signature (hexadecimal), for the hub to put on the chain while the rounds go
        on: only who has accepted there can be paid. What an earlier run's came to is old then.
        """
        (self.path / "taken.json").unlink(missing_ok=True)
        write_whole(self.path / "acceptances.json", json.dumps(dict(acceptances)).encode())

    @property
    def acceptances(self) -> dict[str, str]:
        """What `keep_acceptances` kept; {} before."""
        try:
            found: dict[str, str] = json.loads((self.path / "acceptances.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def keep_taken(self, nodes: Sequence[str]) -> None:
        """The node keys whose acceptance the chain has, written by the hub: nobody else can be
        paid, and a report that says so of anybody else cannot be settled.
        """
        write_whole(self.path / "taken.json", json.dumps(sorted(nodes)).encode())

    @property
    def taken(self) -> frozenset[str] | None:
        """What `keep_taken` kept; None before."""
        try:
            return frozenset(json.loads((self.path / "taken.json").read_text()))
        except FileNotFoundError:
            return None

    @property
    def taken_s_ago(self) -> float:
        """Seconds since `keep_taken`; infinite before."""
        try:
            return time.time() - (self.path / "taken.json").stat().st_mtime
        except FileNotFoundError:
            return math.inf

    def keep_result(self, report: bytes, sealed: bytes) -> None:
        """The report and the model, sealed to the buyer."""
        write_whole(self.path / "result.sealed", sealed)
        write_whole(self.path / "report.json", report)

    @property
    def report(self) -> bytes:
        """The report as it was attested. Raises FileNotFoundError before."""
        return (self.path / "report.json").read_bytes()

    @property
    def sealed(self) -> bytes:
        """The sealed result. Raises FileNotFoundError before."""
        return (self.path / "result.sealed").read_bytes()

    @property
    def has_result(self) -> bool:
        """Whether a run has come to a result."""
        return (self.path / "report.json").exists()

    def finish(self, state: str, **facts: Any) -> None:
        """Write outcome.json, the last thing a run does: attested, refused or failed."""
        write_whole(self.path / "outcome.json", json.dumps({"state": state, **facts}).encode())

    @property
    def outcome(self) -> dict[str, Any] | None:
        """What `finish` wrote; None before. Raises RunFailed for anything else."""
        try:
            value = json.loads((self.path / "outcome.json").read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RunFailed("the run's outcome is not understood") from error
        if not isinstance(value, dict) or value.get("state") not in STATES:
            raise RunFailed("the run's outcome is not understood")
        return value

    def set_outcome_aside(self, run: int) -> None:
        """Keep the outcome of run number `run` under that number, so that another can follow."""
        (self.path / "outcome.json").replace(self.path / f"outcome.{run}.json")

    def has_outcome_of(self, run: int) -> bool:
        """Whether the outcome of that run was set aside."""
        return (self.path / f"outcome.{run}.json").exists()

    def rested_s(self, run: int) -> float:
        """Seconds since run number `run` failed; infinite if it did not."""
        try:
            return time.time() - (self.path / f"outcome.{run}.json").stat().st_mtime
        except FileNotFoundError:
            return math.inf
