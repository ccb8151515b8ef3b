"""The walk on real processes: settle and claim, a hub killed in the middle, hostile runs, refusals
that pay back.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from datahub.buyer.contributor import claim_all
from datahub.buyer.hub_client import Hub
from datahub.demo.stack import wait_for
from datahub.errors import HubError, OrderRefused
from datatokens.bindings.escrow import Escrow
from datatokens.bindings.registry import Token
from datatokens.bindings.revenue import Revenue
from datatokens.chain.connection import connect
from datatokens.errors import BankError
from datatokens.terms import JobTerms, canonical_json
from fl_client.node import config as node_config
from fl_client.privacy.ledger import Ledger
from fl_server.errors import ResultError
from fl_server.results import unseal
from fl_server.runner import FOREIGN_BUNDLE
from fl_server.runs import SuperLink
from fl_server.superlink import operator_token
from tests.e2e.conftest import Marketplace

pytestmark = pytest.mark.e2e

PURPOSE = "research"


def revenue_units(m: Marketplace, dataset_id: int) -> int:
    """Everything that a dataset has earned and its hospital not withdrawn."""
    revenue = Revenue(m.buyer.chain, m.stack.deployment.market)
    return revenue.pool(dataset_id).hospital_units + revenue.epoch(dataset_id, 1).credited_units


def test_walk__order_over_four_hospitals__settles_and_a_contributor_claims(
    marketplace: Marketplace,
) -> None:
    m = marketplace
    before = m.balance()
    earned = {h.dataset_id: revenue_units(m, h.dataset_id) for h in m.hospitals}
    job = m.buyer.quote(
        m.ids, epsilon=3.0, purpose=PURPOSE, rounds=2, reward_units=1_000_001
    ).order()
    result = job.wait(timeout_s=120)
    report = json.loads(result.report)
    assert [line["worked"] for line in report["hospitals"]] == [True] * 4
    assert sum(line["reward_units"] for line in report["hospitals"]) == 1_000_001
    assert before - m.balance() == job.terms.amount_units
    assert all(
        0.5 * line["epsilon_job"] < job.status()["epsilon_pld"] < line["epsilon_job"]
        for line in report["hospitals"]
    )
    for hospital in m.hospitals:
        (entry,) = node_config.read(hospital.folder).datasets
        line = next(x for x in report["hospitals"] if x["dataset_id"] == hospital.dataset_id)
        ledger = Ledger(hospital.folder / "ledger.sqlite")
        assert ledger.epsilon_spent(entry.name) == pytest.approx(line["epsilon_lifetime"])
        assert ledger.epsilon_committed(entry.name) == pytest.approx(line["epsilon_lifetime"])
        paid = line["price_units"] + line["reward_units"]
        assert revenue_units(m, hospital.dataset_id) - earned[hospital.dataset_id] == paid
    account, key = m.stack.accounts[6]
    token = Token(m.buyer.chain, m.stack.deployment.payment_token)
    had = token.balance_units(account)
    paid_out = claim_all(m.stack.pinned, key)
    assert token.balance_units(account) - had == sum(paid_out.values()) > 0
    assert claim_all(m.stack.pinned, key) == {}
    sealed = httpx.get(f"{m.stack.hub_url}/api/v1/jobs/{job.id}/result").content
    with pytest.raises(ResultError, match="does not open"):
        unseal(sealed, bytes(range(32)), job.id)


def test_walk__hub_killed_in_the_middle__the_job_goes_on(marketplace: Marketplace) -> None:
    m = marketplace
    job = m.buyer.quote(m.ids, epsilon=0.5, purpose=PURPOSE, rounds=6).order()
    end = time.monotonic() + 60
    while not job.status()["rounds"] and time.monotonic() < end:
        time.sleep(0.1)
    hub = m.stack.processes.running.pop("hub")
    hub.kill()
    hub.wait()
    m.stack.start_hub()
    result = job.wait(timeout_s=120)
    assert len(json.loads(result.report)["rounds"]) == 6
    assert job.status()["runs_started"] == 1


def _least_left(m: Marketplace) -> float:
    rows = [row for row in m.buyer.hub.get("/api/v1/datasets") if row["dataset_id"] in m.ids]
    return min(row["offer"]["epsilon_left"] if row["offer"] else 100.0 for row in rows)


def test_walk__one_hospital_cannot_afford_it__everything_comes_back(
    marketplace: Marketplace,
) -> None:
    m = marketplace
    before = m.balance()
    # a node says what it has left some time after a job
    wait_for("an offer of less", lambda: _least_left(m) < 4.45, m.stack.processes)
    with pytest.raises(HubError, match=r"would refuse: epsilon=.* than its lifetime budget leaves"):
        m.buyer.quote(m.ids, epsilon=4.45, purpose=PURPOSE, rounds=2).order()
    assert m.balance() == before
    for hospital in m.hospitals:
        (entry,) = node_config.read(hospital.folder).datasets
        ledger = Ledger(hospital.folder / "ledger.sqlite")
        assert ledger.epsilon_committed(entry.name) == ledger.epsilon_spent(entry.name)


def test_hub__job_that_nobody_paid__refused(marketplace: Marketplace) -> None:
    m = marketplace
    quote = m.buyer.quote(m.ids, epsilon=0.1, purpose=PURPOSE, rounds=1)
    with pytest.raises(HubError, match="holds no money for exactly these terms"):
        m.buyer.hub.call("POST", "/api/v1/jobs", {"terms": quote.terms.to_json().decode()})


def test_hub__paid_terms_changed_in_one_byte__refused(marketplace: Marketplace) -> None:
    m = marketplace
    quote = m.buyer.quote(m.ids[:1], epsilon=0.1, purpose=PURPOSE, rounds=1)
    Escrow(m.buyer.chain, m.stack.deployment.market).create_job(quote.terms)
    changed = quote.terms.to_json().replace(b'"purpose":"research"', b'"purpose":"researcg"')
    with pytest.raises(HubError, match="holds no money for exactly these terms"):
        m.buyer.hub.call("POST", "/api/v1/jobs", {"terms": changed.decode()})


def test_buyer__too_poor__is_told_have_and_need(marketplace: Marketplace) -> None:
    m = marketplace
    quote = m.buyer.quote(m.ids, epsilon=0.1, purpose=PURPOSE, rounds=1, reward_units=10**15)
    with pytest.raises(BankError, match="needs"):
        quote.order()


class LyingHub(Hub):
    """A hub that changes one thing in its quote."""

    def __init__(self, url: str, change: object):
        super().__init__(url)
        self.change = change

    def call(self, method: str, path: str, json: object = None) -> httpx.Response:
        answer = super().call(method, path, json)
        if path != "/api/v1/quotes":
            return answer
        body = answer.json()
        value = __import__("json").loads(body["terms"])
        self.change(value)  # type: ignore[operator]
        body["terms"] = canonical_json(value).decode()
        return httpx.Response(200, json=body)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("fee_units", lambda v: v.update(fee_units=v["fee_units"] + 10**7)),
        ("reward_units", lambda v: v.update(reward_units=1)),
        ("price_units", lambda v: v["datasets"][0].update(price_units=10**9)),
        ("buyer", lambda v: v["spec"].update(buyer_public_key="00" * 32)),
        ("epsilon", lambda v: v["spec"]["plan"].update(noise_multiplier=0.5)),
        ("weights_hash", lambda v: v["spec"].update(weights_hash="00" * 32)),
        ("purpose", lambda v: v["spec"].update(purpose="advertising")),
    ],
)
def test_buyer__hub_lies_in_the_quote__nothing_is_paid(
    marketplace: Marketplace, name: str, change: object
) -> None:
    m = marketplace
    honest = m.buyer.hub
    m.buyer.hub = LyingHub(m.stack.hub_url, change)
    try:
        with pytest.raises(OrderRefused, match=name):
            m.buyer.quote(m.ids, epsilon=0.1, purpose=PURPOSE, rounds=1)
    finally:
        m.buyer.hub = honest


def superlink(m: Marketplace, token: str | None = None) -> SuperLink:
    folder = m.stack.folder / "hub" / "superlink"
    return SuperLink(m.stack.superlink, folder / "ca.crt", token or operator_token(folder))


def test_superlink__control_without_the_operators_token__refused(marketplace: Marketplace) -> None:
    from fl_server.errors import SuperLinkError

    with pytest.raises(SuperLinkError, match="403"):
        superlink(marketplace, "wrong").start_run("ab" * 32)


HOSTILE_SERVER = """
import json, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    node = int(context.run_config["node"])
    message = Message(RecordDict({"job": ConfigRecord({"x": 1})}), node, "query.admit")
    Path(context.run_config["out"]).write_text("code of the bundle ran at the operator")
"""
HOSTILE_CLIENT = """
from pathlib import Path
Path({proof!r}).write_text("code of the bundle ran at the hospital")
from flwr.clientapp import ClientApp
app = ClientApp()
"""


def test_run_whose_bundle_carries_code__fails_and_nothing_of_it_runs_anywhere(
    marketplace: Marketplace, tmp_path: Path
) -> None:
    from flwr.cli.build import build_fab_from_files
    from flwr.common.serde import user_config_to_proto
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.proto.fab_pb2 import Fab

    m = marketplace
    proof, out = tmp_path / "proof.txt", tmp_path / "reply.txt"
    bundle, _ = build_fab_from_files(
        {
            "pyproject.toml": b'[project]\nname="evil"\nversion="1.0.0"\n'
            b'description="x"\nlicense="Apache-2.0"\n'
            b'dependencies=[]\n[tool.flwr.app]\npublisher="evil"\n[tool.flwr.app.components]\n'
            b'serverapp="evil.server:app"\nclientapp="evil.client:app"\n[tool.flwr.app.config]\nnode="0"\nout=""\n',
            "README.md": b"evil",
            "evil/__init__.py": b"",
            "evil/server.py": HOSTILE_SERVER.encode(),
            "evil/client.py": HOSTILE_CLIENT.format(proof=str(proof)).encode(),
        }
    )
    link = superlink(m)
    node = next(iter(link.online_nodes()))
    import hashlib

    config = user_config_to_proto({"node": str(node), "out": str(out)})
    fab = Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle)
    run = link._client.StartRun(StartRunRequest(fab=fab, override_config=config)).run_id
    end = time.monotonic() + 30
    while (status := link.run_status(run)).state != "finished" and time.monotonic() < end:
        time.sleep(0.2)
    assert (status.outcome, status.details) == ("failed", FOREIGN_BUNDLE)
    assert not proof.exists() and not out.exists()


def test_hub__someone_elses_node_key__cannot_be_registered(marketplace: Marketplace) -> None:
    m = marketplace
    one = node_config.read(m.hospitals[0].folder)
    other = node_config.read(m.hospitals[1].folder)
    body = {"node": one.node_address, "supernode_public_key": other.supernode_public_key.decode()}
    with pytest.raises(HubError, match=f"no active node key {one.node_address} vouches for it"):
        m.buyer.hub.call("POST", "/api/v1/nodes", body)
    with pytest.raises(HubError, match="not a PEM public key"):
        m.buyer.hub.call(
            "POST", "/api/v1/nodes", {**body, "supernode_public_key": "-----BEGIN NONSENSE-----"}
        )


def test_hub__hospital__its_registration_file_names_key_owner_and_what_it_did(
    marketplace: Marketplace,
) -> None:
    m = marketplace
    one = node_config.read(m.hospitals[0].folder)
    card = m.buyer.hub.call("GET", f"/api/v1/hospitals/{one.node_address}").json()
    assert (card["name"], card["state"]) == (one.name, "active")
    assert [d["dataset_id"] for d in card["datasets"]] == [
        entry.dataset_id for entry in one.datasets
    ]
    assert card["datasets"][0]["accepted"] >= 1
    with pytest.raises(HubError, match="not in the node registry"):
        m.buyer.hub.call("GET", f"/api/v1/hospitals/{m.buyer.address}")


@pytest.mark.parametrize(
    ("method", "path", "body", "said"),
    [
        ("GET", "/api/v1/jobs/nothing", None, "job_id=nothing is not known"),
        ("GET", "/api/v1/claims/0x12", None, "account='0x12'"),
        ("POST", "/api/v1/jobs", {"terms": "{}"}, "terms"),
        ("POST", "/api/v1/jobs", {"terms": "{}", "extra": 1}, "extra"),
        ("POST", "/api/v1/quotes", {"epsilon": -1}, "buyer"),
        ("PUT", "/api/v1/datasets/1/manifest", {"version": 1}, "unit"),
        ("PUT", "/api/v1/datasets/999/manifest", {}, "dataset_id=999 is not listed"),
    ],
)
def test_hub__bad_request__is_one_sentence(
    marketplace: Marketplace, method: str, path: str, body: object, said: str
) -> None:
    answer = httpx.request(method, marketplace.stack.hub_url + path, json=body)
    assert 400 <= answer.status_code < 500
    assert said in answer.json()["detail"] and "Traceback" not in answer.text


def test_cli__users_mistake__one_sentence_and_exit_code_1(
    marketplace: Marketplace, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text(marketplace.stack.accounts[9][1])
    command = [
        sys.executable,
        "-m",
        "datahub.cli",
        "claim",
        "all",
        "--network",
        "[/no]",
        "--key-file",
    ]
    done = subprocess.run([*command, str(key)], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "network '[/no]' is not pinned; pinned are: demo" in " ".join(done.stderr.split())


def test_terms__of_a_settled_job__rebuild_the_same_job_id_on_chain(
    marketplace: Marketplace,
) -> None:
    m = marketplace
    quote = m.buyer.quote(m.ids, epsilon=0.1, purpose=PURPOSE, rounds=1)
    market = connect(m.stack.chain_url).contract("Market", quote.terms.market)
    assert market.functions.hashTerms(quote.terms.to_struct()).call() == quote.terms.job_id
    assert JobTerms.from_json(quote.terms.to_json()) == quote.terms


def test_walk__node_killed_in_the_middle__the_job_is_finished_and_charged_once(
    marketplace: Marketplace,
) -> None:
    m = marketplace
    victim = m.hospitals[0]
    (entry,) = node_config.read(victim.folder).datasets
    ledger = Ledger(victim.folder / "ledger.sqlite")

    def training_steps() -> int:
        return sum(c.steps for c in ledger.history(entry.name) if c.what == "training")

    before = training_steps()
    job = m.buyer.quote(m.ids, epsilon=0.5, purpose=PURPOSE, rounds=5).order()
    end = time.monotonic() + 60
    while len(job.status()["rounds"]) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    node = m.stack.processes.running.pop(f"node-{victim.folder.name}")
    node.kill()
    node.wait()
    m.stack.start_node(victim.folder)
    result = job.wait(timeout_s=120)
    assert [line["worked"] for line in json.loads(result.report)["hospitals"]] == [True] * 4
    assert job.status()["runs_started"] == 1  # its message waits, and comes to it again
    assert training_steps() - before == 5


def test_walk__superlink_killed_in_the_middle__the_job_is_finished_by_another_run(
    marketplace: Marketplace,
) -> None:
    m = marketplace
    job = m.buyer.quote(m.ids, epsilon=0.5, purpose=PURPOSE, rounds=40).order()
    end = time.monotonic() + 60
    while len(job.status()["rounds"]) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    link = m.stack.processes.running.pop("superlink")
    link.kill()
    link.wait()
    m.stack.start_superlink()
    result = job.wait(timeout_s=120)
    assert [line["worked"] for line in json.loads(result.report)["hospitals"]] == [True] * 4
    assert job.status()["runs_started"] == 2
    assert m.stack.online(4)


def test_walk__hospital_offline_until_the_deadline__the_hub_refunds(
    marketplace: Marketplace,
) -> None:
    m = marketplace
    absent = m.hospitals[-1]
    node = m.stack.processes.running.pop(f"node-{absent.folder.name}")
    node.terminate()
    node.wait(timeout=20)
    before = m.balance()
    job = m.buyer.quote(
        [absent.dataset_id], epsilon=0.1, purpose=PURPOSE, rounds=1, deadline_s=700
    ).order()
    end = time.monotonic() + 30
    while "waiting for node" not in job.status()["reason"] and time.monotonic() < end:
        time.sleep(0.2)
    assert "waiting for node" in job.status()["reason"] and m.balance() < before
    m.buyer.chain.rpc("evm_increaseTime", 701)
    m.buyer.chain.rpc("evm_mine")
    with pytest.raises(OrderRefused, match="was refunded"):
        job.wait(timeout_s=30)
    assert m.balance() == before
    m.stack.start_node(absent.folder)
    wait_for("the node", lambda: m.stack.online(4), m.stack.processes)
