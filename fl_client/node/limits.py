"""When a node's work ends: an admission after a minute, a round at its job's deadline, when the
escrow no longer holds the job's money, and everything when the node is stopped. Knows nothing of
what the work is.

All of it is public: deadlines are in the terms, a job's money is on the chain, how much there is to
do follows from the terms (slots.py). So that a round was stopped says nothing about a record. What
was charged for it stays charged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from datatokens.bindings.escrow import Status
from datatokens.errors import BankError
from datatokens.terms import JobTerms
from fl_client.errors import PolicyRefusal, ProtocolError, Stopping
from fl_client.model.clock import at_most, every, watched
from fl_client.node.room import DataRoom
from fl_client.privacy.costs import CHECK_SECONDS

LOOK_EVERY_S = 5.0  # at the escrow, between two steps


@contextmanager
def of_admission(room: DataRoom) -> Iterator[None]:
    """At most CHECK_SECONDS of wall time for the block. Raises PolicyRefusal after them, Stopping
    where the node ends.
    """
    late = PolicyRefusal(
        f"checking this model took longer than the {CHECK_SECONDS} s that this hospital gives it"
    )
    with watched(lambda: _stopping(room)), watched(at_most(CHECK_SECONDS, late)):
        yield


@contextmanager
def of_round(room: DataRoom, terms: JobTerms) -> Iterator[None]:
    """The block while the job may go on. Raises ProtocolError at once for one that may not, or in
    the middle, and Stopping where the node ends.
    """
    if ended := _ended(room, terms, room.chain.now()):
        raise ended
    late = ProtocolError("the deadline of this job has passed")
    with (
        watched(lambda: _stopping(room)),
        watched(at_most(terms.deadline - room.chain.now(), late)),
        watched(every(LOOK_EVERY_S, lambda: _look(room, terms))),
    ):
        yield


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
