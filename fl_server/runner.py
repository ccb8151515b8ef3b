"""Runs of the installed ServerApp, each in a thread of the SuperLink's process, on messages that go
through the mailbox. Flower's linkstate keeps a run's states, as for any other; Flower's SuperExec,
which would poll for runs and start a process for each, is not used.

The bundle of a run is never unpacked: one ServerApp is installed, and the only one. Built on
Flower's private modules. Knows nothing of jobs.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable
from typing import Any, cast

from flwr.app import Context, Message, RecordDict
from flwr.common.constant import (
    HEARTBEAT_DEFAULT_INTERVAL,
    SUPERLINK_NODE_ID,
    ErrorCode,
    Status,
    SubStatus,
)
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.constant import NodeStatus
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fl_client.node.bundle import bundle_hash
from fl_server.mailbox import Letter, Mailbox

log = logging.getLogger("datahub.superlink")

FOREIGN_BUNDLE = "only the installed ServerApp runs here: the run's bundle is another"
# away for so long, a node is lost: one that restarts is back in seconds, and one that trains has
# sent a heartbeat, even if this machine has slept or its clock was set
GONE_S: float = HEARTBEAT_DEFAULT_INTERVAL + 5.0


class Stopped(Exception):
    """The run was stopped by the operator."""


class Post:
    """What a run has of Flower's Grid: the one method that a job needs."""

    def __init__(self, run: Run, state: Any, mailbox: Mailbox):
        self._run, self._state, self._mailbox = run, state, mailbox
        self._away: dict[int, float] = {}  # node id -> since when it is not connected

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send, and wait for the replies of all nodes that are connected. Raises Stopped."""
        letters = []
        for message in messages:
            message.metadata.__dict__["_run_id"] = self._run.run_id
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            raw = message_to_proto(message).SerializeToString()
            node_id = message.metadata.dst_node_id
            letters.append(
                Letter(
                    message.metadata.message_id,
                    self._run.run_id,
                    self._run.fab_hash,
                    node_id,
                    raw,
                )
            )
        self._mailbox.post(letters)
        wait = float("inf") if timeout is None else timeout
        replies = self._mailbox.collect([one.id for one in letters], wait, self._is_lost)
        return [self._read(one, replies[one.id]) for one in letters if one.id in replies]

    def _read(self, letter: Letter, raw: bytes) -> Message:
        """A reply, under the name of the node that sent it, whatever it says of itself."""
        try:
            message = message_from_proto(ProtoMessage.FromString(raw))
        except Exception:  # protobuf's and Flower's own, of many kinds: it is a stranger's bytes
            log.exception("the answer of node %d is no message", letter.node_id)
            broken = ProtoMessage()
            broken.metadata.message_type = "query"  # or it would be no message either
            broken.error.code, broken.error.reason = ErrorCode.UNKNOWN, "the answer is no message"
            message = message_from_proto(broken)
        message.metadata.__dict__["_src_node_id"] = letter.node_id
        message.metadata.__dict__["_reply_to_message_id"] = letter.id
        return message

    def _is_lost(self, node_id: int) -> bool:
        if _finished(self._state, self._run.run_id):
            raise Stopped
        online = self._state.get_node_info(node_ids=[node_id], statuses=[NodeStatus.ONLINE])
        if online:
            self._away.pop(node_id, None)
            return False
        return time.monotonic() - self._away.setdefault(node_id, time.monotonic()) > GONE_S


def _finished(state: Any, run_id: int) -> bool:
    return bool(state.get_run_info(run_ids=[run_id])[0].status.status == Status.FINISHED)


class Runner:
    """Starts a run as soon as it is told of."""

    def __init__(self, state: Any, mailbox: Mailbox, app: ServerApp):
        self._state, self._mailbox, self._app = state, mailbox, app
        # messages are stamped with their own run (Post): this process has many
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 0, SUPERLINK_NODE_ID

    def start(self, run: Run) -> None:
        """Begin a pending run, in a thread of its own."""
        task_id = cast(int, run.primary_task_id)
        if run.fab_hash != bundle_hash():
            log.warning("run %d has a foreign bundle %s", run.run_id, run.fab_hash[:16])
            self._state.finish_task(task_id, SubStatus.FAILED, FOREIGN_BUNDLE)
        elif token := self._state.claim_task(task_id):
            # Flower ends a task whose token has had no heartbeat for a minute of wall-clock time,
            # which a corrected clock can bring at once; a thread cannot be gone without us
            del self._state.task_token_store[task_id], self._state.task_token_to_task_id[token]
            self._state.activate_task(task_id)
            name = f"run {run.run_id}"
            thread = threading.Thread(target=self._conduct, args=(run, task_id), name=name)
            thread.daemon = True
            try:
                thread.start()
            except RuntimeError as error:  # the machine gives no more threads
                log.warning("run %d cannot be started: %s", run.run_id, error)
                self._state.finish_task(task_id, SubStatus.FAILED, str(error))

    def _conduct(self, run: Run, task_id: int) -> None:
        context = Context(
            run_id=run.run_id,
            node_id=SUPERLINK_NODE_ID,
            node_config={},
            state=RecordDict(),
            run_config=dict(run.override_config),
        )
        state, details = SubStatus.COMPLETED, ""
        try:
            self._app(grid=cast(Grid, Post(run, self._state, self._mailbox)), context=context)
        except Stopped:
            log.info("run %d was stopped", run.run_id)
        except Exception as error:
            log.exception("run %d failed", run.run_id)
            state, details = SubStatus.FAILED, f"{type(error).__name__}: {error}"[:500]
        finally:
            self._state.finish_task(task_id, state, details)
