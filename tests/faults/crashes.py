"""kill -9 at a statement: a buyer's command in a process of its own, traced line by line, killed at
a chosen place. And hospitals that settle at once, so that only the buyer's side is slow.

A place is a statement of the buyer's code in one state of the world: the same line before and after
a transaction, a written file or a call that tells the hub something is two places; the same line
met again while nothing outside has changed is one. Knows nothing of what must be true afterwards.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from sqlmodel import col, select

import datahub
import datatokens
import fl_client
from datahub.market.domain import FINAL
from datahub.market.reconcile import reconcile
from datahub.market.tables import JobRow
from datatokens.terms import Attestation, JobTerms, attestation_message, sign
from fl_client.model.weights import from_safetensors, model_hash
from fl_client.node import attestation as attest
from fl_client.protocol import JobSpec, sha256_hex
from fl_server.report import Part, Round, build
from fl_server.results import Contents, seal
from tests.datahub.hub_world import HubWorld

ROOMS = {
    room.__name__: Path(str(room.__file__)).parent for room in (datahub, datatokens, fl_client)
}
TRACED = {
    str(path): f"{room}/{path.relative_to(folder).as_posix()}"
    for room, folder in ROOMS.items()
    for path in folder.rglob("*.py")
    if path.relative_to(folder).as_posix()
    in ("order.py", "bindings/escrow.py", "bindings/registry.py", "bindings/revenue.py")
    or path.relative_to(folder).as_posix() in ("chain/connection.py", "node/job_folder.py")
    or path.parent.name in ("buyer", "shell")
}
LINES = {name: Path(path).read_text().splitlines() for path, name in TRACED.items()}
# what changes something outside of the process, as it is written in the traced files
EFFECTS = (
    "send_raw_transaction(",
    "os.open(",
    "file.write(",
    ".replace(path)",
    ".mkdir(",
    "._client.request(",
)
CHILD_S = 60.0
Step = Callable[[], object]


@dataclass(frozen=True, order=True)
class Place:
    """A line of the file `name`, after `effects` changes of the world."""

    effects: int
    name: str
    line: int

    def __str__(self) -> str:
        return f"{self.name}:{self.line}"

    @property
    def text(self) -> str:
        """The statement's first line."""
        return LINES[self.name][self.line - 1].strip()


@dataclass(frozen=True)
class Ended:
    """How a process ended: killed at its place, or with an exit status; what it has printed."""

    killed: bool
    status: int
    said: str


def _changes(frame: FrameType, name: str) -> bool:
    """Whether the line that comes next changes the world."""
    if not any(effect in LINES[name][frame.f_lineno - 1] for effect in EFFECTS):
        return False
    if name.endswith("connection.py"):  # the line of the question, then that of its lambda
        return frame.f_code.co_name == "<lambda>"
    return bool(frame.f_locals.get("method") != "GET")


def _trace(met: Callable[[Place], None]) -> None:
    """Call `met` before each statement of the traced files, once for each place."""
    seen: set[Place] = set()
    effects = 0

    def line(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal effects
        if event == "line":
            name = TRACED[frame.f_code.co_filename]
            place = Place(effects, name, frame.f_lineno)
            if place not in seen:
                seen.add(place)
                met(place)
            effects += _changes(frame, name)
        return line

    def called(frame: FrameType, *_: Any) -> Any:
        return line if frame.f_code.co_filename in TRACED else None

    threading.settrace(called)  # those that begin from now on
    sys.settrace(called)


def _in_child(step: Step, met: Callable[[Place], None] | None, output: Path) -> None:
    """Never returns: run `step` with everything that it prints in `output`, and exit."""
    status = 1
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        if met:
            _trace(met)
        try:
            step()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.settrace(None)
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(status)


@dataclass
class Process:
    """One that was begun and has to be waited for."""

    pid: int
    output: Path

    def wait(self, meanwhile: Step = lambda: None) -> Ended:
        """How it ended; call `meanwhile` while it lives."""
        end = time.monotonic() + CHILD_S
        while True:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError(f"still running after {CHILD_S:.0f} s: {self.said[-3000:]}")
            meanwhile()
            time.sleep(0.005)
        killed = os.WIFSIGNALED(status)
        return Ended(killed, 0 if killed else os.WEXITSTATUS(status), self.said)

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self.output.read_text() if self.output.exists() else ""


def begin(step: Step, output: Path, met: Callable[[Place], None] | None = None) -> Process:
    """Run `step` in a process of its own that calls `met` before each place."""
    output.unlink(missing_ok=True)
    if (child := os.fork()) == 0:
        _in_child(step, met, output)
    return Process(child, output)


def run(
    step: Step, folder: Path, *, at: Place | None = None, meanwhile: Step = lambda: None
) -> Ended:
    """Run `step` in a process of its own to its end, or killed at the place `at`."""

    def kill(place: Place) -> None:
        if place == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return begin(step, folder / "output.txt", kill if at else None).wait(meanwhile)


def places(step: Step, folder: Path, meanwhile: Step = lambda: None) -> list[Place]:
    """Every place of `step`, in the order in which a run comes by them."""
    with (folder / "places.txt").open("w+") as file:

        def note(place: Place) -> None:
            print(json.dumps(vars(place)), file=file, flush=True)

        ended = begin(step, folder / "output.txt", note).wait(meanwhile)
        assert ended.status == 0, ended.said
        file.seek(0)
        return [Place(**json.loads(line)) for line in file]


def around(found: list[Place], *effects: str) -> list[Place]:
    """Of `found`, those right before and right after each change of the world by one of
    `effects`.
    """
    chosen: set[int] = set()
    for n, (place, following) in enumerate(pairwise(found)):
        if place.effects != following.effects and any(one in place.text for one in effects):
            chosen |= {n, n + 1}
    return [found[n] for n in sorted(chosen)]


def hospitals_work(hub: HubWorld) -> None:
    """Every job that the hub knows is trained (by not at all), signed and settled."""
    with hub.desk.session() as session:
        rows = session.exec(
            select(JobRow).where(col(JobRow.state).not_in([str(s) for s in FINAL]))
        ).all()
    for row in rows:
        if not (hub.folder(row) / "outcome.json").exists():
            _attest(hub, row)
    if rows:
        reconcile(hub.desk)


def _attest(hub: HubWorld, row: JobRow) -> None:
    terms = JobTerms.from_json(row.terms.encode())
    spec, folder = JobSpec.from_dict(terms.spec), hub.folder(row)
    graph, weights = (
        (hub.desk.config.models_folder / name).read_bytes()
        for name in (spec.graph_hash, spec.weights_hash)
    )
    arrays = from_safetensors(weights)
    parts = {
        d: Part(d, spec.rounds, 1.5, 2.5, 1e-5, 61.0, "cpu", "record") for d in hub.bank.dataset_ids
    }
    rounds = [Round(n + 1, 0.5, 0.1) for n in range(spec.rounds)]
    report, worked = build(terms, spec, model_hash(arrays), rounds, parts)
    outcomes = tuple(attest.outcome(line) for line in json.loads(report)["hospitals"])
    report_hash = bytes.fromhex(sha256_hex(report))
    said = Attestation(terms.job_id, model_hash(arrays), report_hash, worked, outcomes)
    message = attestation_message(terms, said)
    signatures = {hub.bank.node(n): sign(message, hub.bank.node_keys[n]).hex() for n in range(3)}
    sealed = seal(Contents(arrays, graph, report), spec.buyer_public_key, row.job_id)
    outcome = {
        "state": "attested",
        "signatures": signatures,
        "model_hash": model_hash(arrays).hex(),
        "worked": worked,
    }
    files = {
        "acceptances.json": hub.acceptances(terms),
        "report.json": report,
        "result.sealed": sealed,
        "outcome.json": json.dumps(outcome).encode(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
