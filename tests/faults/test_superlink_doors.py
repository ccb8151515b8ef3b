"""The SuperLink as strangers, nodes with a wrong clock, and other users of the operator's machine
find it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common.args import add_args_flwr_app_common, try_obtain_flwr_app_token
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.primitives.asymmetric import sign_message

from datahub.demo.stack import free_ports
from fl_server import gate
from fl_server.gate import OperatorGate
from fl_server.runs import SuperLink
from fl_server.superexec import _TokenInFile

KEY = ec.generate_private_key(ec.SECP384R1())
PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
FLOWER = {
    "content-type": "application/protobuf",
    "flwr-package-name": "flwr",
    "flwr-package-version": "1.41.0",
    "flwr-component-name": "flwr-superexec",
}


def signed(seconds_ago: float) -> list[tuple[bytes, bytes]]:
    """The headers of a node with KEY whose clock is so many seconds behind."""
    stamp = (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat().encode()
    return [
        (b"flwr-public-key", b64encode(PEM)),
        (b"flwr-signature", b64encode(sign_message(KEY, stamp))),
        (b"flwr-timestamp", stamp),
    ]


def asked(
    parts: list[bytes],
    headers: list[tuple[bytes, bytes]],
    *,
    known: bool = True,
    path: str = "/v1/fleet/push-object",
    pause: float = 0.0,
    status: int = 200,
) -> tuple[int, int]:
    """What a request is answered through the gate by an application that reads its whole body and
    says `status`: (status, bytes that the application has read).
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
        await send({"type": "http.response.start", "status": status, "headers": []})

    left = list(parts)

    async def receive() -> gate.Message:
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: gate.Message) -> None:
        if message["type"] == "http.response.start":
            said.append(message["status"])

    scope = {"type": "http", "path": path, "headers": headers, "client": ("203.0.113.9", 1)}
    asyncio.run(OperatorGate(application, "t", lambda *_: known)(scope, receive, send))
    return said[0], read


MEGABYTE = b"x" * 1024 * 1024


def test_a_stranger__may_send_what_a_refusal_needs_and_no_more() -> None:
    assert asked([b"x" * 60_000], []) == (200, 60_000)
    assert asked([MEGABYTE] * 3, [])[0] == 413
    assert asked([MEGABYTE] * 3, signed(0), known=False)[0] == 413
    assert asked([b"x" * 40_000] * 3, [(b"flwr-public-key", b"rubbish")])[0] == 413


def test_a_registered_node__may_send_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked([MEGABYTE] * 3, signed(0)) == (200, 3 * len(MEGABYTE))
    assert asked([MEGABYTE] * 3, signed(400))[0] == 413  # an old request, sent again
    monkeypatch.setattr(gate, "NODE_BYTES", 2 * len(MEGABYTE))
    assert asked([MEGABYTE] * 3, signed(0))[0] == 413


def test_a_body_that_comes_too_slowly__is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "PATIENCE_S", 0.1)
    assert asked([b"x"] * 50, signed(0), pause=0.02)[0] == 408


@pytest.mark.parametrize(
    ("behind", "said"), [(400, "400 s behind"), (-60, "60 s ahead of"), (0, None), (200, None)]
)
def test_a_node_with_a_wrong_clock__is_named_once_a_minute(
    behind: float, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    app = OperatorGate(None, "t", lambda *_: True)  # type: ignore[arg-type]
    for _ in range(5):
        app._name_the_clock({}, dict(signed(behind)))
    assert len(caplog.records) == (said is not None)
    if said:
        assert said in caplog.text and "one of the two must be set" in caplog.text


def test_a_tasks_token__is_not_on_the_command_line() -> None:
    token = "ab" * 32
    code = (
        "import argparse, sys; from flwr.common.args import *;"
        "p = argparse.ArgumentParser(); add_args_flwr_app_common(parser=p);"
        "print(sys.argv[1:], try_obtain_flwr_app_token(p.parse_args()), flush=True);"
        "sys.stdout.close()"
    )
    command = [sys.executable, "-c", code, "--token", token, "--insecure"]
    process = _TokenInFile.Popen(command, stdout=subprocess.PIPE)
    assert token.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    said = process.communicate(timeout=60)[0].decode()
    assert said.strip() == f"['--token-file', '/dev/stdin', '--insecure'] {token}"
    assert add_args_flwr_app_common and try_obtain_flwr_app_token and argparse


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, Any]]:
    """A real SuperLink: (folder, port, process)."""
    folder = tmp_path_factory.mktemp("superlink")
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


def client(superlink: tuple[Path, int, Any]) -> httpx.Client:
    folder, port, _ = superlink
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    return httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context, timeout=30)


@pytest.mark.e2e
def test_superlink__another_user_of_the_machine__gets_no_task(
    superlink: tuple[Path, int, Any],
) -> None:
    wanted = AcquireTaskRequest(supported_task_types=["flwr-serverapp"]).SerializeToString()
    with client(superlink) as ours:
        answer = ours.post("/v1/runtime/acquire-task", content=wanted, headers=FLOWER)
        assert answer.status_code == 401
        assert b"token" not in answer.content
    folder = superlink[0]
    for path in (folder, *folder.glob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    assert {"superlink.db", "superexec.secret", "operator.token"} <= set(os.listdir(folder))


@pytest.mark.e2e
def test_superlink__a_hospital_that_answers_for_another__is_refused(
    superlink: tuple[Path, int, Any],
) -> None:
    folder, port, _ = superlink
    token = (folder / "operator.token").read_text()
    operator = SuperLink(f"127.0.0.1:{port}", folder / "ca.crt", token)
    mine = operator.register_node(PEM, "mine")
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    pem = other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    theirs = operator.register_node(pem, "theirs")
    headers = FLOWER | {name.decode(): value.decode() for name, value in signed(0)}

    def pushed(source: int) -> httpx.Response:
        request = PushMessagesRequest()
        request.node.node_id = mine
        request.messages_list.add().metadata.src_node_id = source
        with client(superlink) as ours:
            return ours.post(
                "/v1/fleet/push-messages", content=request.SerializeToString(), headers=headers
            )

    refused = pushed(theirs)
    assert refused.status_code == 403 and b"answers for itself" in refused.content
    assert b"answers for itself" not in pushed(mine).content


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/docs", 404),
        ("/openapi.json", 404),
        ("/redoc", 404),
        ("/", 404),
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
            answer = ours.post("/v1/fleet/push-messages", content=chunks(), headers=FLOWER)
            assert answer.status_code == 413
        except httpx.WriteError:
            pass  # the connection was closed while we were still sending: refused all the same
        assert ours.get("/health").status_code == 200


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
