"""Ask hospitals through Flower's grid and hear their typed replies; silence and nonsense are
refusals.

Knows nothing of what is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fl_client import protocol
from fl_client.errors import ProtocolError
from fl_client.protocol import Refused, Waiting

Said = TypeVar("Said")
# (messages by dataset id, seconds) -> the replies that came in time, by dataset id
Send = Callable[[dict[int, Message], float], dict[int, Message]]


def through(grid: Grid) -> Send:
    """Send over this grid, and wait for the replies."""

    def send(messages: dict[int, Message], timeout: float) -> dict[int, Message]:
        replies = grid.send_and_receive(list(messages.values()), timeout=timeout)
        asked = {one.metadata.message_id: d for d, one in messages.items()}
        return {asked[reply.metadata.reply_to_message_id]: reply for reply in replies}

    return send


@dataclass(frozen=True)
class Silent(Refused):
    """No answer: not in time, or Flower could not bring the message there. No refusal."""


@dataclass(frozen=True)
class Undecided(Refused):
    """A person decides, until `until` (unix seconds) at the latest. No refusal yet."""

    until: int = 0


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
        reason = reply.error.reason or "no reason given"
        return Silent(f"unavailable: {reason[:500]}")
    try:
        said = protocol.read_reply(kind, reply.content.get(protocol.REPLY))
    except ProtocolError as error:
        return Refused(f"an answer that is not understood: {error}")
    if isinstance(said, Waiting):
        return Undecided(said.reason, until=said.until)
    if isinstance(said, Refused) and not said.reason:
        return replace(said, reason="refused without a reason")
    return said
