"""Quotes: today's prices, the fee, the escrowed compute, and never more privacy than was asked
for."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from datahub.errors import BadRequest, Conflict, NotFound
from datahub.market import catalogue, orders
from datahub.market.tables import NodeRow
from datahub.order import MAX_MODEL_BYTES
from datatokens.terms import JobTerms
from fl_client.privacy import accounting, defaults
from fl_client.protocol import JobSpec
from tests.datahub.hub_world import FEE_BPS, HubWorld, manifest


def test_quote__three_datasets__prices_rewards_fee_and_capped_compute_add_up(hub: HubWorld) -> None:
    terms, epsilon = orders.quote(hub.desk, hub.order())
    prices = {d: hub.desk.registry.dataset(d).price_units for d in hub.bank.dataset_ids}
    assert {line.dataset_id: line.price_units for line in terms.datasets} == prices
    assert {line.compute_cap_units for line in terms.datasets} == {7 * 3}
    assert {line.node for line in terms.datasets} == {hub.bank.node(n) for n in range(3)}
    assert terms.fee_units == (sum(prices.values()) + 600) * FEE_BPS // 10_000
    assert terms.amount_units == sum(prices.values()) + 3 * 21 + 600 + terms.fee_units
    assert terms.quorum == 2 and terms.buyer == hub.bank.buyer.address
    assert JobTerms.from_json(terms.to_json()) == terms
    spec = JobSpec.from_dict(terms.spec)
    assert dict(spec.persons) == {1: 100, 2: 200, 3: 300}
    assert epsilon == accounting.epsilon(spec.plan.charges(), 1e-5) and 1.9 < epsilon <= 2.0


def test_quote__the_models_files__are_kept_by_their_hashes(hub: HubWorld) -> None:
    terms, _ = orders.quote(hub.desk, hub.order(graph=b"G", weights=b"W"))
    spec = JobSpec.from_dict(terms.spec)
    for content, digest in ((b"G", spec.graph_hash), (b"W", spec.weights_hash)):
        assert digest == hashlib.sha256(content).hexdigest()
        assert (hub.desk.config.models_folder / digest).read_bytes() == content


def test_quote__the_same_order_twice__is_two_jobs(hub: HubWorld) -> None:
    first, second = (orders.quote(hub.desk, hub.order())[0] for _ in range(2))
    assert first.job_id != second.job_id


def test_quote__paid_with_a_voucher__costs_no_money_there(hub: HubWorld) -> None:
    terms, _ = orders.quote(hub.desk, hub.order(vouchers=(2,)))
    assert {d.dataset_id: d.price_units == 0 for d in terms.datasets} == {
        1: False,
        2: True,
        3: False,
    }
    assert [d.dataset_id for d in terms.datasets if d.voucher] == [2]


def test_quote__no_quorum_given__is_everybody(hub: HubWorld) -> None:
    assert orders.quote(hub.desk, hub.order(quorum=None))[0].quorum == 3


def test_quote__a_built_in_model_and_nothing_else_named__the_default_plan_of_public_counts(
    hub: HubWorld,
) -> None:
    left_open = dict.fromkeys(
        ("rounds", "local_steps", "learning_rate", "clip_norm", "server_momentum", "server_rates")
    )
    terms, epsilon = orders.quote(hub.desk, hub.order(model=defaults.MODEL, **left_open))
    spec = JobSpec.from_dict(terms.spec)
    width = catalogue.manifest_of(hub.desk, catalogue.dataset_row(hub.desk, 1)).schema.width
    chosen = defaults.plan(defaults.MODEL, [100, 200, 300], width, 2.0, 1e-5)
    assert (spec.rounds, spec.local_steps) == (chosen.rounds, chosen.local_steps)
    assert spec.learning_rate == chosen.learning_rate
    assert spec.server_momentum == chosen.server_momentum == 0.5
    assert spec.server_rates == chosen.server_rates == {"bias": 4.0}
    assert spec.average_last == chosen.average_last == chosen.rounds // 2
    assert spec.plan.clip_norm == chosen.clip_norm and 1.9 < epsilon <= 2.0
    noise = spec.plan.metric_noise_multiplier
    assert spec.plan.metric_clip == defaults.metric_clip(noise, [100, 200, 300])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"datasets": ()}, "name at least one dataset"),
        ({"epsilon": 1e-9}, "epsilon"),
        ({"rounds": 0}, "rounds=0 must be a whole number from 1 to 1000"),
        ({"local_steps": 2000}, "local_steps=2000"),
        ({"deadline_s": 60}, "deadline_s=60"),
        ({"quorum": 4}, "quorum=4"),
        ({"buyer": "me"}, "buyer='me' must be an address"),
        ({"buyer_public_key": "11"}, "buyer_public_key='11' must be 64 hexadecimal digits"),
        ({"purpose": ""}, "purpose=''"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0"),
        ({"server_momentum": 1.0}, "server_momentum=1.0 must be a number from 0.0 to 0.99"),
        ({"server_rates": {"bias": 0.0}}, "=0.0 must be a number from 0.01 to 100"),
        ({"reward_units": -1}, "reward_units=-1"),
        ({"datasets": (1, 1)}, "node: each dataset of a job needs a node key of its own"),
        ({"graph": b"g" * (MAX_MODEL_BYTES + 1)}, "graph and weights may have"),
    ],
)
def test_quote__a_field_that_cannot_be__says_which_and_keeps_nothing(
    hub: HubWorld, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadRequest, match=sentence):
        orders.quote(hub.desk, hub.order(**changes))
    assert not hub.desk.config.models_folder.exists()


def test_quote__unknown_dataset_no_manifest_or_no_node__says_which(hub: HubWorld) -> None:
    with pytest.raises(NotFound, match="dataset_id=999 is not listed"):
        orders.quote(hub.desk, hub.order(datasets=(1, 999)))
    with hub.desk.session() as session:
        session.delete(session.get(NodeRow, hub.bank.node(2)))
        session.commit()
    with pytest.raises(Conflict, match="dataset 3: its node has not registered"):
        orders.quote(hub.desk, hub.order())


def test_quote__datasets_of_two_schemas__refuses(hub: HubWorld) -> None:
    schema = manifest(3).schema
    other = manifest(3, schema=replace(schema, features=schema.features[:1]))
    mine = hub.bank.registry(hub.bank.hospitals[2])
    mine.set_manifest(3, other.hash, "https://h3")
    try:
        catalogue.put_manifest(hub.desk, 3, other.as_dict())
        with pytest.raises(BadRequest, match="do not share one feature schema"):
            orders.quote(hub.desk, hub.order())
    finally:
        mine.set_manifest(3, manifest(3).hash, "https://h3")


def test_as_json__a_quote__carries_the_exact_document_and_its_sums(hub: HubWorld) -> None:
    terms, epsilon = orders.quote(hub.desk, hub.order())
    answer = orders.as_json(terms, epsilon)
    assert JobTerms.from_json(answer["terms"].encode()).job_id.hex() == answer["job_id"]
    parts = (*answer["price_units"].values(), *answer["compute_cap_units"].values())
    assert answer["amount_units"] == sum(parts) + answer["reward_units"] + answer["fee_units"]
