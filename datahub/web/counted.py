"""ASGI middleware around everything else: a request's id, in its answer and in what is logged while
it is answered; and how many requests there were, by route, and how long they took.

A route is counted by its template, never by the path that was asked for, which strangers choose.
Knows nothing of what is answered.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from datahub.logs import request_id
from datahub.web.exposition import COUNTER, HISTOGRAM, Family, Sample, histogram

HEADER = b"x-request-id"
GIVEN = re.compile(rb"[A-Za-z0-9._-]{1,64}")  # what a proxy in front may have chosen
METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}
OTHER = "other"  # method, or route: none, or one that was refused before it was looked up
BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Counts:
    """Of one process since its start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, str, str], int] = {}  # method, route, status
        self._took: dict[str, tuple[list[int], float]] = {}  # route -> by bucket, seconds in all

    def add(self, method: str, route: str, status: int, took_s: float) -> None:
        """One answer."""
        key = (method if method in METHODS else OTHER, route, str(status))
        with self._lock:
            self._answers[key] = self._answers.get(key, 0) + 1
            buckets, total = self._took.get(route, ([0] * (len(BOUNDS_S) + 1), 0.0))
            buckets[bisect_left(BOUNDS_S, took_s)] += 1
            self._took[route] = buckets, total + took_s

    def families(self) -> list[Family]:
        """As metrics."""
        with self._lock:
            answers = dict(self._answers)
            took = {route: (list(by), total) for route, (by, total) in self._took.items()}
        names = ("method", "route", "status")
        return [
            Family(
                "datahub_requests_total",
                COUNTER,
                "Answers by method, template of the route and status.",
                [
                    Sample(n, dict(zip(names, key, strict=True)))
                    for key, n in sorted(answers.items())
                ],
            ),
            Family(
                "datahub_request_seconds",
                HISTOGRAM,
                "Seconds from a request's head to the head of its answer.",
                [
                    one
                    for route, (by, total) in sorted(took.items())
                    for one in histogram({"route": route}, BOUNDS_S, by, total)
                ],
            ),
        ]


class Counted:
    """See the file."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]], counts: Counts):
        self.app, self.counts = app, counts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(HEADER, b"")
        mine = given if GIVEN.fullmatch(given) else secrets.token_hex(8).encode()
        request_id.set(mine.decode())  # of this request's task alone
        started, answered = time.monotonic(), False

        def count(status: int) -> None:
            route = getattr(scope.get("route"), "path", OTHER)
            self.counts.add(scope["method"], route, status, time.monotonic() - started)

        async def named(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                message = {**message, "headers": [*message["headers"], (HEADER, mine)]}
                count(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, named)
        except BaseException:
            if not answered:  # the server answers, or the client has gone
                count(500)
            raise
