"""The SuperLink's end of nodes' turns (fl_client/node/turns.py): one signature is checked, then the
body is read, then the node's reply goes into the mailbox and its next message comes out.

Asks Flower's linkstate who is registered, and tells it that the node is alive. Knows nothing of
what the messages are.
"""

from __future__ import annotations

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
from fl_server.mailbox import Mailbox

Message = MutableMapping[str, Any]
LARGE = 1024 * 1024  # bytes; more are hashed in a thread


class Turns:
    """ASGI application for one path; `state` gives Flower's linkstate."""

    def __init__(self, mailbox: Mailbox, state: Callable[[], Any]):
        self.mailbox, self.state = mailbox, state
        self._keys: dict[str, ec.EllipticCurvePublicKey] = {}  # as written -> read, of registered

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
        body = await _whole(receive)
        if body is None:
            return
        raw = bytes(body)
        digest = (
            await run_in_threadpool(hashlib.sha256, raw)
            if len(raw) > LARGE
            else hashlib.sha256(raw)
        )
        if digest.hexdigest() != headers[DIGEST]:
            await _say(send, 401)
            return
        self.state().acknowledge_node_heartbeat(node_id, HEARTBEAT_DEFAULT_INTERVAL)
        if headers[LETTER]:
            self.mailbox.answer(node_id, headers[LETTER], raw)
        letter = await self.mailbox.next(node_id, WAIT_S)
        if letter is None:
            await _say(send, 204)
            return
        said = {LETTER: letter.id, RUN: str(letter.run_id), BUNDLE: letter.bundle}
        await _say(send, 200, said, letter.content)

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


async def _whole(receive: Callable[[], Awaitable[Message]]) -> bytearray | None:
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
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
