"""What nodes will refuse, at the hub: only their own words are kept, and a quote goes by them."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest

from datahub.errors import BadRequest, Conflict
from datahub.market import offers, orders
from datahub.web.api import create_app
from datatokens.bindings.registry import State
from fl_client.node import offer as signing
from fl_client.node.offer import Offer
from tests.datahub.hub_world import HubWorld


def offer(hub: HubWorld, **changes: Any) -> Offer:
    """What hospital 0 says of its dataset."""
    now = int(time.time())
    facts: dict[str, Any] = {
        "dataset_id": hub.bank.dataset_ids[0],
        "node": hub.bank.node(0),
        "state": "open",
        "max_epsilon_per_job": 4.5,
        "epsilon_left": 8.0,
        "delta": 1e-5,
        "buyers": ("*",),
        "purposes": ("*",),
        "arbiters": (),
        "minimum_persons": 10,
        "longest_deadline_s": 86400,
        "max_job_minutes": 240,
        "operations_per_second": 1e10,
        "issued_at": now,
        "valid_until": now + 3600,
    }
    return Offer(**(facts | changes))


def put(hub: HubWorld, given: Offer, signer: int = 0, dataset_id: int | None = None) -> None:
    config, key = hub.desk.config, hub.bank.node_keys[signer]
    signature = signing.signed(given, config.chain_id, config.market, key)
    where = given.dataset_id if dataset_id is None else dataset_id
    offers.put_offer(hub.desk, where, given.to_json().decode(), signature.hex())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"purposes": ("care",)}, "purpose='research' is not allowed here; allowed: care"),
        ({"max_epsilon_per_job": 1.0}, "is more than the 1 that one job may cost here"),
        ({"epsilon_left": 0.8}, "is more than its lifetime budget leaves, at most 0.8"),
        ({"state": "paused"}, "it is paused and takes no job now"),
        ({"longest_deadline_s": 600}, "deadline: "),
        ({"delta": 1e-6}, "delta=1e-05 is larger than the 1e-06"),
        ({"buyers": ("0x" + "1" * 40,)}, "is not on this hospital's list"),
        ({"minimum_persons": 101}, "floor of 101 patients"),
    ],
)
def test_quote__a_node_has_said_that_it_will_refuse__conflict_names_dataset_and_rule(
    hub: HubWorld, changes: dict, said: str
) -> None:
    put(hub, offer(hub, **changes))
    with pytest.raises(Conflict, match=f"dataset {hub.bank.dataset_ids[0]} would refuse: ") as no:
        orders.quote(hub.desk, hub.order())
    assert said in str(no.value)
    put(hub, offer(hub, issued_at=int(time.time()) + 1))
    orders.quote(hub.desk, hub.order())


def test_quote__offer_has_run_out__is_not_asked(hub: HubWorld) -> None:
    now = int(time.time())
    put(hub, offer(hub, state="paused", issued_at=now - 100, valid_until=now - 1))
    orders.quote(hub.desk, hub.order())


def test_quote__paused_on_the_chain__conflict(hub: HubWorld) -> None:
    dataset = hub.bank.dataset_ids[1]
    registry = hub.bank.registry(hub.bank.hospitals[1])
    registry.set_state(dataset, State.PAUSED)
    with pytest.raises(Conflict, match=f"dataset {dataset} is paused and takes no job"):
        orders.quote(hub.desk, hub.order())
    registry.set_state(dataset, State.ACTIVE)
    orders.quote(hub.desk, hub.order())


def test_put_offer__anybody_else_s_word__refused(hub: HubWorld) -> None:
    first, second = hub.bank.dataset_ids[:2]
    with pytest.raises(BadRequest, match="the signature was made by"):
        put(hub, offer(hub), signer=1)
    with pytest.raises(BadRequest, match="is not the node key of dataset"):
        put(hub, offer(hub, node=hub.bank.node(1)), signer=1)
    with pytest.raises(BadRequest, match=f"it is for dataset {first}, not {second}"):
        put(hub, offer(hub), dataset_id=second)
    with pytest.raises(BadRequest, match="ahead of this hub's clock; set the node's clock"):
        put(hub, offer(hub, issued_at=int(time.time()) + 999, valid_until=int(time.time()) + 999))
    with pytest.raises(BadRequest, match="offer: "):
        offers.put_offer(hub.desk, first, "[" * 30_000, "00" * 65)
    assert offers.current(hub.desk, hub.bank.dataset_ids) == {}


def test_put_offer__an_older_one_again__refused(hub: HubWorld) -> None:
    new, old = offer(hub), offer(hub, issued_at=int(time.time()) - 50)
    put(hub, new)
    put(hub, new)  # the same again is
    with pytest.raises(Conflict, match="a newer one"):
        put(hub, replace(old, state="paused"))


def test_api__put_and_shown_in_the_catalogue__with_its_signature(hub: HubWorld) -> None:
    given, config = offer(hub), hub.desk.config
    signature = signing.signed(given, config.chain_id, config.market, hub.bank.node_keys[0])
    body = {"offer": given.to_json().decode(), "signature": signature.hex()}

    async def talk() -> tuple[list[int], list[dict[str, Any]]]:
        transport = httpx.ASGITransport(create_app(hub.desk, drive=False))
        async with httpx.AsyncClient(transport=transport, base_url="http://hub") as client:
            where = f"/api/v1/datasets/{given.dataset_id}/offer"
            asked = [(where, body), (where, body | {"signature": "x"})]
            asked.append(("/api/v1/datasets/99/offer", body))
            codes = [(await client.put(path, json=sent)).status_code for path, sent in asked]
            return codes, (await client.get("/api/v1/datasets")).json()

    codes, rows = asyncio.run(talk())
    assert codes == [200, 422, 404]
    shown = {row["dataset_id"]: row["offer"] for row in rows}
    document = dict(shown[given.dataset_id])
    raw = bytes.fromhex(document.pop("signature"))
    signing.check(Offer.from_dict(document), config.chain_id, config.market, raw)
    assert shown[hub.bank.dataset_ids[1]] is None
