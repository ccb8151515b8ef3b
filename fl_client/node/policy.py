"""Admit or refuse: the owner's rules against what a job asks. Pure; knows nothing of chains,
ledgers or files.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl_client.errors import PolicyRefusal

ANYONE = "*"


@dataclass(frozen=True)
class Policy:
    """The owner's rules for one node.

    buyers               addresses that may buy, or ("*",) for everybody
    purposes             purposes that are allowed, compared word for word without regard to case,
                         or ("*",)
    max_epsilon_per_job  the most one job may cost, at the dataset's delta
    minimum_persons      a job is refused while the dataset has fewer patients
    arbiters             addresses that may rule on disputes; a job with another arbiter is refused
    longest_deadline_s   a job may hold its reservation no longer than this many seconds
    reservations_per_buyer  how many jobs of one buyer may hold a reservation at a time
    max_job_minutes      a job may take so long to train, worked out beforehand (costs.py)
    max_memory_gb        ... and so much memory (10^9 bytes)
    """

    buyers: tuple[str, ...]
    purposes: tuple[str, ...]
    max_epsilon_per_job: float
    minimum_persons: int
    arbiters: tuple[str, ...] = ()
    longest_deadline_s: int = 24 * 3600
    reservations_per_buyer: int = 3
    max_job_minutes: int = 240
    max_memory_gb: int = 4


@dataclass(frozen=True)
class Request:
    """What a job asks of this node, worked out by the node itself."""

    buyer: str
    purpose: str
    epsilon: float
    delta: float
    persons: int
    deadline_s: int = 0  # how far ahead it is
    arbiter: str | None = None  # None: the job pays at once, nobody can dispute it


def admit(policy: Policy, request: Request, dataset_delta: float) -> None:
    """Returns if every rule allows the request, else raises PolicyRefusal with the first rule that
    does not.
    """
    if ANYONE not in policy.buyers and request.buyer not in policy.buyers:
        raise PolicyRefusal(f"buyer={request.buyer} is not on this hospital's list")
    allowed = {purpose.casefold() for purpose in policy.purposes}
    if ANYONE not in policy.purposes and request.purpose.casefold() not in allowed:
        raise PolicyRefusal(
            f"purpose={request.purpose!r} is not allowed here; allowed: "
            f"{', '.join(policy.purposes) or 'none'}"
        )
    if request.arbiter is not None and request.arbiter not in policy.arbiters:
        raise PolicyRefusal(
            f"arbiter={request.arbiter} is not one that this hospital trusts with its pay"
        )
    if request.deadline_s > policy.longest_deadline_s:
        raise PolicyRefusal(
            f"deadline: {request.deadline_s} s are left, this hospital holds a reservation for at "
            f"most {policy.longest_deadline_s} s"
        )
    if request.delta > dataset_delta:
        raise PolicyRefusal(
            f"delta={request.delta:g} is larger than the {dataset_delta:g} of this dataset"
        )
    if request.epsilon > policy.max_epsilon_per_job:
        raise PolicyRefusal(
            f"epsilon={request.epsilon:.3f} is more than the {policy.max_epsilon_per_job:g} that "
            "one job may cost here"
        )
    if request.persons < policy.minimum_persons:
        # the true count is not named: the refusal itself already says that it is below the public
        # floor
        raise PolicyRefusal(
            f"the cohort is under this hospital's floor of {policy.minimum_persons} patients"
        )
