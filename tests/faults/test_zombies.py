"""One job's trouble is its own: rubbish in its files, a hospital that the chain no longer takes,
free jobs that never run.
"""

from __future__ import annotations

import json

import httpx
import pytest

from datahub.market import reconcile, seldom
from datahub.market.jobs import job_row
from datatokens.bindings.registry import State
from datatokens.terms import acceptance_message, attestation_message, sign
from tests.clocks import clock
from tests.datahub.hub_world import HubWorld


@pytest.mark.parametrize(
    "rubbish", [b"[", b"\xff\xfe", b"null", b'{"0x": 5}', b"[1e400]", b"9" * 5000], ids=repr
)
@pytest.mark.parametrize("file", ["acceptances.json", "outcome.json", "progress.jsonl"])
def test_rubbish_in_one_jobs_files__stops_no_other_job(
    hub: HubWorld, file: str, rubbish: bytes
) -> None:
    broken, _ = hub.job()
    (hub.folder(broken) / file).write_bytes(rubbish)
    good, terms = hub.job()
    refusals = hub.refusals(terms, (0, 1), "not today")
    (hub.folder(good) / "outcome.json").write_bytes(refusals)
    reconcile.reconcile(hub.desk)
    assert job_row(hub.desk, good.job_id).state == "refunded"
    assert job_row(hub.desk, broken.job_id).state != "refunded"


def test_a_job_whose_step_fails__is_left_alone_longer_each_time(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.job()
    steps, now = [], [0.0]

    def fails(*_: object) -> None:
        steps.append(now[0])
        raise OverflowError("whatever")

    monkeypatch.setattr(reconcile, "step", fails)
    clock(monkeypatch, seldom, monotonic=lambda: now[0])
    pauses = seldom.Pauses()
    while now[0] < 600:
        reconcile.reconcile(hub.desk, pauses)
        now[0] += reconcile.TICK_S
    assert len(steps) < 20
    assert 59 < steps[-1] - steps[-2] < 61


def test_one_acceptance_that_the_chain_refuses__leaves_the_others_in(hub: HubWorld) -> None:
    row, terms = hub.job()
    mine = hub.bank.registry(hub.bank.hospitals[1])
    mine.set_state(2, State.PAUSED)
    try:
        (hub.folder(row) / "acceptances.json").write_bytes(hub.acceptances(terms))
        reconcile.reconcile(hub.desk)
        accepted = hub.desk.escrow.job(terms.job_id).accepted
        paused = 1 << terms.index_of_dataset(2)
        assert accepted == 0b111 & ~paused
    finally:
        mine.set_state(2, State.ACTIVE)
    assert json.loads(row.terms)["quorum"] == 2


def test_a_quorum_that_settles_among_itself__is_shown_as_that(hub: HubWorld, hub_url: str) -> None:
    row, terms = hub.job(reward_units=600)
    keys = {hub.bank.node(n): hub.bank.node_keys[n] for n in range(3)}
    escrow = hub.bank.escrow(hub.bank.operator)
    accepted = {n: sign(acceptance_message(terms), key) for n, key in keys.items()}
    escrow.accept(terms, accepted)
    attested = hub.bank.attestation(terms, rewards=(300, 300, 0), worked=0b011)
    two = [line.node for line in terms.datasets[:2]]
    message = attestation_message(terms, attested)
    escrow.settle(terms, attested, {n: sign(message, keys[n]) for n in two})
    reconcile.reconcile(hub.desk)
    shown = httpx.get(f"{hub_url}/api/v1/jobs/{row.job_id}").json()
    assert shown["state"] == "settled" and shown["result_ready"] is False
    assert shown["reason"].startswith("settled outside this hub")
    assert httpx.get(f"{hub_url}/jobs/{row.job_id}").status_code == 200
    for what in ("report", "result"):
        answer = httpx.get(f"{hub_url}/api/v1/jobs/{row.job_id}/{what}")
        assert answer.status_code == 409 and "outside this hub" in answer.json()["detail"]
