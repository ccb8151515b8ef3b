"""A hub in a file and out of it again: real processes, and the same chain meanwhile."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from datahub import config
from datahub.market import orders
from datahub.operator import backup
from datahub.operator.cli import hub as commands
from datatokens.terms import JobTerms
from fl_client.errors import BackupError
from fl_client.node import archive, sealed
from tests.datahub.hub_world import HubWorld
from tests.datahub.test_claims import earning
from tests.datahub.test_contributors import ACCOUNTS
from tests.datahub.test_serving import Process, prepared, until

PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second a guess is for those who guess."""
    monkeypatch.setattr(sealed, "COST", 2)


@pytest.fixture
def running() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for one in started:
        one.running.kill()
        one.running.wait()


def command(*words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "datahub.cli", "hub", *words, "--passphrase-file", "-", "--json"],
        input=PASSPHRASE,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def settle(hub: HubWorld, terms: JobTerms) -> None:
    """By the hospitals' signatures, without any hub."""
    escrow, attested = hub.bank.escrow(hub.bank.operator), hub.bank.attestation(terms)
    escrow.accept(terms, hub.bank.acceptances(terms))
    escrow.settle(terms, attested, hub.bank.signatures(terms, attested))


def test_killed_and_put_back_from_an_older_backup__jobs_and_claims_are_right(
    hub: HubWorld, running: list[Process], tmp_path: Path
) -> None:
    dataset_id = earning(hub)
    settled, settled_terms = hub.job()
    waiting, _ = hub.job()
    quoted, _ = orders.quote(hub.desk, hub.order())
    folder = prepared(hub)
    (hub.desk.config.superlink_folder / "operator.token").write_text("a" * 64)
    running.append(Process(folder))
    made = command("backup", str(folder), str(tmp_path / "hub.backup"))
    assert made["files"] > 8 and made["more"] == ""

    # what the backup does not know
    settle(hub, settled_terms)
    escrow = hub.bank.escrow(hub.bank.buyer)
    escrow.create_job(quoted)
    later, forgotten = (hub.paid(), hub.paid())
    units = 5_000
    hub.bank.money(hub.bank.buyer).approve(hub.bank.deployment.market, units)
    hub.bank.revenue(hub.bank.buyer).pay_revenue(dataset_id, units)
    running[0].running.kill()
    running[0].running.wait()
    hub.desk.index.catch_up()
    shutil.rmtree(folder)
    shutil.rmtree(hub.desk.config.superlink_folder)

    target = tmp_path / "elsewhere" / "hub"
    command("restore", str(tmp_path / "hub.backup"), str(target))
    again = config.read(target)
    assert again.superlink_folder == target / "superlink"
    assert (again.superlink_folder / "operator.token").read_text() == "a" * 64
    assert all(path.stat().st_mode & 0o077 == 0 for path in (target, *target.rglob("*")))
    running.append(Process(target))
    url = f"{running[1].url}/api/v1"

    def state(job_id: str) -> str:
        answer = httpx.get(f"{url}/jobs/{job_id}").json()
        return str(answer.get("state", answer.get("detail")))

    until(lambda: state(settled.job_id) == "settled", "what was settled meanwhile is so here")
    until(lambda: state(quoted.job_id.hex()) == "funded", "a quote that was paid is taken up")
    assert state(waiting.job_id) == "funded"
    assert "is not known here" in state(later.job_id.hex())
    files = {"graph": b"{}", "weights": b"w"}
    told = {"terms": later.to_json().decode()}
    told |= {name: base64.b64encode(content).decode() for name, content in files.items()}
    assert httpx.post(f"{url}/jobs", json=told).status_code == 201  # as `datahub job resume` does
    assert state(later.job_id.hex()) == "funded"
    # what its contributors are owed: what the first hub said, and what came in since
    (claim,) = [
        one
        for one in httpx.get(f"{url}/claims/{ACCOUNTS[3]}").json()
        if one["dataset_id"] == dataset_id
    ]
    credited = hub.desk.revenue.epoch(dataset_id, 1).credited_units
    assert claim["claimable_units"] == credited * claim["weight"] // 10

    hub.bank.travel(4000)
    for job_id in (waiting.job_id, quoted.job_id.hex(), later.job_id.hex()):
        until(lambda one=job_id: state(one) == "refunded", "after its deadline")  # type: ignore[misc]
    escrow.refund(forgotten)  # by its buyer
    jobs = (settled.job_id, waiting.job_id, quoted.job_id.hex(), forgotten.job_id.hex())
    found = [escrow.job(bytes.fromhex(job)).status for job in jobs]
    assert found == ["settled", "refunded", "refunded", "refunded"]
    assert running[1].end() < 10


@pytest.mark.usefixtures("cheap")
def test_backup__an_ended_job__keeps_its_result_and_not_what_it_began_with(
    hub: HubWorld, tmp_path: Path
) -> None:
    ended, open_ = hub.job()[0], hub.job()[0]
    prepared(hub)
    for row in (ended, open_):
        for name in ("graph.json", "weights.safetensors", "report.json", "result.sealed", ".x"):
            (hub.folder(row) / name).write_bytes(b"1")
    with hub.desk.session() as session:
        ended.state = "settled"
        session.merge(ended)
        session.commit()
    backup.back_up(hub.desk.config, tmp_path / "b", PASSPHRASE)
    backup.restore(tmp_path / "b", tmp_path / "new", PASSPHRASE)
    found = config.read(tmp_path / "new").jobs_folder
    names = {row.job_id: {p.name for p in (found / row.job_id).iterdir()} for row in (ended, open_)}
    assert names[ended.job_id] == {"report.json", "result.sealed"}
    assert names[open_.job_id] == names[ended.job_id] | {"graph.json", "weights.safetensors"}


@pytest.mark.usefixtures("cheap")
def test_backup__while_the_database_changes__is_one_moment_of_it(
    hub: HubWorld, tmp_path: Path
) -> None:
    prepared(hub)
    hub.job()
    backup.back_up(hub.desk.config, tmp_path / "b", PASSPHRASE)
    hub.job()
    backup.restore(tmp_path / "b", tmp_path / "new", PASSPHRASE)
    with sqlite3.connect(tmp_path / "new" / "hub.sqlite") as there:
        assert there.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert there.execute("SELECT count(*) FROM job").fetchone() == (1,)
    assert not list(hub.desk.config.folder.glob(".backup-*"))


@pytest.mark.usefixtures("cheap")
def test_backup__postgresql__says_what_is_to_be_run_and_names_no_password(
    hub: HubWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(hub)
    path = hub.desk.config.folder / "hub.toml"
    url = "postgresql+psycopg://owner:secret-word@db.example/hub"
    path.write_text(path.read_text().replace(hub.desk.config.database, url))
    monkeypatch.setattr(backup, "_ended", lambda _: set())
    backup.back_up(config.read(path.parent), tmp_path / "b", PASSPHRASE)
    backup.restore(tmp_path / "b", tmp_path / "new", PASSPHRASE)
    said = (tmp_path / "new" / "database.txt").read_text()
    assert "pg_dump --format=custom" in said and "postgresql://owner@db.example/hub" in said
    assert "secret-word" not in said
    assert config.read(tmp_path / "new").database == url
    assert not (tmp_path / "new" / "hub.sqlite").exists()


@pytest.mark.usefixtures("cheap")
def test_restore__what_no_hub_s_backup_holds__is_refused_whole(tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.write_text("x")
    for name in ("../x", "/x", "keys/../../x", "node.toml", "keys/.x", "keys//x"):
        with (tmp_path / "bad").open("wb") as stream, content.open("rb") as one:
            archive.pack(stream, PASSPHRASE, [(name, one)])
        with pytest.raises(BackupError, match="which no backup holds"):
            backup.restore(tmp_path / "bad", tmp_path / "new", PASSPHRASE)
        assert not (tmp_path / "new").exists()
    with (tmp_path / "none").open("wb") as stream, content.open("rb") as one:
        archive.pack(stream, PASSPHRASE, [("deployment.json", one)])
    with pytest.raises(BackupError, match="there is no hub in it"):
        backup.restore(tmp_path / "none", tmp_path / "new", PASSPHRASE)


@pytest.mark.usefixtures("cheap")
def test_backup__where_it_would_be_wrong__one_sentence_and_no_file(
    hub: HubWorld, tmp_path: Path
) -> None:
    prepared(hub)
    ours = hub.desk.config
    never = replace(ours, database=f"sqlite:///{tmp_path / 'none.sqlite'}")
    for where, asked, word, why in (
        (ours.folder / "b", ours, PASSPHRASE, "in the folder itself"),
        (tmp_path / "b", ours, "short", "guessed too soon"),
        (tmp_path / "b", never, PASSPHRASE, "never been started"),
        (tmp_path / "no" / "b", ours, PASSPHRASE, "no backup is made"),
    ):
        with pytest.raises(BackupError, match=why):
            backup.back_up(asked, where, word)
        assert not where.exists()


def test_commands__no_hub_there__one_sentence(tmp_path: Path) -> None:
    done = CliRunner().invoke(commands, ["backup", str(tmp_path), str(tmp_path / "b")])
    assert done.exit_code == 1 and "holds no hub.toml" in str(done.exception)
