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
    for sentence in objections_to(policy, request, dataset_delta):
        raise PolicyRefusal(sentence)


def objections_to(policy: Policy, request: Request, dataset_delta: float) -> list[str]:
    """Every rule that does not allow the request, one sentence each: what admission refuses by, and
    what an offer says beforehand (offer.py).
    """
    allowed = {purpose.casefold() for purpose in policy.purposes}
    rules = (
        (
            ANYONE in policy.buyers or request.buyer in policy.buyers,
            f"buyer={request.buyer} is not on this hospital's list",
        ),
        (
            ANYONE in policy.purposes or request.purpose.casefold() in allowed,
            f"purpose={request.purpose!r} is not allowed here; allowed: "
            f"{', '.join(policy.purposes) or 'none'}",
        ),
        (
            request.arbiter is None or request.arbiter in policy.arbiters,
            f"arbiter={request.arbiter} is not one that this hospital trusts with its pay",
        ),
        (
            request.deadline_s <= policy.longest_deadline_s,
            f"deadline: {request.deadline_s} s are left, this hospital holds a reservation for at "
            f"most {policy.longest_deadline_s} s",
        ),
        (
            request.delta <= dataset_delta,
            f"delta={request.delta:g} is larger than the {dataset_delta:g} of this dataset",
        ),
        (
            request.epsilon <= policy.max_epsilon_per_job,
            f"epsilon={request.epsilon:.3f} is more than the {policy.max_epsilon_per_job:g} that "
            "one job may cost here",
        ),
        # the true count is not named: the refusal itself already says that it is below the public
        # floor
        (
            request.persons >= policy.minimum_persons,
            f"the cohort is under this hospital's floor of {policy.minimum_persons} patients",
        ),
    )
    return [sentence for allows, sentence in rules if not allows]
