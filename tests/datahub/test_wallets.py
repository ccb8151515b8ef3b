"""What a browser's wallet is asked to sign, sent as it is on a real chain: it does what it says,
and nothing is asked for what cannot be.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest

from datahub.errors import BadRequest, Conflict, NotFound
from datahub.market import orders, wallets
from datatokens.chain.connection import Chain
from datatokens.errors import BankError, ChainUnreachable
from datatokens.terms import JobTerms
from tests.datahub.hub_world import HubWorld
from tests.datahub.test_claims import OF_ALL, earning
from tests.datahub.test_contributors import ACCOUNTS


def signed_and_sent(chain: Chain, made: dict[str, Any]) -> None:
    """As a wallet does it: every transaction in turn, by the chain's own test accounts."""
    assert made["chain_id"] == chain.chain_id
    for step in made["transactions"]:
        call = {"from": chain.address, "to": step["to"], "data": step["data"]}
        assert chain.rpc("eth_sendTransaction", call).startswith("0x")
        chain.rpc("evm_mine")


def test_payment__signed_as_asked__is_a_paid_job(hub: HubWorld) -> None:
    terms, _ = orders.quote(hub.desk, hub.order())
    made = wallets.payment(hub.desk, terms.to_json())
    assert [one["to"] for one in made["transactions"]] == [
        hub.desk.config.payment_token,
        hub.desk.config.market,
    ]
    assert f"{terms.amount_units} base units" in made["transactions"][1]["what"]
    signed_and_sent(hub.bank.buyer, made)
    assert hub.desk.escrow.job(terms.job_id).status == "funded"
    token = hub.bank.money(hub.bank.buyer)
    assert token.allowance_units(str(hub.bank.buyer.address), hub.desk.config.market) == 0


def test_payment__too_little_or_anothers_terms__nothing_to_sign(hub: HubWorld) -> None:
    poor, _ = orders.quote(hub.desk, hub.order(buyer="0x" + "12" * 20))
    with pytest.raises(Conflict, match=r"has 0.00 tUSD \(0 base units\); this job needs"):
        wallets.payment(hub.desk, poor.to_json())
    with pytest.raises(BadRequest, match="are not this hub's"):
        wallets.payment(hub.desk, replace(poor, chain_id=5).to_json())
    with pytest.raises(BadRequest, match="terms: "):
        wallets.payment(hub.desk, b"{}")


def test_claim__signed_as_asked__pays_every_share_to_where_it_says(hub: HubWorld) -> None:
    earning(hub), earning(hub)
    with pytest.raises(Conflict, match="nothing to claim now"):
        wallets.claim(hub.desk, "0x" + "12" * 20, "")
    with pytest.raises(BadRequest, match="to="):
        wallets.claim(hub.desk, ACCOUNTS[3], "0x1234")
    made = wallets.claim(hub.desk, ACCOUNTS[3], "0x" + "77" * 20)
    (step,) = made["transactions"]
    assert "0x" + "77" * 20 in step["what"].lower()
    # the market pays the sender's shares: who may not prove them gets nothing
    with pytest.raises(BankError):
        signed_and_sent(hub.bank.buyer, made)
    assert hub.bank.money(hub.bank.buyer).balance_units("0x" + "77" * 20) == 0 < OF_ALL


def test_refund__before_the_deadline_and_after(hub: HubWorld) -> None:
    row, terms = hub.job(deadline_s=700)
    with pytest.raises(Conflict, match="comes back after its deadline, in"):
        wallets.refund(hub.desk, row.job_id)
    with pytest.raises(NotFound):
        wallets.refund(hub.desk, "00" * 32)
    chain = hub.bank.buyer
    chain.rpc("evm_increaseTime", 800)
    chain.rpc("evm_mine")
    signed_and_sent(chain, wallets.refund(hub.desk, row.job_id))
    assert hub.desk.escrow.job(terms.job_id).status == "refunded"


def test_wallets__chain_away__is_a_passing_trouble(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms, _ = orders.quote(hub.desk, hub.order())

    def away(*_: Any) -> Any:
        raise ChainUnreachable("the chain does not answer")

    monkeypatch.setattr(wallets, "paying", away)
    with pytest.raises(ChainUnreachable):
        wallets.payment(hub.desk, terms.to_json())


def order_of(hub: HubWorld, **changes: Any) -> dict[str, Any]:
    wanted = {
        "buyer": str(hub.bank.buyer.address),
        "buyer_public_key": "11" * 32,
        "datasets": list(hub.bank.dataset_ids),
        "epsilon": 2.0,
        "delta": 1e-5,
        "purpose": "research",
        "model": "logistic_regression",
    }
    return wanted | changes


def test_quote__model_by_its_name_alone__is_the_one_that_the_shell_makes(
    hub: HubWorld, hub_url: str
) -> None:
    from fl_client.model.families import files, graph_hash

    answer = httpx.post(f"{hub_url}/api/v1/quotes", json=order_of(hub), timeout=60).json()
    spec = JobTerms.from_json(answer["terms"].encode()).spec
    assert spec["graph_hash"] == graph_hash("logistic_regression", 2, 1)
    assert spec["loss"] == "binary_cross_entropy"
    assert 0 < answer["interval95"]["accuracy"] <= 1 and answer["rounds"] == spec["rounds"]
    files.cache_clear()
    with ThreadPoolExecutor(4) as pool:  # a page asks again before the first answer has come
        found = pool.map(lambda i: files("mlp", 2 + i % 2, 1)[0], range(8))
        assert len(set(found)) == 2
    for wrong in ("cnn", "resnet", None):
        said = httpx.post(f"{hub_url}/api/v1/quotes", json=order_of(hub, model=wrong), timeout=60)
        assert said.status_code == 422 and "must be one of logistic_regression, mlp" in said.text


def test_events__a_job_that_ends__is_told_once_and_the_stream_ends(
    hub: HubWorld, hub_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datahub.web import live

    row, _ = hub.job()
    monkeypatch.setattr(live, "LIVES_S", 0.2)
    text = httpx.get(f"{hub_url}/api/v1/jobs/{row.job_id}/events", timeout=30).text
    assert text.count("event: job") == 1 and "event: end" not in text
    with hub.desk.session() as session:
        row.state = "refunded"
        session.add(row)
        session.commit()
    text = httpx.get(f"{hub_url}/api/v1/jobs/{row.job_id}/events", timeout=30).text
    assert text.endswith("event: end\ndata: {}\n\n") and '"state": "refunded"' in text
    monkeypatch.setattr(live, "MOST_WATCHERS", 0)
    text = httpx.get(f"{hub_url}/api/v1/jobs/{row.job_id}/events", timeout=30).text
    assert text == "retry: 15000\n\n", "a crowd is told to come again"
    assert httpx.get(f"{hub_url}/api/v1/jobs/{'0' * 64}/events").status_code == 404
