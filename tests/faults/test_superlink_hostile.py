"""Nodes that answer what no node should, and what runs and the SuperLink's state make of it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
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
from fl_server import mailbox, runner, superlink
from fl_server.errors import SuperLinkError
from fl_server.exchange import Silent, ask, through
from fl_server.mailbox import Mailbox
from fl_server.runner import Post, Runner
from fl_server.superlink import Registrations
from tests.clocks import clock


@pytest.fixture(autouse=True)
def _identity() -> None:
    """Flower's Message constructor wants to know the task that it runs in."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def linkstate() -> Any:
    """Flower's own, as the SuperLink has it."""
    return InMemoryLinkState(NoOpFederationManager(), InMemoryObjectStore())


state = pytest.fixture(linkstate)


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


def ended(state: Any, run: Run) -> Any:
    """How a run has ended, waited for up to 5 s."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        status = state.get_run_info(run_ids=[run.run_id])[0].status
        if status.status == "finished":
            return status
        time.sleep(0.01)
    raise AssertionError(status)


def test_the_clock_of_the_machine_is_set_forward__runs_go_on(
    state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    run = new_run(state)
    Runner(state, Mailbox(), lambda **_: go_on.wait(5)).start(run)  # type: ignore[arg-type]
    corestate = "flwr.supercore.corestate.in_memory_corestate.now"
    monkeypatch.setattr(corestate, lambda: datetime.now(UTC) + timedelta(hours=1))
    assert state.get_run_info(run_ids=[run.run_id])[0].status.status == "running"
    go_on.set()
    assert ended(state, run).sub_status == "completed"


def test_the_machine_has_slept_while_a_node_trains__it_is_lost_when_it_misses_a_heartbeat_only(
    state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0
    clock(monkeypatch, runner, monotonic=lambda: seconds)
    linkstate_now = "flwr.server.superlink.linkstate.in_memory_linkstate.now"
    awake = datetime.now(UTC) + timedelta(hours=1)
    node, run = state.create_node("me", "me", b"key", 30), new_run(state)
    state.acknowledge_node_heartbeat(node, 30)
    post = Post(run, state, Mailbox())
    monkeypatch.setattr(linkstate_now, lambda: awake + timedelta(seconds=seconds))
    lost = []
    for seconds in (0.0, 15.5, 29.5):  # noqa: B007 the two clocks read it
        lost.append(post._is_lost(node))
    state.acknowledge_node_heartbeat(node, 30)
    for seconds in (30.0, 80.0, 90.0, 100.0, 130.0):  # noqa: B007
        lost.append(post._is_lost(node))
    assert lost == [False] * 7 + [True]


def test_the_machine_gives_no_more_threads__the_run_has_failed_and_does_not_hang(
    state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    runner, run = Runner(state, Mailbox(), lambda **_: None), new_run(state)  # type: ignore[arg-type]
    monkeypatch.setattr(threading.Thread, "start", no_more)
    runner.start(run)
    assert ended(state, run).details == "can't start new thread"


def test_a_run_that_is_started_twice__runs_once(state: Any) -> None:
    begun = []
    runner, run = Runner(state, Mailbox(), lambda **_: begun.append(1)), new_run(state)  # type: ignore[arg-type]
    for _ in range(3):
        runner.start(run)
    assert ended(state, run).sub_status == "completed"
    assert begun == [1]


def test_a_run_stopped_in_a_round__ends_and_leaves_no_letter(
    state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "LOOK_S", 0.01)
    node = state.create_node("me", "me", b"key", 30)
    state.acknowledge_node_heartbeat(node, 30)
    box, run = Mailbox(), new_run(state)

    def app(grid: Any, context: Any) -> None:
        ask(through(grid), {1: node}, [1], Admit(b"{}", b"", b""), Signed, 3600)

    Runner(state, box, app).start(run)  # type: ignore[arg-type]
    while not box._open:
        time.sleep(0.01)
    state.stop_run(run.run_id)
    end = time.monotonic() + 5
    while box._open and time.monotonic() < end:
        time.sleep(0.01)
    assert not box._open and not box._replies
    assert ended(state, run).sub_status == "stopped"


def kept(path: Path, state: Any | None = None) -> Any:
    """A linkstate with what is kept of registrations."""
    state = state or linkstate()
    Registrations(path).fill(state)
    return state


def test_a_full_disk_while_a_node_registers__it_is_not_registered_and_can_be_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    state = kept(tmp_path / "nodes.json")
    with monkeypatch.context() as disk:
        disk.setattr(superlink, "write_whole", full)
        with pytest.raises(OSError, match="No space"):
            state.create_node("me", "me", b"key", 30)
        assert state.get_node_id_by_public_key(b"key") is None and not state.get_node_info()
    node = state.create_node("me", "me", b"key", 30)
    assert kept(tmp_path / "nodes.json").get_node_id_by_public_key(b"key") == node


def test_many_nodes_register_at_once__all_are_kept(tmp_path: Path) -> None:
    state = kept(tmp_path / "nodes.json")
    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(lambda i: state.create_node("me", "me", b"%d" % i, 30), range(64)))
    again = kept(tmp_path / "nodes.json")
    assert [again.get_node_id_by_public_key(b"%d" % i) for i in range(64)] == ids


def test_a_node_that_the_operator_has_unregistered__is_not_back_after_a_restart(
    tmp_path: Path,
) -> None:
    state = kept(tmp_path / "nodes.json")
    ids = [state.create_node("me", "me", key, 30) for key in (b"a", b"b")]
    state.acknowledge_node_heartbeat(ids[0], 30)
    state.delete_node("me", ids[0])
    again = kept(tmp_path / "nodes.json")
    assert [again.get_node_id_by_public_key(key) for key in (b"a", b"b")] == [None, ids[1]]


@pytest.mark.parametrize("content", [b"", b"[", b"{}x", b"[1]", b'["xy"]', b'["ffff"]', b"null"])
def test_a_damaged_file_of_nodes__is_named_and_left_as_it_is(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "nodes.json"
    path.write_bytes(content)
    with pytest.raises(SuperLinkError, match=r"nodes.json cannot be read .*: put back a copy"):
        Registrations(path)
    assert path.read_bytes() == content


@pytest.mark.e2e
def test_two_superlinks_on_one_folder__the_second_says_so(tmp_path: Path) -> None:
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    command = [sys.executable, "-m", "fl_server.superlink", "--folder", str(tmp_path)]
    said = subprocess.run([*command, "--port", "1"], capture_output=True, timeout=60, check=False)
    os.close(held)
    assert said.returncode == 1 and b"another SuperLink runs on" in said.stderr
    assert not list(tmp_path.iterdir())
