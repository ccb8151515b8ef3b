"""What may come through the hub's door: so many requests of one client, bodies of bounded length,
counted as they arrive, no slower than somebody on a bad line sends, and JSON that the one parser
takes; every answer that is not a plain look is logged. Knows nothing of routes but their limits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool

from datahub.web import problems
from datahub.web.rates import Rate, client_of
from datatokens.errors import TermsError
from datatokens.wire import parse

MODEL_BYTES = 192 * 1024 * 1024  # a graph and weights of 64 MiB each, as base64
# the beginning of a path -> the most bytes of its body
LIMITS = {
    "/api/v1/quotes": MODEL_BYTES,
    "/api/v1/jobs": MODEL_BYTES,
    "/api/v1/datasets/": 64 * 1024 * 1024,  # a list of a million contributors
    "": 64 * 1024,
}
MANIFEST_BYTES = 1024 * 1024
MEMORY_BYTES = 1024**3  # of all bodies that are arriving or being read
# somebody on a bad line: a body must come at this speed after the first seconds
PATIENCE_S = 20.0
BYTES_PER_S = 50_000
# of one client that is not on this machine: so many a second, and so many at once
LOOKS, CHANGES = (50.0, 500), (5.0, 100)

log = logging.getLogger("datahub.hub")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def limit(path: str) -> int:
    """The most bytes that a body for `path` may have."""
    if path.endswith(("/manifest", "/offer")):
        return MANIFEST_BYTES
    return next(most for start, most in LIMITS.items() if path.startswith(start))


class TooMuch(Exception):
    """A body that is not read on: (status, sentence)."""


class Bounds:
    """ASGI middleware: the whole body within its limits and as JSON, or a sentence; HEAD is GET
    without the body.
    """

    def __init__(
        self, app: Callable[[Message, Receive, Send], Awaitable[None]], behind_proxy: bool = False
    ):
        self.app, self.behind_proxy = app, behind_proxy
        self._held = 0  # bytes of all bodies
        self._looks, self._changes = Rate(*LOOKS), Rate(*CHANGES)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        send = _logged(scope, send)
        if wait := self._wait_s(scope):
            again = math.ceil(wait)
            sentence = f"too many requests from one client; the next one in {again} s"
            await _say(send, 429, sentence, [(b"retry-after", b"%d" % again)])
            return
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        body = bytearray()
        try:
            if not await self._read(body, limit(scope["path"]), receive):
                return
            if body:
                await run_in_threadpool(parse, bytes(body))
            await self.app(scope, _again(body, receive), send)
        except TooMuch as error:
            await _say(send, *error.args)
        except TermsError as error:
            await _say(send, 422, f"body: {error}")
        finally:
            self._held -= len(body)

    def _wait_s(self, scope: Message) -> float:
        headers = dict(scope["headers"])
        said = headers.get(b"x-forwarded-for", b"").decode("latin-1") if self.behind_proxy else None
        client = client_of((scope.get("client") or ("", 0))[0], said)
        if client is None:
            return 0.0
        rate = self._looks if scope["method"] in ("GET", "HEAD") else self._changes
        return rate.wait_s(client)

    async def _read(self, body: bytearray, most: int, receive: Receive) -> bool:
        """Read the body; False where the client has gone. Raises TooMuch."""
        started, more = time.monotonic(), True
        while more:
            left = PATIENCE_S + len(body) / BYTES_PER_S - (time.monotonic() - started)
            try:
                message = await asyncio.wait_for(receive(), max(0.0, left))
            except TimeoutError:
                raise TooMuch(408, "the body came too slowly; send it again") from None
            if message["type"] == "http.disconnect":
                return False
            chunk = message.get("body", b"")
            body += chunk
            self._held += len(chunk)
            more = message.get("more_body", False)
            if len(body) > most:
                raise TooMuch(413, f"a body may have {most} bytes here")
            if self._held > MEMORY_BYTES:
                raise TooMuch(429, "too many large requests at once; send this one again")
        return True


def _again(body: bytearray, receive: Receive) -> Receive:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return again


def _logged(scope: Message, send: Send) -> Send:
    started = time.monotonic()

    async def logged(message: Message) -> None:
        if message["type"] == "http.response.start":
            status = message["status"]
            if status >= 400 or scope["method"] not in ("GET", "HEAD"):
                log.info(
                    "%s %.100r: %d after %.0f ms",
                    scope["method"],
                    scope["path"],
                    status,
                    1000 * (time.monotonic() - started),
                )
        await send(message)

    return logged


def _without_body(send: Send) -> Send:
    async def head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return head


async def _say(
    send: Send, status: int, sentence: str, more: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    content = problems.document(status, sentence)
    headers = [(b"content-type", problems.MEDIA_TYPE.encode()), (b"connection", b"close"), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
