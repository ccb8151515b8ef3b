"""What happens to an admitted job: train its rounds, evaluate, attest, release.

Each round's charge is in the ledger before a record is touched, and its reply before it leaves.
Knows nothing of how messages arrive (handlers.py) or how a job comes to be admitted (admission.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fl_client.data.tables import Records
from fl_client.errors import ProtocolError
from fl_client.model.graph import GraphModel, parameters
from fl_client.model.weights import model_hash, to_safetensors
from fl_client.node import limits
from fl_client.node.admission import safe_model
from fl_client.node.attestation import OwnFigures, check_and_sign
from fl_client.node.room import AdmittedJob, DataRoom
from fl_client.privacy import accounting
from fl_client.privacy.ledger import FINAL_LOOK
from fl_client.privacy.plan import Charge
from fl_client.privacy.slots import round_seconds
from fl_client.privacy.training import score_table, train_round
from fl_client.protocol import JobSpec, Released, Scored, Signed, Trained, pack, unpack


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
    job = AdmittedJob(terms, spec, entry, safe_model(room, spec, entry, *folder.model_files))
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
    with limits.of_round(room, job.terms):
        records = _readable(room.records[entry.dataset_id])
        stored = room.ledger.begin_round(
            job_id, number, input_hash, spec.round_charges(), entry.name, records.members
        )
        if stored is None:
            result = train_round(
                job.model,
                arrays,
                records.features,
                records.targets,
                spec.plan,
                steps=spec.local_steps,
                learning_rate=spec.learning_rate,
                loss=spec.loss,
                expected_persons=spec.persons[entry.dataset_id],
                patients=records.patients,
                records_per_patient=entry.manifest.records_per_patient,
                engine=room.config.engine,
            )
            reply = Trained(
                to_safetensors(result.arrays),
                float(result.loss_mean),
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
                result.device,
            )
            stored = pack(reply)
            room.ledger.finish_round(job_id, number, stored)
    return unpack(Trained, stored)


def _readable(records: Records) -> Records:
    """The same, before anything is charged: pictures that are gone are the node's own trouble.
    Raises DatasetError.
    """
    if not isinstance(records.features, np.ndarray):
        records.features.look()
    return records


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
    with limits.of_round(room, job.terms):
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
            scores = score_table(
                job.model,
                arrays,
                records.features,
                records.targets,
                spec.plan,
                loss=spec.loss,
                expected_persons=spec.persons[job.entry.dataset_id],
                patients=records.patients,
                records_per_patient=job.entry.manifest.records_per_patient,
            )
            charges = [*spec.round_charges() * spec.rounds, *spec.evaluation_charges()]
            stored = pack(Scored(tuple(scores), *_spent(room, job, charges)))
            room.ledger.finish_round(job_id, number, stored)
    return unpack(Scored, stored)


def attest(
    room: DataRoom, job_id: str, arrays: Mapping[str, np.ndarray], report_raw: bytes
) -> Signed:
    """This node's signature over the final model and report, after checking everything it can.
    Raises NodeError.

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
    )
    attestation, signature = check_and_sign(
        room.key(job.terms), job.terms, job.spec, own, model_hash(arrays), report_raw
    )
    room.folder(job_id).keep_attested(
        f"{attestation.model_hash.hex()} {attestation.report_hash.hex()}"
    )
    room.ledger.close_job(job_id)
    return Signed(signature)


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
    return Released()


def _checked(given: Mapping[str, np.ndarray], model: GraphModel) -> dict[str, np.ndarray]:
    """`given` in the order of the model's parameters, if names, shapes and types agree, every
    number is finite, and the frozen ones are those that were admitted and self-checked.
    """
    wanted = parameters(model)
    frozen = set(model.frozen_names)
    if set(given) != set(wanted):
        raise ProtocolError(f"model: parameters must be {sorted(wanted)}")
    for name, array in given.items():
        if array.shape != wanted[name].shape or array.dtype != np.float32:
            raise ProtocolError(f"model: {name} must be float32 of shape {wanted[name].shape}")
        if not np.isfinite(array).all():
            raise ProtocolError(f"model: {name} holds a number that is not finite")
        if name in frozen and not np.array_equal(array, wanted[name]):
            raise ProtocolError(f"model: {name} is frozen and must stay as it was admitted")
    return {name: np.ascontiguousarray(given[name]) for name in wanted}
