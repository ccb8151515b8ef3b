"""What a hub lacks, to be of use now: one sentence for each thing. Asks what may hang in threads of
their own, so that the answer comes whatever hangs. Knows nothing of HTTP.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from datahub.market.desk import Desk
from datahub.market.reconcile import Loop
from fl_server.errors import TheatreError

T = TypeVar("T")
ANSWER_S = 2.0  # for database and SuperLink
CHAIN_S = 30.0  # since the chain's last answer, and since the index was up to it
BLOCKS = 50  # that the index may be behind
# since a loop's last turn; one that waits for a transaction waits three minutes at most
TURN_S = {"index": 60.0, "reconcile": 300.0, "webhooks": 300.0}
KEPT_S = 1.0


class Probe(Generic[T]):
    """A question that may hang: asked by a thread, at most one at a time and once a second."""

    def __init__(self, ask: Callable[[], T]):
        self._ask = ask
        self._lock = threading.Lock()
        self._answer: Future[T] | None = None
        self._done_at = 0.0

    def __call__(self, wait_s: float) -> T:
        """The answer. Raises what was raised, or TimeoutError."""
        with self._lock:
            kept = self._answer
            if kept is None or (kept.done() and time.monotonic() > self._done_at + KEPT_S):
                kept = self._answer = Future()
                threading.Thread(target=self._run, args=(kept,), daemon=True).start()
        return kept.result(wait_s)

    def _run(self, answer: Future[T]) -> None:
        try:
            found = self._ask()
        except Exception as error:  # noqa: BLE001 whoever asks hears of it
            self._done_at = time.monotonic()
            answer.set_exception(error)
        else:
            self._done_at = time.monotonic()
            answer.set_result(found)


class Readiness:
    """Of one hub process; `loops` are those that run beside its answers."""

    def __init__(self, desk: Desk, loops: Callable[[], Sequence[Loop]]):
        self._desk, self._loops = desk, loops
        self._database = Probe(self._ask_database)
        self._superlink = Probe(desk.superlink.online_nodes)

    def missing(self) -> list[str]:
        """One sentence for each thing that is missing; none where the hub is ready. They name no
        address: anybody may ask.
        """
        now, index = time.time(), self._desk.index
        found = []
        if self._desk.stopping.is_set():
            found.append("the hub is stopping")
        found += _unanswered("database", self._database, SQLAlchemyError)
        silent = now - self._desk.chain.answered_at
        if silent > CHAIN_S:
            found.append(f"the chain has not answered for {silent:.0f} s ({CHAIN_S:.0f} at most)")
        behind = index.lag
        if behind > BLOCKS:
            found.append(f"the index is {behind} blocks behind the chain ({BLOCKS} at most)")
        elif now - index.caught_up_at > CHAIN_S:
            found.append(
                f"the index was last up to the chain {now - index.caught_up_at:.0f} s ago "
                f"({CHAIN_S:.0f} at most)"
            )
        found += _unanswered("SuperLink", self._superlink, TheatreError)
        for loop in self._loops():
            stood, most = now - loop.turned_at, TURN_S[loop.name]
            if stood > most or not loop.is_alive():
                found.append(
                    f"the loop {loop.name!r} has not turned for {stood:.0f} s ({most:.0f} at most)"
                )
        return found

    def _ask_database(self) -> None:
        with self._desk.session() as session:
            session.connection().execute(text("SELECT 1"))


def _unanswered(name: str, probe: Probe[T], error: type[Exception]) -> list[str]:
    try:
        probe(ANSWER_S)
    except TimeoutError:
        return [f"the {name} has not answered for {ANSWER_S:.0f} s"]
    except error:
        return [f"the {name} does not answer"]
    return []
