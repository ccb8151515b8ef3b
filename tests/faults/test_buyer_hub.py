"""A hub that lies to a buyer: about the contracts, about the terms, about the datasets. Nothing is
paid, and no approval is left behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_utils.crypto import keccak

from datahub.buyer import networks
from datahub.buyer.hub_client import Hub
from datahub.buyer.sdk import Market
from datahub.errors import ConfigError, HubError, OrderRefused
from datatokens.bindings.registry import State
from datatokens.chain.connection import connect
from datatokens.chain.rpc_server import accounts
from datatokens.deploy import deploy, verify
from datatokens.errors import BankError
from datatokens.terms import JobTerms
from tests.datahub.hub_world import FEE_BPS, HubWorld

THIEF, THIEF_KEY = accounts()[15]
BUYER_KEY = accounts()[1][1]


class Answer:
    """In place of the hub client's answer."""

    def __init__(self, document: Any):
        self.document = document

    def json(self) -> Any:
        return self.document


def test_a_question_over_another_schema_than_the_datasets_have__is_refused(
    buyer: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, the hub could show other columns where the question was read, and then the true ones:
    another column was counted, paid for, and its answer could not be read.
    """
    settings = {"epsilon": 2.0, "purpose": "research", "quorum": 3}
    assert buyer.ask([1, 2, 3], "count by sex", **settings).question == "count by sex"
    shown = []

    def swapped_once(rows: Any) -> Any:
        shown.append(rows)
        for row in rows if len(shown) == 1 else []:
            if row["manifest"]:
                row["manifest"]["schema"]["features"].reverse()
        return rows

    lying(monkeypatch, "/api/v1/datasets", swapped_once)
    with pytest.raises(OrderRefused, match="is not theirs; nothing was paid"):
        buyer.ask([1, 2, 3], "count by sex", **settings)


@pytest.fixture
def network(hub: HubWorld, hub_url: str) -> networks.Network:
    return networks.Network("here", hub_url, hub.bank.url, FEE_BPS, hub.bank.deployment)


@pytest.fixture
def buyer(
    network: networks.Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Market]:
    monkeypatch.setenv("DATAHUB_HOME", str(tmp_path / "home"))
    networks.pin(network)
    made = Market(network.hub, chain=network.chain, key=BUYER_KEY)
    before = made.escrow._payment_token().balance_units(made.address)
    yield made
    token = made.escrow._payment_token()
    assert token.balance_units(made.address) == before
    assert token.allowance_units(made.address, network.deployment.market) == 0


def quoted(buyer: Market, **changes: Any) -> Any:
    wanted: dict[str, Any] = {"epsilon": 2.0, "purpose": "research", "rounds": 2, "quorum": 3}
    return buyer.quote([1, 2, 3], **(wanted | changes))


def lying(monkeypatch: pytest.MonkeyPatch, path: str, change: Callable[[Any], Any]) -> None:
    """Let the hub's answers at `path`, whatever is asked there, be changed on their way."""
    real = Hub.call

    def call(self: Hub, method: str, where: str, json: Any = None) -> Any:
        answer = real(self, method, where, json)
        return Answer(change(answer.json())) if where.partition("?")[0] == path else answer

    monkeypatch.setattr(Hub, "call", call)


def with_terms(change: Callable[[JobTerms], JobTerms]) -> Callable[[Any], Any]:
    def changed(answer: Any) -> Any:
        terms = change(JobTerms.from_json(answer["terms"].encode()))
        return answer | {"terms": terms.to_json().decode(), "job_id": terms.job_id.hex()}

    return changed


def with_spec(**changes: Any) -> Callable[[JobTerms], JobTerms]:
    return lambda t: replace(t, spec={**t.spec, **changes})


def with_plan(**changes: Any) -> Callable[[JobTerms], JobTerms]:
    return lambda t: replace(t, spec={**t.spec, "plan": {**t.spec["plan"], **changes}})


def factor(name: str, by: float) -> Callable[[JobTerms], JobTerms]:
    return lambda t: with_plan(**{name: t.spec["plan"][name] * by})(t)


def line(**changes: Any) -> Callable[[JobTerms], JobTerms]:
    return lambda t: replace(t, datasets=(replace(t.datasets[0], **changes), *t.datasets[1:]))


LIES: dict[str, tuple[Callable[[JobTerms], JobTerms], str]] = {
    "market": (lambda t: replace(t, market=THIEF), "market is 0x"),
    "chain": (lambda t: replace(t, chain_id=5), "chain_id is 5"),
    "buyer": (lambda t: replace(t, buyer=THIEF), "buyer is 0x"),
    "quorum 3 -> 1": (lambda t: replace(t, quorum=1), "quorum is 1, not 3"),
    "deadline + 10 min": (lambda t: replace(t, deadline=t.deadline + 600), "deadline is"),
    "deadline + 10 y": (lambda t: replace(t, deadline=t.deadline + 3650 * 86400), "deadline is"),
    "deadline sooner": (lambda t: replace(t, deadline=t.deadline - 3000), "deadline is"),
    "reward + 1": (lambda t: replace(t, reward_units=1), "reward_units is 1, not 0"),
    "fee": (lambda t: replace(t, fee_units=t.fee_units + 1), "fee_units is"),
    "price + 1": (lambda t: line(price_units=t.datasets[0].price_units + 1)(t), "price_units is"),
    "another node": (line(node=THIEF), "node is 0x"),
    "a tier": (line(tier=1), "tier is 1, not 0"),
    "a voucher": (line(price_units=0, voucher=True), "voucher is True, not False"),
    "compute rate": (line(compute_rate_units=8), "compute_rate_units is 8, not 7"),
    "compute cap": (line(compute_cap_units=10**6), "compute_cap_units is 1000000"),
    "one dataset less": (lambda t: replace(t, datasets=t.datasets[:2], quorum=2), "datasets.*None"),
    "learning rate 1e4": (with_spec(learning_rate=1e4), "learning_rate is 10000"),
    "learning rate 1e-9": (with_spec(learning_rate=1e-9), "learning_rate is 1e-09"),
    "loss": (with_spec(loss="squared_error"), "spec.loss is squared_error"),
    "average_last": (with_spec(average_last=2), "spec.average_last is 2"),
    "momentum": (with_spec(server_momentum=0.9), "spec.server_momentum is 0.9"),
    "a rate of its own": (with_spec(server_rates={"weight": 2.0}), "spec.server_rates.weight"),
    "purpose": (with_spec(purpose="marketing"), "spec.purpose is marketing"),
    "result key": (with_spec(buyer_public_key="22" * 32), "spec.buyer_public_key"),
    "schema": (with_spec(schema_hash="0" * 64), "spec.schema_hash"),
    "graph": (with_spec(graph_hash="0" * 64), "spec.graph_hash"),
    "weights": (with_spec(weights_hash="0" * 64), "spec.weights_hash"),
    "patients (the split)": (with_spec(persons={"1": 1, "2": 10**9, "3": 1}), "spec.persons.1"),
    "clip 1e-4": (with_plan(clip_norm=1e-4), "spec.plan.clip_norm"),
    "noise x 100": (factor("noise_multiplier", 100.0), "spec.plan.noise_multiplier"),
    "noise / 2": (factor("noise_multiplier", 0.5), "spec.plan.noise_multiplier"),
    "noise + 1e-6": (factor("noise_multiplier", 1 + 1e-6), "spec.plan.noise_multiplier"),
    "metric noise": (factor("metric_noise_multiplier", 3.0), "metric_noise_multiplier"),
    "metric clip": (with_plan(metric_clip=99.0), "spec.plan.metric_clip is 99.0"),
    "sampling": (with_plan(sampling_rate=0.5), "spec.plan.sampling_rate is 0.5"),
    "delta": (with_plan(delta=1e-6), "spec.plan.delta"),
}


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_hub_that_quotes_other_terms__is_refused_by_name(
    buyer: Market, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    change, sentence = LIES[lie]
    lying(monkeypatch, "/api/v1/quotes", with_terms(change))
    with pytest.raises(OrderRefused, match=f"differs from the order.*{sentence}.*nothing was paid"):
        quoted(buyer)


def test_an_honest_hub__is_taken_and_a_lower_fee_too(
    buyer: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    quote = quoted(buyer)
    assert quote.amount_units == quote.terms.amount_units and quote.epsilon <= 2.0
    lying(monkeypatch, "/api/v1/quotes", with_terms(lambda t: replace(t, fee_units=0)))
    assert quoted(buyer).terms.fee_units == 0


def test_a_fee_above_what_the_buyer_allows__is_refused(buyer: Market) -> None:
    fee = quoted(buyer).terms.fee_units
    assert quoted(buyer, max_fee_units=fee).terms.fee_units == fee > 0
    with pytest.raises(
        OrderRefused, match=rf"\({fee} base units\) is above the .*\({fee - 1} base"
    ):
        quoted(buyer, max_fee_units=fee - 1)


@pytest.mark.parametrize(
    "answer",
    ["", "{}", "[]", "\ud800", "[" * 60_000, '{"terms": 1}', "null", "1e400", "9" * 5000],
    ids=lambda text: text[:12].encode("unicode_escape").decode() or "empty",
)
def test_a_hub_that_answers_rubbish__is_one_sentence(
    buyer: Market, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    lying(monkeypatch, "/api/v1/quotes", lambda _: {"terms": answer})
    with pytest.raises(OrderRefused, match="quote is not understood"):
        quoted(buyer)


def test_a_manifest_that_is_not_the_one_on_the_chain__is_refused(
    buyer: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of patients' counts, the noise, the weights and the reward split follow."""

    def more_patients(rows: Any) -> Any:
        rows[0]["manifest"]["persons"] *= 10
        return rows

    lying(monkeypatch, "/api/v1/datasets", more_patients)
    with pytest.raises(
        OrderRefused, match=r"dataset 1: the manifest .* is not the one on the chain"
    ):
        quoted(buyer)


def test_a_hub_that_is_not_pinned__is_paid_nothing(
    hub: HubWorld, hub_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAHUB_HOME", str(tmp_path / "empty"))
    with pytest.raises(OrderRefused, match=r"its own word is not enough.*datahub network add"):
        Market(hub_url, chain=hub.bank.url, key=BUYER_KEY)


def test_a_hub_that_names_a_market_of_its_own__cannot_be_pinned_or_paid(
    hub: HubWorld, network: networks.Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thief's contract answers paymentToken() and registry() as the real one does, and takes
    what it was approved for.
    """
    thief = connect(hub.bank.url, THIEF_KEY)
    evil = _deployed(thief, hub.bank.deployment.payment_token, hub.bank.deployment.registry)
    itself = thief.contract("Market", evil).functions
    assert thief.read(itself.paymentToken()) == hub.bank.deployment.payment_token
    with pytest.raises(BankError, match="does not carry the Market"):
        verify(thief, hub.bank.deployment.registry, evil)
    monkeypatch.setenv("DATAHUB_HOME", str(tmp_path / "home"))
    lured = replace(network, deployment=replace(network.deployment, market=evil))
    with pytest.raises(BankError, match="does not carry the Market"):
        Market(network.hub, chain=network.chain, key=BUYER_KEY, network=lured)


def test_real_code_that_pays_somebody_else__is_not_the_pinned_market(
    hub: HubWorld, network: networks.Network
) -> None:
    """The same code with another fee recipient or another token is another market."""
    thief = connect(hub.bank.url, THIEF_KEY)
    other = deploy(thief, hub.bank.deployment.payment_token, THIEF)
    for change in (
        {"registry": other.registry, "market": other.market},
        {"fee_recipient": THIEF},
        {"payment_token": other.market},
    ):
        lured = replace(network, deployment=replace(network.deployment, **change))
        with pytest.raises(BankError):
            Market(network.hub, chain=network.chain, key=BUYER_KEY, network=lured)


def test_a_network_once_pinned__is_never_changed_by_adding(
    network: networks.Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAHUB_HOME", str(tmp_path / "home"))
    file = networks.pin(network)
    assert networks.pin(network) == file and networks.by_hub(network.hub + "/") == network
    assert file.stat().st_mode & 0o077 == 0 and networks.by_name() == network
    for change in ({"fee_bps": 500}, {"hub": "http://elsewhere"}, {"name": "again"}):
        with pytest.raises(ConfigError, match="is pinned already"):
            networks.pin(replace(network, **change))  # type: ignore[arg-type]
    other = replace(network, name='a "b"', hub="http://other")
    networks.pin(other)
    assert networks.read() == {network.name: network, other.name: other}
    with pytest.raises(ConfigError, match="name one with --network; pinned are: here"):
        networks.by_name()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = ", "is not TOML"),
        ("[a]\nhub = 1", "must have exactly"),
        ("a = 1", "must have exactly"),
    ],
)
def test_a_damaged_file_of_networks__says_what_to_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.setenv("DATAHUB_HOME", str(tmp_path))
    (tmp_path / "networks.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        networks.by_name()


def test_a_paused_dataset_or_a_denied_buyer__is_refused_before_a_quote(
    hub: HubWorld, buyer: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "call", _only_looking(Hub.call))
    mine = hub.bank.registry(hub.bank.hospitals[1])
    mine.set_state(2, State.PAUSED)
    try:
        with pytest.raises(OrderRefused, match="dataset 2 is paused; it takes no new jobs"):
            quoted(buyer)
    finally:
        mine.set_state(2, State.ACTIVE)
    mine.set_allow_list_only(2, True)
    try:
        with pytest.raises(OrderRefused, match="dataset 2 is not for this buyer now"):
            quoted(buyer)
    finally:
        mine.set_allow_list_only(2, False)


def _only_looking(real: Any) -> Any:
    def call(self: Hub, method: str, path: str, json: Any = None) -> Any:
        assert method == "GET", "the hub was asked for a quote that cannot be"
        return real(self, method, path, json)

    return call


def _deployed(thief: Any, token: str, registry: str) -> str:
    """Deploy bytes that answer like a market and pay everything approved to the thief."""

    def push(text: str) -> str:
        return f"{0x5F + len(text) // 2:02x}{text}"

    def selector(signature: str) -> str:
        return str(keccak(text=signature)[:4].hex())

    answers = [push(a[2:].lower()) + "60005260206000f3" for a in (token, registry)]
    head = "60003560e01c"
    start = len(head) // 2 + 2 * 11
    code = head
    for name, at in (("paymentToken()", start), ("registry()", start + 1 + len(answers[0]) // 2)):
        code += f"8063{selector(name)}1461{at:04x}57"
    code += "".join("5b" + answer for answer in answers)
    size = len(code) // 2
    web3 = thief._web3
    fields = {
        "from": THIEF,
        "nonce": web3.eth.get_transaction_count(THIEF),
        "chainId": thief.chain_id,
        "gas": 500_000,
        "maxFeePerGas": 10**10,
        "maxPriorityFeePerGas": 10**9,
        "data": f"0x61{size:04x}80600a3d393df3" + code,
        "value": 0,
    }
    from eth_account import Account

    sent = web3.eth.send_raw_transaction(
        Account.sign_transaction(fields, THIEF_KEY).raw_transaction
    )
    return str(web3.eth.wait_for_transaction_receipt(sent)["contractAddress"])


def test_the_hubs_error_is_one_sentence_whatever_it_answers(
    monkeypatch: pytest.MonkeyPatch, hub_url: str
) -> None:
    with pytest.raises(HubError, match="does not answer"):
        Hub("http://127.0.0.1:9").get("/api/v1/datasets")
    assert json.dumps(Hub(hub_url).get("/healthz"))
