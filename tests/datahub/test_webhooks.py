"""A buyer's own address is told of each state, once it takes it; and no address of the hub's own
network is called because a stranger named it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from sqlmodel import select

from datahub.errors import BadRequest
from datahub.market import reconcile, webhooks
from datahub.market.tables import DeliveryRow
from tests.clocks import clock
from tests.datahub.hub_world import HubWorld

Got = list[tuple[dict[str, str], bytes]]


@pytest.fixture
def receiver() -> Iterator[tuple[str, Got, list[int]]]:
    """(its address, what came, the statuses that it answers before 200)."""
    got: Got = []
    answers: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            status = answers.pop(0) if answers else 200
            self.send_response(status)
            if status == 302:
                self.send_header("location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/jobs", got, answers
    server.shutdown()
    server.server_close()


def inside(hub: HubWorld) -> None:
    """The operator lets webhooks name this machine."""
    named = replace(hub.desk.config, webhook_networks=("127.0.0.0/8",))
    object.__setattr__(hub.desk, "config", named)


def test_webhook__a_job_changes__is_told_and_signed(
    hub: HubWorld, receiver: tuple[str, Got, list[int]]
) -> None:
    url, got, _ = receiver
    inside(hub)
    secret = webhooks.put(hub.desk, str(hub.bank.buyer.address), url)
    row, terms = hub.job()
    (hub.folder(row) / "outcome.json").write_bytes(hub.refusals(terms, (0, 1, 2), "not today"))
    reconcile.reconcile(hub.desk)
    assert webhooks.deliver(hub.desk) == 1 and len(got) == 1
    headers, body = got[0]
    said = json.loads(body)
    assert said["type"] == "job.state" and said["data"]["job_id"] == row.job_id
    assert said["data"]["state"] == "refunded" and "not today" in said["data"]["reason"]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body.decode()}".encode()
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mine = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{mine}"
    assert webhooks.deliver(hub.desk) == 0, "once it was taken it is not sent again"


def test_webhook__not_taken__is_sent_again_later_and_given_up_in_the_end(
    hub: HubWorld, receiver: tuple[str, Got, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, got, answers = receiver
    now = [1_800_000_000.0]
    clock(monkeypatch, webhooks, time=lambda: now[0])
    inside(hub)
    webhooks.put(hub.desk, str(hub.bank.buyer.address), url)
    row, _ = hub.job()
    with hub.desk.session() as session:
        webhooks.note(session, row)
        session.commit()
    answers += [500, 302] + [404] * 10
    assert webhooks.deliver(hub.desk) == 0 and len(got) == 1
    assert webhooks.deliver(hub.desk) == 0 and len(got) == 1, "not at once"
    for wait in webhooks.AGAIN_S:
        now[0] += wait + 1
        webhooks.deliver(hub.desk)
    assert len(got) == 1 + len(webhooks.AGAIN_S), "a redirect is not followed"
    assert len({headers["webhook-id"] for headers, _ in got}) == 1, "one name, however often"
    with hub.desk.session() as session:
        assert session.exec(select(DeliveryRow)).all() == []


def test_webhook__nobody_asked_for_one__nothing_is_written_down(hub: HubWorld) -> None:
    row, _ = hub.job()
    with hub.desk.session() as session:
        webhooks.note(session, row)
        session.commit()
        assert session.exec(select(DeliveryRow)).all() == []


def test_webhook__taken_back__what_waits_is_not_sent(
    hub: HubWorld, receiver: tuple[str, Got, list[int]]
) -> None:
    url, got, _ = receiver
    inside(hub)
    buyer = str(hub.bank.buyer.address)
    webhooks.put(hub.desk, buyer, url)
    row, _ = hub.job()
    with hub.desk.session() as session:
        webhooks.note(session, row)
        session.commit()
    webhooks.drop(hub.desk, buyer)
    assert webhooks.deliver(hub.desk) == 0 and got == [] and webhooks.url_of(hub.desk, buyer) == ""


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "https://127.0.0.1/",
        "https://localhost/",
        "https://10.0.0.1/",
        "https://192.168.1.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/",
        "https://[fd00::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://0/",
        "https://224.0.0.1/",
        "https://100.64.0.1/",
        "http://8.8.8.8/",
        "ftp://8.8.8.8/",
        "https://user:word@8.8.8.8/",
        "https:///x",
        "https://8.8.8.8:99999/",
        "https://8.8.8.8/#part",
        "https://8.8.8.8/a b",
        "https://8.8.8.8/\r\nx: y",
        "https://8.8.8.8/" + "x" * 300,
        "https://no.such.host.invalid/",
        "javascript:alert(1)",
        "",
    ],
)
def test_webhook__an_address_that_may_not_be_called__is_refused(hub: HubWorld, url: str) -> None:
    with pytest.raises(BadRequest):
        webhooks.put(hub.desk, str(hub.bank.buyer.address), url)
    assert webhooks.url_of(hub.desk, str(hub.bank.buyer.address)) == ""


def test_webhook__a_name_that_points_elsewhere_by_now__is_not_called(
    hub: HubWorld, receiver: tuple[str, Got, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: public when it was given, this machine when it is called."""
    _, got, _ = receiver
    there = ["93.184.215.14"]

    def lookup(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (there[0], 0))]

    monkeypatch.setattr(webhooks.socket, "getaddrinfo", lookup)
    webhooks.put(hub.desk, str(hub.bank.buyer.address), "https://turns.example/x")
    row, _ = hub.job()
    with hub.desk.session() as session:
        webhooks.note(session, row)
        session.commit()
    there[0] = "127.0.0.1"
    assert webhooks.deliver(hub.desk) == 0 and got == []
    with hub.desk.session() as session:
        (kept,) = session.exec(select(DeliveryRow)).all()
    assert kept.tries == 1
