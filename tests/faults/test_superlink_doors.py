"""The SuperLink as strangers, nodes with a wrong clock, and other users of the operator's machine
find it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.supercore.primitives.asymmetric import sign_message

from datahub.demo.stack import free_ports
from fl_client.node import turns
from fl_client.node.turns import Turns
from fl_server import gate
from fl_server.gate import OperatorGate
from fl_server.runs import SuperLink

KEY = ec.generate_private_key(ec.SECP384R1())
PROTOBUF = {"content-type": "application/protobuf"}
PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def signed(seconds_ago: float) -> list[tuple[bytes, bytes]]:
    """The headers of a node's session with KEY whose clock is so many seconds behind."""
    stamp = (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat().encode()
    return [
        (b"flwr-public-key", b64encode(PEM)),
        (b"flwr-signature", b64encode(sign_message(KEY, stamp))),
        (b"flwr-timestamp", stamp),
    ]


def asked(
    parts: list[bytes], path: str = "/v1/fleet/activate-node", pause: float = 0.0
) -> tuple[int, int]:
    """What a request is answered through the gate by an application that reads its whole body:
    (status, bytes that the application has read).
    """
    read = 0
    said: list[int] = []

    async def application(_: Any, receive: gate.Receive, send: gate.Send) -> None:
        nonlocal read
        more = True
        while more:
            message = await receive()
            read += len(message.get("body", b""))
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    left = list(parts)

    async def receive() -> gate.Message:
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: gate.Message) -> None:
        if message["type"] == "http.response.start":
            said.append(message["status"])

    scope = {"type": "http", "path": path, "headers": [], "client": ("203.0.113.9", 1)}
    asyncio.run(OperatorGate(application, "t")(scope, receive, send))
    return said[0], read


MEGABYTE = b"x" * 1024 * 1024


def test_a_session_or_a_stranger__may_send_what_a_session_needs_and_no_more() -> None:
    assert asked([b"x" * 60_000]) == (200, 60_000)
    assert asked([MEGABYTE] * 3)[0] == 413


def test_a_turn__may_carry_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked([MEGABYTE] * 3, turns.PATH) == (200, 3 * len(MEGABYTE))
    monkeypatch.setattr(turns, "MOST_BYTES", 2 * len(MEGABYTE))
    assert asked([MEGABYTE] * 3, turns.PATH)[0] == 413


def test_a_body_that_comes_too_slowly__is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "PATIENCE_S", 0.1)
    assert asked([b"x"] * 50, pause=0.02)[0] == 408


@pytest.mark.parametrize(
    ("behind", "said"), [(400, "400 s behind"), (-60, "60 s ahead of"), (0, None), (200, None)]
)
def test_a_node_with_a_wrong_clock__is_named_once_a_minute(
    behind: float, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    app = OperatorGate(None, "t", known=lambda *_: True)  # type: ignore[arg-type]
    for _ in range(5):
        app._name_the_clock({}, dict(signed(behind)))
    assert len(caplog.records) == (said is not None)
    if said:
        assert said in caplog.text and "one of the two must be set" in caplog.text


@contextmanager
def started(folder: Path) -> Iterator[tuple[Path, int, Any]]:
    """A real SuperLink: (folder, port, process)."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "fl_server.superlink", "--folder", str(folder)]
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0"}
    with subprocess.Popen([*command, "--port", str(port)], env=environment) as process:
        for _ in range(600):
            try:
                context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
                health = f"https://127.0.0.1:{port}/health"
                assert httpx.get(health, verify=context, timeout=2).status_code == 200
                break
            except (httpx.HTTPError, FileNotFoundError, ssl.SSLError):
                time.sleep(0.1)
        yield folder, port, process
        process.kill()


def held(pid: int) -> int:
    """The greatest memory of a process so far, in megabytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (one for one in status.splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, Any]]:
    with started(tmp_path_factory.mktemp("superlink")) as made:
        yield made


def client(superlink: tuple[Path, int, Any]) -> httpx.Client:
    folder, port, _ = superlink
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    return httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context, timeout=30)


@pytest.mark.e2e
def test_superlink__another_user_of_the_machine__finds_no_task_no_token_and_no_file(
    superlink: tuple[Path, int, Any],
) -> None:
    folder, _, process = superlink
    with client(superlink) as ours:
        for path in ("acquire-task", "pull-messages", "push-messages", "get-nodes"):
            assert ours.post(f"/v1/runtime/{path}", content=b"").status_code == 404
    for path in (folder, *folder.glob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    # nothing is started that could carry a secret on its command line
    threads = Path(f"/proc/{process.pid}/task").glob("*/children")
    assert [one.read_text() for one in threads if one.read_text()] == []
    token = (folder / "operator.token").read_bytes()
    assert token not in Path(f"/proc/{process.pid}/cmdline").read_bytes()


@pytest.mark.e2e
def test_superlink__restarted__knows_its_nodes_under_the_same_ids(tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        with started(tmp_path) as (folder, port, process):
            token = (folder / "operator.token").read_text()
            operator = SuperLink(f"127.0.0.1:{port}", folder / "ca.crt", token)
            ids.append(operator.register_node(PEM, "mine"))
            process.kill()
    assert ids[0] == ids[1]


@pytest.mark.e2e
def test_superlink__a_node_takes_turns_with_its_own_key_alone(
    superlink: tuple[Path, int, Any], tmp_path: Path
) -> None:
    folder, port, _ = superlink
    token = (folder / "operator.token").read_text()
    operator = SuperLink(f"127.0.0.1:{port}", folder / "ca.crt", token)
    mine = operator.register_node(PEM, "mine")
    for key, node_id in ((KEY, mine + 1), (ec.generate_private_key(ec.SECP384R1()), mine)):
        foreign = Turns(f"127.0.0.1:{port}", folder / "ca.crt", key, node_id)
        with closing(foreign), pytest.raises(httpx.HTTPStatusError, match="401"):
            foreign.take("ab" * 16, b"a reply in another's name")
    assert mine not in operator.online_nodes()


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/docs", 404),
        ("/openapi.json", 404),
        ("/redoc", 404),
        ("/", 404),
        ("/v1/fleet/push-messages", 404),
        ("/v1/fleet/register-node", 404),
        ("/v1/control/list-runs", 403),
    ],
)
def test_superlink__pages_and_control_routes__are_closed(
    superlink: tuple[Path, int, Any], path: str, status: int
) -> None:
    with client(superlink) as ours:
        assert ours.get(path).status_code == status
        assert ours.post(path, content=b"").status_code == status


@pytest.mark.e2e
def test_superlink__a_large_body_of_a_stranger__is_refused_while_it_arrives(
    superlink: tuple[Path, int, Any],
) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(200):
            yield MEGABYTE

    with client(superlink) as ours:
        try:
            answer = ours.post("/v1/fleet/activate-node", content=chunks(), headers=PROTOBUF)
            assert answer.status_code == 413
        except httpx.WriteError:
            pass  # the connection was closed while we were still sending: refused all the same
        assert ours.get("/health").status_code == 200


@pytest.mark.e2e
@pytest.mark.parametrize(
    "begin",
    [
        b"GET /",
        b"GET /health HTTP/1.1\r\nx: ",
        b"POST /v1/fleet/turn HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ",
    ],
    ids=["path", "header", "trailer"],
)
def test_superlink__a_head_or_trailer_without_an_end__is_not_held(
    superlink: tuple[Path, int, Any], begin: bytes
) -> None:
    folder, port, process = superlink
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    before = held(process.pid)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as ours,
        contextlib.suppress(OSError),
    ):
        ours.sendall(begin)
        for _ in range(48):
            ours.sendall(MEGABYTE)
    assert held(process.pid) - before < 16


@pytest.mark.e2e
def test_superlink__with_a_hanging_connection__stops_at_once(
    superlink: tuple[Path, int, Any],
) -> None:
    folder, port, process = superlink
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    with (
        socket.create_connection(("127.0.0.1", port)) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as hanging,
    ):
        hanging.sendall(b"POST /v1/fleet/x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=6)  # 2 s on an idle machine
