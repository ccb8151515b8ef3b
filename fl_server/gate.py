"""ASGI middleware before Flower's SuperLink: who may reach which route, and how much may come in.

The routes of nodes' sessions and turns are open to the network and ask for a registered SuperNode's
signature; control routes need the operator's token, on this machine. There are no others: messages,
objects and bundles do not go through Flower's own. A request that a proxy has passed on is never
this machine's own. Bodies are counted while they arrive, and nobody may send slowly; a turn's is
not read before its signature is checked (turns.py). Reads Flower's private linkstate and headers.
Knows nothing of jobs.
"""

from __future__ import annotations

import asyncio
import binascii
import hmac
import ipaddress
import logging
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any

from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

from fl_client.node import turns

TOKEN_HEADER = "x-datahub-operator"  # noqa: S105 the header's name, not a secret
FLEET, CONTROL = "/v1/fleet/", "/v1/control/"
OPEN = {turns.PATH, "/health"} | {
    FLEET + name for name in ("activate-node", "deactivate-node", "send-node-heartbeat")
}
FORWARDED = (b"x-forwarded-for", b"forwarded", b"x-real-ip")
SMALL_BYTES = 64 * 1024
PATIENCE_S, BYTES_PER_S = 20.0, 50_000  # a body must come at this speed after the first seconds
SAID_AGAIN_S = 60.0

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
log = logging.getLogger("datahub.superlink")


class OperatorGate:
    """See the file. `turns` serves nodes' turns. `known` says whether a public key (PEM) is a
    registered node's; without it the application's own linkstate is asked.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        token: str,
        turns: Callable[[Scope, Receive, Send], Awaitable[None]] | None = None,
        known: Callable[[Scope, bytes], bool] | None = None,
    ):
        self.app = app
        self.token = token.encode()
        self.turns = turns or app
        self.known = known or _is_registered
        self._said: dict[bytes, float] = {}  # a node's key -> when its clock was last named

    def refusal(self, path: str, headers: Mapping[bytes, bytes], client: str) -> int | None:
        """The status that a request is refused with; None where it is let in."""
        if path in OPEN:
            return None
        if not path.startswith(CONTROL):
            return 404
        try:
            local = ipaddress.ip_address(client).is_loopback
        except ValueError:
            return 403
        if not local or any(name in headers for name in FORWARDED):
            return 403
        given = headers.get(TOKEN_HEADER.encode(), b"")
        return None if self.token and hmac.compare_digest(given, self.token) else 403

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, client = dict(scope["headers"]), (scope.get("client") or ("", 0))[0]
        status = self.refusal(scope["path"], headers, client)
        if status is not None:
            await _answer(send, status)
            return
        turn, begun = scope["path"] == turns.PATH, False
        body = _Body(receive, turns.MOST_BYTES if turn else SMALL_BYTES)

        async def say(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                if body.refused is not None:
                    message = {**message, "status": body.refused}
                if message["status"] == 401 and scope["path"].startswith(FLEET):
                    self._name_the_clock(scope, headers)
            await send(message)

        try:
            await (self.turns if turn else self.app)(scope, body.receive, say)
        except Exception:  # Flower's middleware may have wrapped it
            if body.refused is None:
                raise
            if not begun:
                await _answer(send, body.refused)

    def _name_the_clock(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        """One line a minute for a registered node that is refused for its clock."""
        key, age = _signer(headers)
        now = time.monotonic()
        if key is None or age is None or now < self._said.get(key, -SAID_AGAIN_S) + SAID_AGAIN_S:
            return
        right = -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
        if not right and self.known(scope, key):
            self._said[key] = now
            way = "behind" if age > 0 else "ahead of"
            name = key.split(b"\n")[1][-12:].decode(errors="replace")
            log.warning(
                "a registered node (key %s…) is refused: its clock is %.0f s %s this machine's; "
                "one of the two must be set (NTP)",
                name,
                abs(age),
                way,
            )


class _BodyRefused(Exception):
    """The body is not read on."""


class _Body:
    """A request's body, counted and timed while it arrives; `refused` is the status once it is."""

    def __init__(self, receive: Receive, most: int):
        self._receive, self._most = receive, most
        self._taken, self._started = 0, time.monotonic()
        self._whole = False
        self.refused: int | None = None

    async def receive(self) -> Message:
        """The next part. Raises _BodyRefused."""
        if self._whole:
            return await self._receive()
        left = PATIENCE_S + self._taken / BYTES_PER_S - (time.monotonic() - self._started)
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, left))
        except TimeoutError:
            self.refused = 408
            raise _BodyRefused from None
        self._taken += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._taken > self._most:
            self.refused = 413
            raise _BodyRefused
        return message


async def _answer(send: Send, status: int) -> None:
    headers = [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"refused"})


def _signer(headers: Mapping[bytes, bytes]) -> tuple[bytes | None, float | None]:
    """The public key (PEM) that has signed the request's timestamp, and the timestamp's age in
    seconds; (None, None) where none has.
    """
    try:
        key = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER.encode()], validate=True)
        signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER.encode()], validate=True)
        stamp = headers[TIMESTAMP_HEADER.encode()]
        if not verify_signature(bytes_to_public_key(key), stamp, signature):
            return None, None
        age = datetime.now(UTC) - datetime.fromisoformat(stamp.decode("ascii"))
    except (KeyError, ValueError, TypeError, binascii.Error):
        return None, None
    return key, age.total_seconds()


def _is_registered(scope: Scope, key: bytes) -> bool:
    state = scope["app"].state.linkstate_factory.state()
    return state.get_node_id_by_public_key(key) is not None
