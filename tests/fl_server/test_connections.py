"""Connections of strangers: which are ended, and which are not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from datahub.demo.stack import free_ports
from fl_server import connections
from fl_server.connections import Connection

ASK = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server that answers after half a second; heads have 0.3 s."""
    monkeypatch.setattr(connections, "HEAD_S", 0.3)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.5)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    (found,) = free_ports(1)
    settings = uvicorn.Config(
        app, port=found, http=Connection, lifespan="off", log_level="error", timeout_keep_alive=1
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield found
    server.should_exit = True
    thread.join(timeout=20)


def told(port: int, *parts: bytes, pause: float = 0.1, first: bytes = b"") -> bytes:
    """What comes until the server ends the connection, which it must within 5 s; the parts are sent
    one by one.
    """
    heard = b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as ours:
        if first:
            ours.sendall(first)
            heard += ours.recv(1000)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                ours.sendall(part)
                time.sleep(pause)
        with contextlib.suppress(ConnectionResetError):
            while part := ours.recv(1000):
                heard += part
    return heard


def drip() -> list[bytes]:
    return [b"GET / HTTP/1.1\r\nhost: x\r\nx: ", *[b"y"] * 20, b"\r\n\r\n"]


def test_connection__that_says_nothing__is_ended(port: int) -> None:
    assert told(port) == b""


def test_connection__whose_first_head_comes_a_byte_at_a_time__is_ended(port: int) -> None:
    assert told(port, *drip()) == b""


def test_connection__whose_second_head_comes_a_byte_at_a_time__is_ended(port: int) -> None:
    heard = told(port, *drip(), first=ASK)
    assert heard.count(b"204 No Content") == 1


def test_connection__that_asks_and_waits_for_its_answer__has_it(port: int) -> None:
    assert told(port, ASK[:9], ASK[9:]).startswith(b"HTTP/1.1 204")


def test_connection__of_two_requests_at_once__has_both_answers(port: int) -> None:
    assert told(port, ASK + ASK).count(b"204 No Content") == 2
