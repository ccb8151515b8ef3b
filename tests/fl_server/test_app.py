"""The conductor with scripted nodes: what it does when they refuse, vanish or send nonsense."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eth_account import Account
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from datatokens.terms import (
    JobTerms,
    acceptance_message,
    attestation_message,
    rejection_message,
    sign,
)
from fl_client import protocol
from fl_client.model.weights import from_safetensors, model_hash, to_safetensors
from fl_client.privacy import accounting
from fl_client.privacy.evaluation import CELLS
from fl_client.protocol import (
    Admit,
    Ask,
    Attest,
    Evaluate,
    JobSpec,
    Refused,
    Release,
    Released,
    Scored,
    Signed,
    Train,
    Trained,
    Waiting,
)
from fl_server import app as app_module
from fl_server.app import conduct
from fl_server.errors import RunFailed
from fl_server.run_folder import RunFolder
from fl_server.settlement import attestation_of
from tests.clocks import clock
from tests.conftest import NODE_KEYS, spec, terms


@pytest.fixture(autouse=True)
def _flower_task() -> None:
    """Flower's Message constructor wants to know the task that it runs in."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


START = {"w": np.zeros(3, np.float32)}
Script = Callable[[int, str, ConfigRecord], dict[str, Any] | Error | None]


def folder(
    tmp_path: Path, momentum: float = 0.0, job_spec: JobSpec | None = None, **changes: Any
) -> RunFolder:
    # weights that float32 holds exactly
    weighted = spec(persons={1: 32, 2: 16, 3: 8, 4: 8}, server_momentum=momentum)
    job = terms(job_spec or weighted, **changes)
    nodes = {line.node: i + 1 for i, line in enumerate(job.datasets)}
    (tmp_path / "terms.json").write_bytes(job.to_json())
    (tmp_path / "graph.json").write_bytes(b"{}")
    (tmp_path / "weights.safetensors").write_bytes(to_safetensors(START))
    (tmp_path / "nodes.json").write_text(json.dumps(nodes))
    return Watched(tmp_path)


class Watched(RunFolder):
    """A job's folder that a hub watches, which puts every acceptance on the chain."""

    def keep_acceptances(self, acceptances: Mapping[str, str]) -> None:
        super().keep_acceptances(acceptances)
        self.keep_taken(list(acceptances))


ADMITTED: dict[str, JobTerms] = {}


def epsilon(rounds: int, job: JobSpec, *, looked: bool = False) -> float:
    charges = job.round_charges() * rounds + (job.evaluation_charges() if looked else ())
    return accounting.epsilon(charges, job.plan.delta)


def honest(dataset_id: int, kind: str, request: ConfigRecord) -> dict[str, Any]:
    key, reply = NODE_KEYS[dataset_id - 1], Released()
    if kind == Admit.kind:
        job = JobTerms.from_json(protocol.from_record(Admit, request).terms)
        ADMITTED[job.job_id.hex()] = job
        reply = Signed(sign(acceptance_message(job), key))
    if kind == Train.kind:
        asked = protocol.from_record(Train, request)
        arrays = from_safetensors(asked.model)
        model = to_safetensors({"w": arrays["w"] + dataset_id})
        spent = epsilon(asked.round, JobSpec.from_dict(ADMITTED[asked.job].spec))
        reply = Trained(model, 0.5, spent, spent + 1, 1e-5, "patient", 0.1, "cpu")
    if kind == Evaluate.kind:
        job_spec = JobSpec.from_dict(ADMITTED[protocol.from_record(Evaluate, request).job].spec)
        spent = epsilon(job_spec.rounds, job_spec, looked=True)
        reply = Scored((float(2 * dataset_id),) * CELLS, spent, spent + 1, 1e-5)
    if kind == Attest.kind:
        given = protocol.from_record(Attest, request)
        job = ADMITTED[given.job]
        report = json.loads(given.report)
        worked = sum(line["worked"] << i for i, line in enumerate(report["hospitals"]))
        final = model_hash(from_safetensors(given.model))
        result = attestation_of(job, final, worked, given.report)
        reply = Signed(sign(attestation_message(job, result), key))
    return protocol.to_record(reply)


def conductor(script: Script) -> Any:
    """An `ask` that answers every message by the script; None is silence."""

    def ask(messages: dict[int, Message], timeout: float) -> dict[int, Message]:
        replies = {}
        for dataset_id, message in messages.items():
            message.metadata.__dict__["_message_id"] = "1"
            answer = script(
                dataset_id, message.metadata.message_type, message.content[protocol.REQUEST]
            )
            if isinstance(answer, Error):
                replies[dataset_id] = Message(answer, reply_to=message)
            elif answer is not None:
                content = RecordDict({protocol.REPLY: ConfigRecord(answer)})
                replies[dataset_id] = Message(content, reply_to=message)
        return replies

    return ask


def outcome(job: RunFolder) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((job.path / "outcome.json").read_text())
    return value


def test_conduct__four_honest_nodes__attested_with_the_weighted_mean(tmp_path: Path) -> None:
    job = folder(tmp_path)
    conduct(job, conductor(honest))
    assert outcome(job)["state"] == "attested" and len(outcome(job)["signatures"]) == 4
    report = json.loads((tmp_path / "report.json").read_text())
    assert [r["number"] for r in report["rounds"]] == [1, 2, 3]
    # each round adds 1/2*1 + 1/4*2 + 1/8*3 + 1/8*4 = 1.875
    assert report["model_hash"] == model_hash({"w": np.full(3, 5.625, np.float32)}).hex()
    assert (tmp_path / "result.sealed").exists()


def test_conduct__with_momentum__each_step_carries_on_half_of_the_last(tmp_path: Path) -> None:
    conduct(folder(tmp_path, momentum=0.5), conductor(honest))
    report = json.loads((tmp_path / "report.json").read_text())
    # steps of 1.875, then 1.875 + 1.875 / 2, then 1.875 + half of that
    assert report["model_hash"] == model_hash({"w": np.full(3, 7.96875, np.float32)}).hex()


def test_conduct__final_model_looked_at__tables_figures_and_epsilons_are_in_the_report(
    tmp_path: Path,
) -> None:
    job = folder(tmp_path)
    conduct(job, conductor(honest))
    report = json.loads((tmp_path / "report.json").read_text())
    assert all(line["scores"] == [2.0 * line["dataset_id"]] * CELLS for line in report["hospitals"])
    spent = epsilon(3, job.spec, looked=True)
    assert {line["epsilon_job"] for line in report["hospitals"]} == {spent}
    # equal counts everywhere: half is right, and ranks say nothing
    for name in ("accuracy", "auc", "event_rate"):
        found = report["evaluation"][name]
        assert found["value"] == 0.5 and found["low"] + found["high"] == pytest.approx(1)
        assert 0.3 < found["low"] < 0.5


@pytest.mark.parametrize(
    "broken",
    [
        None,
        protocol.to_record(Refused("no")),
        {"scores": [1.0] * (CELLS - 1)},
        {"scores": [float("nan")] * CELLS},
        {"scores": b"many"},
        {"epsilon-job": "low"},
    ],
)
def test_conduct__one_node_without_a_table__worked_all_the_same(
    tmp_path: Path, broken: dict[str, Any] | None
) -> None:
    asked = []

    def script(dataset_id: int, kind: str, request: ConfigRecord) -> dict[str, Any] | None:
        if dataset_id == 1 and kind == Evaluate.kind:
            asked.append(kind)
            if broken is None or "reason" in broken:
                return broken
            return honest(dataset_id, kind, request) | broken
        return honest(dataset_id, kind, request)

    job = folder(tmp_path)
    conduct(job, conductor(script))
    report = json.loads((tmp_path / "report.json").read_text())
    first = next(line for line in report["hospitals"] if line["dataset_id"] == 1)
    assert first["worked"] is True and first["scores"] is None
    assert first["epsilon_job"] == epsilon(3, job.spec)
    assert report["evaluation"]["accuracy"]["value"] == 0.5 and len(asked) == 2


def test_conduct__run_repeated__writes_the_same_report(tmp_path: Path) -> None:
    job = folder(tmp_path)
    conduct(job, conductor(honest))
    first = (tmp_path / "report.json").read_bytes()
    conduct(job, conductor(honest))
    assert (tmp_path / "report.json").read_bytes() == first


def test_conduct__enough_signed_refusals__refused_and_the_others_released(tmp_path: Path) -> None:
    job = folder(tmp_path, quorum=4)
    released = []

    def script(dataset_id: int, kind: str, request: ConfigRecord) -> dict[str, Any]:
        if kind == Release.kind:
            released.append(dataset_id)
        if kind == Admit.kind and dataset_id == 2:
            signature = sign(rejection_message(job.terms, "no budget"), NODE_KEYS[1])
            return protocol.to_record(Refused("no budget", signature))
        return honest(dataset_id, kind, request)

    conduct(job, conductor(script))
    node = str(Account.from_key(NODE_KEYS[1]).address)
    assert (
        outcome(job)["state"] == "refused"
        and outcome(job)["rejections"][node]["reason"] == "no budget"
    )
    assert sorted(released) == [1, 3, 4]
    assert not (tmp_path / "result.sealed").exists()


def test_conduct__a_node_that_does_not_answer_admission__fails_without_a_refusal(
    tmp_path: Path,
) -> None:
    job = folder(tmp_path, quorum=4)
    with pytest.raises(RunFailed, match="admission: 3 hospitals accepted, the quorum is 4"):
        conduct(
            job,
            conductor(lambda d, k, r: None if d == 3 and k == Admit.kind else honest(d, k, r)),
        )


def nonsense(**changes: Any) -> Script:
    """Dataset 1 spoils its round replies."""
    return lambda d, k, r: honest(d, k, r) | (changes if d == 1 and k == Train.kind else {})


@pytest.mark.parametrize(
    "script",
    [
        nonsense(model=b"\x80\x04pickle"),
        nonsense(model=to_safetensors({"w": np.zeros(4, np.float32)})),
        nonsense(model=to_safetensors({"w": np.full(3, np.nan, np.float32)})),
        nonsense(loss=float("nan")),
        nonsense(loss="low"),
        nonsense(device=7),
        nonsense(device="x" * 81),
        nonsense(persons=10**9),  # a weight that is claimed: only the terms' counts weigh
        lambda d, k, r: Error(1, "boom") if d == 1 and k == Train.kind else honest(d, k, r),
        lambda d, k, r: None if d == 1 and k == Train.kind else honest(d, k, r),
        lambda d, k, r: {"odd": 1} if d == 1 and k == Train.kind else honest(d, k, r),
    ],
)
def test_conduct__one_node_sends_nonsense__is_dropped_and_the_quorum_goes_on(
    tmp_path: Path, script: Script
) -> None:
    job = folder(tmp_path)  # quorum 3 of 4
    conduct(job, conductor(script))
    report = json.loads((tmp_path / "report.json").read_text())
    assert {line["dataset_id"]: line["worked"] for line in report["hospitals"]}[1] is False
    assert outcome(job)["state"] == "attested" and outcome(job)["worked"].bit_count() == 3


def test_conduct__nonsense_below_the_quorum__fails(tmp_path: Path) -> None:
    job = folder(tmp_path, quorum=4)
    with pytest.raises(RunFailed, match="round 1: 3 hospitals answered, the quorum is 4"):
        conduct(job, conductor(nonsense(loss=float("inf"))))


def test_conduct__too_few_sign__fails_and_nothing_is_given_out(tmp_path: Path) -> None:
    job = folder(tmp_path)

    def script(dataset_id: int, kind: str, request: ConfigRecord) -> dict[str, Any]:
        if kind == Attest.kind and dataset_id > 2:
            return protocol.to_record(Refused("figures differ"))
        return honest(dataset_id, kind, request)

    with pytest.raises(RunFailed, match="attestation: 2 hospitals signed, the quorum is 3"):
        conduct(job, conductor(script))
    assert not (tmp_path / "result.sealed").exists()


def people(answers: dict[int, list[str]], asked: list[int]) -> Script:
    """Hospitals where a person decides: "wait", "away", "trouble", "yes" or "no" at each question
    in turn.
    """

    def script(dataset_id: int, kind: str, request: ConfigRecord) -> dict[str, Any] | None:
        if kind == Admit.kind:
            honest(dataset_id, kind, request)
        if kind not in (Admit.kind, Ask.kind) or dataset_id not in answers:
            return honest(dataset_id, kind, request)
        asked.append(dataset_id)
        if kind == Admit.kind:
            job = JobTerms.from_json(protocol.from_record(Admit, request).terms)
        else:
            job = ADMITTED[protocol.from_record(Ask, request).job]
        said, key = answers[dataset_id].pop(0), NODE_KEYS[dataset_id - 1]
        if said == "wait":
            until = int(app_module.time.time()) + 1000
            return protocol.to_record(Waiting(until, "a person decides"))
        if said == "trouble":
            return protocol.to_record(Refused("cannot answer now"))
        if said == "no":
            return protocol.to_record(Refused("no", sign(rejection_message(job, "no"), key)))
        if said == "yes":
            return protocol.to_record(Signed(sign(acceptance_message(job), key)))
        return None

    return script


def working(job: RunFolder) -> set[int]:
    """Dataset ids of those who have worked."""
    lines = enumerate(job.terms.datasets)
    return {line.dataset_id for i, line in lines if outcome(job)["worked"] >> i & 1}


@pytest.fixture
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, app_module, sleep=lambda _: None)


@pytest.mark.usefixtures("no_sleep")
def test_conduct__people_decide_at_two_hospitals__they_are_asked_again_until_they_have(
    tmp_path: Path,
) -> None:
    job, asked = folder(tmp_path, quorum=3), []
    script = people({2: ["wait", "away", "wait", "yes"], 3: ["wait", "no"]}, asked)
    conduct(job, conductor(script))
    assert outcome(job)["state"] == "attested" and working(job) == {1, 2, 4}
    assert asked.count(2) == 4 and asked.count(3) == 2, "who has answered is not asked again"
    waits = [line for line in job.events() if line["event"] == "waiting"]
    assert {line["dataset_id"] for line in waits} == {2, 3}
    admissions = [one["dataset_id"] for one in job.events() if one["event"] == "admission"]
    assert admissions == [1, 4, 3, 2]


@pytest.mark.usefixtures("no_sleep")
def test_conduct__a_nodes_own_trouble_while_somebody_decides__does_not_end_the_wait(
    tmp_path: Path,
) -> None:
    job, asked = folder(tmp_path, quorum=3), []
    conduct(job, conductor(people({2: ["wait", "trouble", "wait", "yes"]}, asked)))
    assert working(job) == {1, 2, 3, 4} and len(asked) == 4


@pytest.mark.usefixtures("no_sleep")
def test_conduct__a_no_that_settles_it__the_others_are_not_waited_for(tmp_path: Path) -> None:
    job, asked = folder(tmp_path, quorum=4), []
    conduct(job, conductor(people({2: ["wait", "no"], 3: ["wait"] * 2}, asked)))
    assert outcome(job)["state"] == "refused"
    assert asked.count(3) == 2


@pytest.mark.usefixtures("no_sleep")
def test_conduct__a_hospital_that_waits_for_ever__is_waited_for_until_its_own_end_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.time()]

    def tick(seconds: float) -> None:
        now[0] += seconds

    clock(monkeypatch, app_module, time=lambda: now[0], sleep=tick)
    until = int(now[0]) + 1500
    weighted = spec(persons={1: 32, 2: 16, 3: 8, 4: 8}, answer_by=until)
    job, asked = folder(tmp_path, quorum=3, job_spec=weighted), []
    conduct(job, conductor(people({2: ["wait"] * 10_000}, asked)))
    assert outcome(job)["state"] == "attested" and working(job) == {1, 3, 4}
    assert until <= now[0] < until + 60 and len(asked) < 300
