"""A quote: today's facts of the datasets, and terms with a price over them. Knows nothing of runs;
sends nothing.

A quote is only a proposal: the buyer works the terms out again (datahub/order.py) and pays for
nothing that differs.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from datahub.errors import BadRequest, Conflict
from datahub.market import catalogue, offers, quotes
from datahub.market.desk import Desk
from datahub.market.tables import NodeRow
from datahub.order import Listed, Order, Venue, epsilon_of, terms_of
from datatokens.bindings.storefront import job_units
from datatokens.errors import BankError, ChainUnreachable, NodeRefused
from datatokens.terms import JobTerms
from fl_client.errors import GraphRefused
from fl_client.node.policy import BUILT_IN
from fl_client.privacy.evaluation import expected_intervals
from fl_client.privacy.looks import is_one_yes_no
from fl_client.protocol import JobSpec


def quote(desk: Desk, order: Order) -> tuple[JobTerms, float]:
    """Terms for the order at today's prices, and the epsilon that they really cost each hospital.

    What was checked is kept with the model's files, so that the job can start as soon as it is
    paid. Raises BadRequest, NotFound or Conflict.
    """
    listed = [_listed(desk, dataset_id, order) for dataset_id in order.datasets]
    order = _with_model(order, listed)
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


def _with_model(order: Order, listed: Sequence[Listed]) -> Order:
    """The order with the files of a built-in model that is only named. Raises BadRequest."""
    if not listed:
        return order
    schema = listed[0].manifest.schema
    loss = order.loss or next(iter(schema.losses))
    if order.graph or order.weights:
        return replace(order, loss=loss)
    from fl_client.model.families import files  # loads torch, which nothing else here needs

    inputs = schema.inputs(loss) if loss in schema.losses else (0, 0)
    try:
        if len(inputs) != 1 or order.model not in BUILT_IN:
            raise GraphRefused(
                f"model={order.model!r}: without a graph it must be one of {', '.join(BUILT_IN)}, "
                "over tables; give the graph and weights of another one"
            )
        graph, weights = files(order.model, inputs[0], schema.losses[loss])
    except GraphRefused as error:
        raise BadRequest(str(error)) from error
    return replace(order, loss=loss, graph=graph, weights=weights)


def _listed(desk: Desk, dataset_id: int, order: Order) -> Listed:
    row = catalogue.dataset_row(desk, dataset_id)
    manifest = catalogue.manifest_of(desk, row)
    with desk.session() as session:
        if session.get(NodeRow, row.node) is None:
            raise Conflict(f"dataset {dataset_id}: its node has not registered with this hub yet")
    price, tier = int(row.price_units), order.tiers.get(dataset_id, 0)
    if tier:
        try:
            voucher = dataset_id in order.vouchers
            price = job_units(desk.registry, dataset_id, tier, order.buyer, voucher)
        except (ChainUnreachable, NodeRefused):
            raise  # passing
        except BankError as error:
            raise BadRequest(f"tiers: {error}") from error
    return Listed(dataset_id, row.node, price, manifest)


def as_json(terms: JobTerms, epsilon: float) -> dict[str, Any]:
    """A quote as the API answers it: the exact terms document (text), and what it adds up to;
    `interval95` is how wide the report's intervals must be expected to be (nearly 1: more noise
    than signal), {} where that is not known.
    """
    spec = JobSpec.from_dict(terms.spec)
    wide = {}
    if is_one_yes_no(spec.loss, spec.outputs):
        counts = list(spec.persons.values())
        expected = expected_intervals(counts, spec.plan.score_noise_multiplier).values()
        wide = {name: max(one[name] for one in expected) for name in ("accuracy", "auc")}
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
        "rounds": spec.rounds,
        "answer_by": spec.answer_by,
        "interval95": wide,
    }
