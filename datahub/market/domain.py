"""The states of a job and what may follow them. Pure; knows nothing of databases, chains or
runs.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """quoted -> funded -> (waiting, for people at hospitals ->) accepted -> running -> attested ->
    settled; refunded from any of them; or disputed first.

    The chain is the truth for funded, settled and refunded; the others are what the run has said so
    far.
    """

    QUOTED = "quoted"
    FUNDED = "funded"
    WAITING = "waiting"
    ACCEPTED = "accepted"
    RUNNING = "running"
    ATTESTED = "attested"
    DISPUTED = "disputed"
    SETTLED = "settled"
    REFUNDED = "refunded"


FINAL = frozenset({JobState.SETTLED, JobState.REFUNDED})
_ORDER = list(JobState)


def advance(current: JobState, seen: JobState) -> JobState:
    """The state to show after `seen`: never backwards (a repeated run starts again without alarming
    anybody).
    """
    if current in FINAL:
        return current
    return max(current, seen, key=_ORDER.index)
