"""Messages between the runs of this SuperLink and its nodes, in memory: a run waits for replies, a
node's turn waits for the next message. Nobody polls.

A message is delivered until it is answered, so that one which a node has lost in a crash reaches it
again; nodes answer a repeated message with the same reply. What a run no longer waits for is
dropped. Lost with the process: a job is resumed from its own files by another run. Bytes in, bytes
out: knows nothing of what they mean, of Flower or of HTTP.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

MOST_DELIVERIES = 5  # of one message, if it is never answered
ENVELOPE_BYTES = 64 * 1024
LOOK_S = 0.5  # how often a waiting run looks whether it has been stopped


@dataclass
class Letter:
    """One message to one node."""

    id: str
    run_id: int
    bundle: str  # the hash of the run's bundle, which a node compares with its own
    node_id: int
    content: bytes
    deliveries: int = 0


class Mailbox:
    """Safe to use from threads (runs) and one event loop (nodes' turns)."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._open: dict[str, Letter] = {}  # unanswered, oldest first
        self._replies: dict[str, bytes] = {}
        self._waiting: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = {}

    # -- a run's side, in its thread ---------------------------------------------------------------

    def post(self, letters: Iterable[Letter]) -> None:
        """Send these messages."""
        with self._lock:
            for letter in letters:
                self._open[letter.id] = letter
                self._wake(letter.node_id)

    def collect(
        self, ids: Iterable[str], timeout: float, lost: Callable[[int], bool]
    ) -> dict[str, bytes]:
        """Message id -> reply, as soon as every message is answered or is for a node that is
        `lost` (by its id; asked a few times a second), or `timeout` seconds are over. What was not
        answered is dropped.
        """
        wanted, end = set(ids), time.monotonic() + timeout
        found = {}
        with self._lock:
            try:
                self._wait(wanted, end, lost)
            finally:
                for one in wanted:
                    self._open.pop(one, None)
                    if one in self._replies:
                        found[one] = self._replies.pop(one)
        return found

    def _wait(self, wanted: set[str], end: float, lost: Callable[[int], bool]) -> None:
        while waits := [self._open[one] for one in wanted if one in self._open]:
            left = end - time.monotonic()
            if left <= 0 or all(lost(letter.node_id) for letter in waits):
                break
            self._lock.wait(min(left, LOOK_S))

    # -- a node's side, in the event loop ----------------------------------------------------------

    def room(self, node_id: int, letter_id: str) -> int | None:
        """The most bytes that a node's reply to this message may have; None where nobody waits for
        one. No reply says more than what was asked, but for its envelope.
        """
        with self._lock:
            letter = self._open.get(letter_id)
            if letter is None or letter.node_id != node_id:
                return None
            return len(letter.content) + ENVELOPE_BYTES

    def answer(self, node_id: int, letter_id: str, reply: bytes) -> None:
        """A node's reply. What nobody waits for, or was addressed to another, is dropped."""
        with self._lock:
            letter = self._open.get(letter_id)
            if letter is not None and letter.node_id == node_id:
                del self._open[letter_id]
                self._replies[letter_id] = reply
                self._lock.notify_all()

    async def next(self, node_id: int, timeout: float) -> Letter | None:
        """The oldest unanswered message to a node, waited for up to `timeout` seconds by one turn
        of that node at a time.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while True:
            with self._lock:
                if found := self._oldest(node_id):
                    return found
                woken = loop.create_future()
                self._waiting[node_id] = loop, woken
            try:
                await asyncio.wait_for(woken, max(0.0, end - loop.time()))
            except TimeoutError:
                return None
            finally:
                with self._lock:
                    if self._waiting.get(node_id, (None, None))[1] is woken:
                        del self._waiting[node_id]

    def _oldest(self, node_id: int) -> Letter | None:
        for letter in self._open.values():
            if letter.node_id == node_id and letter.deliveries < MOST_DELIVERIES:
                letter.deliveries += 1
                return letter
        return None

    def _wake(self, node_id: int) -> None:
        if waiting := self._waiting.pop(node_id, None):
            loop, woken = waiting
            loop.call_soon_threadsafe(_wake_up, woken)


def _wake_up(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
