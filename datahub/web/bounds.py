"""What may come through the hub's door: bodies of bounded length, counted as they arrive, and JSON
that the one parser takes. Knows nothing of routes but their limits.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.concurrency import run_in_threadpool

from datatokens.errors import TermsError
from datatokens.wire import parse

MODEL_BYTES = 192 * 1024 * 1024  # a graph and weights of 64 MiB each, as base64
# the beginning of a path -> the most bytes of its body
LIMITS = {
    "/api/quotes": MODEL_BYTES,
    "/api/jobs": MODEL_BYTES,
    "/api/datasets/": 64 * 1024 * 1024,  # a list of a million contributors
    "": 64 * 1024,
}
MANIFEST_BYTES = 1024 * 1024

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def limit(path: str) -> int:
    """The most bytes that a body for `path` may have."""
    if path.endswith(("/manifest", "/offer")):
        return MANIFEST_BYTES
    return next(most for start, most in LIMITS.items() if path.startswith(start))


class Bounds:
    """ASGI middleware: the whole body within its limit and as JSON, or a sentence; HEAD is GET
    without the body.
    """

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        most, body, more = limit(scope["path"]), bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > most:
                await _say(send, 413, f"a body may have {most} bytes here")
                return
        if body:
            try:
                await run_in_threadpool(parse, bytes(body))
            except TermsError as error:
                await _say(send, 422, f"body: {error}")
                return
        sent = False

        async def again() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, again, send)


def _without_body(send: Send) -> Send:
    async def head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return head


async def _say(send: Send, status: int, sentence: str) -> None:
    content = json.dumps({"error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
