"""The ClientApp of a data node: admit a job, train a round, attest the result. Trust sits here.

Every message is hostile until checked. Order of checks before any data is touched: paid (own chain
connection), allowed (owner's policy), safe (model as data, dry run), affordable (ledger reserves
the worst case of the whole job). Knows nothing of how messages arrive (supernode.py) or how a
hospital configures itself (config.py).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from datatokens.bindings.escrow import Escrow
from datatokens.bindings.registry import Registry
from datatokens.bindings.storefront import Storefront
from datatokens.chain.connection import Chain
from datatokens.errors import BankError, TermsError
from datatokens.terms import DatasetTerm, JobTerms, acceptance_message, rejection_message, sign
from fl_client import protocol
from fl_client.data import schemas as datasets
from fl_client.data.schemas import Records
from fl_client.errors import DatasetError, LedgerError, NodeError, ProtocolError
from fl_client.model.graph import GraphModel, load_model, parameters, predict, with_parameters
from fl_client.model.weights import from_safetensors, model_hash, to_safetensors
from fl_client.node.attestation import OwnFigures, check_and_sign
from fl_client.node.config import DatasetEntry, NodeConfig
from fl_client.node.policy import Request, admit
from fl_client.privacy import accounting, evaluation, selfcheck
from fl_client.privacy.ledger import FINAL_LOOK, Ledger
from fl_client.privacy.noise import SecureRandom
from fl_client.privacy.plan import Charge
from fl_client.privacy.training import LOSSES, check_loss, train_round
from fl_client.protocol import JobSpec, sha256_hex

log = logging.getLogger("datahub.node")

MINIMUM_TIME_LEFT_S = 60


@dataclass(frozen=True)
class AdmittedJob:
    """A job that passed every check, with what its rounds need."""

    terms: JobTerms
    spec: JobSpec
    entry: DatasetEntry
    model: GraphModel

    @property
    def id(self) -> str:
        """Job id, 64 hexadecimal digits."""
        return self.terms.job_id.hex()


class DataRoom:
    """One hospital's node: its configuration, its records, its ledger and its own view of the
    chain.
    """

    def __init__(self, config: NodeConfig, chain: Chain):
        """Load every dataset and check that it is still the one that was listed. Raises
        DatasetError.
        """
        self.config = config
        self.chain = chain
        self.escrow = Escrow(chain, config.market)
        self.registry = Registry(chain, config.registry)
        self.ledger = Ledger(config.folder / "ledger.sqlite")
        self._keys = config.node_keys
        self.records: dict[int, Records] = {}
        self._jobs: dict[str, AdmittedJob] = {}
        for entry in config.datasets:
            records = datasets.load(entry.file, entry.manifest.schema, entry.patient_column)
            if records.patient_set != entry.patient_set:
                raise DatasetError(
                    f"dataset {entry.dataset_id}: {entry.file} has changed since it was listed; "
                    "list it as a new dataset"
                )
            self.records[entry.dataset_id] = records
            manifest = entry.manifest
            self.ledger.open_patient_set(
                entry.patient_set, manifest.lifetime_epsilon, manifest.delta
            )
        self._free_overdue()

    def _free_overdue(self) -> None:
        """Free what jobs past their deadline had reserved and never ran: their money has gone back
        by now.
        """
        now = self.chain.now()
        for entry in self.config.datasets:
            for line in self.ledger.jobs(entry.patient_set):
                path = self.config.folder / "jobs" / line.job_id / "terms.json"
                if (
                    not line.closed
                    and path.exists()
                    and JobTerms.from_json(path.read_bytes()).deadline < now
                ):
                    self.ledger.close_job(line.job_id)

    # -- admission ---------------------------------------------------------------------------------

    def admit(self, raw_terms: bytes, graph: bytes, weights: bytes) -> dict[str, Any]:
        """The node's signed answer to a job: an acceptance, or a refusal with one sentence. Asked
        again, the same.

        A refusal is signed only for a job that is paid, since its only use is to send that money
        back.
        """
        try:
            terms = JobTerms.from_json(raw_terms)
        except TermsError as error:
            return {"accepted": False, "reason": f"terms: {error}", "signature": b""}
        folder = self._job_folder(terms)
        if (folder / "answer.json").exists():
            return _answer_from_json((folder / "answer.json").read_text())
        paid = False
        try:
            self._free_overdue()
            entry = self._check_paid(terms)
            paid = True
            self._check_job(terms, entry, graph, weights)
        except (NodeError, BankError) as error:
            reason = str(error)
            log.warning("refused job %s: %s", terms.job_id.hex()[:12], reason)
            signature = sign(rejection_message(terms, reason), self._key(terms)) if paid else b""
            answer: dict[str, Any] = {"accepted": False, "reason": reason, "signature": signature}
            if not paid:
                return answer  # not remembered: the money may come later
        else:
            log.info("accepted job %s for dataset %s", terms.job_id.hex()[:12], entry.dataset_id)
            answer = {
                "accepted": True,
                "reason": "",
                "signature": sign(acceptance_message(terms), self._key(terms)),
            }
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (
            ("terms.json", raw_terms),
            ("graph.json", graph),
            ("weights.safetensors", weights),
        ):
            (folder / name).write_bytes(content)
        (folder / "answer.json").write_text(
            json.dumps({**answer, "signature": answer["signature"].hex()})
        )
        return answer

    def _index(self, terms: JobTerms) -> int:
        """Which of the job's datasets is ours: the one that names one of our keys. Raises
        TermsError if none does.
        """
        ours = [node for node in (line.node for line in terms.datasets) if node in self._keys]
        return terms.index_of_node(ours[0] if ours else next(iter(self._keys)))

    def _key(self, terms: JobTerms) -> bytes:
        return self._keys[terms.datasets[self._index(terms)].node]

    def _job_folder(self, terms: JobTerms) -> Path:
        return self.config.folder / "jobs" / terms.job_id.hex()

    def _check_paid(self, terms: JobTerms) -> DatasetEntry:
        """Paid: this chain, this escrow, exactly these terms, money still there, time left, our
        dataset.
        """
        if terms.chain_id != self.config.chain_id or terms.market != self.config.market:
            raise ProtocolError(
                f"the terms are for chain {terms.chain_id} and market {terms.market}; this node "
                "serves "
                f"chain {self.config.chain_id} and market {self.config.market}"
            )
        line = terms.datasets[self._index(terms)]
        entry = self.config.dataset(line.dataset_id)
        if entry is None:
            raise ProtocolError(f"dataset_id={line.dataset_id} is not served by this node")
        job = self.escrow.job(terms.job_id)
        if job.status != "funded":
            raise ProtocolError(
                "the escrow holds no money for exactly these terms (job "
                f"{terms.job_id.hex()[:12]}, status {job.status})"
            )
        left = terms.deadline - self.chain.now()
        if left < MINIMUM_TIME_LEFT_S:
            raise ProtocolError(
                f"deadline: {left} s are left, at least {MINIMUM_TIME_LEFT_S} are needed"
            )
        return entry

    def _check_job(
        self, terms: JobTerms, entry: DatasetEntry, graph: bytes, weights: bytes
    ) -> None:
        spec = JobSpec.from_dict(terms.spec)
        manifest = entry.manifest
        if spec.schema_hash != manifest.schema.hash:
            raise ProtocolError(
                f"schema_hash={spec.schema_hash[:12]}… is not the schema of dataset "
                f"{entry.dataset_id}"
            )
        if set(spec.persons) != {line.dataset_id for line in terms.datasets}:
            raise ProtocolError("persons must name exactly the datasets of the job")
        if spec.persons[entry.dataset_id] != manifest.persons:
            raise ProtocolError(
                f"persons={spec.persons[entry.dataset_id]} must be {manifest.persons} for dataset "
                f"{entry.dataset_id}"
            )
        # what the market will not take must not be trained: it would never be paid
        line = terms.datasets[self._index(terms)]
        self.registry.check_acceptance(entry.dataset_id, line.node, terms.buyer, self.config.market)
        self._check_price(terms, entry)
        charges = spec.plan.charges()
        records = self.records[entry.dataset_id]
        request = Request(
            buyer=terms.buyer,
            purpose=spec.purpose,
            epsilon=accounting.epsilon(charges, spec.plan.delta),
            delta=spec.plan.delta,
            persons=records.persons,
            arbiter=terms.dispute.arbiter if terms.dispute else None,
        )
        floor = max(self.config.policy.minimum_persons, manifest.minimum_persons)
        admit(replace(self.config.policy, minimum_persons=floor), request, manifest.delta)
        self._safe_model(spec, entry, graph, weights)
        self.ledger.reserve(entry.patient_set, terms.job_id.hex(), charges)

    def _check_price(self, terms: JobTerms, entry: DatasetEntry) -> None:
        """The owner's price on the chain, one datatoken or an order that still runs; and the
        published price of compute,
        one minute at least."""
        line = terms.datasets[terms.index_of_dataset(entry.dataset_id)]
        tier = self.registry.tier(entry.dataset_id, line.tier)
        if tier.closed:
            raise ProtocolError(
                f"tier={line.tier} of dataset {entry.dataset_id} is closed; ask for a new quote"
            )
        paid_otherwise = line.voucher or (
            line.price_units == 0 and self._has_order(terms.buyer, line)
        )
        rate = entry.manifest.compute_rate_units
        expected = {
            "price_units": 0 if paid_otherwise else tier.price_units,
            "compute_rate_units": rate,
        }
        for name, value in expected.items():
            if getattr(line, name) != value:
                raise ProtocolError(
                    f"{name}={getattr(line, name)} must be {value} for dataset {entry.dataset_id}; "
                    "ask for a new quote"
                )
        if line.compute_cap_units < rate:
            raise ProtocolError(
                f"compute_cap_units={line.compute_cap_units} must be at least {rate}, one minute, "
                f"for dataset {entry.dataset_id}"
            )

    def _has_order(self, buyer: str, line: DatasetTerm) -> bool:
        shop = Storefront(self.chain, self.registry.storefront())
        return shop.order_expiry(line.dataset_id, line.tier, buyer) > self.chain.now()

    def _safe_model(
        self, spec: JobSpec, entry: DatasetEntry, graph: bytes, weights: bytes
    ) -> GraphModel:
        for name, content in (("graph_hash", graph), ("weights_hash", weights)):
            if sha256_hex(content) != getattr(spec, name):
                raise ProtocolError(
                    f"{name}: the file that was sent is not the one that the terms name"
                )
        model = load_model(graph, weights)
        width = entry.manifest.schema.width
        check_loss(model, spec.loss)
        if tuple(model.input_shape) != (width,):
            raise ProtocolError(
                f"the model takes inputs of shape {tuple(model.input_shape)}, the dataset has "
                f"({width},)"
            )
        several = self.records[entry.dataset_id].patients is not None
        selfcheck.check(model, LOSSES[spec.loss], several, self.config.engine)
        return model

    # -- rounds ------------------------------------------------------------------------------------

    def _job(self, job_id: str) -> AdmittedJob:
        """An admitted job, from memory or, after a restart, from the folder."""
        if job_id in self._jobs:
            return self._jobs[job_id]
        if len(job_id) != 64 or not all(c in "0123456789abcdef" for c in job_id):
            raise ProtocolError(f"job={job_id[:80]!r} must be 64 hexadecimal digits")
        folder = self.config.folder / "jobs" / job_id
        if (
            not (folder / "answer.json").exists()
            or not _answer_from_json((folder / "answer.json").read_text())["accepted"]
        ):
            raise ProtocolError(f"job {job_id[:12]} was not accepted by this node")
        terms = JobTerms.from_json((folder / "terms.json").read_bytes())
        spec = JobSpec.from_dict(terms.spec)
        entry = self.config.dataset(terms.datasets[self._index(terms)].dataset_id)
        if entry is None:
            raise ProtocolError(
                f"job {job_id[:12]} is for a dataset that this node no longer serves"
            )
        files = [(folder / name).read_bytes() for name in ("graph.json", "weights.safetensors")]
        job = AdmittedJob(terms, spec, entry, self._safe_model(spec, entry, *files))
        self._jobs[job_id] = job
        return job

    def train(
        self, job_id: str, number: int, arrays: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """One round: the charge is written first, the reply is stored before it leaves, a repeat
        gets the same reply.

        Returns the new parameters and the metrics (all private or data-independent). Raises
        NodeError.
        """
        job = self._job(job_id)
        spec, entry = job.spec, job.entry
        if type(number) is not int or not 1 <= number <= spec.rounds:
            raise ProtocolError(f"round={number!r} must be a whole number from 1 to {spec.rounds}")
        arrays = _checked(arrays, parameters(job.model))
        if self.escrow.job(job.terms.job_id).status != "funded":
            raise ProtocolError("the escrow no longer holds this job's money")
        input_hash = model_hash(arrays)
        stored = self.ledger.begin_round(job_id, number, input_hash, spec.round_charges())
        if stored is None:
            records = self.records[entry.dataset_id]
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
                engine=self.config.engine,
            )
            metrics = {
                "loss": float(result.loss_mean),
                "persons": spec.persons[entry.dataset_id],
                **self._spent(job, spec.round_charges() * number),
                "unit": entry.manifest.unit,
                # rounded up: the exact time depends on how many patients there are
                "training-seconds": math.ceil(result.seconds * 10) / 10,
                "device": result.device,
            }
            stored = _pack(result.arrays, metrics)
            self.ledger.finish_round(job_id, number, stored)
        return _unpack(stored)

    def _spent(self, job: AdmittedJob, charges: Sequence[Charge]) -> dict[str, float]:
        """What a reply says of privacy: of this job by these charges, and of the patients' whole
        history.
        """
        return {
            "epsilon-job": accounting.epsilon(charges, job.spec.plan.delta),
            "epsilon-lifetime": self.ledger.epsilon_spent(job.entry.patient_set),
            "delta-lifetime": job.entry.manifest.delta,
        }

    def _rounds_answered(self, job_id: str) -> int:
        return sum(row.answered for row in self.ledger.rounds(job_id) if row.number != FINAL_LOOK)

    def evaluate(self, job_id: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The noised table of the final model's scores, once per job, charged before it is drawn.
        Raises NodeError.
        """
        job = self._job(job_id)
        spec, number = job.spec, FINAL_LOOK
        arrays = _checked(arrays, parameters(job.model))
        if self._rounds_answered(job_id) < spec.rounds:
            raise ProtocolError(
                f"the final model is looked at after {spec.rounds} rounds, not before"
            )
        stored = self.ledger.begin_round(
            job_id, number, model_hash(arrays), spec.evaluation_charges()
        )
        if stored is None:
            records = self.records[job.entry.dataset_id]
            outputs = predict(with_parameters(job.model, arrays), records.features)
            scores = evaluation.probabilities(outputs, spec.loss)
            counts = evaluation.table(scores, records.targets, records.patients)
            noise = SecureRandom().normal(evaluation.CELLS, spec.plan.score_noise_multiplier)
            metrics = {
                "scores": evaluation.released(counts, noise),
                **self._spent(
                    job, [*spec.round_charges() * spec.rounds, *spec.evaluation_charges()]
                ),
            }
            stored = _pack({}, metrics)
            self.ledger.finish_round(job_id, number, stored)
        return _metrics(stored)

    def attest(
        self, job_id: str, arrays: Mapping[str, np.ndarray], report_raw: bytes
    ) -> dict[str, Any]:
        """This node's signature over the final model and report, after checking everything it can.
        Raises NodeError.

        Only one result is ever signed for a job: a second, different one is refused.
        """
        job = self._job(job_id)
        arrays = _checked(arrays, parameters(job.model))
        rounds = self._rounds_answered(job_id)
        looked = any(
            row.answered and row.number == FINAL_LOOK for row in self.ledger.rounds(job_id)
        )
        released = self._released(job_id, FINAL_LOOK if looked else rounds)
        seconds = sum(
            self._released(job_id, number)["training-seconds"] for number in range(1, rounds + 1)
        )
        own = OwnFigures(
            job.entry.dataset_id,
            released["epsilon-job"],
            released["epsilon-lifetime"],
            released["delta-lifetime"],
            seconds,
            rounds,
            job.entry.manifest.unit,
            released.get("scores"),
        )
        attestation, signature = check_and_sign(
            self._key(job.terms), job.terms, job.spec, own, model_hash(arrays), report_raw
        )
        path = self._job_folder(job.terms) / "attested.txt"
        signed = f"{attestation.model_hash.hex()} {attestation.report_hash.hex()}"
        if path.exists() and path.read_text() != signed:
            raise ProtocolError("this node has already signed another result of this job")
        path.write_text(signed)
        self.ledger.close_job(job_id)
        return {"accepted": True, "reason": "", "signature": signature}

    def _released(self, job_id: str, number: int) -> dict[str, Any]:
        """The metrics of a round as they left this node. Raises ProtocolError for a round that was
        not answered.
        """
        stored = self.ledger.reply(job_id, number)
        if stored is None:
            raise ProtocolError(f"no round of job {job_id[:12]} was answered by this node")
        return _metrics(stored)

    def release(self, job_id: str) -> dict[str, Any]:
        """Free what the job reserved and never ran; no further round of it will be answered."""
        job = self._job(job_id)
        self.ledger.close_job(job.id)
        return {"accepted": True, "reason": "", "signature": b""}


def _answer_from_json(text: str) -> dict[str, Any]:
    value = json.loads(text)
    return {**value, "signature": bytes.fromhex(value["signature"])}


def _checked(
    given: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """`given` in the order of `wanted`, if names, shapes and types agree and every number is
    finite.
    """
    if set(given) != set(wanted):
        raise ProtocolError(f"model: parameters must be {sorted(wanted)}")
    for name, array in given.items():
        if array.shape != wanted[name].shape or array.dtype != np.float32:
            raise ProtocolError(f"model: {name} must be float32 of shape {wanted[name].shape}")
        if not np.isfinite(array).all():
            raise ProtocolError(f"model: {name} holds a number that is not finite")
    return {name: np.ascontiguousarray(given[name]) for name in wanted}


def _pack(arrays: Mapping[str, np.ndarray], metrics: Mapping[str, Any]) -> bytes:
    head = json.dumps(metrics).encode()
    return len(head).to_bytes(4, "big") + head + to_safetensors(arrays)


def _metrics(stored: bytes) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads(stored[4 : 4 + int.from_bytes(stored[:4], "big")])
    return metrics


def _unpack(stored: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    return from_safetensors(stored[4 + int.from_bytes(stored[:4], "big") :]), _metrics(stored)


# -- Flower's side ---------------------------------------------------------------------------------


def _request(message: Message, **kinds: type) -> list[Any]:
    record = message.content.get(protocol.JOB)
    if not isinstance(record, ConfigRecord):
        raise ProtocolError("job: a ConfigRecord is missing")
    for name, kind in kinds.items():
        if type(record.get(name)) is not kind:
            raise ProtocolError(
                f"{name}={str(record.get(name))[:80]!r} must be of type {kind.__name__}"
            )
    return [record[name] for name in kinds]


def _answer(message: Message, answer: Mapping[str, Any]) -> Message:
    return Message(RecordDict({protocol.ANSWER: ConfigRecord(dict(answer))}), reply_to=message)


def make_app(room: DataRoom) -> ClientApp:
    """The ClientApp that answers for `room`. A refusal is an answer, not an exception: its sentence
    reaches the buyer.
    """
    app = ClientApp()

    def refusing(work: Any) -> Any:
        def handler(message: Message, context: Context) -> Message:
            try:
                return work(message)
            except (NodeError, BankError) as error:
                if isinstance(error, LedgerError):
                    log.error("ledger: %s", error)
                return _answer(message, {"accepted": False, "reason": str(error), "signature": b""})

        return handler

    def on_admit(message: Message) -> Message:
        terms, graph, weights = _request(message, terms=bytes, graph=bytes, weights=bytes)
        return _answer(message, room.admit(terms, graph, weights))

    def on_round(message: Message) -> Message:
        job_id, number, model = _request(message, job=str, round=int, model=bytes)
        arrays, metrics = room.train(job_id, number, from_safetensors(model))
        model = to_safetensors(arrays)
        return _answer(
            message, {"accepted": True, "reason": "", "signature": b"", "model": model, **metrics}
        )

    def on_evaluate(message: Message) -> Message:
        job_id, model = _request(message, job=str, model=bytes)
        metrics = room.evaluate(job_id, from_safetensors(model))
        return _answer(message, {"accepted": True, "reason": "", "signature": b"", **metrics})

    def on_attest(message: Message) -> Message:
        job_id, report, model = _request(message, job=str, report=bytes, model=bytes)
        return _answer(message, room.attest(job_id, from_safetensors(model), report))

    def on_release(message: Message) -> Message:
        (job_id,) = _request(message, job=str)
        return _answer(message, room.release(job_id))

    app.query(protocol.ADMIT.removeprefix("query."))(refusing(on_admit))
    app.train(protocol.ROUND.removeprefix("train."))(refusing(on_round))
    app.evaluate(protocol.EVALUATE.removeprefix("evaluate."))(refusing(on_evaluate))
    app.query(protocol.ATTEST.removeprefix("query."))(refusing(on_attest))
    app.query(protocol.RELEASE.removeprefix("query."))(refusing(on_release))
    return app
