"""What a buyer's program sees of a market: datasets in words, without a key; jobs, with one."""

from __future__ import annotations

import inspect
import threading
from pathlib import Path
from typing import get_type_hints

import pytest

import datahub
from datahub import Market
from datahub.buyer import job_store, jobs, networks
from datahub.buyer.hub_client import Hub
from datahub.buyer.jobs import Job
from datahub.buyer.search import Dataset
from datahub.errors import BadRequest, HubError, NotFound, OrderRefused
from datahub.market import catalogue
from datahub.market.tables import JobRow
from datatokens.chain.rpc_server import accounts
from datatokens.terms import canonical_json
from tests.datahub.hub_world import FEE_BPS, SCHEMA, HubWorld
from tests.faults.crashes import hospitals_work


@pytest.fixture
def market(hub: HubWorld, hub_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Market:
    monkeypatch.setenv("DATAHUB_HOME", str(tmp_path / "home"))
    made = hub.bank.deployment
    networks.pin(networks.Network("here", hub_url, hub.bank.url, FEE_BPS, made))
    return Market(hub_url, chain=hub.bank.url, key=accounts()[1][1])


def test_search__without_a_key__finds_datasets_and_says_them_in_words(
    hub: HubWorld, hub_url: str
) -> None:
    hub.connect(1)
    looking = Market(hub_url)
    every = looking.search()
    assert [one.id for one in every] == hub.bank.dataset_ids
    (one,) = looking.search("TABLE 2 age")
    assert isinstance(one, Dataset) and (one.name, one.hospital) == ("Table 2", "Hospital 2")
    assert (one.unit, one.target, one.persons, one.online) == ("record", "ill", 200, True)
    assert one.learns == "1 where it is above 0.5, else 0"
    assert [(c.name, c.kind, c.inputs) for c in one.columns] == [
        ("age", "number", "(x - 55) / 10"),
        ("sex", "number", "(x - 0.5) / 0.5"),
    ]
    assert one.schema_hash == SCHEMA.hash and one.schema == SCHEMA
    assert [d.id for d in looking.search(online=True)] == [2]
    assert [d.id for d in looking.search(online=False)] == [1, 3]
    assert looking.search(unit="record") == every and looking.search(unit="patient") == []
    dearest = max(one.price_units for one in every)
    assert looking.search(max_price_units=dearest) == every
    assert looking.search(max_price_units=dearest - 1) == [
        one for one in every if one.price_units < dearest
    ]
    assert looking.search("nobody has this") == []
    with pytest.raises(BadRequest, match="unit='cell' must be patient or record"):
        looking.search(unit="cell")


def test_search__a_dataset_without_a_manifest__is_none_to_order(
    hub: HubWorld, hub_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = catalogue.listing(hub.desk, hub.bank.dataset_ids)
    rows[0]["manifest"], rows[1]["manifest"] = None, {"version": 2, "unit": "patient"}
    monkeypatch.setattr(Hub, "rows", lambda *_, **__: rows)
    assert [one.id for one in Market(hub_url).search()] == [3]


def test_market__without_a_key__says_that_it_can_only_search(hub_url: str) -> None:
    with pytest.raises(OrderRefused, match="opened without a key, to search"):
        Market(hub_url).quote([1], epsilon=1.0, purpose="research")
    for half in ({"key": accounts()[1][1]}, {"chain": "http://127.0.0.1:1"}):
        with pytest.raises(OrderRefused, match="give both to buy, or neither to search"):
            Market(hub_url, **half)


def test_quote__datasets_as_they_were_found__are_ordered_by_the_quote_itself(
    hub: HubWorld, market: Market
) -> None:
    found = market.search("table")
    quote = market.quote(found, epsilon=2.0, purpose="research", rounds=2)
    assert {line.dataset_id for line in quote.terms.datasets} == {one.id for one in found}
    assert accounts()[1][1] not in repr(quote)
    job = quote.order()
    assert isinstance(job, Job) and job.on_chain == "funded"
    assert job.status()["state"] == "funded"
    kept = job_store.kept(job.id)
    assert kept and kept.schema == canonical_json(SCHEMA.as_dict())


def test_schema_of_a_job__lost_from_the_disk__comes_from_the_hub_and_is_checked(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    quote = market.quote([1, 2], epsilon=2.0, purpose="research", rounds=2)
    job = quote.keep()
    path = job_store.jobs_folder() / job.id / job_store.SCHEMA
    right = path.read_bytes()
    path.write_bytes(right.replace(b"55", b"65"))  # a schema of another scale
    assert job._schema() == right
    path.unlink()  # as of a job that was kept before schemas were
    assert job._schema() == right
    real = Hub.call

    class Lie:
        content = right.replace(b"55", b"65")

    def lying(self: Hub, method: str, where: str, json: object = None) -> object:
        return Lie() if "/api/v1/schemas/" in where else real(self, method, where, json)

    monkeypatch.setattr(Hub, "call", lying)
    with pytest.raises(OrderRefused, match="is not the one in its terms"):
        job._schema()


def test_schema_of_a_job__whose_datasets_have_another_by_now__is_gone_and_nothing_else_is(
    hub: HubWorld, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = market.quote([1, 2], epsilon=2.0, purpose="research", rounds=2).keep()
    (job_store.jobs_folder() / job.id / job_store.SCHEMA).unlink()

    def gone(*_: object) -> bytes:
        raise NotFound(f"schema {SCHEMA.hash} is of no dataset here")

    monkeypatch.setattr(catalogue, "schema", gone)
    assert job._schema() == b""
    with pytest.raises(HubError, match="is of no dataset here"):
        market.hub.call("GET", f"/api/v1/schemas/{SCHEMA.hash}")


def test_result__a_hub_that_is_behind_the_chain__is_waited_for(
    hub: HubWorld, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = market.quote([1, 2, 3], epsilon=2.0, purpose="research", rounds=2).order()
    hospitals_work(hub)
    assert job.on_chain == "settled"

    def row(state: str) -> None:
        with hub.desk.session() as session:
            found = session.get(JobRow, job.id)
            assert found is not None
            found.state = state
            session.add(found)
            session.commit()

    row("attested")
    monkeypatch.setattr(jobs, "BEHIND_S", 0.5)
    with pytest.raises(HubError, match="its result is given out once it is settled"):
        job.result()
    monkeypatch.setattr(jobs, "BEHIND_S", 20.0)
    later = threading.Timer(0.5, row, ["settled"])
    later.start()
    assert job.result().report
    later.join()


def test_public_names__of_the_package__are_these_and_typed() -> None:
    assert datahub.__all__ == ["Market", "Result"]
    for owner in (datahub.Market, datahub.Result, Job, Dataset):
        for name, method in inspect.getmembers(owner, inspect.isfunction):
            if not name.startswith("_"):
                assert "return" in method.__annotations__, f"{owner.__name__}.{name}"
    assert get_type_hints(Market.search)["return"] == list[Dataset]
