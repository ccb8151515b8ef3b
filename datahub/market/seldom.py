"""What is done seldom: answers that are asked for at most every so often, however many people ask,
and steps that are left alone for a while after they failed. Knows nothing of what they are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.3, 60.0


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


class Pauses:
    """Jobs whose last step failed are left alone for a while, twice as long each time."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, float]] = {}  # job id -> (monotonic time, its length)

    def over(self, job_id: str) -> bool:
        """Whether the job may be looked at."""
        return self._until.get(job_id, (0.0, 0.0))[0] <= time.monotonic()

    def note(self, job_id: str, failed: bool) -> None:
        """After a look."""
        length = min(LONGEST_PAUSE_S, 2 * self._until.get(job_id, (0.0, SHORTEST_PAUSE_S))[1])
        if failed:
            self._until[job_id] = (time.monotonic() + length, length)
        else:
            self._until.pop(job_id, None)
