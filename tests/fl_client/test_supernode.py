"""The SuperNode's own rules: foreign bundles are refused, errors carry no data, refusals do not end
the process.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import fleet_http_connection

from fl_client.node.bundle import bundle_hash
from fl_client.node.supernode import FOREIGN_BUNDLE, NoSession, _Hand, answer
from fl_client.node.turns import Received


@pytest.fixture
def message() -> Message:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    made = Message(RecordDict({"job": ConfigRecord({"x": 1})}), 7, "query.admit")
    made.metadata.__dict__["_message_id"] = "1"
    return made


def failing() -> ClientApp:
    app = ClientApp()

    @app.query("admit")
    def _(message: Message, context: Context) -> Message:
        raise ValueError("patient 4711 has a secret")

    return app


def test_answer__foreign_bundle__is_refused_before_the_app_sees_it(message: Message) -> None:
    reply = answer(failing(), message, "ab" * 32, 7)
    assert reply.has_error() and reply.error.reason == FOREIGN_BUNDLE


def test_answer__app_that_fails__names_the_kind_of_error_only(message: Message) -> None:
    reply = answer(failing(), message, bundle_hash(), 7)
    assert reply.has_error() and reply.error.reason == "ValueError"


def test_session__refused__raises_and_starts_no_timer_that_ends_the_process() -> None:
    before = threading.active_count()
    with pytest.raises(NoSession, match="not let in"):
        fleet_http_connection.flwr_exit(305, "not\nlet in")
    time.sleep(0.05)
    assert threading.active_count() == before


def status(code: int) -> httpx.HTTPStatusError:
    asked = httpx.Request("POST", "https://superlink/")
    return httpx.HTTPStatusError("no", request=asked, response=httpx.Response(code, request=asked))


class Script:
    """A SuperLink that gives one message, answers the reply to it with `problem`, and then gives
    another.
    """

    def __init__(self, problem: Exception):
        self.problem = problem
        self.handed: list[tuple[str, bytes]] = []

    def take(self, answered: str = "", reply: bytes = b"") -> Received:
        self.handed.append((answered, reply))
        if len(self.handed) == 2:
            raise self.problem
        return Received(f"letter {len(self.handed)}", 9, "bundle", b"")

    def close(self) -> None:
        pass


REPLY, NOTHING = ("letter 1", b"reply"), ("", b"")


@pytest.mark.parametrize(
    ("problem", "then"),
    [
        (status(413), NOTHING),
        (status(408), NOTHING),
        (status(409), REPLY),
        (status(503), REPLY),
        (httpx.ReadTimeout("long"), REPLY),
        (OSError("a socket"), REPLY),
        (MemoryError(), REPLY),
    ],
    ids=repr,
)
def test_hand__a_turn_fails__goes_on_with_the_reply_or_without_one_that_cannot_be_taken(
    problem: Exception, then: tuple[str, bytes]
) -> None:
    script: Any = Script(problem)
    with closing(_Hand(script)) as hand:
        first = hand.taken(5)
        assert first is not None
        hand.give(first.letter, b"reply")
        assert hand.taken(5) is not None
    assert script.handed == [NOTHING, REPLY, then]
