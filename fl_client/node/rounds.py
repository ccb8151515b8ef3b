"""What happens to an admitted job: train its rounds, evaluate, attest, release.

Each round's charge is in the ledger before a record is touched, and its reply before it leaves.
Knows nothing of how messages arrive (handlers.py) or how a job comes to be admitted (admission.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fl_client.data.tables import Records
from fl_client.errors import ProtocolError
from fl_client.model.weights import model_hash, to_safetensors
from fl_client.node import admission, limits
from fl_client.node.admission import safe_model, work_of
from fl_client.node.attestation import OwnFigures, check_and_sign
from fl_client.node.inbox import verdict
from fl_client.node.job_folder import RELEASES
from fl_client.node.policy import PERSON
from fl_client.node.room import AdmittedJob, DataRoom
from fl_client.privacy import accounting
from fl_client.privacy.ledger import FINAL_LOOK
from fl_client.privacy.looks import cells
from fl_client.privacy.plan import Charge
from fl_client.privacy.slots import round_seconds
from fl_client.protocol import (
    JobSpec,
    Refused,
    Released,
    Scored,
    Signed,
    Trained,
    Waiting,
    pack,
    sha256_hex,
    unpack,
)
from fl_client.worker.tasks import Data
from fl_client.worker.workers import Facts

HELD_LEAST_S = 120  # between the last moment to let a result go and the job's deadline


def _job(room: DataRoom, job_id: str) -> AdmittedJob:
    """An admitted job, from memory or, after a restart, from the folder; its dataset as it is now:
    who has withdrawn takes no part from here on.
    """
    room.refresh()
    if job_id in room.jobs:
        return room.jobs[job_id]
    folder = room.folder(job_id)
    answer, terms = folder.answer, folder.terms
    if terms is None or not isinstance(answer, Signed):
        raise ProtocolError(f"job {job_id[:12]} was not accepted by this node")
    spec = JobSpec.from_dict(terms.spec)
    entry = room.dataset(room.line(terms).dataset_id)
    if entry is None:
        raise ProtocolError(f"job {job_id[:12]} is for a dataset that this node no longer serves")
    model = safe_model(room, job_id, spec, entry, *folder.model_files)
    work = work_of(room, job_id, spec, entry, lambda: folder.model_files)
    job = AdmittedJob(terms, spec, entry, model, work)
    room.jobs[job_id] = job
    return job


def _same_version(job: AdmittedJob) -> None:
    """Raises ProtocolError where the dataset has another released count than the job was accepted
    with: batches have slots for the patients of that count (slots.py).
    """
    if job.spec.persons[job.entry.dataset_id] != job.entry.manifest.persons:
        raise ProtocolError(
            f"dataset {job.entry.dataset_id} has a new version since job {job.id[:12]} was "
            "accepted; ask for a new quote"
        )


def train(room: DataRoom, job_id: str, number: int, arrays: Mapping[str, np.ndarray]) -> Trained:
    """One round: the charge is written first, the reply is stored before it leaves, a repeat
    gets the same reply. Raises NodeError.
    """
    job = _job(room, job_id)
    spec, entry = job.spec, job.entry
    if type(number) is not int or not 1 <= number <= spec.rounds:
        raise ProtocolError(f"round={number!r} must be a whole number from 1 to {spec.rounds}")
    arrays = _checked(arrays, job.model)
    input_hash = model_hash(arrays)
    _same_version(job)
    stops = limits.of_round(room, job.terms)
    records = _readable(room.records[entry.dataset_id])
    stored = room.ledger.begin_round(
        job_id, number, input_hash, spec.round_charges(), entry.name, records.members
    )
    if stored is None:
        head = _charged(room, job, number)
        model = to_safetensors(arrays)
        update = room.workers.train(job.work, _data(records, spec.loss), model, stops)
        reply = Trained(
            update.model,
            update.loss,
            *_spent(room, job, spec.round_charges() * number),
            entry.manifest.unit,
            # by the terms: a clock would tell of patients' records
            round_seconds(
                spec.plan,
                spec.local_steps,
                entry.manifest.persons,
                entry.manifest.records_per_patient,
                job.model.work,
            ),
            job.model.device,
            head,
            room.workers.no_walls,
        )
        stored = pack(reply)
        _released(room, job, f"round {number}", stored)
        room.ledger.finish_round(job_id, number, stored)
    return unpack(Trained, stored)


def _readable(records: Records) -> Records:
    """The same, before anything is charged: pictures that are gone are the node's own trouble.
    Raises DatasetError.
    """
    if not isinstance(records.features, np.ndarray):
        records.features.look()
    return records


def _charged(room: DataRoom, job: AdmittedJob, number: int) -> str:
    """Say in the log that a round is charged and about to be trained; the hash of that line.

    Not its number, as that would tell outside how much else the log has had to say meanwhile: that
    a patient has withdrawn.
    """
    head = room.log.note(
        "charged",
        job=job.id,
        round=number,
        dataset=job.entry.dataset_id,
        cohort=room.cohort_of(job.entry),
        epsilon_lifetime=room.ledger.epsilon_spent(job.entry.name),
    )
    return head.hash


def _released(room: DataRoom, job: AdmittedJob, what: str, content: bytes) -> None:
    """Say in the log what is about to leave."""
    room.log.note("released", job=job.id, what=what, bytes=len(content), sha256=sha256_hex(content))


def _data(records: Records, loss: str) -> Data:
    return Data(*records.inputs(loss), records.patients, of=records)


def _spent(
    room: DataRoom, job: AdmittedJob, charges: Sequence[Charge]
) -> tuple[float, float, float]:
    """What a reply says of privacy: epsilon of this job by these charges, epsilon and delta of the
    patients' whole history.
    """
    return (
        accounting.epsilon(charges, job.spec.plan.delta),
        room.ledger.epsilon_spent(job.entry.name),
        job.entry.manifest.delta,
    )


def _rounds_answered(room: DataRoom, job_id: str) -> int:
    return sum(row.answered for row in room.ledger.rounds(job_id) if row.number != FINAL_LOOK)


def evaluate(room: DataRoom, job_id: str, arrays: Mapping[str, np.ndarray]) -> Scored:
    """The noised table of the final model's scores, once per job, charged before it is drawn.
    Raises NodeError.
    """
    job = _job(room, job_id)
    spec, number = job.spec, FINAL_LOOK
    arrays = _checked(arrays, job.model)
    if _rounds_answered(room, job_id) < spec.rounds:
        raise ProtocolError(f"the final model is looked at after {spec.rounds} rounds, not before")
    _same_version(job)
    stops = limits.of_round(room, job.terms)
    records = _readable(room.records[job.entry.dataset_id])
    stored = room.ledger.begin_round(
        job_id,
        number,
        model_hash(arrays),
        spec.evaluation_charges(),
        job.entry.name,
        records.members,
    )
    if stored is None:
        head = _charged(room, job, number)
        model, wanted = to_safetensors(arrays), cells(spec.loss, spec.outputs)
        table = room.workers.look(job.work, _data(records, spec.loss), model, wanted, stops)
        charges = [*spec.round_charges() * spec.rounds, *spec.evaluation_charges()]
        stored = pack(Scored(table.scores, *_spent(room, job, charges), head))
        _released(room, job, "scores", stored)
        room.ledger.finish_round(job_id, number, stored)
    return unpack(Scored, stored)


def attest(
    room: DataRoom, job_id: str, arrays: Mapping[str, np.ndarray], report_raw: bytes
) -> Signed | Waiting:
    """This node's signature over the final model and report, after checking everything it can; or,
    where the owner holds results, that a person lets it go first. Raises NodeError.

    Only one result is ever signed for a job: a second, different one is refused.
    """
    job = _job(room, job_id)
    arrays = _checked(arrays, job.model)
    rounds = _rounds_answered(room, job_id)
    looked = any(row.answered and row.number == FINAL_LOOK for row in room.ledger.rounds(job_id))
    trained = [
        unpack(Trained, _kept(room, job_id, number)) for number in range(1, max(rounds, 1) + 1)
    ]
    scored = unpack(Scored, _kept(room, job_id, FINAL_LOOK)) if looked else None
    newest = scored or trained[-1]
    own = OwnFigures(
        job.entry.dataset_id,
        newest.epsilon_job,
        newest.epsilon_lifetime,
        newest.delta_lifetime,
        sum(reply.compute_seconds for reply in trained),
        rounds,
        job.entry.manifest.unit,
        list(scored.scores) if scored else None,
        newest.log_head,
        trained[-1].no_walls,
    )
    attestation, signature = check_and_sign(
        room.key(job.terms), job.terms, job.spec, own, model_hash(arrays), report_raw
    )
    room.folder(job_id).keep_report(report_raw)
    result = f"{attestation.model_hash.hex()} {attestation.report_hash.hex()}"
    folder = room.folder(job_id)
    if room.config.policy_of(job.entry.dataset_id).hold_results and not folder.attested_model:
        held = {"dataset_id": job.entry.dataset_id, "result": result, "signature": signature.hex()}
        if (folder.held or held)["result"] != result:
            raise ProtocolError("another result of this job waits for a person here")
        room.log.note("held", job=job_id, result=result)
        folder.hold(held)
        return let_go(room, job_id)
    return _signed(room, job_id, result, signature)


def _signed(room: DataRoom, job_id: str, result: str, signature: bytes) -> Signed:
    if not room.folder(job_id).attested_model:
        model, _, report = result.partition(" ")
        room.log.note(
            "attested", job=job_id, model_hash=model, report_hash=report, bytes=len(signature)
        )
    room.folder(job_id).keep_attested(result)
    room.ledger.close_job(job_id)
    room.workers.end(job_id)
    return Signed(signature)


def ask(room: DataRoom, job_id: str) -> Signed | Refused | Waiting:
    """What has become of a job that was sent, or of its result. Raises NodeError."""
    if room.folder(job_id).held is not None:
        return let_go(room, job_id)
    return admission.ask(room, job_id)


def let_go(room: DataRoom, job_id: str) -> Signed | Waiting:
    """The signature of a result that is held, once a person has let it go. Raises PolicyRefusal for
    a no, and where nobody has in time.
    """
    folder = room.folder(job_id)
    held, terms = folder.held, folder.terms
    if held is None or terms is None:
        raise ProtocolError(f"job {job_id[:12]} has no result here that is held")
    end = terms.deadline - HELD_LEAST_S
    if verdict(folder.decisions(RELEASES), PERSON, end, room.chain.now()) is None:
        return Waiting(end, "a person at this hospital lets the result go first")
    return _signed(room, job_id, held["result"], bytes.fromhex(held["signature"]))


def _kept(room: DataRoom, job_id: str, number: int) -> bytes:
    """A reply as it left this node. Raises ProtocolError for a round that was not answered."""
    stored = room.ledger.reply(job_id, number)
    if stored is None:
        raise ProtocolError(f"no round of job {job_id[:12]} was answered by this node")
    return stored


def release(room: DataRoom, job_id: str) -> Released:
    """Free what the job reserved and never ran; no further round of it will be answered."""
    job = _job(room, job_id)
    room.ledger.close_job(job.id)
    room.workers.end(job.id)
    return Released()


def _checked(given: Mapping[str, np.ndarray], model: Facts) -> dict[str, np.ndarray]:
    """`given` in the order of the model's parameters, if names, shapes and types agree, every
    number is finite, and the frozen ones are those that were admitted and self-checked.
    """
    wanted = model.shapes
    if set(given) != set(wanted):
        raise ProtocolError(f"model: parameters must be {sorted(wanted)}")
    for name, array in given.items():
        if array.shape != wanted[name] or array.dtype != np.float32:
            raise ProtocolError(f"model: {name} must be float32 of shape {wanted[name]}")
        if not np.isfinite(array).all():
            raise ProtocolError(f"model: {name} holds a number that is not finite")
        if name in model.frozen and not np.array_equal(array, model.frozen[name]):
            raise ProtocolError(f"model: {name} is frozen and must stay as it was admitted")
    return {name: np.ascontiguousarray(given[name]) for name in wanted}
