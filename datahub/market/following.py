"""What has happened on the chain since the last look, and answers that are asked for at most every
so often.

A look costs the same however much is listed and however many people ask. Knows nothing of what the
events mean.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from datatokens.chain.connection import Chain

T = TypeVar("T")
Logs = Sequence[Mapping[str, Any]]


class Follower:
    """One contract's events, each seen once by this process. Safe to share between threads."""

    def __init__(self, chain: Chain, address: str):
        self._chain, self._address = chain, address
        self._seen: tuple[int, bytes | None] | None = None
        self._looked_at = -math.inf
        self._lock = threading.Lock()

    def look(self, act: Callable[[Logs | None], None], pause: float = 0.0) -> None:
        """Call `act` with the events since the last look that it got through, if there are any;
        with None at the first look and where the chain has gone another way since: then everything
        must be read again. With a `pause` nothing happens within so many seconds of the last try,
        and while another thread is looking. Raises ChainUnreachable and what `act` raises.
        """
        if time.monotonic() < self._looked_at + pause:
            return
        if not self._lock.acquire(blocking=not pause or self._seen is None):
            return
        try:
            self._looked_at = time.monotonic()
            head = self._chain.block_number()
            if self._seen is not None and self._seen[0] == head:
                return
            here = head, self._chain.block_hash(head)
            if self._seen is None or self._chain.block_hash(self._seen[0]) != self._seen[1]:
                act(None)
            elif logs := self._chain.raw_logs(self._address, self._seen[0] + 1, head):
                act(logs)
            self._seen = here
        finally:
            self._lock.release()


class Seldom(Generic[T]):
    """What `ask` answers, asked at most every `pause` seconds and by one thread at a time; whoever
    comes meanwhile has the answer before.
    """

    def __init__(self, ask: Callable[[], T], pause: float):
        self._ask, self._pause = ask, pause
        self._lock = threading.Lock()
        self._answer: tuple[float, T] | None = None

    def __call__(self) -> T:
        """The answer. Raises what `ask` raises, and asks again next time."""
        kept = self._answer
        if kept is not None and time.monotonic() < kept[0] + self._pause:
            return kept[1]
        if not self._lock.acquire(blocking=kept is None):
            return kept[1]  # type: ignore[index]  # it is there, or the lock was waited for
        try:
            if self._answer is kept:
                self._answer = time.monotonic(), self._ask()
            return self._answer[1]  # type: ignore[index]
        finally:
            self._lock.release()
