"""The loop: one idempotent step at a time, from facts alone; the money always ends somewhere."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta

import pytest

from datahub.market import jobs
from datahub.market.reconcile import LONGEST_REST_S, PATIENCE, reconcile, rest_s
from datahub.market.tables import JobRow
from datatokens.terms import Attestation, DisputeTerms, JobTerms, attestation_message, sign
from fl_client.node import attestation as attest
from fl_client.protocol import JobSpec, sha256_hex
from fl_server.report import Part, Round, build
from tests.datahub.hub_world import HubWorld

MODEL_HASH = b"\x11" * 32


def looked(hub: HubWorld, row: JobRow, times: int = 1) -> JobRow:
    """The row after the loop has looked."""
    for _ in range(times):
        reconcile(hub.desk)
    return jobs.job_row(hub.desk, row.job_id)


def progressed(hub: HubWorld, row: JobRow, *events: str) -> None:
    lines = [json.dumps({"at": 1.0, "event": e, "number": 1, "dataset_id": 1}) for e in events]
    (hub.folder(row) / "progress.jsonl").write_text("\n".join(lines) + "\n")


def attested(hub: HubWorld, row: JobRow, terms: JobTerms) -> None:
    """What a run leaves behind when all three hospitals have trained and signed."""
    spec, folder = JobSpec.from_dict(terms.spec), hub.folder(row)
    parts = {
        d: Part(d, spec.rounds, 1.5, 2.5, 1e-5, 61.0, "cpu", "record") for d in hub.bank.dataset_ids
    }
    rounds = [Round(n + 1, 0.5, 0.1) for n in range(spec.rounds)]
    report, worked = build(terms, spec, MODEL_HASH, rounds, parts)
    outcomes = tuple(attest.outcome(line) for line in json.loads(report)["hospitals"])
    report_hash = bytes.fromhex(sha256_hex(report))
    said = Attestation(terms.job_id, MODEL_HASH, report_hash, worked, outcomes)
    signatures = {
        hub.bank.node(n): sign(attestation_message(terms, said), hub.bank.node_keys[n]).hex()
        for n in range(3)
    }
    (folder / "acceptances.json").write_bytes(hub.acceptances(terms))
    (folder / "report.json").write_bytes(report)
    (folder / "result.sealed").write_bytes(b"sealed")
    outcome = {
        "state": "attested",
        "signatures": signatures,
        "model_hash": MODEL_HASH.hex(),
        "worked": worked,
    }
    (folder / "outcome.json").write_text(json.dumps(outcome))


def test_reconcile__a_hospital_is_away__waits_and_says_for_whom(hub: HubWorld) -> None:
    row, _ = hub.job()
    hub.connect(0, 1)
    row = looked(hub, row)
    assert row.state == "funded" and row.run_id is None and not hub.superlink.runs
    assert row.reason == f"waiting for node {hub.bank.node(2)} to connect"


def test_reconcile__a_hospital_stays_away__a_quorum_starts_without_it(hub: HubWorld) -> None:
    row, _ = hub.job()
    hub.connect(0, 1)
    with hub.desk.session() as session:
        kept = session.get(JobRow, row.job_id)
        assert kept is not None and kept.funded_at is not None
        kept.funded_at -= PATIENCE + timedelta(seconds=1)
        session.add(kept)
        session.commit()
    assert looked(hub, row).run_id == "101"


def test_reconcile__less_than_a_quorum__never_starts(hub: HubWorld) -> None:
    row, _ = hub.job()
    hub.connect(0)
    with hub.desk.session() as session:
        kept = session.get(JobRow, row.job_id)
        assert kept is not None and kept.funded_at is not None
        kept.funded_at -= 2 * PATIENCE
        session.add(kept)
        session.commit()
    assert looked(hub, row, 3).run_id is None


def test_reconcile__everybody_is_there__one_run_with_the_whole_job_folder(hub: HubWorld) -> None:
    row, terms = hub.job(graph=b"G", weights=b"W")
    hub.connect(0, 1, 2)
    row = looked(hub, row, 3)
    assert (row.run_id, row.runs_started, row.reason) == ("101", 1, "")
    assert hub.superlink.runs == [(101, row.job_id)]
    folder = hub.folder(row)
    assert (folder / "terms.json").read_bytes() == terms.to_json()
    assert (folder / "graph.json").read_bytes() == b"G"
    assert (folder / "weights.safetensors").read_bytes() == b"W"
    nodes = json.loads((folder / "nodes.json").read_text())
    assert nodes == {hub.bank.node(n): 11 + n for n in range(3)}


def test_reconcile__the_hub_died_right_after_starting_a_run__takes_that_run(hub: HubWorld) -> None:
    row, _ = hub.job()
    hub.connect(0, 1, 2)
    hub.superlink.start_run(row.job_id)
    row = looked(hub, row)
    assert (row.run_id, row.runs_started, len(hub.superlink.runs)) == ("101", 1, 1)


def test_reconcile__the_run_goes_on__states_go_forward_only(hub: HubWorld) -> None:
    row, _ = hub.job()
    hub.connect(0, 1, 2)
    looked(hub, row)
    states = []
    for events in (("started",), ("started", "admission"), ("admission", "round"), ("started",)):
        progressed(hub, row, *events)
        states.append(looked(hub, row).state)
    assert states == ["funded", "accepted", "running", "running"]


def test_reconcile__acceptances_written__are_on_the_chain_once(hub: HubWorld) -> None:
    row, terms = hub.job()
    hub.connect(0, 1, 2)
    looked(hub, row)
    (hub.folder(row) / "acceptances.json").write_bytes(hub.acceptances(terms, (0, 2)))
    looked(hub, row, 2)
    bits = sum(1 << terms.index_of_node(hub.bank.node(n)) for n in (0, 2))
    assert hub.desk.escrow.job(terms.job_id).accepted == bits


def test_reconcile__runs_end_without_an_outcome__again_after_longer_and_longer_rests(
    hub: HubWorld,
) -> None:
    row, _ = hub.job()
    hub.connect(0, 1, 2)
    for number in range(5):
        row = looked(hub, row)
        assert row.run_id == str(101 + number)
        hub.superlink.ended[101 + number] = "failed"
        row = looked(hub, row)
        assert row.reason.startswith(f"run {101 + number} ended without an outcome (failed:")
        rest = rest_s(number + 1)
        assert row.reason.endswith("starting again" + (f" {rest:.0f} s later" if rest else ""))
        if rest:
            row = looked(hub, row, 3)
            assert row.run_id is None and len(hub.superlink.runs) == number + 1
            failed = hub.folder(row) / f"outcome.{number + 1}.json"
            os.utime(failed, (time.time() - rest - 1,) * 2)
    assert row.runs_started == 5 and row.state == "funded"
    hub.bank.travel(3700)
    assert looked(hub, row).state == "refunded"


def test_rest__grows_to_an_hour_and_no_further() -> None:
    assert [rest_s(n) for n in (0, 1, 2, 3, 4)] == [0, 0, 5, 10, 20]
    assert rest_s(100) == rest_s(10**9) == LONGEST_REST_S


def test_reconcile__a_run_failed__its_outcome_is_kept_and_another_starts(hub: HubWorld) -> None:
    row, _ = hub.job()
    hub.connect(0, 1, 2)
    looked(hub, row)
    outcome = json.dumps({"state": "failed", "reason": "round 1: 1 hospitals answered"})
    (hub.folder(row) / "outcome.json").write_text(outcome)
    hub.superlink.ended[101] = "completed"
    row = looked(hub, row)
    assert row.reason == "round 1: 1 hospitals answered; starting again" and row.run_id is None
    assert (hub.folder(row) / "outcome.1.json").read_text() == outcome
    assert looked(hub, row).run_id == "102"


def test_reconcile__signed_refusals__the_buyer_has_every_unit_back(hub: HubWorld) -> None:
    money, buyer = hub.bank.money(hub.bank.buyer), str(hub.bank.buyer.address)
    before = money.balance_units(buyer)
    row, terms = hub.job()
    assert money.balance_units(buyer) == before - terms.amount_units
    (hub.folder(row) / "outcome.json").write_bytes(hub.refusals(terms, (0, 1), "no budget"))
    row = looked(hub, row)
    assert (row.state, row.reason) == ("refunded", "no budget; no budget")
    assert row.ended_at is not None and money.balance_units(buyer) == before
    assert looked(hub, row) == row  # a job that has ended is not looked at again


def test_reconcile__too_few_refusals__refunded_at_the_deadline(
    hub: HubWorld,
) -> None:
    row, terms = hub.job()
    (hub.folder(row) / "outcome.json").write_bytes(hub.refusals(terms, (0,), "no budget"))
    row = looked(hub, row)
    assert row.state == "funded" and "1 signed refusals, 2 are needed" in row.reason
    hub.bank.travel(3700)
    assert looked(hub, row).state == "refunded"
    assert hub.desk.escrow.job(terms.job_id).status == "refunded"


def test_reconcile__an_attested_result__is_settled_and_shown(hub: HubWorld) -> None:
    row, terms = hub.job()
    attested(hub, row, terms)
    row = looked(hub, row)
    assert (row.state, row.reason) == ("settled", "") and row.ended_at is not None
    shown = jobs.describe(hub.desk, row)
    assert shown["settlement"]["model_hash"] == MODEL_HASH.hex() and shown["result_ready"]
    prices = sum(line.price_units for line in terms.datasets)
    # 61 s are two started minutes of 7 units at each hospital; the cap was three
    assert shown["settlement"]["paid_units"] == prices + 600 + 3 * 14
    assert shown["settlement"]["change_units"] == 3 * 7
    assert shown["epsilon_pld"] < 2.0
    assert jobs.result(hub.desk, row).sealed == b"sealed"


def test_reconcile__a_damaged_report__no_money_moves(hub: HubWorld) -> None:
    row, terms = hub.job()
    attested(hub, row, terms)
    report = json.loads((hub.folder(row) / "report.json").read_bytes())
    report["hospitals"][0]["reward_units"] += 1
    (hub.folder(row) / "report.json").write_text(json.dumps(report))
    row = looked(hub, row)
    assert row.state == "attested" and "0 good attestations, the quorum is 2" in row.reason
    assert hub.desk.escrow.job(terms.job_id).status == "funded"


@pytest.mark.parametrize("with_result", [False, True])
def test_reconcile__past_the_deadline__refunded_even_with_a_late_result(
    hub: HubWorld, with_result: bool
) -> None:
    row, terms = hub.job(deadline_s=700)
    hub.bank.travel(800)
    if with_result:
        attested(hub, row, terms)
    row = looked(hub, row, 2)
    assert row.state == "refunded" and "deadline" in row.reason
    assert hub.desk.escrow.job(terms.job_id).status == "refunded"


def test_reconcile__a_dispute_window__is_waited_for_then_paid(hub: HubWorld) -> None:
    dispute = DisputeTerms(600, str(hub.bank.operator.address), 0, 0)
    row, terms = hub.job(dispute=dispute)
    attested(hub, row, terms)
    row = looked(hub, row, 2)
    assert row.state == "attested" and row.reason.startswith("the result may be disputed until 20")
    hub.bank.travel(700)
    assert looked(hub, row).state == "settled"


def test_reconcile__one_job_cannot_go_on__the_others_do(hub: HubWorld) -> None:
    broken, _ = hub.job()
    fine, terms = hub.job()
    (hub.folder(broken) / "outcome.json").write_text('{"state": "odd"}')
    attested(hub, fine, terms)
    assert looked(hub, fine).state == "settled"
    assert looked(hub, broken).reason == "the run's outcome is not understood"
