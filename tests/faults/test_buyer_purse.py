"""A buyer whose wallet lacks something is told the address and what is short; nothing is taken and
nothing stays approved.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from eth_account import Account

from datahub.buyer import networks
from datahub.buyer.sdk import Market
from datatokens.bindings.escrow import ONE_JOB
from datatokens.bindings.registry import Token
from datatokens.bindings.storefront import Storefront
from datatokens.errors import BankError, NodeRefused
from datatokens.faucet import give
from datatokens.money import amount
from datatokens.terms import DisputeTerms
from tests.datahub.hub_world import FEE_BPS, HubWorld

PRICE = 3_075_213
Funded = Callable[..., Market]


@pytest.fixture
def funded(hub: HubWorld, hub_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Funded:
    """A buyer with a new wallet that holds so much."""
    monkeypatch.setenv("DATAHUB_HOME", str(tmp_path / "home"))
    made = hub.bank.deployment
    networks.pin(networks.Network("here", hub_url, hub.bank.url, FEE_BPS, made))

    def new(units: int, wei: int) -> Market:
        account = Account.create()
        give(hub.bank.url, account.address, wei=wei, made=made, units=units)
        return Market(hub_url, chain=hub.bank.url, key=account.key.hex())

    return new


def left(buyer: Market) -> tuple[int, int]:
    """(balance, approved), base units."""
    token = buyer.escrow._payment_token()
    market = buyer.network.deployment.market
    return token.balance_units(buyer.address), token.allowance_units(buyer.address, market)


def test_no_tokens__the_address_and_what_is_short(funded: Funded) -> None:
    buyer = funded(PRICE - 5, 10**18)
    quote = buyer.quote([1, 2, 3], epsilon=2.0, purpose="research", rounds=2)
    with pytest.raises(
        BankError,
        match=re.escape(
            f"{buyer.address} has {amount(PRICE - 5)}; this job needs {amount(PRICE)}: send "
            "0.000005 tUSD (5 base units) more to that address"
        ),
    ):
        quote.order()
    assert left(buyer) == (PRICE - 5, 0)


@pytest.mark.parametrize("wei", [0, 10**9])
def test_no_gas__the_address_and_what_is_short(funded: Funded, wei: int) -> None:
    buyer = funded(PRICE, wei)
    quote = buyer.quote([1, 2, 3], epsilon=2.0, purpose="research", rounds=2)
    has = wei / 10**18
    with pytest.raises(
        NodeRefused,
        match=rf"insufficient funds: {buyer.address} has {has:.9f}".rstrip("0").rstrip(".")
        + r" of the chain's coin to pay gas with.*; send some to that address",
    ):
        quote.order()
    assert left(buyer) == (PRICE, 0)


def test_empty_purse__the_address_and_what_is_short(funded: Funded) -> None:
    buyer = funded(0, 0)
    with pytest.raises(
        BankError, match=f"{buyer.address} has 0.00 tUSD .*send .*{PRICE} base units. more"
    ):
        buyer.quote([1, 2, 3], epsilon=2.0, purpose="research", rounds=2).order()


def test_no_voucher__is_said_before_anything_is_approved(funded: Funded) -> None:
    buyer = funded(PRICE, 10**18)
    with pytest.raises(
        BankError, match=f"{buyer.address} holds less than one datatoken of tier 0 of dataset 2"
    ):
        buyer.quote([1, 2, 3], epsilon=2.0, purpose="research", rounds=2, vouchers=[2]).order()
    assert left(buyer) == (PRICE, 0)
    with pytest.raises(Exception, match="vouchers: dataset 2 is not among the datasets ordered"):
        buyer.quote([1], epsilon=2.0, purpose="research", rounds=2, vouchers=[2])


def test_a_voucher_given_away__pays_for_its_new_owner_alone(funded: Funded) -> None:
    """Bought at the storefront, moved to another wallet: that wallet orders, the first cannot."""
    buyer, other = funded(2 * PRICE, 10**18), funded(PRICE, 10**18)
    shop = Storefront(buyer.chain, buyer.registry.storefront())
    shop.buy(1, 0, 1, shop.quote(1, 0, 1))
    datatoken = Token(buyer.chain, buyer.registry.dataset(1).datatoken)
    datatoken.transfer(other.address, ONE_JOB)
    with pytest.raises(BankError, match="holds less than one datatoken"):
        buyer.quote([1], epsilon=1.0, purpose="research", rounds=2, vouchers=[1]).order()
    job = other.quote([1], epsilon=1.0, purpose="research", rounds=2, vouchers=[1]).order()
    assert job.on_chain == "funded" and datatoken.balance_units(other.address) == 0
    assert datatoken.allowance_units(other.address, other.network.deployment.market) == 0
    assert job.terms.datasets[0].voucher and job.terms.datasets[0].price_units == 0


def test_a_refused_payment__leaves_no_voucher_or_bond_approved(
    funded: Funded, hub: HubWorld
) -> None:
    buyer = funded(3 * PRICE, 10**18)
    shop = Storefront(buyer.chain, buyer.registry.storefront())
    shop.buy(1, 0, 2, shop.quote(1, 0, 2))
    datatoken = Token(buyer.chain, buyer.registry.dataset(1).datatoken)
    window = DisputeTerms(3600, str(hub.bank.operator.address), 5_000, 1_000)
    quote = buyer.quote(
        [1], epsilon=1.0, purpose="research", rounds=2, vouchers=[1], dispute=window
    )
    job = quote.order()
    with pytest.raises(BankError, match="paid for already"):
        buyer.escrow.create_job(quote.terms)
    market = buyer.network.deployment.market
    assert datatoken.allowance_units(buyer.address, market) == 0 and left(buyer)[1] == 0
    said = hub.bank.attestation(quote.terms, (0,), 0b1)
    with pytest.raises(BankError):  # nothing was attested, so there is nothing to dispute
        buyer.escrow.dispute(job.terms, said)
    assert left(buyer)[1] == 0
