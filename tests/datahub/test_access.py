"""Datatokens from a buyer's wallet, by the SDK and by the shell, on the real contracts: bought,
taken, given away, and used for a job or for hours of access.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bank_world import PRICE
from typer.testing import CliRunner

from datahub import Market
from datahub.buyer import networks, quoting
from datahub.buyer.access import Tier
from datahub.cli import app
from datahub.errors import HubError, OrderRefused
from datahub.market import catalogue
from datatokens.bindings.registry import Token
from datatokens.bindings.storefront import Limits, Storefront
from datatokens.chain.rpc_server import accounts
from datatokens.errors import BankError, TransactionRefused
from tests.datahub.hub_world import FEE_BPS, HubWorld, manifest

HOUR_S = 3600
ORDER: dict[str, Any] = {"epsilon": 2.0, "purpose": "research", "rounds": 2}
FRIEND = "0x" + "77" * 20


@pytest.fixture
def market(hub: HubWorld, hub_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Market:
    monkeypatch.setenv("DATAHUB_HOME", str(tmp_path / "home"))
    made = hub.bank.deployment
    networks.pin(networks.Network("here", hub_url, hub.bank.url, FEE_BPS, made))
    return Market(hub_url, chain=hub.bank.url, key=accounts()[1][1])


@pytest.fixture
def dataset_id(hub: HubWorld) -> int:
    """A new dataset, listed and in the catalogue, so that nobody holds anything of it."""
    registry = hub.bank.registry(hub.bank.hospitals[0])
    document = manifest(1, name="Vouchers")  # the other tests' hubs on this chain have none such
    made = registry.list_dataset(hub.bank.node(0), PRICE, 2_500, document.hash, "https://s", "SHOP")
    hub.desk.index.catch_up()
    catalogue.put_manifest(hub.desk, made, document.as_dict())
    return made


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    (path := tmp_path / "wallet.key").write_text(accounts()[1][1])
    return str(path)


def shell(*words: object) -> Any:
    ended = CliRunner().invoke(app, [*map(str, words), "--json"])
    if ended.exception and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)


def money(market: Market) -> int:
    token = Token(market.chain, market.network.deployment.payment_token)
    return token.balance_units(market.address)


def test_voucher__bought_and_used_for_a_job__pays_for_its_dataset(
    market: Market, dataset_id: int
) -> None:
    before = money(market)
    assert market.access_price(dataset_id, count=2) == 2 * PRICE
    assert market.buy_access(dataset_id, count=2) == before - money(market) == 2 * PRICE
    (tier,) = market.tiers(dataset_id)
    assert tier == Tier(0, PRICE, 0, None, False, False, 2, 0)
    quote = market.quote(
        [dataset_id], epsilon=2.0, purpose="research", rounds=2, vouchers=[dataset_id]
    )
    (line,) = quote.terms.datasets
    assert line.voucher and line.price_units == 0
    job = quote.order()
    assert job.on_chain == "funded" and market.tiers(dataset_id)[0].held == 1


def test_order__by_another_tier__pays_its_price_its_datatoken_or_nothing_while_access_is_open(
    hub: HubWorld, market: Market, dataset_id: int
) -> None:
    registry = hub.bank.registry(hub.bank.hospitals[0])
    tier = registry.add_tier(dataset_id, "DAY", 77, 24 * HOUR_S)

    def order(vouchers: tuple[int, ...] = ()) -> tuple[int, bool, int]:
        quote = market.quote([dataset_id], vouchers=vouchers, tiers={dataset_id: tier}, **ORDER)
        assert quote.order().on_chain == "funded"
        (line,) = quote.terms.datasets
        assert line.tier == tier
        return line.price_units, line.voucher, market.tiers(dataset_id)[tier].held

    assert order() == (77, False, 0)
    market.buy_access(dataset_id, tier, 2)
    assert order((dataset_id,)) == (0, True, 1)
    market.use_access(dataset_id, tier)
    assert order() == (0, False, 0)
    job = market.quote([dataset_id], tiers={dataset_id: tier}, **ORDER).keep()
    (line,) = market.repeat(job.id).terms.datasets
    assert (line.tier, line.price_units) == (tier, 0)


def test_order__by_a_wrong_tier__is_one_sentence_of_the_buyers_own_and_of_the_hubs(
    hub: HubWorld, market: Market, dataset_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = hub.bank.registry(hub.bank.hospitals[0])
    given = registry.add_tier(dataset_id, "GIVEN", 0, HOUR_S)
    closed = registry.add_tier(dataset_id, "CLOSED", 5, 0)
    registry.close_tier(dataset_id, closed)
    wrong = (
        ({dataset_id: closed}, f"tiers: tier {closed} of dataset {dataset_id} is closed"),
        ({dataset_id: given}, f"tiers: tier {given} of dataset {dataset_id} is not sold, and 0x"),
        ({dataset_id: 9}, "tiers: .*tier 9"),
        ({dataset_id: 256}, "tiers: tier_id=256 must be"),
    )
    for tiers, said in wrong:
        with pytest.raises(OrderRefused, match=said):
            market.quote([dataset_id], tiers=tiers, **ORDER)
    with pytest.raises(OrderRefused, match=r"tiers=\{1: '2'\} must name a tier .*\{1: 2\}"):
        market.quote([1], tiers={1: "2"}, **ORDER)  # type: ignore[dict-item]
    with pytest.raises(HubError, match="tiers: dataset 2 is not among the datasets ordered"):
        market.quote([1], tiers={2: 1}, **ORDER)
    # what the hub says of itself, to whoever does not look
    monkeypatch.setattr(quoting, "job_units", lambda *_: 0)
    for tiers, said in wrong:
        with pytest.raises(HubError, match=said):
            market.quote([dataset_id], tiers=tiers, **ORDER)


def test_buy_access__dearer_than_allowed_or_more_than_there_is__pays_nothing(
    hub: HubWorld, hub_url: str, market: Market, dataset_id: int
) -> None:
    before = money(market)
    with pytest.raises(OrderRefused, match=rf"\({PRICE} base units\) now, above the .*{PRICE - 1}"):
        market.buy_access(dataset_id, max_units=PRICE - 1)
    poor = Market(hub_url, chain=hub.bank.url, key="0x" + "5a" * 32)
    with pytest.raises(BankError, match=r"has 0.00 tUSD .*; this costs 1.000001 tUSD"):
        poor.buy_access(dataset_id)
    with pytest.raises(BankError, match="count=0 must be a whole number from 1"):
        market.buy_access(dataset_id, count=0)
    assert money(market) == before


def test_give_access__to_another__moves_it_and_more_than_one_holds_is_refused(
    market: Market, dataset_id: int
) -> None:
    market.buy_access(dataset_id, count=2)
    market.give_access(dataset_id, FRIEND, 2)
    token = Token(market.chain, market.registry.tier(dataset_id, 0).datatoken)
    assert token.balance_units(FRIEND) == 2 * 10**18 and market.tiers(dataset_id)[0].held == 0
    with pytest.raises(OrderRefused, match="holds 0 datatokens of tier 0 of dataset"):
        market.give_access(dataset_id, FRIEND, 1)


def test_hours__taken_for_nothing_and_used__open_access(
    hub: HubWorld, market: Market, dataset_id: int
) -> None:
    hospital = hub.bank.hospitals[0]
    registry = hub.bank.registry(hospital)
    tier = registry.add_tier(dataset_id, "HOUR", 0, HOUR_S, 5 * 10**18)
    with pytest.raises(OrderRefused, match=f"tier {tier} of dataset {dataset_id} is not sold"):
        market.buy_access(dataset_id, tier)
    Storefront(hospital, registry.storefront()).set_limits(
        dataset_id, tier, Limits(True, False, 2, 2, 3)
    )
    market.take_access(dataset_id, tier, 2)
    assert market.tiers(dataset_id)[tier] == Tier(tier, None, HOUR_S, 3, False, True, 2, 0)
    with pytest.raises(TransactionRefused, match="leaves 0 datatokens here, not 1"):
        market.take_access(dataset_id, tier)
    until = market.use_access(dataset_id, tier)
    assert until > market.chain.now()
    assert market.use_access(dataset_id, tier) == until + HOUR_S
    assert market.tiers(dataset_id)[tier].open_until == until + HOUR_S
    with pytest.raises(OrderRefused, match=r"is a voucher: use it with a job .*--voucher"):
        market.use_access(dataset_id, 0)


def test_shell__tiers_buy_give_take_and_use__do_the_same(
    hub: HubWorld, market: Market, dataset_id: int, key_file: str
) -> None:
    key = ("--key-file", key_file)
    bought = shell("data", "buy-access", dataset_id, "--count", 2, "--yes", *key)
    assert bought == {"dataset_id": dataset_id, "tier": 0, "count": 2, "paid_units": 2 * PRICE}
    given = shell("data", "give", dataset_id, FRIEND, 1, *key)
    assert given == {"dataset_id": dataset_id, "tier": 0, "count": 1, "to": FRIEND}
    (row,) = shell("data", "tiers", dataset_id, *key)
    assert (row["held"], row["price_units"], row["access_s"]) == (1, PRICE, 0)
    quote = shell(
        *("order", "quote", "--dataset", dataset_id, "--voucher", dataset_id, "--epsilon", 2),
        *("--purpose", "research", "--rounds", 2, *key),
    )
    assert [line["voucher"] for line in quote["terms"]["datasets"]] == [True]
    hourly = hub.bank.registry(hub.bank.hospitals[0]).add_tier(dataset_id, "PAID", 70, HOUR_S)
    quote = shell(
        *("order", "quote", "--dataset", dataset_id, "--tier", f"{dataset_id}={hourly}"),
        *("--epsilon", 2, "--purpose", "research", "--rounds", 2, *key),
    )
    assert [(n["tier"], n["price_units"]) for n in quote["terms"]["datasets"]] == [(hourly, 70)]
    hospital = hub.bank.hospitals[0]
    registry = hub.bank.registry(hospital)
    day = registry.add_tier(dataset_id, "DAY", 7, 24 * HOUR_S)
    words = ["data", "buy-access", str(dataset_id), "--tier", str(day), *key]
    asked = CliRunner().invoke(app, words)  # nobody says yes
    assert asked.exit_code == 1
    assert market.tiers(dataset_id)[day].held == 0
    tier = registry.add_tier(dataset_id, "HOUR", 0, HOUR_S)
    limits = Limits(True, False, 1, 1, 1)
    Storefront(hospital, registry.storefront()).set_limits(dataset_id, tier, limits)
    assert shell("data", "take-access", dataset_id, "--tier", tier, *key)["count"] == 1
    used = shell("data", "use-access", dataset_id, "--tier", tier, *key)
    assert used["open_until"] == market.tiers(dataset_id)[tier].open_until
    said = (
        CliRunner(env={"COLUMNS": "200"})
        .invoke(app, ["data", "tiers", str(dataset_id), *key])
        .output
    )
    assert "one job" in said and "1 hours of access" in said and "open until" in said
