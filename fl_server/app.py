"""The ServerApp of a job: ask for admission, average rounds, collect attestations, seal the result.
Holds no key.

Reads one job folder (terms.json, graph.json, weights.safetensors, nodes.json) and writes
progress.jsonl, then outcome.json: attested, refused or failed. Asks exactly the hospitals in the
terms, never who happens to be online. Knows nothing of money: settlement.py sends what is written
here. A run repeated after a crash catches up at once, because nodes answer a round that they have
answered before with the same reply.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import flwr.superlink.grid.http_grid as http_grid
import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from datatokens.terms import JobTerms
from fl_client import protocol
from fl_client.errors import GraphRefused, ProtocolError
from fl_client.model.weights import from_safetensors, model_hash, to_safetensors
from fl_client.privacy.evaluation import CELLS
from fl_client.protocol import (
    Admit,
    Attest,
    Evaluate,
    JobSpec,
    Refused,
    Release,
    Released,
    Scored,
    Signed,
    Train,
    Trained,
)
from fl_server.aggregation import weighted_mean, with_momentum
from fl_server.errors import RunFailed
from fl_server.report import Part, Round, build, loss_interval95
from fl_server.results import Result, seal

app = ServerApp()

POLL_S = 0.08
ADMIT_TIMEOUT_S = 120.0  # a model's dry run on a slow machine
ROUND_TIMEOUT_S = 600.0
# Flower waits 1 to 10 s when a reply is listed before its objects are there
FIRST_BACKOFF_S, BACKOFF_CAP_S = 0.02, 0.25

_pull_objects = http_grid.pull_objects


def _pull_objects_quickly(*args: Any, **kwargs: Any) -> dict[str, bytes]:
    quick = {"initial_backoff": FIRST_BACKOFF_S, "backoff_cap": BACKOFF_CAP_S, **kwargs}
    objects: dict[str, bytes] = _pull_objects(*args, **quick)
    return objects


class JobFolder:
    """The files of one job; every write is whole or not at all."""

    def __init__(self, path: Path):
        self.path = path
        self.terms = JobTerms.from_json((path / "terms.json").read_bytes())
        self.spec = JobSpec.from_dict(self.terms.spec)
        self.graph = (path / "graph.json").read_bytes()
        self.weights = (path / "weights.safetensors").read_bytes()
        nodes: dict[str, int] = json.loads((path / "nodes.json").read_text())
        self.supernode = {line.dataset_id: nodes[line.node] for line in self.terms.datasets}

    @property
    def id(self) -> str:
        """Job id, 64 hexadecimal digits."""
        return self.terms.job_id.hex()

    def progress(self, event: str, **facts: Any) -> None:
        """Append one line to progress.jsonl, for people who wait."""
        with (self.path / "progress.jsonl").open("a") as file:
            file.write(json.dumps({"at": time.time(), "event": event, **facts}) + "\n")

    def write(self, name: str, content: bytes) -> None:
        """Write a file so that a reader sees all of it or none."""
        temporary = self.path / f".{name}.new"
        temporary.write_bytes(content)
        temporary.replace(self.path / name)

    def finish(self, state: str, **facts: Any) -> None:
        """Write outcome.json, the last thing a run does."""
        self.write("outcome.json", json.dumps({"state": state, **facts}).encode())


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Conduct one job from admission to attestations."""
    http_grid.pull_objects = _pull_objects_quickly
    job_id = str(context.run_config["job-id"])
    if len(job_id) != 64 or not all(c in "0123456789abcdef" for c in job_id):
        raise RunFailed(f"job-id={job_id[:80]!r} must be 64 hexadecimal digits")
    job = JobFolder(Path(os.environ["DATAHUB_JOBS"]) / job_id)
    try:
        conduct(job, lambda messages, timeout: exchange(grid, messages, timeout))
    except RunFailed as error:
        job.finish("failed", reason=str(error))


Said = TypeVar("Said")
Exchange = Callable[[dict[int, Message], float], dict[int, Message]]


def exchange(grid: Grid, messages: dict[int, Message], timeout: float) -> dict[int, Message]:
    """Send each dataset's message, wait for the replies (polling fast); those that came in time, by
    dataset id.
    """
    ids = dict(zip(grid.push_messages(messages.values()), messages, strict=True))
    replies: dict[int, Message] = {}
    end = time.monotonic() + timeout
    while ids and time.monotonic() < end:
        for reply in grid.pull_messages(ids):
            replies[ids.pop(reply.metadata.reply_to_message_id)] = reply
        if ids:
            time.sleep(POLL_S)
    return replies


def conduct(job: JobFolder, ask: Exchange) -> None:
    """The whole job; raises RunFailed when it cannot reach a result."""
    terms, spec = job.terms, job.spec
    job.progress("started", hospitals=len(terms.datasets))
    active = _admission(job, ask)
    if active is None:
        return
    arrays = last = from_safetensors(job.weights)
    rounds: list[Round] = []
    parts: dict[int, Part] = {}
    tail: list[dict[str, np.ndarray]] = []
    for number in range(1, spec.rounds + 1):
        started = time.monotonic()
        request = Train(job.id, number, to_safetensors(arrays))
        good: dict[int, Update] = {}
        replies = _asked(job, active, request, Trained, ask, ROUND_TIMEOUT_S)
        for dataset_id in active:
            update = _update(replies[dataset_id], arrays)
            if isinstance(update, Refused):
                job.progress("dropped", dataset_id=dataset_id, round=number, reason=update.reason)
            else:
                good[dataset_id] = update
        active = list(good)
        if len(active) < terms.quorum:
            raise RunFailed(
                f"round {number}: {len(active)} hospitals answered, the quorum is {terms.quorum}"
            )
        for dataset_id, (said, _) in good.items():
            before = parts[dataset_id].training_seconds if dataset_id in parts else 0.0
            parts[dataset_id] = Part(
                dataset_id,
                number,
                said.epsilon_job,
                said.epsilon_lifetime,
                said.delta_lifetime,
                round(before + said.training_seconds, 1),
                said.device,
                said.unit,
            )
        slowest = max(said.training_seconds for said, _ in good.values())
        # by what the terms say, not by what a reply claims; by id, as float sums must repeat
        persons = [spec.persons[dataset_id] for dataset_id in sorted(good)]
        mean = weighted_mean([good[dataset_id][1] for dataset_id in sorted(good)], persons)
        last, arrays = arrays, with_momentum(mean, arrays, last, spec.server_momentum)
        losses = [good[dataset_id][0].loss for dataset_id in sorted(good)]
        loss = sum(n * one for n, one in zip(persons, losses, strict=True)) / sum(persons)
        tail = [*tail, arrays][-spec.average_last :]
        rounds.append(Round(number, loss, loss_interval95(spec, active)))
        job.progress(
            "round",
            number=number,
            rounds=spec.rounds,
            loss=loss,
            loss_interval95=rounds[-1].loss_interval95,
            seconds=time.monotonic() - started,
            training_seconds=slowest,
            epsilon={str(d): parts[d].epsilon_job for d in active},
            epsilon_lifetime={str(d): parts[d].epsilon_lifetime for d in active},
        )
    final = {
        name: np.asarray(np.mean([a[name] for a in tail], axis=0, dtype=np.float64), np.float32)
        for name in arrays
    }
    parts |= _evaluated(job, ask, final, {d: parts[d] for d in active})
    _attestation(job, ask, final, rounds, parts)


def _admission(job: JobFolder, ask: Exchange) -> list[int] | None:
    """Dataset ids that accepted; None when too many refused (the outcome is written then)."""
    everyone = [line.dataset_id for line in job.terms.datasets]
    request = Admit(job.terms.to_json(), job.graph, job.weights)
    replies = _asked(job, everyone, request, Signed, ask, ADMIT_TIMEOUT_S)
    accepted, rejections, acceptances = [], {}, {}
    for line in job.terms.datasets:
        said = replies[line.dataset_id]
        reason = said.reason if isinstance(said, Refused) else ""
        job.progress(
            "admission",
            dataset_id=line.dataset_id,
            accepted=isinstance(said, Signed),
            reason=reason,
        )
        if isinstance(said, Signed):
            accepted.append(line.dataset_id)
            acceptances[line.node] = said.signature.hex()
        elif said.signature:
            rejections[line.node] = {"reason": reason, "signature": said.signature.hex()}
    # for the hub to put on the chain while the rounds go on: only who has accepted there can be
    # paid
    job.write("acceptances.json", json.dumps(acceptances).encode())
    if len(accepted) >= job.terms.quorum:
        return accepted
    if len(job.terms.datasets) - len(rejections) < job.terms.quorum:
        _asked(job, accepted, Release(job.id), Released, ask, ADMIT_TIMEOUT_S)
        job.finish("refused", rejections=rejections)
        return None
    # somebody was silent: the others keep their reservation, the hub may start another run before
    # the deadline
    raise RunFailed(
        f"admission: {len(accepted)} hospitals accepted, the quorum is {job.terms.quorum}"
    )


def _evaluated(
    job: JobFolder, ask: Exchange, final: dict[str, np.ndarray], parts: Mapping[int, Part]
) -> dict[int, Part]:
    """The parts with each hospital's table of the final model's scores. Who does not answer is
    asked once more, since a table that was drawn is paid for; who then does not answer is left out
    of the evaluation, and has worked all the same.
    """
    job.progress("evaluating")
    found: dict[int, Part] = {}
    request = Evaluate(job.id, to_safetensors(final))
    for _ in range(2):
        missing = [d for d in parts if d not in found]
        for d, said in _asked(job, missing, request, Scored, ask, ADMIT_TIMEOUT_S).items():
            if isinstance(said, Scored) and len(said.scores) == CELLS:
                found[d] = replace(
                    parts[d],
                    scores=list(said.scores),
                    epsilon_job=said.epsilon_job,
                    epsilon_lifetime=said.epsilon_lifetime,
                    delta_lifetime=said.delta_lifetime,
                )
    return found


def _attestation(
    job: JobFolder,
    ask: Exchange,
    final: dict[str, np.ndarray],
    rounds: list[Round],
    parts: Mapping[int, Part],
) -> None:
    report, worked = build(job.terms, job.spec, model_hash(final), rounds, parts)
    active = [line.dataset_id for i, line in enumerate(job.terms.datasets) if worked >> i & 1]
    job.progress("attesting", model_hash=model_hash(final).hex())
    request = Attest(job.id, to_safetensors(final), report)
    replies = _asked(job, active, request, Signed, ask, ADMIT_TIMEOUT_S)
    signatures = {}
    for line in job.terms.datasets:
        if line.dataset_id in active:
            said = replies[line.dataset_id]
            reason = said.reason if isinstance(said, Refused) else ""
            job.progress(
                "attestation",
                dataset_id=line.dataset_id,
                signed=isinstance(said, Signed),
                reason=reason,
            )
            if isinstance(said, Signed):
                signatures[line.node] = said.signature.hex()
    if len(signatures) < job.terms.quorum:
        raise RunFailed(
            f"attestation: {len(signatures)} hospitals signed, the quorum is {job.terms.quorum}"
        )
    sealed = seal(
        Result(final, job.graph, report), job.spec.buyer_public_key, job.terms.job_id.hex()
    )
    job.write("result.sealed", sealed)
    job.write("report.json", report)
    job.finish("attested", signatures=signatures, model_hash=model_hash(final).hex(), worked=worked)


def _asked(
    job: JobFolder,
    dataset_ids: Iterable[int],
    request: Any,
    kind: type[Said],
    ask: Exchange,
    timeout: float,
) -> dict[int, Said | Refused]:
    """What each of these hospitals says to a request, checked: a `kind`, or a refusal in its place,
    which silence and nonsense are too.
    """
    record = protocol.to_record(request)
    messages = {
        d: Message(
            RecordDict({protocol.REQUEST: ConfigRecord(dict(record))}),
            job.supernode[d],
            request.kind,
        )
        for d in dataset_ids
    }
    replies = ask(messages, timeout) if messages else {}
    return {d: _said(kind, replies.get(d)) for d in messages}


def _said(kind: type[Said], reply: Message | None) -> Said | Refused:
    if reply is None:
        return Refused("no answer in time")
    if reply.has_error():
        return Refused(f"error: {reply.error.reason[:500]}")
    try:
        said = protocol.read_reply(kind, reply.content.get(protocol.REPLY))
    except ProtocolError as error:
        return Refused(f"an answer that is not understood: {error}")
    if isinstance(said, Refused) and not said.reason:
        return replace(said, reason="refused without a reason")
    return said


Update = tuple[Trained, dict[str, np.ndarray]]  # what a hospital says, and its parameters


def _update(said: Trained | Refused, current: Mapping[str, np.ndarray]) -> Update | Refused:
    """A round's reply with its parameters, decoded once; a refusal where they do not fit."""
    if isinstance(said, Refused):
        return said
    try:
        given = from_safetensors(said.model)
    except GraphRefused as error:
        return Refused(str(error))
    if {n: a.shape for n, a in given.items()} != {n: a.shape for n, a in current.items()}:
        return Refused("parameters of other names or shapes")
    return said, given
