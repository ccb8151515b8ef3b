"""Whether a job may run here: paid, allowed, affordable, safe, and wanted. Trust sits here.

Every message is hostile until checked. Order of checks before any data is touched: paid (own chain
connection), allowed (owner's policy), affordable (the ledger has room for the worst case of the
whole job), safe (model as data, dry run, in a worker), wanted (a rule of the owner's takes it, or a
person does). Then the ledger reserves, and only then the answer is signed. No answer depends on the
records: counts are the released ones.
Knows nothing of how messages arrive (handlers.py) or what an admitted job does (rounds.py).
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from datatokens.bindings.storefront import Storefront
from datatokens.errors import BankError, TermsError, TransactionRefused
from datatokens.terms import (
    DatasetTerm,
    JobTerms,
    acceptance_message,
    canonical_json,
    rejection_message,
    sign,
)
from fl_client.errors import NodeError, PolicyRefusal, ProtocolError, Refusal
from fl_client.model.families import graph_hash
from fl_client.node import gate, limits
from fl_client.node.entries import DatasetEntry
from fl_client.node.inbox import of, room_for, rule_for, until, verdict
from fl_client.node.job_folder import JobFolder, of_each
from fl_client.node.policy import BUILT_IN, TWO_PERSONS, Request, may_begin
from fl_client.node.policy import admit as allow
from fl_client.node.purposes import match
from fl_client.node.room import DataRoom
from fl_client.privacy import accounting
from fl_client.privacy.slots import CHECK_SECONDS
from fl_client.protocol import MAX_REASON, JobSpec, Refused, Signed, Waiting, sha256_hex
from fl_client.worker.tasks import Check
from fl_client.worker.workers import Facts, Job

log = logging.getLogger("datahub.node")

MINIMUM_TIME_LEFT_S = 60
MONTH_S = 30 * 24 * 3600
MOST_OF_BUYER = 50  # jobs of a buyer that are looked up on the chain
NOT_NOW = "this hospital's node cannot answer now; ask again later"


Answer = Signed | Refused | Waiting


def admit(room: DataRoom, raw_terms: bytes, graph: bytes, weights: bytes) -> Answer:
    """The node's answer to a job: a signed acceptance, a refusal with one sentence, or that a
    person decides. Asked again, the same, or what has become of it.

    A refusal is signed only for a job that is paid, since its only use is to send that money
    back.
    """
    try:
        terms = JobTerms.from_json(raw_terms)
    except TermsError as error:
        return Refused(f"terms: {error}"[:MAX_REASON])
    return _answer(room, terms, raw_terms, lambda: (graph, weights))


def ask(room: DataRoom, job_id: str) -> Answer:
    """What has become of a job that waits here. Raises ProtocolError for one that was not sent."""
    folder = room.folder(job_id)
    if (terms := folder.terms) is None:
        raise ProtocolError(f"job {job_id[:12]} was not sent to this node")
    return _answer(room, terms, terms.to_json(), lambda: folder.model_files)


def _answer(
    room: DataRoom, terms: JobTerms, raw: bytes, files: Callable[[], tuple[bytes, bytes]]
) -> Answer:
    folder = room.folder(terms.job_id.hex())
    if known := folder.answer:
        return known
    if folder.request is None:
        return _answer_now(room, terms, raw, files)
    with folder.locked():  # nobody's word comes between what was said and the answer to it
        return folder.answer or _answer_now(room, terms, raw, files)


def _answer_now(
    room: DataRoom, terms: JobTerms, raw: bytes, files: Callable[[], tuple[bytes, bytes]]
) -> Answer:
    job = terms.job_id.hex()
    folder = room.folder(job)
    paid, by = False, ""
    answer: Signed | Refused
    try:
        room.refresh()
        facts = folder.request
        if facts is not None and (still := _still_waits(room, terms, facts)):
            return still
        room.check_evidence()
        room.free_overdue()
        entry = _check_paid(room, terms)
        paid = True
        request = _check_job(room, terms, entry)
        if facts is None:
            facts = _check_model(room, terms, entry, request, *files())
        found = said_of(room, terms, entry.dataset_id, facts["seconds"], request)
        if found.waits is not None:
            if folder.request is None:
                most = room.config.policy_of(entry.dataset_id).reservations_per_buyer
                room_for(room.config.folder, sum(map(len, files())), terms.buyer, most)
                why = found.waits.reason
                room.log.note("waiting", **_who(terms, entry.dataset_id), reason=why)
                so_far = _buyer_so_far(room, terms.buyer)
                folder.keep_request(raw, *files(), facts | {"by": found.by, "so_far": so_far})
                log.info("job %s waits: %s", job[:12], why)
                room.tell_people(terms, found.waits)
            return found.waits
        by = found.by
        _check_time_left(terms, facts["seconds"], room.chain.now())
        charges = JobSpec.from_dict(terms.spec).plan.charges()
        most = room.config.policy_of(entry.dataset_id).reservations_per_buyer
        room.ledger.reserve(entry.name, job, charges, terms.buyer, most)
        room.log.note(
            "accepted",
            **_who(terms, entry.dataset_id),
            by=by,
            cohort=room.cohort_of(entry),
            policy=asdict(room.config.policy_of(entry.dataset_id)),
            epsilon_job=request.epsilon,
            epsilon_before=facts["epsilon_before"],
            epsilon_after=request.epsilon_lifetime,
        )
    except (Refusal, TransactionRefused) as error:  # a contract's no is a decision too
        reason = gate.sentence(room.config, error)
        log.warning("refused job %s: %s", job[:12], reason)
        if not paid:
            return Refused(reason)  # neither signed nor remembered: the money may come later
        try:
            room.log.note("refused", **_who(terms, room.line(terms).dataset_id), reason=reason)
        except (NodeError, OSError) as trouble:
            log.error("no answer to job %s: %s", job[:12], trouble)
            return Refused(NOT_NOW)
        answer = Refused(reason, sign(rejection_message(terms, reason), room.key(terms)))
    except (NodeError, BankError, OSError) as error:
        # the node's own trouble decides nothing about a job, and is nobody else's business
        log.error("no answer to job %s: %s", job[:12], error)
        return Refused(NOT_NOW)
    else:
        log.info("accepted job %s for dataset %s, by %s", job[:12], entry.dataset_id, by)
        answer = Signed(sign(acceptance_message(terms), room.key(terms)))
    folder.keep(raw, *files(), answer, by)
    return answer


def _who(terms: JobTerms, dataset_id: int) -> dict[str, Any]:
    """What every line of the log about an admission says."""
    return {
        "job": terms.job_id.hex(),
        "dataset": dataset_id,
        "buyer": terms.buyer,
        "terms_hash": terms.spec_hash.hex(),
    }


@dataclass(frozen=True)
class Said:
    """Who or what says yes ("": nobody yet), and what the job waits for, if it does."""

    by: str
    waits: Waiting | None


def _still_waits(room: DataRoom, terms: JobTerms, facts: Mapping[str, Any]) -> Waiting | None:
    """That a job which waits has to wait on, by what people have said: nothing else about it is
    looked at until it may begin, as what is in its way now (a paused dataset) may be gone by then.
    """
    try:
        return said_of(room, terms, facts["dataset_id"], facts["seconds"], by=facts["by"]).waits
    except PolicyRefusal:
        return None  # that is an answer, and signed


def said_of(
    room: DataRoom,
    terms: JobTerms,
    dataset_id: int,
    seconds: float,
    request: Request | None = None,
    by: str = "",
) -> Said:
    """What rules and people say of a job that takes so many seconds; without a `request` no rule is
    looked at, and `by` is the one that took it before. Raises PolicyRefusal for a no, and where
    nobody has said anything in time.
    """
    config, policy = room.config, room.config.policy_of(dataset_id)
    end, now = until(terms, seconds), room.chain.now()
    said = room.folder(terms.job_id.hex()).decisions()
    # what no program can know (an ethics approval, a kind of a disease) is never a rule's yes
    if request is not None and not said and not match(policy.permits, request.purpose_codes)[1]:
        rule = rule_for(config.rules, config.folder, dataset_id, request)
        by = of(rule) if rule is not None else ""
    if said or not by:
        people = verdict(said, policy.approval, end, now)
        if people is None:
            need = "two persons" if policy.approval == TWO_PERSONS else "a person"
            return Said("", Waiting(end, f"{need} at this hospital must say yes first"))
        by = ", ".join(people)
    here = datetime.now().astimezone()
    if not may_begin(policy.begin, here.weekday(), 60 * here.hour + here.minute):
        when = ", ".join(policy.begin)
        if now > end:
            raise PolicyRefusal(f"no job could begin here in time; they begin {when}")
        return Said(by, Waiting(end, f"it was allowed; jobs begin {when} here"))
    return Said(by, None)


def _check_time_left(terms: JobTerms, seconds: float, now: int) -> None:
    """A yes may come late. Raises PolicyRefusal where the job no longer fits."""
    left = terms.deadline - now
    if seconds > left:
        raise PolicyRefusal(
            f"deadline: this job takes {seconds / 60:.1f} minutes here, and {left / 60:.1f} "
            "minutes are left"
        )


def _check_paid(room: DataRoom, terms: JobTerms) -> DatasetEntry:
    """Paid: this chain, this escrow, exactly these terms, money still there, time left, our
    dataset.
    """
    if terms.chain_id != room.config.chain_id or terms.market != room.config.market:
        raise ProtocolError(
            f"the terms are for chain {terms.chain_id} and market {terms.market}; this node "
            "serves "
            f"chain {room.config.chain_id} and market {room.config.market}"
        )
    line = room.line(terms)
    entry = room.dataset(line.dataset_id)
    if entry is None:
        raise ProtocolError(f"dataset_id={line.dataset_id} is not served by this node")
    job = room.escrow.job(terms.job_id)
    if job.status != "funded":
        raise ProtocolError(
            "the escrow holds no money for exactly these terms (job "
            f"{terms.job_id.hex()[:12]}, status {job.status})"
        )
    left = terms.deadline - room.chain.now()
    if left < MINIMUM_TIME_LEFT_S:
        raise ProtocolError(
            f"deadline: {left} s are left, at least {MINIMUM_TIME_LEFT_S} are needed"
        )
    return entry


def _check_job(room: DataRoom, terms: JobTerms, entry: DatasetEntry) -> Request:
    """What the job asks, where all of it is allowed and affordable now. Raises Refusal."""
    spec = JobSpec.from_dict(terms.spec)
    manifest = entry.manifest
    if spec.schema_hash != manifest.schema.hash:
        raise ProtocolError(
            f"schema_hash={spec.schema_hash[:12]}… is not the schema of dataset {entry.dataset_id}"
        )
    if set(spec.persons) != {line.dataset_id for line in terms.datasets}:
        raise ProtocolError("persons must name exactly the datasets of the job")
    if spec.persons[entry.dataset_id] != manifest.persons:
        raise ProtocolError(
            f"persons={spec.persons[entry.dataset_id]} must be {manifest.persons} for dataset "
            f"{entry.dataset_id}"
        )
    # what the market will not take must not be trained: it would never be paid
    line = room.line(terms)
    room.registry.check_acceptance(entry.dataset_id, line.node, terms.buyer, room.config.market)
    _check_price(room, terms, entry)
    charges = spec.plan.charges()
    policy = room.config.policy_of(entry.dataset_id)
    others = [str(one.dataset_id) for one in terms.datasets if one.dataset_id != entry.dataset_id]
    job = terms.job_id.hex()
    month = room.ledger.charged_since(entry.name, time.time() - MONTH_S, besides=job)
    request = Request(
        buyer=terms.buyer,
        purpose=spec.purpose,
        epsilon=accounting.epsilon(charges, spec.plan.delta),
        delta=spec.plan.delta,
        persons=manifest.persons,  # as released: the true count must not decide an answer
        deadline_s=terms.deadline - room.chain.now(),
        arbiter=terms.dispute.arbiter if terms.dispute else None,
        purpose_codes=spec.purpose_codes,
        loss=spec.loss,
        graph=spec.graph_hash,
        family=_family(room, entry, spec),
        partners=tuple(others),
        price_units=line.price_units or None,
        epsilon_month=accounting.epsilon([*month, *charges], manifest.delta),
    )
    floor = max(policy.minimum_persons, manifest.minimum_persons)
    policy = replace(policy, minimum_persons=floor)
    allow(policy, request, manifest.delta)
    _, lifetime = room.ledger.forecast(entry.name, job, charges)
    request = replace(request, epsilon_lifetime=lifetime)
    allow(policy, request, manifest.delta)
    return request


def _family(room: DataRoom, entry: DatasetEntry, spec: JobSpec) -> str:
    """The built-in model that the job's graph is, of those that the owner has written by name."""
    inputs = entry.manifest.schema.inputs(spec.loss)
    asked = [room.config.policy_of(entry.dataset_id).models, *(r.models for r in room.config.rules)]
    for name in BUILT_IN:
        wanted = len(inputs) == 1 and any(name in models for models in asked)
        if wanted and graph_hash(name, inputs[0], spec.outputs) == spec.graph_hash:
            return name
    return ""


def _buyer_so_far(room: DataRoom, buyer: str) -> dict[str, Any]:
    """What is known of a buyer: jobs on this market by what became of them, the newest
    MOST_OF_BUYER, and what this node has answered. Raises BankError.
    """
    jobs = list(room.escrow.created_by(buyer))
    on_chain = Counter(str(room.escrow.job(job).status) for job in jobs[-MOST_OF_BUYER:])

    def answered(one: JobFolder) -> str | None:
        if (terms := one.terms) is None or terms.buyer != buyer:
            return None
        return "waiting" if (answer := one.answer) is None else _kind(answer)

    here = Counter(of_each(room.config.folder, answered)[0])
    return {"jobs": len(jobs), "on_chain": dict(on_chain), "here": dict(here)}


def _kind(answer: Signed | Refused) -> str:
    return "accepted" if isinstance(answer, Signed) else "refused"


def _check_model(
    room: DataRoom,
    terms: JobTerms,
    entry: DatasetEntry,
    request: Request,
    graph: bytes,
    weights: bytes,
) -> dict[str, Any]:
    """What a person is told of a job whose model may be trained. Raises Refusal."""
    job, spec = terms.job_id.hex(), JobSpec.from_dict(terms.spec)
    model = safe_model(room, job, spec, entry, graph, weights, request.deadline_s)
    before, after = room.ledger.forecast(entry.name, job, spec.plan.charges())
    policy = room.config.policy_of(entry.dataset_id)
    return {
        "dataset_id": entry.dataset_id,
        "at": time.time(),
        "epsilon": request.epsilon,
        "epsilon_before": before,
        "epsilon_after": after,
        "parameters": {name: list(shape) for name, shape in model.shapes.items()},
        "frozen": sorted(model.frozen),
        "operations": [list(one) for one in model.operations],
        "work": model.work,
        "seconds": model.seconds,
        "look_at": match(policy.permits, spec.purpose_codes)[1],
    }


def _check_price(room: DataRoom, terms: JobTerms, entry: DatasetEntry) -> None:
    """The owner's price on the chain, one datatoken or an order that still runs; and the published
    price of compute, one minute at least. A price of 0 is a free job in tier 0, and in another one
    no sale: its datatokens are given to whom the owner likes.
    """
    line = terms.datasets[terms.index_of_dataset(entry.dataset_id)]
    tier = room.registry.tier(entry.dataset_id, line.tier)
    if tier.closed:
        raise ProtocolError(
            f"tier={line.tier} of dataset {entry.dataset_id} is closed; ask for a new quote"
        )
    paid_otherwise = line.voucher or (line.price_units == 0 and _has_order(room, terms.buyer, line))
    if line.tier and not tier.price_units and not paid_otherwise:
        raise ProtocolError(
            f"tier={line.tier} of dataset {entry.dataset_id} is not sold; pay with its datatoken, "
            "or order by one first"
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


def _has_order(room: DataRoom, buyer: str, line: DatasetTerm) -> bool:
    shop = Storefront(room.chain, room.registry.storefront())
    return shop.order_expiry(line.dataset_id, line.tier, buyer) > room.chain.now()


def safe_model(
    room: DataRoom,
    job_id: str,
    spec: JobSpec,
    entry: DatasetEntry,
    graph: bytes,
    weights: bytes,
    left_s: float | None = None,
) -> Facts:
    """What is known of the model, which a worker has checked and measured, in a minute at the most;
    `left_s` seconds until the deadline of a job that is new. Raises Refusal, or Stopping.
    """
    for name, content in (("graph_hash", graph), ("weights_hash", weights)):
        if sha256_hex(content) != getattr(spec, name):
            raise ProtocolError(
                f"{name}: the file that was sent is not the one that the terms name"
            )
    return room.workers.check(
        work_of(room, job_id, spec, entry, lambda: (graph, weights), left_s),
        CHECK_SECONDS,
        limits.of_admission(room),
    )


def work_of(
    room: DataRoom,
    job_id: str,
    spec: JobSpec,
    entry: DatasetEntry,
    files: Callable[[], tuple[bytes, bytes]],
    left_s: float | None = None,
) -> Job:
    """A job as its worker is told of it; `files` gives its graph and weights where they are wanted.

    By the manifest, not by the rows: whether anybody has two records must not decide.
    """
    policy = room.config.policy_of(entry.dataset_id)
    manifest, engine = entry.manifest, room.config.engine

    def check() -> Check:
        return Check(
            canonical_json(spec.as_dict()),
            canonical_json(manifest.schema.as_dict()),
            *files(),
            manifest.persons,
            manifest.records_per_patient,
            engine,
            policy.max_job_minutes,
            policy.max_memory_gb,
            -1.0 if left_s is None else float(left_s),
        )

    return Job(
        job_id, check, policy.max_job_minutes, policy.max_memory_gb, policy.threads, policy.gpu
    )
