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
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import flwr.superlink.grid.http_grid as http_grid
import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from datatokens.terms import JobTerms
from fl_client import protocol
from fl_client.errors import GraphRefused
from fl_client.model.weights import from_safetensors, model_hash, to_safetensors
from fl_client.privacy.evaluation import CELLS
from fl_client.protocol import JobSpec
from fl_server.aggregation import weighted_mean
from fl_server.errors import RunFailed
from fl_server.report import Part, Round, build, loss_interval95
from fl_server.results import Result, seal

app = ServerApp()

POLL_S = 0.08
ADMIT_TIMEOUT_S = 120.0  # a model's dry run on a slow machine
ROUND_TIMEOUT_S = 600.0
FIRST_BACKOFF_S, BACKOFF_CAP_S = (
    0.02,
    0.25,
)  # Flower waits 1 to 10 s when a reply is listed before its objects are there

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
    arrays = from_safetensors(job.weights)
    rounds: list[Round] = []
    parts: dict[int, Part] = {}
    tail: list[dict[str, np.ndarray]] = []
    for number in range(1, spec.rounds + 1):
        started = time.monotonic()
        replies = ask(_messages(job, active, protocol.ROUND, arrays, round=number), ROUND_TIMEOUT_S)
        good: dict[int, Update] = {}
        for dataset_id in active:
            update = _update(replies.get(dataset_id), arrays)
            if isinstance(update, str):
                job.progress("dropped", dataset_id=dataset_id, round=number, reason=update)
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
                said["epsilon-job"],
                said["epsilon-lifetime"],
                said["delta-lifetime"],
                round(before + said["training-seconds"], 1),
                said["device"],
                said["unit"],
            )
        slowest = max(said["training-seconds"] for said, _ in good.values())
        # by what the terms say, not by what a reply claims; by id, as float sums must repeat
        persons = [spec.persons[dataset_id] for dataset_id in sorted(good)]
        arrays = weighted_mean([good[dataset_id][1] for dataset_id in sorted(good)], persons)
        losses = [good[dataset_id][0]["loss"] for dataset_id in sorted(good)]
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
    request = {"terms": job.terms.to_json(), "graph": job.graph, "weights": job.weights}
    content = {d: RecordDict({protocol.JOB: ConfigRecord(dict(request))}) for d in everyone}
    messages = {d: Message(content[d], job.supernode[d], protocol.ADMIT) for d in everyone}
    replies = ask(messages, ADMIT_TIMEOUT_S)
    accepted, rejections, acceptances = [], {}, {}
    for line in job.terms.datasets:
        answer = _answer(replies.get(line.dataset_id))
        job.progress(
            "admission",
            dataset_id=line.dataset_id,
            accepted=answer["accepted"],
            reason=answer["reason"],
        )
        if answer["accepted"]:
            accepted.append(line.dataset_id)
            acceptances[line.node] = answer["signature"].hex()
        elif answer["signature"]:
            rejections[line.node] = {
                "reason": answer["reason"],
                "signature": answer["signature"].hex(),
            }
    # for the hub to put on the chain while the rounds go on: only who has accepted there can be
    # paid
    job.write("acceptances.json", json.dumps(acceptances).encode())
    if len(accepted) >= job.terms.quorum:
        return accepted
    if len(job.terms.datasets) - len(rejections) < job.terms.quorum:
        ask(_messages(job, accepted, protocol.RELEASE), ADMIT_TIMEOUT_S)
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
    asked once more, since a
    table that was drawn is paid for; who then does not answer is left out of the evaluation, and
    has worked all the same.
    """
    job.progress("evaluating")
    found: dict[int, Part] = {}
    for _ in range(2):
        if missing := [d for d in parts if d not in found]:
            replies = ask(_messages(job, missing, protocol.EVALUATE, final), ADMIT_TIMEOUT_S)
            for dataset_id in missing:
                part = _with_scores(parts[dataset_id], replies.get(dataset_id))
                if part is not None:
                    found[dataset_id] = part
    return found


def _with_scores(part: Part, reply: Message | None) -> Part | None:
    if reply is None or not _answer(reply)["accepted"]:
        return None
    said = reply.content[protocol.ANSWER]
    scores, figures = said.get("scores"), [said.get(name) for name in EPSILON_FIELDS]
    numbers = [*scores, *figures] if isinstance(scores, list) and len(scores) == CELLS else [None]
    if not all(type(n) is float and math.isfinite(n) and abs(n) < 1e12 for n in numbers):
        return None
    job, lifetime, delta = figures
    return replace(
        part,
        scores=[float(n) for n in scores],
        epsilon_job=job,
        epsilon_lifetime=lifetime,
        delta_lifetime=delta,
    )


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
    replies = ask(_messages(job, active, protocol.ATTEST, final, report=report), ADMIT_TIMEOUT_S)
    signatures = {}
    for line in job.terms.datasets:
        if line.dataset_id in active:
            answer = _answer(replies.get(line.dataset_id))
            job.progress(
                "attestation",
                dataset_id=line.dataset_id,
                signed=answer["accepted"],
                reason=answer["reason"],
            )
            if answer["accepted"]:
                signatures[line.node] = answer["signature"].hex()
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


def _messages(
    job: JobFolder,
    dataset_ids: Iterable[int],
    kind: str,
    arrays: Mapping[str, np.ndarray] | None = None,
    **facts: Any,
) -> dict[int, Message]:
    model = {} if arrays is None else {"model": to_safetensors(arrays)}
    messages = {}
    for dataset_id in dataset_ids:
        record = ConfigRecord({"job": job.terms.job_id.hex(), **model, **facts})
        messages[dataset_id] = Message(
            RecordDict({protocol.JOB: record}), job.supernode[dataset_id], kind
        )
    return messages


def _answer(reply: Message | None) -> dict[str, Any]:
    """{accepted, reason, signature} of a reply that may be missing, an error or nonsense."""
    if reply is None:
        return {"accepted": False, "reason": "no answer in time", "signature": b""}
    if reply.has_error():
        return {"accepted": False, "reason": f"error: {reply.error.reason[:500]}", "signature": b""}
    record = reply.content.get(protocol.ANSWER)
    fields = {"accepted": bool, "reason": str, "signature": bytes}
    if not isinstance(record, ConfigRecord) or any(
        type(record.get(k)) is not t for k, t in fields.items()
    ):
        return {"accepted": False, "reason": "an answer that is not understood", "signature": b""}
    return {k: record[k] for k in fields}


EPSILON_FIELDS = ("epsilon-job", "epsilon-lifetime", "delta-lifetime")
ROUND_FIELDS = {
    "model": bytes,
    "loss": float,
    "epsilon-job": float,
    "epsilon-lifetime": float,
    "delta-lifetime": float,
    "training-seconds": float,
    "device": str,
    "unit": str,
}


Update = tuple[ConfigRecord, dict[str, np.ndarray]]  # what a reply says, and its parameters


def _update(reply: Message | None, current: Mapping[str, np.ndarray]) -> Update | str:
    """A round's reply, decoded once; or why it cannot be used. What a node sends is checked like
    anything from a wire.
    """
    answer = _answer(reply)
    if reply is None or not answer["accepted"]:
        return str(answer["reason"]) or "refused without a reason"
    record = reply.content[protocol.ANSWER]
    if not isinstance(record, ConfigRecord) or any(
        type(record.get(k)) is not t for k, t in ROUND_FIELDS.items()
    ):
        return "an answer that is not understood"
    if not all(math.isfinite(record[k]) for k, t in ROUND_FIELDS.items() if t is float):
        return "a metric is not finite"
    try:
        given = from_safetensors(record["model"])
    except GraphRefused as error:
        return str(error)
    if {n: a.shape for n, a in given.items()} != {n: a.shape for n, a in current.items()}:
        return "parameters of other names or shapes"
    return record, given
