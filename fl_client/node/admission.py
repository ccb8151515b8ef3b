"""Whether a job may run here: paid, allowed, safe, affordable. Trust sits here.

Every message is hostile until checked. Order of checks before any data is touched: paid (own chain
connection), allowed (owner's policy), safe (model as data, dry run), affordable (ledger reserves
the worst case of the whole job). No answer depends on the records: counts are the released ones.
Knows nothing of how messages arrive (handlers.py) or what an admitted job does (rounds.py).
"""

from __future__ import annotations

import logging
from dataclasses import replace

from datatokens.bindings.storefront import Storefront
from datatokens.errors import BankError, TermsError, TransactionRefused
from datatokens.terms import DatasetTerm, JobTerms, acceptance_message, rejection_message, sign
from fl_client.errors import NodeError, ProtocolError, Refusal
from fl_client.model.fit import check_fit
from fl_client.model.graph import GraphModel, load_model
from fl_client.node import limits
from fl_client.node.entries import DatasetEntry
from fl_client.node.policy import Request
from fl_client.node.policy import admit as allow
from fl_client.node.room import DataRoom
from fl_client.privacy import accounting, costs, selfcheck
from fl_client.privacy.slots import needed
from fl_client.privacy.training import LOSSES
from fl_client.protocol import MAX_REASON, JobSpec, Refused, Signed, sha256_hex

log = logging.getLogger("datahub.node")

MINIMUM_TIME_LEFT_S = 60
NOT_NOW = "this hospital's node cannot answer now; ask again later"


def admit(room: DataRoom, raw_terms: bytes, graph: bytes, weights: bytes) -> Signed | Refused:
    """The node's signed answer to a job: an acceptance, or a refusal with one sentence. Asked
    again, the same.

    A refusal is signed only for a job that is paid, since its only use is to send that money
    back.
    """
    try:
        terms = JobTerms.from_json(raw_terms)
    except TermsError as error:
        return Refused(f"terms: {error}"[:MAX_REASON])
    folder = room.folder(terms.job_id.hex())
    if known := folder.answer:
        return known
    paid = False
    answer: Signed | Refused
    try:
        room.refresh()
        room.check_evidence()
        room.free_overdue()
        entry = _check_paid(room, terms)
        paid = True
        _check_job(room, terms, entry, graph, weights)
    except (Refusal, TransactionRefused) as error:  # a contract's no is a decision too
        reason = str(error)[:MAX_REASON]
        log.warning("refused job %s: %s", terms.job_id.hex()[:12], reason)
        if not paid:
            return Refused(reason)  # neither signed nor remembered: the money may come later
        answer = Refused(reason, sign(rejection_message(terms, reason), room.key(terms)))
    except (NodeError, BankError) as error:
        # the node's own trouble decides nothing about a job, and is nobody else's business
        log.error("no answer to job %s: %s", terms.job_id.hex()[:12], error)
        return Refused(NOT_NOW)
    else:
        log.info("accepted job %s for dataset %s", terms.job_id.hex()[:12], entry.dataset_id)
        answer = Signed(sign(acceptance_message(terms), room.key(terms)))
    folder.keep(raw_terms, graph, weights, answer)
    return answer


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


def _check_job(
    room: DataRoom, terms: JobTerms, entry: DatasetEntry, graph: bytes, weights: bytes
) -> None:
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
    request = Request(
        buyer=terms.buyer,
        purpose=spec.purpose,
        epsilon=accounting.epsilon(charges, spec.plan.delta),
        delta=spec.plan.delta,
        persons=manifest.persons,  # as released: the true count must not decide an answer
        deadline_s=terms.deadline - room.chain.now(),
        arbiter=terms.dispute.arbiter if terms.dispute else None,
    )
    policy = room.config.policy
    floor = max(policy.minimum_persons, manifest.minimum_persons)
    allow(replace(policy, minimum_persons=floor), request, manifest.delta)
    safe_model(room, spec, entry, graph, weights, request.deadline_s)
    room.ledger.reserve(
        entry.name, terms.job_id.hex(), charges, terms.buyer, policy.reservations_per_buyer
    )


def _check_price(room: DataRoom, terms: JobTerms, entry: DatasetEntry) -> None:
    """The owner's price on the chain, one datatoken or an order that still runs; and the
    published price of compute,
    one minute at least."""
    line = terms.datasets[terms.index_of_dataset(entry.dataset_id)]
    tier = room.registry.tier(entry.dataset_id, line.tier)
    if tier.closed:
        raise ProtocolError(
            f"tier={line.tier} of dataset {entry.dataset_id} is closed; ask for a new quote"
        )
    paid_otherwise = line.voucher or (line.price_units == 0 and _has_order(room, terms.buyer, line))
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
    spec: JobSpec,
    entry: DatasetEntry,
    graph: bytes,
    weights: bytes,
    left_s: float | None = None,
) -> GraphModel:
    """The model, checked and measured, in a minute at the most; `left_s` seconds until the deadline
    of a job that is new. Raises Refusal, or Stopping.
    """
    for name, content in (("graph_hash", graph), ("weights_hash", weights)):
        if sha256_hex(content) != getattr(spec, name):
            raise ProtocolError(
                f"{name}: the file that was sent is not the one that the terms name"
            )
    # by the manifest, not by the rows: whether anybody has two records must not decide
    persons, records = entry.manifest.persons, entry.manifest.records_per_patient
    engine, policy = room.config.engine, room.config.policy
    with limits.of_admission(room):
        model = load_model(graph, weights)
        check_fit(model, spec.loss, entry.manifest.schema.shape)
        loss = LOSSES[spec.loss]
        if left_s is not None:
            found = costs.costs(model, loss, spec.plan, spec.rounds, persons, records, engine)
            costs.refuse(found, policy.max_job_minutes, policy.max_memory_gb, left_s)
        slots = needed(persons, spec.plan.sampling_rate)
        selfcheck.check(model, loss, slots, records, engine)
    return model
