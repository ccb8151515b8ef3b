"""Ask hospitals through Flower's grid and hear their typed replies; silence and nonsense are
refusals.

Built on one private function of Flower (pull_objects, for its patience). Knows nothing of what is
asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import flwr.superlink.grid.http_grid as http_grid
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fl_client import protocol
from fl_client.errors import ProtocolError
from fl_client.protocol import Refused

POLL_S = 0.08
# Flower waits 1 to 10 s when a reply is listed before its objects are there
FIRST_BACKOFF_S, BACKOFF_CAP_S = 0.02, 0.25

Said = TypeVar("Said")
# (messages by dataset id, seconds) -> the replies that came in time, by dataset id
Send = Callable[[dict[int, Message], float], dict[int, Message]]

_pull_objects = http_grid.pull_objects


def _pull_objects_quickly(*args: Any, **kwargs: Any) -> dict[str, bytes]:
    quick = {"initial_backoff": FIRST_BACKOFF_S, "backoff_cap": BACKOFF_CAP_S, **kwargs}
    objects: dict[str, bytes] = _pull_objects(*args, **quick)
    return objects


def through(grid: Grid) -> Send:
    """Send over this grid, and wait for the replies, polling fast."""
    http_grid.pull_objects = _pull_objects_quickly

    def send(messages: dict[int, Message], timeout: float) -> dict[int, Message]:
        ids = dict(zip(grid.push_messages(messages.values()), messages, strict=True))
        replies: dict[int, Message] = {}
        end = time.monotonic() + timeout
        while ids and time.monotonic() < end:
            for reply in grid.pull_messages(ids):
                replies[ids.pop(reply.metadata.reply_to_message_id)] = reply
            if ids:
                time.sleep(POLL_S)
        return replies

    return send


@dataclass(frozen=True)
class Silent(Refused):
    """No answer: not in time, or Flower could not bring the message there. No refusal."""


def ask(
    send: Send,
    supernodes: Mapping[int, int],
    dataset_ids: Iterable[int],
    request: Any,
    kind: type[Said],
    timeout: float,
) -> dict[int, Said | Refused]:
    """What each of these hospitals says to a request, checked: a `kind`, or a refusal in its place.

    `supernodes` are dataset id -> the SuperLink's id; `timeout` in seconds.
    """
    record = protocol.to_record(request)
    messages = {
        d: Message(
            RecordDict({protocol.REQUEST: ConfigRecord(dict(record))}), supernodes[d], request.kind
        )
        for d in dataset_ids
    }
    replies = send(messages, timeout) if messages else {}
    return {d: _said(kind, replies.get(d)) for d in messages}


def _said(kind: type[Said], reply: Message | None) -> Said | Refused:
    if reply is None:
        return Silent("no answer in time")
    if reply.has_error():
        return Silent(f"unavailable: {reply.error.reason[:500]}")
    try:
        said = protocol.read_reply(kind, reply.content.get(protocol.REPLY))
    except ProtocolError as error:
        return Refused(f"an answer that is not understood: {error}")
    if isinstance(said, Refused) and not said.reason:
        return replace(said, reason="refused without a reason")
    return said
