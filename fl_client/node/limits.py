"""When a job's work ends before it is done: a round at its job's deadline, when the escrow no
longer holds the job's money, and everything when the node is stopped. Knows nothing of what the
work is, nor how it is ended (fl_client.worker.workers).

All of it is public: deadlines are in the terms, a job's money is on the chain, how much there is to
do follows from the terms (slots.py). So that a round was stopped says nothing about a record. What
was charged for it stays charged.
"""

from __future__ import annotations

import time

from datatokens.bindings.escrow import Status
from datatokens.errors import BankError
from datatokens.terms import JobTerms
from fl_client.errors import ProtocolError, Stopping
from fl_client.node.room import DataRoom
from fl_client.worker.workers import Stop, at_most

LOOK_EVERY_S = 5.0  # at the escrow


def of_admission(room: DataRoom) -> tuple[Stop, ...]:
    """What ends the check of a model, besides its time."""
    return (lambda: _stopping(room),)


def of_round(room: DataRoom, terms: JobTerms) -> tuple[Stop, ...]:
    """What ends a round. Raises ProtocolError at once for a job that may not go on."""
    if ended := _ended(room, terms, room.chain.now()):
        raise ended
    late = ProtocolError("the deadline of this job has passed")
    return (
        lambda: _stopping(room),
        at_most(terms.deadline - room.chain.now(), late),
        _every(LOOK_EVERY_S, lambda: _look(room, terms)),
    )


def _every(seconds: float, stop: Stop) -> Stop:
    """`stop`, asked no more often than once in so many seconds, first after as many."""
    again = time.monotonic() + seconds

    def seldom() -> Exception | None:
        nonlocal again
        if time.monotonic() < again:
            return None
        again = time.monotonic() + seconds
        return stop()

    return seldom


def _stopping(room: DataRoom) -> Stopping | None:
    return Stopping("the node is being stopped") if room.stopping.is_set() else None


def _look(room: DataRoom, terms: JobTerms) -> ProtocolError | None:
    try:
        return _ended(room, terms, room.chain.now())
    except BankError:
        return None  # a chain that cannot be reached for a while ends no round; the deadline does


def _ended(room: DataRoom, terms: JobTerms, now: int) -> ProtocolError | None:
    status = room.escrow.job(terms.job_id).status
    if status != Status.FUNDED:
        return ProtocolError(f"the escrow no longer holds this job's money: it is {status}")
    if terms.deadline <= now:
        return ProtocolError("the deadline of this job has passed")
    return None
