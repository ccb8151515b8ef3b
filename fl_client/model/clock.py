"""Long work that can be stopped: whoever runs it says by what, and it asks at every step. Knows
nothing of jobs or what the work is.

>>> with watched(lambda: TimeoutError("enough")):
...     tick()
Traceback (most recent call last):
TimeoutError: enough

A graph's interpreter, the loops over chunks and steps and the self-check call `tick`; none of them
knows of deadlines. What stops the work passes every `except Exception` between it and `watched`,
which are there for what a graph or a record may raise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Check = Callable[[], Exception | None]  # what the work ends with, None to go on
_CHECKS: ContextVar[tuple[Check, ...]] = ContextVar("checks", default=())


class _Stopped(BaseException):
    """On its way from a tick to the `watched` whose check said so."""

    def __init__(self, check: Check, error: Exception):
        self.check, self.error = check, error


@contextmanager
def watched(check: Check) -> Iterator[None]:
    """The block under `check` and those around it. Raises what the check gives, at the next
    tick.
    """
    token = _CHECKS.set((*_CHECKS.get(), check))
    try:
        yield
    except _Stopped as stopped:
        if stopped.check is not check:
            raise
        raise stopped.error from None
    finally:
        _CHECKS.reset(token)


def tick() -> None:
    """Here work may be stopped. Raises nothing outside `watched`."""
    for check in _CHECKS.get():
        error = check()
        if error is not None:
            raise _Stopped(check, error)


def at_most(seconds: float, error: Exception) -> Check:
    """A check that ends the work with `error` once so many seconds of wall time are over."""
    end = time.monotonic() + seconds
    return lambda: error if time.monotonic() > end else None


def every(seconds: float, check: Check) -> Check:
    """`check`, asked no more often than once in so many seconds, first after as many."""
    again = time.monotonic() + seconds

    def seldom() -> Exception | None:
        nonlocal again
        if time.monotonic() < again:
            return None
        again = time.monotonic() + seconds
        return check()

    return seldom
