"""Nodes that answer what no node should, and what runs and the SuperLink's state make of it."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import TaskType
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager

from fl_client import protocol
from fl_client.node.bundle import bundle_hash
from fl_client.protocol import Admit, Refused, Signed
from fl_server.exchange import Silent, ask, through
from fl_server.mailbox import Mailbox
from fl_server.runner import Post


@pytest.fixture(autouse=True)
def _identity() -> None:
    """Flower's Message constructor wants to know the task that it runs in."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


@pytest.fixture
def state() -> Any:
    """Flower's own linkstate, as the SuperLink has it."""
    return InMemoryLinkState(NoOpFederationManager(), InMemoryObjectStore())


def new_run(state: Any) -> Run:
    """A pending run of the installed ServerApp."""
    run_id = state.create_run(
        None,
        None,
        bundle_hash(),
        {"job-id": "ab"},
        "@none/default",
        None,
        "me",
        TaskType.SERVER_APP,
    )
    return state.get_run_info(run_ids=[run_id])[0]  # type: ignore[no-any-return]


def error(code: int = 0, reason: str | None = None, **more: bool) -> bytes:
    message = ProtoMessage()
    message.metadata.message_type = "query"
    message.error.code = code
    if reason is not None:
        message.error.reason = reason
    if more:
        message.content.SetInParent()
    return message.SerializeToString()


def good(reply: Any) -> bytes:
    record = {protocol.REPLY: ConfigRecord(protocol.to_record(reply))}
    return message_to_proto(Message(RecordDict(dict(record)), 1, "query")).SerializeToString()


ODD = {
    "nothing": b"",
    "rubbish": b"\xff\xff",
    "no type": ProtoMessage().SerializeToString(),
    "an error without a reason": error(1),
    "an error without anything": error(),
    "an error of a code that there is not": error(2**31 - 1, "x"),
    "content and an error": error(1, "x", both=True),
    "a letter of another alphabet": error(1, "\x1b[2J\u202e"),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_a_reply_that_is_no_message__is_that_hospitals_alone(state: Any, odd: bytes) -> None:
    nodes = {d: state.create_node("me", "me", b"key %d" % d, 30) for d in (1, 2)}
    for node in nodes.values():
        state.acknowledge_node_heartbeat(node, 30)
    box, replies = Mailbox(), {nodes[1]: odd, nodes[2]: good(Signed(b"x" * 65))}

    def answer() -> None:
        while replies:
            for letter in list(box._open.values()):
                box.answer(letter.node_id, letter.id, replies.pop(letter.node_id))
            time.sleep(0.01)

    threading.Thread(target=answer).start()
    send = through(Post(new_run(state), state, box))  # type: ignore[arg-type]
    said = ask(send, nodes, [1, 2], Admit(b"{}", b"", b""), Signed, 5)
    assert isinstance(said[2], Signed)
    assert isinstance(said[1], Silent | Refused)
    assert said[1].reason
