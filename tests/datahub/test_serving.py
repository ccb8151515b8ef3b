"""A hub as a process: what it logs, and how it ends. Real processes on one database."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine
from sqlmodel import Session, select

from datahub import config, logs
from datahub.demo.stack import free_ports
from datahub.market.desk import open_database
from datahub.market.leases import LIVES_S, Leases
from datahub.market.tables import JobRow, LeaseRow, ManifestRow, NodeRow
from datahub.operator.serving import STOP_S, secrets_of
from datatokens.chain.rpc_server import accounts
from fl_client.node.config import write_private
from fl_server.certificates import write_certificates
from tests.datahub.hub_world import HubWorld
from tests.postgresql import needs_postgresql, running_postgresql

WAIT_S = 60.0


class Process:
    """One `datahub hub start`."""

    def __init__(self, folder: Path, *flags: str):
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "datahub.cli", "hub", "start", str(folder)]
        self.log = folder.parent / f"{port}.log"
        with self.log.open("wb") as log:
            self.running = subprocess.Popen(
                [*command, "--port", str(port), *flags], stdout=log, stderr=log
            )
        until(self._up, "the hub is up")

    def _up(self) -> bool:
        assert self.running.poll() is None, self.log.read_text()
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/healthz", timeout=2).status_code == 200
        return False

    def end(self) -> float:
        """SIGTERM; how many seconds until it had ended with status 0."""
        started = time.monotonic()
        self.running.send_signal(signal.SIGTERM)
        assert self.running.wait(timeout=STOP_S + 10) == 0, self.log.read_text()
        return time.monotonic() - started


def until(true: Any, what: str, within_s: float = WAIT_S) -> float:
    started = time.monotonic()
    while time.monotonic() < started + within_s:
        if true():
            return time.monotonic() - started
        time.sleep(0.02)
    raise AssertionError(f"not within {within_s} s: {what}")


def prepared(hub: HubWorld) -> Path:
    """The hub's folder, as `datahub hub start` wants it."""
    folder = hub.desk.config.folder
    write_private(folder / "keys" / "operator.key", accounts()[0][1].encode())
    write_certificates(hub.desk.config.superlink_folder)
    return folder


@pytest.fixture
def started(hub: HubWorld) -> Iterator[list[Process]]:
    running: list[Process] = []
    yield running
    for one in running:
        one.running.kill()
        one.running.wait()


def holders(engine: Engine) -> dict[str, int]:
    """Worker -> how many jobs it holds now."""
    with Session(engine) as session:
        rows = session.exec(select(LeaseRow)).all()
    found: dict[str, int] = {}
    for row in rows:
        if row.until > time.time():
            found[row.holder] = found.get(row.holder, 0) + row.name.startswith("job:")
    return found


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_postgresql)])
def shared(hub: HubWorld, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The folder of a hub with four jobs that wait for hospitals, on one of the databases."""
    rows = [hub.job(deadline_s=3600)[0] for _ in range(4)]
    folder = prepared(hub)
    if request.param == "sqlite":
        yield folder
        return
    with running_postgresql() as url:
        path = folder / "hub.toml"
        path.write_text(path.read_text().replace(hub.desk.config.database, url))
        engine = open_database(url)
        with Session(engine) as session, hub.desk.session() as mine:
            for table in (NodeRow, ManifestRow):
                for row in mine.exec(select(table)).all():
                    session.merge(table(**row.model_dump()))
            for job in rows:
                session.add(JobRow(**job.model_dump()))
            session.commit()
        engine.dispose()
        yield folder


def test_sigterm__another_hub_on_the_same_database__has_its_jobs_at_once(
    shared: Path, started: list[Process]
) -> None:
    engine = open_database(config.read(shared).database)
    started += [Process(shared), Process(shared)]
    until(lambda: sorted(holders(engine).values()) == [2, 2], "two jobs each")
    first = started[0].running
    first.send_signal(signal.SIGTERM)
    took = until(lambda: list(holders(engine).values()) == [4], "the other has all four", LIVES_S)
    # a second on an idle machine; leases that nobody has given up end after more than this
    assert took < LIVES_S / 2
    assert first.wait(timeout=STOP_S) == 0
    assert started[1].end() < STOP_S
    assert holders(engine) == {}
    engine.dispose()


def test_sigterm__requests_under_way__are_answered_and_streams_told_to_come_again(
    hub: HubWorld, started: list[Process]
) -> None:
    row, _ = hub.job(deadline_s=3600)
    process = Process(prepared(hub))
    started.append(process)
    lines: list[str] = []

    def watch() -> None:
        with httpx.stream("GET", f"{process.url}/api/v1/jobs/{row.job_id}/events") as answer:
            lines.extend(answer.iter_lines())

    watching = threading.Thread(target=watch)
    watching.start()
    port = int(process.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"POST /api/v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 13\r\n\r\n")
        time.sleep(1.0)
        before = time.monotonic()
        process.running.send_signal(signal.SIGTERM)
        time.sleep(0.4)
        slow.sendall(b'{"terms":"{}"')  # what is missing of it, and no JSON
        answer = slow.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 422"), answer
    assert process.running.wait(timeout=STOP_S) == 0
    assert time.monotonic() - before < STOP_S
    watching.join(10)
    assert lines[0] == "event: job" and "retry: 1000" in lines[-2:]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{process.url}/healthz")


def test_leases__given_up_for_good__nothing_is_taken_again(tmp_path: Path) -> None:
    one = Leases(open_database(f"sqlite:///{tmp_path / 'x.sqlite'}"))
    one.renew()
    assert one.share(["job:1"]) == {"job:1"} and one.held == 1
    one.end()
    one.renew()
    assert one.ended and not one.take("job:1") and one.share(["job:1"]) == set()
    with Session(one.engine) as session:
        assert session.exec(select(LeaseRow)).all() == []


def test_log_json__every_line_is_an_object_with_job_and_request_and_no_secret(
    hub: HubWorld, started: list[Process]
) -> None:
    hub.job(deadline_s=3600)
    folder = prepared(hub)
    path = folder / "hub.toml"
    keyed = hub.desk.config.chain + "/v3/0123456789abcdef"
    path.write_text(path.read_text().replace(hub.desk.config.chain, keyed))
    process = Process(folder, "--log-json")
    started.append(process)
    given = {"x-request-id": "from-the-proxy.7"}
    answer = httpx.get(f"{process.url}/api/v1/jobs/nope", headers=given)
    assert answer.headers["x-request-id"] == "from-the-proxy.7"
    for bad in ("a b", "x" * 65, "é".encode()):
        named = httpx.get(f"{process.url}/healthz", headers={"x-request-id": bad})  # type: ignore[dict-item]
        assert re.fullmatch("[0-9a-f]{16}", named.headers["x-request-id"])
    until(lambda: "job_id" in process.log.read_text(), "the job's wait is in the log")
    process.end()
    lines = [json.loads(line) for line in process.log.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    (asked,) = [line for line in lines if "nope" in line["message"]]
    assert asked["request_id"] == "from-the-proxy.7" and "job_id" not in asked
    (job,) = {line["job_id"] for line in lines if "job_id" in line}
    assert len(job) == 64
    for secret in secrets_of(config.read(folder)):
        assert len(secret) < logs.LEAST_SECRET or secret not in process.log.read_text()


@pytest.mark.parametrize("as_json", [True, False])
def test_log__what_is_secret__is_left_out_wherever_it_stands(
    as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, password = accounts()[0][1], "p4ssw0rd-of-the-database"
    stream, root = StringIO(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.set_up(
            as_json=as_json, secrets={key, key.removeprefix("0x"), password, ""}, stream=stream
        )
        log = logging.getLogger("datahub.hub")
        log.info("with %s and %r", key, {"x": password})
        log.info(key.removeprefix("0x"))
        try:
            raise ValueError(f"postgresql://owner:{password}@h/x")
        except ValueError:
            log.exception("reconcile")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    said = stream.getvalue()
    assert key.removeprefix("0x") not in said and password not in said
    assert said.count(logs.HIDDEN) >= 4
    assert ("Traceback" in said) and (as_json or "\nTraceback" in said)


def test_log__plain__is_as_it_was_with_the_request_at_the_end() -> None:
    stream, root = StringIO(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    token = logs.request_id.set("abc")
    try:
        logs.set_up(as_json=False, secrets=(), stream=stream)
        logging.getLogger("datahub.hub").info("said")
        logs.request_id.reset(token)
        logging.getLogger("datahub.hub").info("said")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    first, second = stream.getvalue().splitlines()
    assert first.endswith(" datahub.hub INFO said [request abc]")
    assert second.endswith(" datahub.hub INFO said")
