"""The hospitals' yes, on real processes: one job over five hospitals, of which one approves by hand
in a real browser, one refuses by hand, one has a rule, one is out of budget, one never answers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from datahub.demo import data as demo_data
from datahub.demo.hospitals import Hospital
from datahub.demo.stack import FIRST_CONTRIBUTOR, wait_for
from datatokens.bindings.registry import Registry
from fl_client.data.sources import plain
from fl_client.node import config, inbox
from fl_client.node.audit_log import AuditLog
from fl_client.node.listing import Listing, list_dataset
from fl_client.node.served import anchors, open_ledger
from tests.e2e.conftest import Marketplace

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (make tools)"),
]
# long enough for a command and a browser on a busy machine: one hospital lets it pass
ANSWER_S = 90


def fifth(m: Marketplace, folder: Path) -> Hospital:
    """A hospital as it is after `datahub node init`: nobody there, and no rule."""
    stack = m.stack
    made = config.create(
        folder, name="Far away", hub=stack.hub_url, chain=stack.chain_url, network=stack.network
    )
    listing = Listing("Far away", "made up", 1_000_000, 5000, 12.0, m.data.delta)
    owner, contributors = stack.accounts[15][1], [(stack.accounts[FIRST_CONTRIBUTOR][0], 1)]
    source = plain(m.data.sites[0].table, demo_data.PATIENT)
    entry = list_dataset(made, owner, source, m.data.schema, listing, contributors)
    stack.start_node(folder)
    registry = Registry(m.buyer.chain, stack.deployment.registry)
    wait_for(
        "the fifth hospital",
        lambda: registry.dataset(entry.dataset_id).node and _online(m, entry.dataset_id),
        stack.processes,
    )
    return Hospital("Far away", folder, entry.dataset_id)


def _online(m: Marketplace, dataset_id: int) -> bool:
    rows = {row["dataset_id"]: row for row in m.buyer.hub.get("/api/v1/datasets")}
    return bool(rows.get(dataset_id, {}).get("online"))


def without_rules(hospital: Hospital, more: str = "") -> str:
    """Take the demo's rule out of a running node's node.toml; what it was."""
    toml = hospital.folder / "node.toml"
    before = toml.read_text()
    toml.write_text(before[: before.index('\n[[rules]]\nname = "the demo')] + more)
    return before


def approve_in_chromium(hospital: Hospital, job: str) -> None:
    """As a person does: start the page, follow its link, read, click."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "datahub.cli", "node", "page", str(hospital.folder)]
    served = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert served.stdout is not None
        link = served.stdout.readline().strip()
        with sync_playwright() as play:
            flags = ["--headless", "--no-sandbox", "--disable-gpu"]
            browser = play.chromium.launch(executable_path=CHROMIUM, args=flags)
            page = browser.new_page()
            page.goto(link)
            page.get_by_role("link", name=f"Job {job[:12]}").click()
            assert page.get_by_text("What leaves this house").is_visible()
            page.get_by_label("Your name, for the record").first.fill("Dr. Kranich")
            page.get_by_role("button", name="Approve this job").click()
            page.get_by_text("0 jobs wait").wait_for()
            browser.close()
    finally:
        served.terminate()
        served.wait(10)


def test_five_hospitals__each_answers_in_its_own_way__money_and_epsilon_come_out_right(
    marketplace: Marketplace, tmp_path: Path
) -> None:
    m = marketplace
    by_page, by_hand, by_rule, poor = m.hospitals
    away = fifth(m, tmp_path / "far")
    everybody = [*m.hospitals, away]
    before = {by_page: without_rules(by_page), by_hand: without_rules(by_hand)}
    limit = f"\n[dataset.{poor.dataset_id}]\nmax_epsilon_lifetime = 0.01\n"
    before[poor] = without_rules(poor, limit)
    spent = {h: open_ledger(h.folder)[0].epsilon_spent(str_name(h)) for h in everybody}
    purse = m.balance()
    try:
        job = m.buyer.quote(
            [h.dataset_id for h in everybody],
            epsilon=0.4,
            purpose="research",
            rounds=2,
            quorum=2,
            reward_units=1_000_000,
            answer_s=ANSWER_S,
            purpose_codes=["DUO:0000006"],
        ).order()

        def waiting() -> dict[int, int]:
            lines = job.status()["datasets"]
            return {line["dataset_id"]: line["waiting_until"] for line in lines}

        wait_for(
            "three hospitals to ask a person",
            lambda: (
                sum(until is not None for until in waiting().values()) == 3
                and job.status()["state"] == "waiting"
            ),
            m.stack.processes,
        )
        status = job.status()
        assert status["state"] == "waiting" and "waiting for the hospital" in status["reason"]
        assert waiting()[by_page.dataset_id] <= job.terms.spec["answer_by"]
        answer = ["--reason", "not our field", "--by", "Dr. Reiher"]
        command = ["node", "refuse", str(by_hand.folder), job.id[:12], *answer]
        refusing = subprocess.Popen([sys.executable, "-m", "datahub.cli", *command])
        approve_in_chromium(by_page, job.id)
        assert refusing.wait(ANSWER_S) == 0
        result = job.wait(timeout_s=ANSWER_S + 120)
    finally:
        for hospital, text in before.items():
            (hospital.folder / "node.toml").write_text(text)
    report = json.loads(result.report)
    lines = {line["dataset_id"]: line for line in report["hospitals"]}
    worked = {h: lines[h.dataset_id]["worked"] for h in everybody}
    assert worked == {by_page: True, by_hand: False, by_rule: True, poor: False, away: False}
    said = {line["dataset_id"]: line["reason"] for line in job.status()["datasets"]}
    assert said[by_hand.dataset_id] == "not our field"
    assert "a lifetime epsilon of" in said[poor.dataset_id]
    assert "nobody at this hospital has said yes by" in said[away.dataset_id]
    # money: those who worked, the reward and the fee; the rest has come back
    prices = {line.dataset_id: line.price_units for line in job.terms.datasets}
    kept = sum(prices[h.dataset_id] for h, did in worked.items() if did) + 1_000_000
    paid = purse - m.balance()
    assert kept <= paid <= kept + job.terms.fee_units
    # epsilon: charged where it was trained, and nowhere else; nothing stays reserved
    for hospital in everybody:
        ledger, name = open_ledger(hospital.folder)[0], str_name(hospital)
        grew = ledger.epsilon_spent(name) > spent[hospital]
        assert grew == worked[hospital] and ledger.reserved(name) == []
    # the log says who said yes, and its head is in the report that the chain has the hash of
    node = config.read(by_page.folder)
    facts = [x.facts for x in AuditLog(by_page.folder).lines() if x.facts.get("job") == job.id]
    assert [one["by"] for one in facts if "epsilon_after" in one] == ["Dr. Kranich"]
    assert str(anchors(node)[-1]) == lines[by_page.dataset_id]["log_head"]
    AuditLog(by_page.folder).verify(anchors(node))
    assert inbox.waiting(away.folder) == []


def str_name(hospital: Hospital) -> str:
    """What its ledger calls the dataset."""
    (entry,) = config.read(hospital.folder).datasets
    return entry.name
