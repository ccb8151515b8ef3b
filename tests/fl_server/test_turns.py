"""A node's turn at the SuperLink: who may take one, what it hands in and what it gets."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
import tracemalloc
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from datahub.demo.stack import free_ports
from fl_client.node import turns as wire
from fl_server import turns
from fl_server.certificates import write_certificates
from fl_server.gate import OperatorGate
from fl_server.mailbox import Letter, Mailbox
from fl_server.turns import Turns

KEY = ec.generate_private_key(ec.SECP384R1())
PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
NODE = 7


@dataclass
class Links:
    """Flower's linkstate, as far as turns ask it."""

    nodes: dict[bytes, int] = field(default_factory=lambda: {PEM: NODE})
    alive: list[int] = field(default_factory=list)

    def get_node_id_by_public_key(self, key: bytes) -> int | None:
        return self.nodes.get(key)

    def acknowledge_node_heartbeat(self, node_id: int, interval: float) -> bool:
        self.alive.append(node_id)
        return True


def headers(reply: bytes = b"", answered: str = "", behind: float = 0.0) -> dict[str, str]:
    made = {
        wire.TIME: (datetime.now(UTC) - timedelta(seconds=behind)).isoformat(),
        wire.NODE: str(NODE),
        wire.LETTER: answered,
        wire.DIGEST: hashlib.sha256(reply).hexdigest(),
    }
    signature = KEY.sign(wire.signed_text(made), ec.ECDSA(SHA256()))
    return made | {
        wire.KEY: b64encode(PEM).decode(),
        wire.SIGNATURE: b64encode(signature).decode(),
    }


def take(
    box: Mailbox, links: Links, said: dict[str, str], body: bytes = b"", gone: bool = False
) -> tuple[int | None, dict[str, str], bytes, int]:
    """(status, headers, content, bytes read) of one turn."""
    read, answer = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += len(body)
        if gone:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        answer.append(message)

    scope = {"headers": [(n.encode(), v.encode()) for n, v in said.items()]}
    asyncio.run(Turns(box, lambda: links)(scope, receive, send))
    if not answer:
        return None, {}, b"", read
    found = {name.decode(): value.decode() for name, value in answer[0]["headers"]}
    return answer[0]["status"], found, answer[1]["body"], read


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "WAIT_S", 0.05)


@pytest.mark.parametrize("size", [5, 2 * 1024 * 1024])
def test_turn__reply_goes_in_and_the_next_message_comes_out(size: int) -> None:
    box, links, first = Mailbox(), Links(), b"x" * size
    reply = first[::-1]
    box.post([Letter("a", 9, "hash", NODE, first), Letter("b", 9, "hash", NODE, b"second")])
    assert take(box, links, headers())[:3] == (
        200,
        {wire.LETTER: "a", wire.RUN: "9", wire.BUNDLE: "hash", "content-length": str(size)},
        first,
    )
    status, said, content, _ = take(box, links, headers(reply, "a"), reply)
    assert (status, said[wire.LETTER], content) == (200, "b", b"second")
    assert box.collect(["a"], 0, lambda node: False) == {"a": reply}
    assert links.alive == [NODE, NODE]


def test_turn__nothing_comes__says_so_without_content() -> None:
    assert take(Mailbox(), Links(), headers())[:3] == (204, {}, b"")


def test_turn__the_node_goes_away_in_the_middle__changes_nothing() -> None:
    box = Mailbox()
    box.post([Letter("a", 9, "hash", NODE, b"")])
    assert take(box, Links(), headers(b"re", "a"), b"re", gone=True)[0] == 400
    assert "a" in box._open


def test_turn__a_reply_that_nobody_waits_for__is_read_to_its_end_and_not_held() -> None:
    box, links = Mailbox(), Links()
    box.post([Letter("a", 9, "hash", NODE + 1, b"")])
    for letter in ("", "a", "b"):  # none, another node's, one that there is not
        held = asyncio.run(held_of(box, links, headers(b"", letter), 50))
        assert held == (204, 50, 1)


def test_turn__a_reply_longer_than_what_was_asked__is_not_taken() -> None:
    box, links = Mailbox(), Links()
    box.post([Letter("a", 9, "hash", NODE, b"asked")])
    status, read, held = asyncio.run(held_of(box, links, headers(b"", "a"), 50))
    assert (status, read) == (413, 50) and held <= 2
    assert "a" in box._open and not links.alive


MEGABYTE = b"x" * 1024 * 1024


async def held_of(
    box: Mailbox, links: Links, said: dict[str, str], parts: int
) -> tuple[int, int, int]:
    """A turn whose body has so many parts of a megabyte: its status, how many of them were read,
    and how many were held at most.
    """
    read, most, before = 0, 0, tracemalloc.is_tracing()
    answer: list[int] = []
    tracemalloc.start()

    async def receive() -> dict[str, Any]:
        nonlocal read, most
        read += 1
        most = max(most, tracemalloc.get_traced_memory()[0])
        return {"type": "http.request", "body": bytes(MEGABYTE), "more_body": read < parts}

    async def send(message: Any) -> None:
        answer.append(message.get("status", 0))

    scope = {"headers": [(n.encode(), v.encode()) for n, v in said.items()]}
    await Turns(box, lambda: links)(scope, receive, send)
    if not before:
        tracemalloc.stop()
    return answer[0], read, round(most / len(MEGABYTE))


def test_turn__a_newer_one_of_the_same_node__ends_what_the_older_reads_or_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "WAIT_S", 5.0)
    box, links = Mailbox(), Links()
    box.post([Letter("a", 9, "hash", NODE, b"")])
    app = Turns(box, lambda: links)
    read = 0

    async def turn(said: dict[str, str], stuck: bool) -> int:
        """Its status; `stuck` sends one part of its reply and then nothing."""
        answer: list[int] = []

        async def receive() -> dict[str, Any]:
            nonlocal read
            read += 1
            if stuck and read > 1:
                await asyncio.sleep(3600)
            return {"type": "http.request", "body": b"", "more_body": stuck}

        async def send(message: Any) -> None:
            answer.append(message.get("status", 0))

        scope = {"headers": [(n.encode(), v.encode()) for n, v in said.items()]}
        await app(scope, receive, send)
        return answer[0]

    async def all_of_them() -> list[int]:
        tasks = []
        tasks.append(asyncio.create_task(turn(headers(b"re", "a"), stuck=True)))
        await asyncio.sleep(0.02)
        for _ in range(100):
            tasks.append(asyncio.create_task(turn(headers(b"", "a"), stuck=False)))
        await asyncio.sleep(0.05)
        box.post([Letter("b", 9, "hash", NODE, b"")])
        return list(await asyncio.gather(*tasks))

    assert asyncio.run(all_of_them()) == [409] * 100 + [200]
    assert box.collect(["a"], 0, lambda node: False) == {"a": b""}
    assert not app._turns and not box._waiting


def other(name: str, value: str) -> dict[str, str]:
    return headers(b"reply", "a") | {name: value}


RSA = rsa.generate_private_key(65537, 2048).public_key()
OTHERS = {
    "no headers": {},
    "another node": other(wire.NODE, "8"),
    "another message": other(wire.LETTER, "b"),
    "another body": other(wire.DIGEST, hashlib.sha256(b"x").hexdigest()),
    "another time": other(wire.TIME, datetime.now(UTC).isoformat()),
    "no time": other(wire.TIME, "now"),
    "a time without a zone": other(wire.TIME, "2026-01-01T00:00:00"),
    "no signature": other(wire.SIGNATURE, ""),
    "rubbish": other(wire.SIGNATURE, "é"),
    "a key that is none": other(wire.KEY, "AAAA"),
    "an old one": headers(b"reply", "a", behind=400),
    "one from the future": headers(b"reply", "a", behind=-3600),
}


@pytest.mark.parametrize("said", OTHERS.values(), ids=OTHERS)
def test_turn__changed_in_anything__is_refused_before_its_body_is_read(
    said: dict[str, str],
) -> None:
    box, links = Mailbox(), Links()
    box.post([Letter("a", 9, "hash", NODE, b"")])
    status, _, _, read = take(box, links, said, b"reply")
    assert (status, read) == (401, 0)
    assert not links.alive and "a" in box._open


def test_turn__body_of_another_hash__is_refused() -> None:
    box, links = Mailbox(), Links()
    box.post([Letter("a", 9, "hash", NODE, b"")])
    assert take(box, links, headers(b"reply", "a"), b"other")[0] == 401
    assert "a" in box._open and not links.alive


def test_turn__key_that_is_not_registered_or_of_another_kind__is_refused() -> None:
    assert take(Mailbox(), Links({}), headers())[0] == 401
    pem = RSA.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert take(Mailbox(), Links({pem: NODE}), other(wire.KEY, b64encode(pem).decode()))[0] == 401


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Mailbox, str, Path]]:
    """The gate and turns on a real port with TLS: (mailbox, host:port, the authority's file)."""
    write_certificates(tmp_path)
    box = Mailbox()
    (port,) = free_ports(1)
    app = OperatorGate(None, "token", turns=Turns(box, Links))  # type: ignore[arg-type]
    settings = uvicorn.Config(
        app,
        port=port,
        log_level="error",
        ssl_certfile=str(tmp_path / "server.pem"),
        ssl_keyfile=str(tmp_path / "server.key"),
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield box, f"127.0.0.1:{port}", tmp_path / "ca.crt"
    server.should_exit = True
    thread.join(timeout=20)


def test_turns__many_megabytes_each_way__arrive_whole(
    served: tuple[Mailbox, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "WAIT_S", 5.0)
    box, where, ca = served
    content, reply = os.urandom(64 * 1024 * 1024), os.urandom(48 * 1024 * 1024)
    with closing(wire.Turns(where, ca, KEY, NODE)) as node:
        box.post([Letter("a", 9, "hash", NODE, content)])
        received = node.take()
        assert received is not None and received.content == content
        box.post([Letter("b", 9, "hash", NODE, b"next")])
        after = node.take("a", reply)
        assert after is not None and (after.letter, after.run_id, after.bundle) == ("b", 9, "hash")
        assert box.collect(["a"], 5, lambda node: False) == {"a": reply}
        foreign = wire.Turns(where, ca, ec.generate_private_key(ec.SECP384R1()), NODE)
        with closing(foreign), pytest.raises(httpx.HTTPStatusError, match="401"):
            foreign.take("b", reply)


def test_turns__a_node_that_waits__has_a_message_at_once(
    served: tuple[Mailbox, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "WAIT_S", 30.0)
    box, where, ca = served
    with closing(wire.Turns(where, ca, KEY, NODE)) as node, ThreadPoolExecutor(1) as pool:
        turn = pool.submit(node.take)
        time.sleep(0.5)
        assert not turn.done()
        box.post([Letter("a", 9, "hash", NODE, b"here")])
        received = turn.result(timeout=5)
        assert received is not None and received.content == b"here"


def test_turns__a_superlink_that_sends_more_than_a_model__is_not_listened_to(
    served: tuple[Mailbox, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    box, where, ca = served
    monkeypatch.setattr(wire, "MOST_BYTES", len(MEGABYTE))
    box.post([Letter("a", 9, "hash", NODE, MEGABYTE + b"x")])
    node = wire.Turns(where, ca, KEY, NODE)
    with closing(node), pytest.raises(ValueError, match="more than 1048576 bytes"):
        node.take()
