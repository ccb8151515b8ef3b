"""The SuperLink's end of nodes' turns (fl_client/node/turns.py): one signature is checked, then the
body is read, then the node's reply goes into the mailbox and its next message comes out.

Asks Flower's linkstate who is registered, and tells it that the node is alive. Knows nothing of
what the messages are.
"""

from __future__ import annotations

import asyncio
import binascii
import hashlib
from base64 import b64decode
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from flwr.common.constant import (
    HEARTBEAT_DEFAULT_INTERVAL,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_TOLERANCE,
)
from starlette.concurrency import run_in_threadpool

from fl_client.node.turns import (
    BUNDLE,
    DIGEST,
    KEY,
    LETTER,
    NODE,
    RUN,
    SIGNATURE,
    TIME,
    WAIT_S,
    signed_text,
)
from fl_server.mailbox import Letter, Mailbox

Message = MutableMapping[str, Any]
LARGE = 1024 * 1024  # bytes; more are hashed in a thread


class Turns:
    """ASGI application for one path; `state` gives Flower's linkstate. A node has one turn at a
    time, the newest: with it, the one reply that is read and the one message that is waited for.
    """

    def __init__(self, mailbox: Mailbox, state: Callable[[], Any]):
        self.mailbox, self.state = mailbox, state
        self._keys: dict[str, ec.EllipticCurvePublicKey] = {}  # as written -> read, of registered
        self._turns: dict[int, asyncio.Future[tuple[int, Letter | None]]] = {}

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        node_id = self._signer(headers)
        if node_id is None:
            await _say(send, 401)
            return
        turn = asyncio.ensure_future(self._turn(node_id, headers, receive))
        if older := self._turns.get(node_id):
            older.cancel()  # what it holds or waits for is the newer one's
        self._turns[node_id] = turn
        try:
            status, letter = await turn
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            status, letter = 409, None
        finally:
            if self._turns.get(node_id) is turn:
                del self._turns[node_id]
        if letter is None:
            await _say(send, status)
            return
        said = {LETTER: letter.id, RUN: str(letter.run_id), BUNDLE: letter.bundle}
        await _say(send, status, said, letter.content)

    async def _turn(
        self,
        node_id: int,
        headers: MutableMapping[str, str],
        receive: Callable[[], Awaitable[Message]],
    ) -> tuple[int, Letter | None]:
        """The status to answer, and the message that goes with it."""
        room = self.mailbox.room(node_id, headers[LETTER])
        body = await _whole(receive, room or 0)
        if body is None:
            return 400, None  # it went away in the middle: nobody hears this
        if room is not None:
            if len(body) > room:
                return 413, None
            raw = bytes(body)
            digest = (
                await run_in_threadpool(hashlib.sha256, raw)
                if len(raw) > LARGE
                else hashlib.sha256(raw)
            )
            if digest.hexdigest() != headers[DIGEST]:
                return 401, None
            self.mailbox.answer(node_id, headers[LETTER], raw)
        self.state().acknowledge_node_heartbeat(node_id, HEARTBEAT_DEFAULT_INTERVAL)
        letter = await self.mailbox.next(node_id, WAIT_S)
        return (204, None) if letter is None else (200, letter)

    def _signer(self, headers: MutableMapping[str, str]) -> int | None:
        """The id of the registered node that has signed these headers just now; None if none."""
        try:
            written = headers[KEY]
            key = self._keys.get(written)
            pem = b64decode(written, validate=True)
            node_id = self.state().get_node_id_by_public_key(pem)
            if node_id is None or str(node_id) != headers[NODE]:
                return None
            if key is None:
                found = load_pem_public_key(pem)
                if not isinstance(found, ec.EllipticCurvePublicKey):
                    return None
                key = self._keys[written] = found
            age = (datetime.now(UTC) - datetime.fromisoformat(headers[TIME])).total_seconds()
            if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
                return None
            signature = b64decode(headers[SIGNATURE], validate=True)
            key.verify(signature, signed_text(headers), ec.ECDSA(SHA256()))
        except (KeyError, ValueError, TypeError, binascii.Error, InvalidSignature):
            return None
        return int(node_id)


async def _whole(receive: Callable[[], Awaitable[Message]], room: int) -> bytearray | None:
    """The body, read to its end; of one that is longer than `room`, no more than that and a part is
    held. None where the node goes away.
    """
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        if len(body) <= room:
            body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _say(
    send: Callable[[Message], Awaitable[None]],
    status: int,
    headers: MutableMapping[str, str] | None = None,
    content: bytes = b"",
) -> None:
    written = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    if status != 204:
        written.append((b"content-length", str(len(content)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": written})
    await send({"type": "http.response.body", "body": content})
