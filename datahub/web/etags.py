"""Answers that a client has already: an ETag on each JSON answer, and 304 without a body where the
client names it (RFC 9110, sections 8.8.3 and 13.1.2). Knows nothing of routes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
MOST_BYTES = 8 * 1024 * 1024  # of an answer; a larger one has no ETag
JSON = (b"application/json", b"application/ld+json")


class ETags:
    """ASGI middleware: looks that are answered with JSON, held back until they are whole."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        known = dict(scope["headers"]).get(b"if-none-match", b"")
        held: list[Message] = []

        async def hold(message: Message) -> None:
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"").partition(b";")[0]
                if message["status"] != 200 or kind not in JSON:
                    held.append({})  # passed on as it comes
                    await send(message)
                    return
                held.append(message)
            elif held and not held[0]:
                await send(message)
            else:
                held.append(message)
                size = sum(len(part.get("body", b"")) for part in held[1:])
                if size > MOST_BYTES:
                    for one in held:
                        await send(one)
                    held[:] = [{}]
                elif not message.get("more_body"):
                    await _answer(held, known, send)

        await self.app(scope, receive, hold)


async def _answer(held: list[Message], known: bytes, send: Send) -> None:
    start, body = held[0], b"".join(part.get("body", b"") for part in held[1:])
    tag = b'"' + hashlib.sha256(body).hexdigest()[:32].encode() + b'"'
    headers = [*start["headers"], (b"etag", tag), (b"cache-control", b"no-cache")]
    given = {one.strip().removeprefix(b"W/") for one in known.split(b",")}
    if tag in given or b"*" in given:
        plain = [(name, value) for name, value in headers if not name.startswith(b"content-")]
        await send({"type": "http.response.start", "status": 304, "headers": plain})
        await send({"type": "http.response.body", "body": b""})
        return
    await send({**start, "headers": headers})
    await send({"type": "http.response.body", "body": body})
