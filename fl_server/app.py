"""The ServerApp of a job: ask for admission, average rounds, collect attestations, seal the result.
Holds no key.

Reads what the hub has put into a job's folder and leaves there what comes of it (run_folder.py).
Asks exactly the hospitals in the terms, never who happens to be online. Knows nothing of money:
settlement.py sends what is written here. A run repeated after a crash catches up at once, because
nodes answer a round that they have answered before with the same reply.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from eth_account.messages import SignableMessage
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from datatokens.errors import SignatureError
from datatokens.terms import (
    acceptance_message,
    attestation_message,
    check_signature,
    rejection_message,
)
from fl_client.errors import GraphRefused
from fl_client.model.weights import from_safetensors, model_hash, to_safetensors
from fl_client.privacy.looks import cells
from fl_client.privacy.slots import needed
from fl_client.protocol import (
    Admit,
    Ask,
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
from fl_server.aggregation import longest_step, moved, server_step, weighted_mean
from fl_server.errors import RunFailed
from fl_server.exchange import Send, Silent, Undecided, ask, through
from fl_server.ranges import round_problem, scores_problem
from fl_server.report import Part, Round, build, loss_interval95
from fl_server.results import Contents, seal
from fl_server.run_folder import RunFolder
from fl_server.settlement import attestation_of

app = ServerApp()

ADMIT_TIMEOUT_S = 120.0  # a model's dry run on a slow machine
ENDING_S = 90.0  # before the deadline: the last look, signatures, the hub's transactions
# A hospital that is silent, after a round whose seconds of training are known: so many times those
LATE_TIMES, LATE_LEAST_S = 20.0, 600.0
ASK_AGAIN_S, ASK_AGAIN_CAP_S = 0.5, 10.0  # those where a person decides
TAKEN_S = 3600.0  # for a hub that is away to put acceptances on the chain: it settles, too


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Conduct one job from admission to attestations."""
    job_id = str(context.run_config["job-id"])
    if len(job_id) != 64 or not all(c in "0123456789abcdef" for c in job_id):
        raise RunFailed(f"job-id={job_id[:80]!r} must be 64 hexadecimal digits")
    job = RunFolder(Path(os.environ["DATAHUB_JOBS"]) / job_id)
    try:
        conduct(job, through(grid))
    except RunFailed as error:
        job.finish("failed", reason=str(error))


def conduct(job: RunFolder, send: Send) -> None:
    """The whole job; raises RunFailed when it cannot reach a result."""
    terms, spec = job.terms, job.spec
    job.progress("started", hospitals=len(terms.datasets))
    active = _admission(job, send)
    if active is None:
        return
    arrays = last = from_safetensors(job.weights)
    rounds: list[Round] = []
    parts: dict[int, Part] = {}
    tail: list[dict[str, np.ndarray]] = []
    slowest = 0.0  # seconds of a round's training, by the terms
    for number in range(1, spec.rounds + 1):
        started = time.monotonic()
        request = Train(job.id, number, to_safetensors(arrays))
        good: dict[int, Update] = {}
        # a mute hospital holds a round for that round's part of what is left, and is then dropped
        patience = (_left(job) - ENDING_S) / (spec.rounds + 1 - number)
        if slowest:
            patience = min(patience, max(LATE_LEAST_S, LATE_TIMES * slowest))
        replies = ask(send, job.supernodes, active, request, Trained, patience)
        for dataset_id in active:
            update = _update(replies[dataset_id], arrays, spec, spec.persons[dataset_id], number)
            if isinstance(update, Refused):
                job.progress(
                    "dropped",
                    dataset_id=dataset_id,
                    round=number,
                    reason=update.reason,
                    silent=isinstance(update, Silent),
                )
            else:
                good[dataset_id] = update
        active = list(good)
        if len(active) < terms.quorum:
            raise RunFailed(
                f"round {number}: {len(active)} hospitals answered, the quorum is {terms.quorum}"
            )
        for dataset_id, (said, _) in good.items():
            before = parts[dataset_id].compute_seconds if dataset_id in parts else 0.0
            parts[dataset_id] = Part(
                dataset_id,
                number,
                said.epsilon_job,
                said.epsilon_lifetime,
                said.delta_lifetime,
                round(before + said.compute_seconds, 1),
                said.device,
                said.unit,
                log_head=said.log_head,
                no_walls=said.no_walls,
            )
        slowest = max(said.compute_seconds for said, _ in good.values())
        # by what the terms say, not by what a reply claims; by id, as float sums must repeat
        persons = [spec.persons[dataset_id] for dataset_id in sorted(good)]
        mean = weighted_mean([good[dataset_id][1] for dataset_id in sorted(good)], persons)
        last, arrays = (
            arrays,
            server_step(mean, arrays, last, spec.server_momentum, spec.server_rates),
        )
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
            compute_seconds=slowest,
            epsilon={str(d): parts[d].epsilon_job for d in active},
            epsilon_lifetime={str(d): parts[d].epsilon_lifetime for d in active},
        )
    final = {
        name: np.asarray(np.mean([a[name] for a in tail], axis=0, dtype=np.float64), np.float32)
        for name in arrays
    }
    parts |= _evaluated(job, send, final, {d: parts[d] for d in active})
    _attestation(job, send, final, rounds, parts)


def _left(job: RunFolder) -> float:
    """Seconds until the deadline. Raises RunFailed where they are few."""
    left = job.terms.deadline - time.time()
    if left <= ENDING_S:
        raise RunFailed(f"{left:.0f} s are left before the deadline, too few for a result")
    return left


def _last_patience(job: RunFolder) -> float:
    """Seconds to wait for one of the last answers: three may be waited for."""
    return max(1.0, min(ADMIT_TIMEOUT_S, (job.terms.deadline - time.time()) / 4))


def _bad_signature(message: SignableMessage, said: object, node: str) -> str | None:
    """What is wrong with a signed reply: nothing is done with or for a node that has not signed,
    since the chain would take nothing of it. None for an unsigned one.
    """
    signature = getattr(said, "signature", b"")
    try:
        if signature or isinstance(said, Signed):
            check_signature(message, signature, node)
    except SignatureError as error:
        return str(error)
    return None


def _admission(job: RunFolder, send: Send) -> list[int] | None:
    """Dataset ids that accepted; None when too many refused (the outcome is written then). Waits
    for those where a person decides, as long as the terms give them.
    """
    everyone = [line.dataset_id for line in job.terms.datasets]
    request = Admit(job.terms.to_json(), job.graph, job.weights)
    patience = min(ADMIT_TIMEOUT_S, _left(job) - ENDING_S)
    replies = ask(send, job.supernodes, everyone, request, Signed, patience)
    accepted: list[int] = []
    rejections: dict[str, dict[str, str]] = {}
    acceptances: dict[str, str] = {}
    end = min(job.spec.answer_by or job.terms.deadline, job.terms.deadline - ENDING_S)
    for dataset_id, said in _decided(
        job,
        send,
        replies,
        end,
        lambda: len(everyone) - len(rejections) < job.terms.quorum,
        # an unsigned no is a node's passing trouble: it decides nothing, and may be over
        lambda said: bool(said.signature),
    ):
        line = job.terms.datasets[job.terms.index_of_dataset(dataset_id)]
        if isinstance(said, Refused):
            message = rejection_message(job.terms, said.reason)
        else:
            message = acceptance_message(job.terms)
        if problem := _bad_signature(message, said, line.node):
            said = Refused(problem)
        reason = said.reason if isinstance(said, Refused) else ""
        job.progress(
            "admission",
            dataset_id=line.dataset_id,
            accepted=isinstance(said, Signed),
            reason=reason,
            silent=isinstance(said, Silent),
        )
        if isinstance(said, Signed):
            accepted.append(line.dataset_id)
            acceptances[line.node] = said.signature.hex()
        elif said.signature:
            rejections[line.node] = {"reason": reason, "signature": said.signature.hex()}
    accepted.sort(key=everyone.index)
    job.keep_acceptances(acceptances)
    if len(accepted) >= job.terms.quorum:
        return accepted
    if len(job.terms.datasets) - len(rejections) < job.terms.quorum:
        ask(send, job.supernodes, accepted, Release(job.id), Released, _last_patience(job))
        job.finish("refused", rejections=rejections)
        return None
    # somebody was silent: the others keep their reservation, the hub may start another run before
    # the deadline
    raise RunFailed(
        f"admission: {len(accepted)} hospitals accepted, the quorum is {job.terms.quorum}"
    )


def _decided(
    job: RunFolder,
    send: Send,
    replies: Mapping[int, Signed | Refused],
    latest: float,
    settled: Callable[[], bool] = lambda: False,
    decides: Callable[[Signed | Refused], bool] = lambda _: True,
) -> Iterator[tuple[int, Signed | Refused]]:
    """The hospitals' answers to a job as they come, those of people last. Who waits for a person is
    asked again, seldom, until `latest` (unix seconds), and until it is `settled` whatever they say;
    one that is away meanwhile, or says what `decides` nothing, still waits.
    """
    waiting: dict[int, Undecided] = {}
    for dataset_id, said in replies.items():
        if isinstance(said, Undecided):
            waiting[dataset_id] = said
            _say_waiting(job, dataset_id, said)
        else:
            yield dataset_id, said
    pause = ASK_AGAIN_S
    while waiting and not settled():
        end = min(latest, max(one.until for one in waiting.values()))  # whatever a hospital says
        over = time.time() > end + ASK_AGAIN_CAP_S
        left = end + 1 - time.time()
        time.sleep(min(pause, left) if left > 0 else pause)
        pause = min(ASK_AGAIN_CAP_S, 1.3 * pause)
        patience = max(1.0, min(ADMIT_TIMEOUT_S, job.terms.deadline - ENDING_S - time.time()))
        for dataset_id, said in ask(
            send, job.supernodes, list(waiting), Ask(job.id), Signed, patience
        ).items():
            if isinstance(said, Undecided) and not over:
                if said != waiting[dataset_id]:
                    _say_waiting(job, dataset_id, said)
                waiting[dataset_id] = said
            elif over or (not isinstance(said, Silent) and decides(said)):
                del waiting[dataset_id]
                yield dataset_id, said


def _say_waiting(job: RunFolder, dataset_id: int, said: Undecided) -> None:
    until = min(said.until, job.terms.deadline)
    job.progress("waiting", dataset_id=dataset_id, until=until, reason=said.reason)


def _evaluated(
    job: RunFolder, send: Send, final: dict[str, np.ndarray], parts: Mapping[int, Part]
) -> dict[int, Part]:
    """The parts with each hospital's table of the final model's scores. Who does not answer is
    asked once more, since a table that was drawn is paid for; who then does not answer is left out
    of the evaluation, and has worked all the same.
    """
    job.progress("evaluating")
    found: dict[int, Part] = {}
    wanted = cells(job.spec.loss, job.spec.outputs)
    request = Evaluate(job.id, to_safetensors(final))
    for _ in range(2):
        missing = [d for d in parts if d not in found]
        patience = _last_patience(job)
        for d, said in ask(send, job.supernodes, missing, request, Scored, patience).items():
            if not isinstance(said, Scored) or len(said.scores) != wanted:
                continue
            if problem := scores_problem(said, job.spec, job.spec.persons[d]):
                job.progress("scores", dataset_id=d, reason=problem)
            else:
                found[d] = replace(
                    parts[d],
                    scores=list(said.scores),
                    epsilon_job=said.epsilon_job,
                    epsilon_lifetime=said.epsilon_lifetime,
                    delta_lifetime=said.delta_lifetime,
                    log_head=said.log_head,
                )
    return found


def _attestation(
    job: RunFolder,
    send: Send,
    final: dict[str, np.ndarray],
    rounds: list[Round],
    parts: Mapping[int, Part],
) -> None:
    parts = _payable(job, parts)
    report, worked = build(job.terms, job.spec, model_hash(final), rounds, parts)
    message = attestation_message(
        job.terms, attestation_of(job.terms, model_hash(final), worked, report)
    )
    active = [line.dataset_id for i, line in enumerate(job.terms.datasets) if worked >> i & 1]
    job.progress("attesting", model_hash=model_hash(final).hex())
    request = Attest(job.id, to_safetensors(final), report)
    replies = ask(send, job.supernodes, active, request, Signed, _last_patience(job))
    replies |= dict(_decided(job, send, replies, job.terms.deadline - ENDING_S))
    signatures = {}
    for line in job.terms.datasets:
        if line.dataset_id in active:
            said = replies[line.dataset_id]
            if isinstance(said, Signed) and (problem := _bad_signature(message, said, line.node)):
                said = Refused(problem)
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
        Contents(final, job.graph, report), job.spec.buyer_public_key, job.terms.job_id.hex()
    )
    job.keep_result(report, sealed)
    job.finish("attested", signatures=signatures, model_hash=model_hash(final).hex(), worked=worked)


def _payable(job: RunFolder, parts: Mapping[int, Part]) -> dict[int, Part]:
    """The parts of those whose acceptance is on the chain: one hospital that the chain no longer
    takes (paused, its key revoked) must not keep the others from being paid.
    """
    end = time.monotonic() + min(TAKEN_S, job.terms.deadline - ENDING_S - time.time())
    while (taken := job.taken) is None and time.monotonic() < end:
        time.sleep(0.1)
    if taken is None:
        return dict(parts)  # no hub is watching; whoever settles finds out
    kept = {}
    for line in job.terms.datasets:
        if line.dataset_id in parts and line.node not in taken:
            reason = "the chain has not taken its acceptance, so its work cannot be paid"
            job.progress("unpaid", dataset_id=line.dataset_id, reason=reason)
        elif line.dataset_id in parts:
            kept[line.dataset_id] = parts[line.dataset_id]
    return kept


Update = tuple[Trained, dict[str, np.ndarray]]  # what a hospital says, and its parameters


def _update(
    said: Trained | Refused,
    current: Mapping[str, np.ndarray],
    spec: JobSpec,
    persons: int,
    number: int,
) -> Update | Refused:
    """A round's reply with its parameters, decoded once; a refusal where they do not fit, are
    further off than any round of the plan can lead, or where a number is out of range.
    """
    if isinstance(said, Refused):
        return said
    if problem := round_problem(said, spec, persons, number):
        return Refused(problem)
    try:
        given = from_safetensors(said.model)
    except GraphRefused as error:
        return Refused(str(error))
    if {n: a.shape for n, a in given.items()} != {n: a.shape for n, a in current.items()}:
        return Refused("parameters of other names or shapes")
    seats = needed(persons, spec.plan.sampling_rate)
    most = longest_step(spec, persons, seats, sum(a.size for a in given.values()))
    way = moved(given, current)
    if not way <= most:
        return Refused(f"an update of length {way:.3g}; the plan allows {most:.3g}")
    return said, given
