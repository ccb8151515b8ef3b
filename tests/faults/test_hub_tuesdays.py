"""Ordinary Tuesdays of a hub: full disks, cut-off steps, damaged files, strange spellings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from datahub.errors import BadRequest
from datahub.market import hospitals, jobs, orders, quotes, reconcile
from datahub.market.desk import Desk
from datahub.market.jobs import job_row
from datahub.market.tables import JobRow, NodeRow
from datatokens.bindings.registry import State
from fl_client.errors import ProtocolError
from fl_client.protocol import JobSpec
from fl_server.gate import OperatorGate
from fl_server.superlink import operator_token
from tests.conftest import spec
from tests.datahub.hub_world import HubWorld
from tests.datahub.test_hospitals import enrolled
from tests.datahub.test_reconcile import attested


def test_a_stranger_spells_a_hospitals_key_otherwise__it_stays_one_machine(hub: HubWorld) -> None:
    seen: dict[bytes, int] = {}
    register: Any = lambda pem, name: seen.setdefault(pem, 700 + len(seen))  # noqa: E731
    hub.superlink.register_node = register  # type: ignore[method-assign]
    node, machine = enrolled(hub)
    mine = hub.bank.registry(hub.bank.hospitals[0])
    before = mine.dataset(1).node
    mine.set_node(1, node)
    try:
        real = hospitals.register_node(hub.desk, node, machine.decode())
        for more in ("\n", "\n\n", "\r\n "):
            hospitals.register_node(hub.desk, node, machine.decode() + more)
        with hub.desk.session() as session:
            row = session.get(NodeRow, node)
        assert row is not None and row.supernode_id == str(real) and len(seen) == 1
    finally:
        mine.set_node(1, before)


def test_killed_after_an_outcome_was_set_aside__another_run_follows(hub: HubWorld) -> None:
    row, _ = hub.job()
    hub.connect(0, 1, 2)
    reconcile.reconcile(hub.desk)
    folder = hub.folder(row)
    (folder / "outcome.json").write_text(json.dumps({"state": "failed", "reason": "restarted"}))
    reconcile.jobs.run_folder(hub.desk, row).set_outcome_aside(1)  # and then the hub is killed
    hub.superlink.ended[101] = "completed"
    for _ in range(3):
        reconcile.reconcile(hub.desk)
    assert len(hub.superlink.runs) == 2


def test_killed_after_starting_a_second_run_on_a_restarted_superlink__takes_that_run(
    hub: HubWorld,
) -> None:
    row, _ = hub.job()
    hub.connect(0, 1, 2)
    reconcile.reconcile(hub.desk)
    hub.superlink.ended[101] = "failed"  # the SuperLink was restarted
    reconcile.reconcile(hub.desk)
    hub.superlink.runs = [(202, row.job_id)]  # all that it knows: started, and not written down
    for _ in range(3):
        reconcile.reconcile(hub.desk)
    row = reconcile.jobs.job_row(hub.desk, row.job_id)
    assert (row.run_id, row.runs_started, len(hub.superlink.runs)) == ("202", 2, 1)


def test_a_full_disk_for_one_job__stops_no_other(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = hub.job()
    second, terms = hub.job()
    (hub.folder(second) / "outcome.json").write_bytes(hub.refusals(terms, (0, 1), "no"))
    real = Desk.session

    def session(desk: Desk) -> Any:
        made = real(desk)
        merge = made.merge

        def full(row: Any) -> Any:
            if getattr(row, "job_id", "") == first.job_id:
                raise OSError("database or disk is full")
            return merge(row)

        made.merge = full  # type: ignore[method-assign,assignment]
        return made

    monkeypatch.setattr(Desk, "session", session)
    reconcile.reconcile(hub.desk)
    assert hub.desk.escrow.job(terms.job_id).status == "refunded"


def test_a_models_files_were_lost__the_buyer_hands_them_over_again(hub: HubWorld) -> None:
    terms = hub.paid(graph=b"g", weights=b"w")
    jobs.submit(hub.desk, terms.to_json())
    for path in hub.desk.config.models_folder.glob("*"):
        path.unlink()
    jobs.submit(hub.desk, terms.to_json(), (b"g", b"w"))
    hub.connect(0, 1, 2)
    reconcile.reconcile(hub.desk)
    assert len(hub.superlink.runs) == 1


def test_a_settled_job__is_read_from_the_chain_once(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, terms = hub.job()
    attested(hub, row, terms)
    for _ in range(3):
        reconcile.reconcile(hub.desk)
    row = job_row(hub.desk, row.job_id)
    first = jobs.describe(hub.desk, row)
    assert first["settlement"]["paid_bps"] == 10_000
    monkeypatch.setattr(hub.desk.chain, "_ask", lambda _: pytest.fail("asked"))
    assert jobs.describe(hub.desk, row) == first


def test_an_acceptance_that_the_chain_refuses__is_not_tried_at_every_look(
    hub: HubWorld, caplog: pytest.LogCaptureFixture
) -> None:
    row, terms = hub.job()
    mine = hub.bank.registry(hub.bank.hospitals[1])
    mine.set_state(2, State.PAUSED)
    try:
        (hub.folder(row) / "acceptances.json").write_bytes(hub.acceptances(terms))
        hub.connect(0, 1, 2)
        for _ in range(10):
            reconcile.reconcile(hub.desk)
    finally:
        mine.set_state(2, State.ACTIVE)
    assert sum("is not taken by the chain" in one.message for one in caplog.records) == 1


def test_a_refusal_of_several_lines__is_one_line_in_the_log(
    hub: HubWorld, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    row, terms = hub.job()
    lie = "no\n2026-11-26 19:00:00 datahub.hub WARNING job 1 is settled \x1b[2J"
    (hub.folder(row) / "outcome.json").write_bytes(hub.refusals(terms, (0, 1), lie))
    reconcile.reconcile(hub.desk)
    assert job_row(hub.desk, row.job_id).state == "refunded"
    said = [one.getMessage() for one in caplog.records]
    assert any("is refunded" in one for one in said)
    assert not any("\n" in one or "\x1b" in one for one in said)


def test_a_token_that_a_full_disk_left_empty__opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "operator.token").write_text("")
    gate = OperatorGate(None, "")  # type: ignore[arg-type]
    assert gate.refusal("/v1/control/start-run", {}, "127.0.0.1") == 403
    assert len(operator_token(tmp_path)) == 64


def test_a_job_that_the_chain_no_longer_has__is_not_run(hub: HubWorld) -> None:
    row, terms = hub.job()
    hub.connect(0, 1, 2)
    gone = replace(terms, spec={**terms.spec, "salt": "ab" * 32})
    kept = {**row.model_dump(), "job_id": gone.job_id.hex(), "terms": gone.to_json().decode()}
    with hub.desk.session() as session:
        session.add(JobRow(**kept))
        session.commit()
    reconcile.reconcile(hub.desk)
    assert [job for _, job in hub.superlink.runs] == [row.job_id]
    assert "does not hold" in job_row(hub.desk, gone.job_id.hex()).reason


SMALL_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "ec" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "7f",
    "ec" + "ff" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
]


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_a_result_key_that_nothing_can_be_sealed_to__is_refused_before_anybody_works(
    hub: HubWorld, key: str
) -> None:
    """Else everybody trains, the result cannot be sealed, and nobody is paid."""
    with pytest.raises(ProtocolError, match="nothing can be sealed"):
        spec(buyer_public_key=key)
    with pytest.raises(BadRequest, match="nothing can be sealed"):
        orders.quote(hub.desk, hub.order(buyer_public_key=key))


def test_a_dataset_number_of_5000_digits_in_a_spec__is_refused_in_words(
    hub: HubWorld, hub_url: str
) -> None:
    terms, _ = orders.quote(hub.desk, hub.order())
    persons = {**terms.spec["persons"], "9" * 5000: 1}
    bad = replace(terms, spec={**terms.spec, "persons": persons})
    with pytest.raises(ProtocolError):
        JobSpec.from_dict(bad.spec)
    answer = httpx.post(
        f"{hub_url}/api/v1/jobs", json={"terms": bad.to_json().decode()}, timeout=30
    )
    assert answer.status_code == 422 and "persons" in answer.json()["detail"]


def test_a_payment_while_the_chain_was_away__is_seen_before_its_quote_is_forgotten(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    quotes.take_up(hub.desk)
    terms = hub.paid()
    monkeypatch.setattr(quotes, "KEPT_S", -10)
    quotes.forget_old(hub.desk)
    assert [one["job_id"] for one in jobs.recent(hub.desk)[0]] == [terms.job_id.hex()]


@pytest.mark.parametrize(
    "rest",
    [b"\xff\xfe\n", b"5\n", b'{"event": "admission"}\n', b"null\n", b'{"event":"round","at":1}\n'],
    ids=repr,
)
def test_a_damaged_line_of_progress__is_left_out(hub: HubWorld, hub_url: str, rest: bytes) -> None:
    row, _ = hub.job()
    (hub.folder(row) / "progress.jsonl").write_bytes(b'{"at": 1.0, "event": "started"}\n' + rest)
    assert httpx.get(f"{hub_url}/api/v1/jobs/{row.job_id}").status_code == 200
    assert httpx.get(f"{hub_url}/jobs/{row.job_id}").status_code == 200


def test_a_figure_that_fails__does_not_keep_the_result_from_the_buyer(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, terms = hub.job()
    attested(hub, row, terms)

    def fails(*_: object) -> float:
        raise MemoryError

    monkeypatch.setattr(jobs.accounting, "pld_epsilon", fails)
    for _ in range(3):
        reconcile.reconcile(hub.desk)
    assert job_row(hub.desk, row.job_id).state == "settled"
