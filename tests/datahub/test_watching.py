"""A job is left and come back to by the shell: watched while it runs, looked at, compared with
another, ordered once more. On the real chain and hub; hospitals' work is played.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from datahub import Market, comparison
from datahub.buyer import changes, job_store, jobs, networks
from datahub.buyer.hub_client import Hub
from datahub.buyer.jobs import Job
from datahub.cli import app
from datahub.errors import HubError, NotFound, NotSettled, OrderRefused, Refunded
from datahub.market.jobs import run_folder
from datahub.market.reconcile import reconcile
from datahub.market.tables import JobRow
from datahub.shell import watching
from datatokens.chain.rpc_server import accounts
from tests.datahub.hub_world import FEE_BPS, HubWorld
from tests.faults.crashes import hospitals_work

ROUND = {"rounds": 2, "loss": 0.5, "loss_interval95": 0.1, "epsilon": {"1": 1.5}, "seconds": 0.25}


@pytest.fixture
def market(hub: HubWorld, hub_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Market:
    monkeypatch.setenv("DATAHUB_HOME", str(tmp_path / "home"))
    made = hub.bank.deployment
    networks.pin(networks.Network("here", hub_url, hub.bank.url, FEE_BPS, made))
    return Market(hub_url, chain=hub.bank.url, key=accounts()[1][1])


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    (path := tmp_path / "wallet.key").write_text(accounts()[1][1])
    return str(path)


def ordered(market: Market, **changes: Any) -> Job:
    settings = {"epsilon": 2.0, "purpose": "research", "rounds": 2} | changes
    return market.quote([1, 2, 3], **settings).order()


def row_of(hub: HubWorld, job: Job) -> JobRow:
    with hub.desk.session() as session:
        found = session.get(JobRow, job.id)
    assert found is not None
    return found


def say(hub: HubWorld, job: Job, event: str, **facts: Any) -> None:
    """What a run says while it runs."""
    folder = run_folder(hub.desk, row_of(hub, job))
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.progress(event, **facts)


def settle(hub: HubWorld, job: Job) -> None:
    for _ in range(20):
        hospitals_work(hub)
        if row_of(hub, job).state == "settled":
            return
    raise AssertionError("not settled")


def refuse(hub: HubWorld, job: Job, reason: str) -> None:
    """All hospitals say no, signed: the money goes back."""
    folder = hub.folder(row_of(hub, job))
    (folder / "outcome.json").write_bytes(hub.refusals(job.terms, (0, 1, 2), reason))
    for _ in range(5):
        reconcile(hub.desk)


def shell(*words: object) -> Any:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [*map(str, words)])


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Any]:
    """Begin `datahub job watch` in a process of its own."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "datahub.cli", "job", "watch", *words]
        begun.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
            )
        )
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def test_watch__as_json__a_line_for_each_change_until_the_job_has_settled(
    hub: HubWorld, market: Market, watched: Any
) -> None:
    job = ordered(market)
    process = watched(job.id[:12], "--json")
    first = line(process)
    assert first == {"job_id": job.id, "change": "state", "state": "funded", "reason": ""}
    until = int(time.time()) + 600
    say(hub, job, "started")
    say(hub, job, "waiting", dataset_id=2, until=until)
    assert line(process) == {
        "job_id": job.id,
        "change": "waits",
        "dataset_id": 2,
        "until": until,
    }
    say(hub, job, "admission", dataset_id=2, accepted=True)
    say(hub, job, "round", number=1, **ROUND)
    assert line(process) == {"job_id": job.id, "change": "round", "number": 1, **ROUND}
    settle(hub, job)
    rest, complained = process.communicate(timeout=60)
    last = [json.loads(one) for one in rest.splitlines()][-1]
    assert (last["change"], last["state"]) == ("state", "settled")
    assert process.returncode == 0, complained


def test_watch__a_job_that_is_refunded__says_why_and_ends_with_exit_code_4(
    hub: HubWorld, market: Market, watched: Any
) -> None:
    job = ordered(market)
    refuse(hub, job, "no such purpose here")
    process = watched(job.id)
    said, complained = process.communicate(timeout=60)
    assert process.returncode == 4, complained
    assert "refunded: " in said and "no such purpose here" in said
    assert "money back: job" in complained and "as its hub says" in " ".join(complained.split())


def test_watch__longer_than_it_may__ends_with_not_settled(hub: HubWorld, market: Market) -> None:
    job = ordered(market)
    ended = shell("job", "watch", job.id[:10], "--for-s", 0)
    assert isinstance(ended.exception, NotSettled) and ended.exception.exit_code == 3
    assert f"look again with: datahub job watch {job.id[:12]}" in str(ended.exception)
    ended = shell("job", "watch", "0123456789ab")
    assert isinstance(ended.exception, NotFound)
    assert "no such job is known" in str(ended.exception)


def test_watch__a_hub_that_goes_away__is_asked_again(
    market: Market, hub_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "QUIET_S", 0.05)
    job, hub, said = ordered(market), Hub(hub_url), list[str]()

    def complain(sentence: str) -> None:
        said.append(sentence)
        hub._client.base_url = hub_url  # it is back

    seen = watching.statuses(hub, job.id, None, complain)
    assert next(seen)["state"] == "funded"
    hub._client.base_url = "http://127.0.0.1:9"
    assert next(seen)["state"] == "funded" and next(seen)["state"] == "funded"
    (sentence,) = said
    assert "does not answer" in sentence and "the job goes on" in sentence
    hub._client.base_url = "http://127.0.0.1:9"
    with pytest.raises(HubError, match="does not answer"):
        next(watching.statuses(hub, job.id, None, complain))


def test_a_refund_that_only_the_hub_knows_of__is_none(
    hub: HubWorld, market: Market, key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SEEN_S", 0.05)
    job = ordered(market)
    said = job.status() | {"state": "refunded", "reason": "trust me"}
    with monkeypatch.context() as lying:
        lying.setattr(Job, "status", lambda _: said)
        with pytest.raises(HubError, match=r"hub says .*trust me; the chain says that it is fund"):
            job.wait()
        ended = shell("job", "resume", job.id, "--key-file", key_file, "--json")
    assert type(ended.exception) is HubError and ended.stdout == ""
    assert f"go on with: datahub job resume {job.id[:12]}" in str(ended.exception)
    refuse(hub, job, "no")
    ended = shell("job", "resume", job.id, "--key-file", key_file, "--json")
    assert isinstance(ended.exception, Refunded) and ended.exception.exit_code == 4
    assert json.loads(ended.stdout)["state"] == "refunded"
    assert f"every unit is back in {market.address}" in str(ended.exception)


def test_result__not_there_yet_or_never__says_which(
    hub: HubWorld, market: Market, key_file: str
) -> None:
    job = ordered(market)
    with pytest.raises(NotSettled, match=r"is funded, not settled: .*datahub job watch"):
        job.result()
    ended = shell("job", "result", job.id, "--key-file", key_file)
    assert isinstance(ended.exception, NotSettled)
    refuse(hub, job, "no")
    with pytest.raises(Refunded, match="was refunded, so there is no result: order it again"):
        job.result()
    kept = market.quote([1], epsilon=2.0, purpose="research", rounds=2).keep()
    with pytest.raises(OrderRefused, match="was never paid, so there is no result"):
        kept.result()


def test_show__by_its_first_digits__state_money_and_deadline(hub: HubWorld, market: Market) -> None:
    job = ordered(market)
    said = shell("job", "show", job.id[:8]).output.splitlines()
    assert said[0] == "funded, 0 of 2 rounds"
    assert f"({job.terms.amount_units} base units) escrowed for research; deadline 20" in said[1]
    settle(hub, job)
    said = shell("job", "show", job.id).output.splitlines()
    assert said[0].startswith("settled") and "went to hospitals" in said[2]


def test_compare__two_jobs__side_by_side(hub: HubWorld, hub_url: str, market: Market) -> None:
    one, other = ordered(market), ordered(market, rounds=3, purpose="care")
    say(hub, one, "round", number=1, **ROUND)
    settle(hub, one)
    settle(hub, other)
    found = json.loads(shell("job", "compare", one.id, other.id[:12], "--json").output)
    assert [facts["job_id"] for facts in found] == [one.id, other.id]
    assert [facts["rounds_planned"] for facts in found] == [2, 3]
    assert found[0]["loss"] == 0.5 and found[0]["seconds"] > 0 and found[0]["epsilon"] == 1.5
    settlement = market.escrow.settlement(bytes.fromhex(one.id))
    assert settlement is not None
    assert found[0]["cost_units"] == one.terms.amount_units - settlement.change_units
    shown = httpx.get(f"{hub_url}/compare", params={"job": [one.id, other.id]}).text
    for words in ("0.500 ± 0.100", "1 of 2", "0 of 3", "Loss of", one.id[:12], other.id[:12]):
        assert words in shown, shown
    alone = httpx.get(f"{hub_url}/compare", params={"job": one.id})
    assert alone.status_code == 422 and "choose 2 to 6 different jobs" in alone.text
    table = shell("job", "compare", one.id, other.id).output
    for words in ("0.500 ± 0.100", "1 of 2", "0 of 3", "care", "1, 2, 3", "base units)"):
        assert words in table, table
    ended = shell("job", "compare", one.id)
    assert "compare: name two jobs or more" in str(ended.exception)


def test_compare__figures_of_the_report__with_their_intervals() -> None:
    status = {
        "job_id": "ab" * 32,
        "state": "settled",
        "purpose": "research",
        "datasets": [{"dataset_id": 1, "attested": {"epsilon_job": 1.25}}],
        "delta": 1e-5,
        "rounds": [],
        "rounds_planned": 1,
        "loss": "binary_cross_entropy",
        "evaluation": {"accuracy": {"value": 0.8, "low": 0.7, "high": 0.9}, "auc": None},
        "amount_units": 10,
        "settlement": {"change_units": 4},
        "funded_at": "2026-01-01T00:00:00+00:00",
        "ended_at": "2026-01-01T00:00:02.500000+00:00",
    }
    facts = comparison.facts(status)
    assert (facts["epsilon"], facts["cost_units"], facts["seconds"]) == (1.25, 6, 2.5)
    bare = comparison.facts(status | {"evaluation": None, "settlement": None, "state": "refunded"})
    assert bare["evaluation"] == {} and bare["cost_units"] == 0
    rows = [(name, *words) for name, words in comparison.rows([facts, bare])]
    assert ("accuracy (95 %)", "0.800 (0.700 to 0.900)", "none") in rows
    assert ("AUC (95 %)", "more noise than signal", "none") in rows


def test_repeat__the_same_order_anew__differs_in_salt_and_deadline_alone(
    market: Market, key_file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = market.quote(
        [1, 2],
        epsilon=1.5,
        purpose="research",
        purpose_codes=["DUO:0000006"],
        quorum=1,
        reward_units=600,
        compute_minutes=3,
        deadline_s=5000,
    )
    job = first.keep()
    again = market.repeat(job.id[:12])
    assert again.terms.job_id != first.terms.job_id
    spec = dict(again.terms.spec) | {name: first.terms.spec[name] for name in ("salt", "answer_by")}
    assert spec == first.terms.spec
    assert (again.terms.datasets, again.terms.quorum) == (first.terms.datasets, 1)
    assert again.terms.reward_units == 600 and again.asked == job_store.kept(job.id).order  # type: ignore[union-attr]
    assert again.keep().id != job.id and market.repeat(again.terms.job_id.hex()).asked
    shown = shell("job", "repeat", job.id, "--key-file", key_file)  # nobody says yes
    assert shown.exit_code == 1 and "Pay?" in shown.stderr and "in all: datasets" in shown.stderr


def test_repeat__a_job_whose_order_is_not_kept__says_what_to_do(market: Market) -> None:
    job = ordered(market)
    (job_store.jobs_folder() / job.id / job_store.ORDER).unlink()
    with pytest.raises(OrderRefused, match=r"is not kept on this disk.*datahub order new"):
        market.repeat(job.id)


def test_changes__of_a_question__show_no_loss() -> None:
    status = {
        "state": "running",
        "reason": "",
        "loss": "output",
        "rounds": [{"number": 1, **ROUND}],
        "datasets": [],
    }
    state, one = sorted(changes.new({}, status), key=lambda each: each["change"], reverse=True)
    assert state["state"] == "running" and "loss" not in one
    assert changes.line(one, {1: "North"}) == (
        "  round  1/2: epsilon 1.50 at each of 1 hospitals; 0.25 s"
    )
    assert changes.new(status, status) == []
