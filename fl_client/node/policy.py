"""Admit, ask a person or refuse: the owner's rules against what a job asks. Pure; knows nothing of
chains, ledgers or files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fl_client.errors import ConfigError, PolicyRefusal
from fl_client.node.purposes import INTENTS, match

ANYONE = "*"
BUILT_IN = ("logistic_regression", "mlp")  # models that a schema and their name say all of
PERSON, TWO_PERSONS = "person", "two persons"
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_BEGIN = re.compile(r"([a-z]{3})(?:-([a-z]{3}))? ([0-2]\d):([0-5]\d)-([0-2]\d):([0-5]\d)", re.ASCII)


@dataclass(frozen=True)
class Policy:
    """The owner's rules for one dataset.

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
    threads              how many threads it trains with; 0 for as many as there are processors
    gpu                  whether it may use a graphics processor
    approval             "person" or "two persons": who says yes where no rule does
    permits              what the data may be used for, as DUO codes (purposes.py); () for not
                         stated
    max_epsilon_per_month  the most that all jobs of any 30 days may cost, composed at the
                         dataset's delta; 0 for no limit besides the lifetime
    max_epsilon_lifetime a lifetime below the published one; 0 for that
    losses               losses that may be trained by, or ("*",)
    models               SHA-256 of graphs that may be trained, names of built-in ones (BUILT_IN),
                         or ("*",)
    partners             dataset ids that it trains together with, or ("*",)
    least_price_units    what a job must pay for it at least, prepaid ones aside
    begin                when jobs may begin, like "mon-fri 20:00-06:00", local time; () for always
    hold_results         whether a person lets the final result go
    """

    buyers: tuple[str, ...]
    purposes: tuple[str, ...]
    max_epsilon_per_job: float
    minimum_persons: int
    arbiters: tuple[str, ...] = ()
    longest_deadline_s: int = 14 * 24 * 3600
    reservations_per_buyer: int = 3
    max_job_minutes: int = 240
    max_memory_gb: int = 4
    threads: int = 0
    gpu: bool = True
    approval: str = PERSON
    permits: tuple[str, ...] = ()
    max_epsilon_per_month: float = 0.0
    max_epsilon_lifetime: float = 0.0
    losses: tuple[str, ...] = (ANYONE,)
    models: tuple[str, ...] = (ANYONE,)
    partners: tuple[str, ...] = (ANYONE,)
    least_price_units: int = 0
    begin: tuple[str, ...] = ()
    hold_results: bool = False


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
    purpose_codes: tuple[str, ...] = ()
    loss: str | None = None  # None: not known, and not looked at
    graph: str | None = None  # SHA-256
    family: str = ""  # the built-in model that this graph is, where somebody asks for it by name
    partners: tuple[str, ...] = ()  # dataset ids of the job besides this one
    price_units: int | None = None  # None: prepaid
    epsilon_month: float = 0.0  # of the last 30 days, with this job
    epsilon_lifetime: float = 0.0  # with this job


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
    return [sentence for allows, sentence in rules if not allows] + _of_the_rest(policy, request)


def _of_the_rest(policy: Policy, request: Request) -> list[str]:
    month, lifetime = policy.max_epsilon_per_month, policy.max_epsilon_lifetime
    strangers = [one for one in request.partners if one not in policy.partners]
    rules = (
        (
            request.loss is None or _among(request.loss, policy.losses),
            f"loss={request.loss} is not one that is trained by here: {', '.join(policy.losses)}",
        ),
        (
            request.graph is None or _is_of(request, policy.models),
            f"graph_hash={(request.graph or '')[:12]}… is not a model that is trained here",
        ),
        (
            ANYONE in policy.partners or not strangers,
            f"dataset {', '.join(strangers)} is not one that this hospital trains together with",
        ),
        (
            request.price_units is None or request.price_units >= policy.least_price_units,
            f"price_units={request.price_units} is less than the {policy.least_price_units} that "
            "this hospital asks for",
        ),
        (
            not month or request.epsilon_month <= month,
            f"epsilon={request.epsilon_month:.3f} of 30 days, with this job, is more than the "
            f"{month:g} that this hospital gives a month",
        ),
        (
            not lifetime or request.epsilon_lifetime <= lifetime,
            f"a lifetime epsilon of {request.epsilon_lifetime:.3f}, with this job, is more than "
            f"the {lifetime:g} that this hospital gives",
        ),
    )
    against, _ = match(policy.permits, request.purpose_codes)
    return [sentence for allows, sentence in rules if not allows] + against


def _is_of(request: Request, models: Sequence[str]) -> bool:
    return _among(request.graph or "", models) or bool(request.family and request.family in models)


def _among(value: str, allowed: Sequence[str]) -> bool:
    return ANYONE in allowed or value in allowed


# -- yes without a person --------------------------------------------------------------------------

RULE_FIELDS = ("name", "datasets", "buyers", "purposes", "models", "max_epsilon", "jobs_per_week")


@dataclass(frozen=True)
class Rule:
    """Jobs that are taken without asking a person. Every field is written out: a rule that leaves
    one to be guessed is none.

    datasets    ids, or ("*",)
    buyers      addresses, or ("*",)
    purposes    texts, compared like Policy.purposes, or DUO codes, all of which a job must be
                within; or ("*",)
    models      SHA-256 of graphs, names of built-in ones (BUILT_IN), or ("*",)
    max_epsilon of one job
    jobs_per_week  in any seven days, by this rule
    """

    name: str
    datasets: tuple[str, ...]
    buyers: tuple[str, ...]
    purposes: tuple[str, ...]
    models: tuple[str, ...]
    max_epsilon: float
    jobs_per_week: int

    def takes(self, dataset_id: int, request: Request, taken_this_week: int) -> bool:
        """Whether it says yes to this job, having said so to that many in the last seven days."""
        # a code that is written as a text is no code: who writes it so may declare others besides
        texts = {p.casefold() for p in self.purposes if p not in INTENTS}
        codes = set(request.purpose_codes)
        purpose = (
            ANYONE in self.purposes
            or request.purpose.casefold() in texts
            or bool(codes and codes <= set(self.purposes))
        )
        return (
            _among(str(dataset_id), self.datasets)
            and _among(request.buyer, self.buyers)
            and purpose
            and request.graph is not None
            and _is_of(request, self.models)
            and request.epsilon <= self.max_epsilon
            and taken_this_week < self.jobs_per_week
        )


# -- when jobs may begin ---------------------------------------------------------------------------


def span(text: str) -> tuple[set[int], int, int]:
    """(days from Monday 0, from and to in minutes of a day) of text like "mon-fri 20:00-06:00".
    Raises ConfigError.
    """
    found = _BEGIN.fullmatch(text.strip().casefold())
    first, last = (found[1], found[2] or found[1]) if found else ("", "")
    if not found or first not in DAYS or last not in DAYS:
        raise ConfigError(f"{text!r} must look like mon-fri 20:00-06:00")
    start, end = (60 * int(found[i]) + int(found[i + 1]) for i in (3, 5))
    if start >= 24 * 60 or end > 24 * 60 or start == end:
        raise ConfigError(f"{text!r}: hours are from 00:00 to 24:00, and not the same")
    low, high = DAYS.index(first), DAYS.index(last)
    return {(low + i) % 7 for i in range((high - low) % 7 + 1)}, start, end


def may_begin(spans: Iterable[str], weekday: int, minute: int) -> bool:
    """Whether a job may begin at this minute of this day (Monday 0); always where there are none.
    A span over midnight belongs to the day on which it starts.
    """
    spans = list(spans)
    for text in spans:
        days, start, end = span(text)
        if start < end:
            if weekday in days and start <= minute < end:
                return True
        elif (weekday in days and minute >= start) or ((weekday - 1) % 7 in days and minute < end):
            return True
    return not spans
