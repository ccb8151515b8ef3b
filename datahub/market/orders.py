"""A quote: today's facts of the datasets, and terms with a price over them. Knows nothing of runs;
sends nothing.

A quote is only a proposal: the buyer works the terms out again (datahub/order.py) and pays for
nothing that differs.
"""

from __future__ import annotations

import secrets
from typing import Any

from datahub.errors import Conflict
from datahub.market import catalogue, offers, quotes
from datahub.market.desk import Desk
from datahub.market.tables import NodeRow
from datahub.order import Listed, Order, Venue, epsilon_of, terms_of
from datatokens.terms import JobTerms


def quote(desk: Desk, order: Order) -> tuple[JobTerms, float]:
    """Terms for the order at today's prices, and the epsilon that they really cost each hospital.

    What was checked is kept with the model's files, so that the job can start as soon as it is
    paid. Raises BadRequest, NotFound or Conflict.
    """
    listed = [_listed(desk, dataset_id) for dataset_id in order.datasets]
    config = desk.config
    terms = terms_of(
        order,
        listed,
        Venue(config.chain_id, config.market, config.fee_bps),
        salt=secrets.token_hex(32),
        deadline=desk.chain.now() + order.deadline_s,
    )
    offers.check(desk, terms)
    quotes.keep(desk, terms, order.graph, order.weights)
    return terms, epsilon_of(terms)


def _listed(desk: Desk, dataset_id: int) -> Listed:
    row = catalogue.dataset_row(desk, dataset_id)
    manifest = catalogue.manifest_of(row)
    with desk.session() as session:
        if session.get(NodeRow, row.node) is None:
            raise Conflict(f"dataset {dataset_id}: its node has not registered with this hub yet")
    return Listed(dataset_id, row.node, int(row.price_units), manifest)


def as_json(terms: JobTerms, epsilon: float) -> dict[str, Any]:
    """A quote as the API answers it: the exact terms document (text), and what it adds up to."""
    return {
        "terms": terms.to_json().decode(),
        "job_id": terms.job_id.hex(),
        "amount_units": terms.amount_units,
        "price_units": {str(d.dataset_id): d.price_units for d in terms.datasets},
        "compute_cap_units": {str(d.dataset_id): d.compute_cap_units for d in terms.datasets},
        "reward_units": terms.reward_units,
        "fee_units": terms.fee_units,
        "epsilon": epsilon,
        "deadline": terms.deadline,
    }
