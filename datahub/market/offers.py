"""What nodes say that they will refuse (fl_client/node/offer.py): kept if it is signed by the
dataset's node key, shown in the catalogue, and asked at a quote. Knows nothing of jobs or runs.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from sqlmodel import col, select

from datahub.errors import BadRequest, Conflict, NotFound
from datahub.market import entries
from datahub.market.desk import Desk
from datahub.market.tables import OfferRow
from datatokens.bindings.registry import State
from datatokens.errors import SignatureError, TermsError, TransactionRefused
from datatokens.terms import JobTerms
from fl_client.errors import NodeError
from fl_client.node import offer as offers
from fl_client.node.offer import Offer

AHEAD_S = 120  # of this clock that a node's may be


def _now() -> int:
    return int(time.time())


def put_offer(desk: Desk, dataset_id: int, text: str, signature: str) -> None:
    """Keep the newest offer of a dataset. Raises BadRequest for one that is malformed, of another
    dataset or key, from the future or badly signed; NotFound; Conflict for an older one.
    """
    try:
        offer = Offer.from_json(text.encode())
        raw = bytes.fromhex(signature)
    except (TermsError, ValueError) as error:
        raise BadRequest(f"offer: {error}") from error
    try:
        node = desk.registry.dataset(dataset_id).node
    except TransactionRefused as error:
        raise NotFound(f"dataset_id={dataset_id} is not listed") from error
    if offer.dataset_id != dataset_id:
        raise BadRequest(f"offer: it is for dataset {offer.dataset_id}, not {dataset_id}")
    if offer.node != node:
        raise BadRequest(f"offer: {offer.node} is not the node key of dataset {dataset_id}")
    if offer.issued_at > _now() + AHEAD_S:
        raise BadRequest(
            f"offer: issued_at={offer.issued_at} is {offer.issued_at - _now()} s ahead of this "
            "hub's clock; set the node's clock (NTP)"
        )
    try:
        offers.check(offer, desk.config.chain_id, desk.config.market, raw)
    except SignatureError as error:
        raise BadRequest(f"offer: {error}") from error
    with desk.session() as session:
        kept = session.get(OfferRow, dataset_id)
        if kept is not None and kept.issued_at > offer.issued_at:
            raise Conflict(f"offer: a newer one of dataset {dataset_id} is here already")
        session.merge(
            OfferRow(
                dataset_id=dataset_id,
                document=text,
                signature=raw.hex(),
                issued_at=offer.issued_at,
            )
        )
        session.flush()
        entries.refresh(session, [dataset_id])
        session.commit()


def current(desk: Desk, only: Collection[int]) -> dict[int, dict[str, Any]]:
    """Dataset -> its offer with the signature under it, of those of `only` that are still good."""
    with desk.session() as session:
        rows = session.exec(select(OfferRow).where(col(OfferRow.dataset_id).in_(only))).all()
    found = ((Offer.from_json(row.document.encode()), row.signature) for row in rows)
    return {
        offer.dataset_id: {**asdict(offer), "signature": signature}
        for offer, signature in found
        if offer.valid_until > _now()
    }


def check(desk: Desk, terms: JobTerms, operations: Mapping[int, float] | None = None) -> None:
    """Returns if no node has said that it will refuse these terms; `operations` of the job at each
    dataset, where they are known. Raises Conflict naming dataset and rule.
    """
    for line in terms.datasets:
        state = desk.registry.standing(line.dataset_id).state
        if state is not State.ACTIVE:
            raise Conflict(f"dataset {line.dataset_id} is {state.name.lower()} and takes no job")
        with desk.session() as session:
            row = session.get(OfferRow, line.dataset_id)
        if row is None:
            continue
        offer = Offer.from_json(row.document.encode())
        if offer.valid_until <= _now() or offer.node != line.node:
            continue
        work = (operations or {}).get(line.dataset_id)
        try:
            job = offers.asked(terms, line.dataset_id, offer.delta, desk.chain.now(), work)
        except NodeError as error:
            raise BadRequest(str(error)) from error
        if found := offers.objections(offer, job):
            raise Conflict(f"dataset {line.dataset_id} would refuse: {found[0]}")
