"""A hospital whose numbers, signatures or silence are other than the terms allow: dropped by name,
never believed, and never the others' trouble.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from datahub.market import reconcile
from datahub.market.jobs import describe, job_row
from datatokens.bindings.registry import State
from datatokens.terms import CURVE_ORDER, JobTerms, rejection_message, sign
from fl_client import protocol
from fl_client.model.graph import MAX_OPERATIONS
from fl_client.privacy.slots import needed, round_seconds
from fl_client.protocol import Admit, Attest, Evaluate, JobSpec, Refused, Scored, Train, Trained
from fl_server import app
from fl_server.app import conduct
from fl_server.errors import RunFailed
from fl_server.ranges import MOST_WORK, round_problem, scores_problem
from fl_server.run_folder import RunFolder
from tests.conftest import NODE_KEYS, spec
from tests.datahub.hub_world import HubWorld
from tests.fl_server.test_app import Script, Watched, conductor, epsilon, folder, honest, outcome


@pytest.fixture(autouse=True)
def _flower_task() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def fourth(kind: str, **changes: Any) -> Script:
    """Dataset 4 changes its replies of a kind."""
    return lambda d, k, r: honest(d, k, r) | (changes if d == 4 and k == kind else {})


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": 1.7e11},
        {"loss": -1e3},
        {"epsilon_job": 0.5},
        {"epsilon_job": 1e7},
        {"epsilon_lifetime": 1e7},
        {"epsilon_lifetime": -1.0},
        {"epsilon_lifetime": 0.01},
        {"delta_lifetime": 0.0},
        {"delta_lifetime": 0.5},
        {"compute_seconds": 2e9},
        {"compute_seconds": -1.0},
        {"unit": "U" * 20},
        {"unit": ""},
        {"device": "cpu\x1b[31m"},
    ],
    ids=str,
)
def test_a_number_that_the_terms_do_not_allow__drops_that_hospital_alone(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    job = folder(tmp_path)
    wire = {name.replace("_", "-"): value for name, value in changes.items()}
    conduct(job, conductor(fourth(Train.kind, **wire)))
    (dropped,) = [line for line in job.events() if line["event"] == "dropped"]
    (name,) = changes
    assert dropped["dataset_id"] == 4 and name in dropped["reason"]
    assert outcome(job)["state"] == "attested" and len(outcome(job)["signatures"]) == 3
    json.loads((tmp_path / "report.json").read_text())


@pytest.mark.parametrize("cell", [-1e6, 1e6])
def test_a_table_of_impossible_counts__is_left_out_of_the_evaluation(
    tmp_path: Path, cell: float
) -> None:
    job = folder(tmp_path)

    def script(d: int, k: str, r: ConfigRecord) -> dict[str, Any]:
        said = honest(d, k, r)
        if d == 4 and k == Evaluate.kind:
            said["scores"] = [cell, *said["scores"][1:]]
        return said

    conduct(job, conductor(script))
    report = json.loads((tmp_path / "report.json").read_text())
    assert [line["scores"] is None for line in report["hospitals"]] == [False] * 3 + [True]
    assert all(line["worked"] for line in report["hospitals"])


@given(
    st.integers(10, 5000),
    st.integers(1, 3),
    st.floats(0, 1),
    st.floats(-7.9, 7.9),
    st.integers(1, 64),
    st.integers(1, MAX_OPERATIONS),
)
def test_what_an_honest_hospital_says__is_never_out_of_range(
    persons: int, number: int, part: float, sd: float, records: int, work: int
) -> None:
    """Any number of patients that the released count can stand for, any loss of theirs, any noise
    within 7.9 standard deviations, any model and any number of records.
    """
    job = spec(persons={1: persons, 2: 30, 3: 20, 4: 10})
    plan, patients = job.plan, part * needed(persons, 1.0)
    loss = (patients + sd * plan.metric_noise_multiplier) * plan.metric_clip / persons
    seconds = round_seconds(plan, job.local_steps, persons, records, work)
    said = Trained(b"", loss, epsilon(number, job), 3.0, 1e-5, "record", seconds, "cuda:0 H100")
    assert round_problem(said, job, persons, number) is None
    cells = (patients * 0.8 + sd * plan.score_noise_multiplier, sd * plan.score_noise_multiplier)
    scored = Scored(cells, epsilon(job.rounds, job, looked=True), 3.0, 1e-5)
    assert scores_problem(scored, job, persons) is None


def test_ranges__work_is_what_a_node_takes() -> None:
    assert MOST_WORK == MAX_OPERATIONS


def high_s(signature: bytes) -> bytes:
    s = CURVE_ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])


SPOILED = {
    "v of 0": lambda s: s[:64] + bytes([s[64] - 27]),
    "high s": high_s,
    "one bit": lambda s: bytes([s[0] ^ 1]) + s[1:],
    "none": lambda s: b"",
    "64 bytes": lambda s: s[:64],
}


@pytest.mark.parametrize("kind", [Admit.kind, Attest.kind])
@pytest.mark.parametrize("spoil", SPOILED, ids=str)
def test_a_signature_that_the_chain_would_not_take__counts_as_none_when_it_arrives(
    tmp_path: Path, kind: str, spoil: str
) -> None:
    def script(d: int, k: str, r: ConfigRecord) -> dict[str, Any]:
        said = honest(d, k, r)
        return said | (
            {"signature": SPOILED[spoil](said["signature"])} if (d, k) == (4, kind) else {}
        )

    trained = []

    def watched(d: int, k: str, r: ConfigRecord) -> dict[str, Any]:
        trained.append(d) if k == Train.kind else None
        return script(d, k, r)

    job = folder(tmp_path)
    conduct(job, conductor(watched))
    assert len(outcome(job)["signatures"]) == 3
    events = [line for line in job.events() if line.get("dataset_id") == 4]
    if kind == Admit.kind:
        assert 4 not in trained and events[0]["accepted"] is False
        assert "malformed" in events[0]["reason"] or "was made by" in events[0]["reason"]
        assert len(job.acceptances) == 3
    else:
        assert events[-1]["signed"] is False


def test_a_refusal_signed_by_another_key__gives_nobody_the_money_back(tmp_path: Path) -> None:
    job = folder(tmp_path, quorum=4)

    def script(d: int, k: str, r: ConfigRecord) -> dict[str, Any]:
        if d == 4 and k == Admit.kind:
            forged = sign(rejection_message(job.terms, "no"), NODE_KEYS[0])
            return protocol.to_record(Refused("no", forged))
        return honest(d, k, r)

    with pytest.raises(RunFailed, match="3 hospitals accepted, the quorum is 4"):
        conduct(job, conductor(script))


@pytest.mark.parametrize("answer", [None, Error(1, "node unavailable")])
def test_a_hospital_that_does_not_answer__is_unavailable_and_has_not_refused(
    tmp_path: Path, answer: Error | None
) -> None:
    job = folder(tmp_path)
    conduct(job, conductor(lambda d, k, r: answer if d == 4 else honest(d, k, r)))
    said = [line for line in job.events() if line["event"] == "admission"]
    assert [line["silent"] for line in said] == [False, False, False, True]


def test_a_hospital_that_did_not_answer__is_not_shown_as_having_refused(hub: HubWorld) -> None:
    row, terms = hub.job()
    job = reconcile.jobs.run_folder(hub.desk, row)
    hub.folder(row)
    first, second, _ = (line.dataset_id for line in terms.datasets)
    job.progress("admission", dataset_id=first, accepted=False, reason="no time", silent=True)
    job.progress("admission", dataset_id=second, accepted=False, reason="too dear", silent=False)
    shown = [(d["accepted"], d["reason"]) for d in describe(hub.desk, row)["datasets"]]
    assert shown == [(None, "no time"), (False, "too dear"), (None, "")]


# -- the deadline ----------------------------------------------------------------------------------


def test_how_long_a_round_is_waited_for__follows_from_the_deadline(tmp_path: Path) -> None:
    waits: list[tuple[str, float]] = []
    job = folder(tmp_path, deadline=int(time.time()) + 690)
    ask = conductor(honest)

    def watched(messages: dict[int, Any], timeout: float) -> dict[int, Any]:
        waits.append((next(iter(messages.values())).metadata.message_type, timeout))
        replies: dict[int, Any] = ask(messages, timeout)
        return replies

    conduct(job, watched)
    by_kind = {kind: [t for k, t in waits if k == kind] for kind, _ in waits}
    assert by_kind[Admit.kind][0] <= 120
    first, second, third = by_kind[Train.kind]
    assert 190 < first <= 200 and 290 < second <= 300 and 590 < third <= 600
    assert all(t <= 120 for t in by_kind[Evaluate.kind] + by_kind[Attest.kind])


@pytest.mark.parametrize("left", [-100, 0, 60])
def test_a_deadline_that_is_over_or_near__ends_the_run_before_anybody_is_asked(
    tmp_path: Path, left: int
) -> None:
    job = folder(tmp_path, deadline=int(time.time()) + left)
    with pytest.raises(RunFailed, match="before the deadline"):
        conduct(job, conductor(lambda d, k, r: pytest.fail("asked")))


# -- who can be paid -------------------------------------------------------------------------------


def test_a_hospital_that_the_chain_has_not_taken__does_not_keep_the_others_from_pay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = folder(tmp_path)
    three = [line.node for line in job.terms.datasets[:3]]
    monkeypatch.setattr(Watched, "keep_acceptances", lambda self, _: self.keep_taken(three))
    conduct(job, conductor(honest))
    assert outcome(job)["worked"] == 0b111
    (unpaid,) = [line for line in job.events() if line["event"] == "unpaid"]
    assert unpaid["dataset_id"] == 4


def test_without_a_hub__the_run_ends_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "TAKEN_S", 0.2)
    folder(tmp_path)
    job = RunFolder(tmp_path)
    job.keep_taken([])  # of an earlier run, and nothing by now
    conduct(job, conductor(honest))
    assert outcome(job)["worked"] == 0b1111


def test_a_dataset_paused_after_its_node_has_accepted__is_left_out_of_what_the_hub_says_is_taken(
    hub: HubWorld,
) -> None:
    row, terms = hub.job()
    mine = hub.bank.registry(hub.bank.hospitals[1])
    mine.set_state(2, State.PAUSED)
    try:
        (hub.folder(row) / "acceptances.json").write_bytes(hub.acceptances(terms))
        reconcile.reconcile(hub.desk)
    finally:
        mine.set_state(2, State.ACTIVE)
    taken = reconcile.jobs.run_folder(hub.desk, job_row(hub.desk, row.job_id)).taken
    assert taken == {line.node for line in terms.datasets if line.dataset_id != 2}
    assert isinstance(terms, JobTerms) and JobSpec.from_dict(terms.spec).rounds
