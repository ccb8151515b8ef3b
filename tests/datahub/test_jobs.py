"""Jobs as the hub takes them in and shows them: only paid ones, and no more than was attested."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from datahub.errors import BadRequest, Conflict, NotFound
from datahub.market import jobs, orders
from tests.datahub.hub_world import HubWorld


def test_submit__paid_for_exactly_these_terms__is_taken_in_once(hub: HubWorld) -> None:
    terms = hub.paid()
    row = jobs.submit(hub.desk, terms.to_json())
    assert (row.state, row.job_id, row.buyer) == ("funded", terms.job_id.hex(), terms.buyer)
    assert jobs.submit(hub.desk, terms.to_json()) == row
    assert [line["job_id"] for line in jobs.recent(hub.desk)[0]] == [row.job_id]


def test_submit__not_paid__says_to_pay_first(hub: HubWorld) -> None:
    terms, _ = orders.quote(hub.desk, hub.order())
    with pytest.raises(Conflict, match="the escrow holds no money for exactly these terms"):
        jobs.submit(hub.desk, terms.to_json())
    assert jobs.recent(hub.desk)[0] == []


def test_submit__one_unit_less_than_what_was_paid__is_another_job(hub: HubWorld) -> None:
    terms = hub.paid()
    with pytest.raises(Conflict, match="pay first"):
        jobs.submit(hub.desk, replace(terms, fee_units=terms.fee_units - 1).to_json())


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"a":NaN}', b"\xff"])
def test_submit__no_terms_at_all__refuses(hub: HubWorld, raw: bytes) -> None:
    with pytest.raises(BadRequest, match="terms: "):
        jobs.submit(hub.desk, raw)


def test_submit__terms_for_another_chain__refuses(hub: HubWorld) -> None:
    terms, _ = orders.quote(hub.desk, hub.order())
    with pytest.raises(BadRequest, match=r"chain_id=1 and market=.* are not this hub's"):
        jobs.submit(hub.desk, replace(terms, chain_id=1).to_json())


def test_submit__the_models_file_is_gone__asks_for_the_quote_again(hub: HubWorld) -> None:
    terms = hub.paid(graph=b"gone")
    for file in hub.desk.config.models_folder.iterdir():
        file.unlink()
    with pytest.raises(Conflict, match="graph_hash: the model's file is not here"):
        jobs.submit(hub.desk, terms.to_json())


def test_job_row__with_or_without_0x__the_same(hub: HubWorld) -> None:
    row, _ = hub.job()
    assert jobs.job_row(hub.desk, "0x" + row.job_id) == jobs.job_row(hub.desk, row.job_id) == row
    with pytest.raises(NotFound, match="job_id=ab is not known here"):
        jobs.job_row(hub.desk, "ab")


def test_describe__a_repeated_run__each_round_once_as_the_newest_run_said(hub: HubWorld) -> None:
    row, terms = hub.job()
    lines = [
        {"at": 1, "event": "started"},
        {"at": 2, "event": "admission", "dataset_id": 2, "accepted": False, "reason": "no"},
        {"at": 3, "event": "round", "number": 1, "loss": 0.5},
        {"at": 4, "event": "round", "number": 2, "loss": 0.4},
        {"at": 5, "event": "round", "number": 1, "loss": 0.6},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    (hub.folder(row) / "progress.jsonl").write_text(text + '\n{"at": 6, "ev')  # being written
    shown = jobs.describe(hub.desk, row)
    assert [r["loss"] for r in shown["rounds"]] == [0.6, 0.4]
    assert [e["event"] for e in shown["events"]] == ["started", "admission"]
    said = {d["dataset_id"]: (d["accepted"], d["reason"]) for d in shown["datasets"]}
    assert said == {1: (None, ""), 2: (False, "no"), 3: (None, "")}
    assert shown["amount_units"] == terms.amount_units and shown["rounds_planned"] == 2


def test_describe__not_settled__shows_no_report_though_a_file_is_there(hub: HubWorld) -> None:
    row, _ = hub.job()
    for name in ("report.json", "result.sealed"):
        (hub.folder(row) / name).write_text('{"evaluation": "made up"}')
    shown = jobs.describe(hub.desk, row)
    assert shown["evaluation"] is None and shown["settlement"] is None
    assert shown["result_ready"] is False and shown["epsilon_pld"] is None
    with pytest.raises(Conflict, match="its result is given out once it is settled"):
        jobs.result(hub.desk, row)


def test_recent__several__newest_first_and_no_more_than_asked(hub: HubWorld) -> None:
    ids = [hub.job()[0].job_id for _ in range(3)]
    assert [line["job_id"] for line in jobs.recent(hub.desk)[0]] == ids[::-1]
    assert [line["job_id"] for line in jobs.recent(hub.desk, limit=1)[0]] == ids[2:]
