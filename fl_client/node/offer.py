"""What a node will refuse, said before anybody pays: a small document for each dataset, signed by
the dataset's node key. Pure; knows nothing of hubs, ledgers or when one is published.

An offer tells nobody anything about a record. The rules are the owner's; epsilon left follows from
the terms of earlier jobs, as the node's answers to jobs show it anyway, and is rounded up to a
tenth of the lifetime: it never refuses what fits. It promises nothing: admission decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from datatokens.errors import TermsError
from datatokens.terms import (
    JobTerms,
    address,
    canonical_json,
    check_signature,
    offer_message,
    parse_canonical_json,
    sign,
    whole,
)
from fl_client.errors import ProtocolError
from fl_client.node.policy import ANYONE, Policy, Request, objections_to
from fl_client.privacy import accounting
from fl_client.protocol import JobSpec

MAX_OFFER_BYTES = 64 * 1024
MAX_NAMES = 1000
LONGEST_S = 24 * 3600  # an offer is good for
BANDS = 10  # of a lifetime's epsilon
OPEN, PAUSED = "open", "paused"


@dataclass(frozen=True)
class Offer:
    """The rules of one dataset today.

    state                  "open", or "paused": takes no job now
    max_epsilon_per_job    at the job's delta
    epsilon_left           the largest epsilon, at `delta`, of one more job that draws everybody in
                           every step, rounded up to a tenth of the lifetime's
    buyers, purposes, arbiters, minimum_persons, longest_deadline_s   as in policy.Policy
    max_job_minutes        at operations_per_second, as costs.costs counts them
    issued_at, valid_until unix seconds
    """

    dataset_id: int
    node: str
    state: str
    max_epsilon_per_job: float
    epsilon_left: float
    delta: float
    buyers: tuple[str, ...]
    purposes: tuple[str, ...]
    arbiters: tuple[str, ...]
    minimum_persons: int
    longest_deadline_s: int
    max_job_minutes: int
    operations_per_second: float
    issued_at: int
    valid_until: int

    def __post_init__(self) -> None:
        whole("dataset_id", self.dataset_id, 1, 2**32 - 1)
        object.__setattr__(self, "node", address("node", self.node))
        if self.state not in (OPEN, PAUSED):
            raise TermsError(f"state={str(self.state)[:80]!r} must be {OPEN} or {PAUSED}")
        for name, high in (
            ("max_epsilon_per_job", 1e6),
            ("epsilon_left", 1e6),
            ("delta", 1.0),
            ("operations_per_second", 1e18),
        ):
            object.__setattr__(self, name, _number(name, getattr(self, name), high))
        for name, one in (("buyers", _account), ("purposes", _purpose), ("arbiters", _account)):
            object.__setattr__(self, name, _names(name, getattr(self, name), one))
        whole("minimum_persons", self.minimum_persons, 0, 10**9)
        whole("longest_deadline_s", self.longest_deadline_s, 0, 2**40 - 1)
        whole("max_job_minutes", self.max_job_minutes, 0, 10**9)
        whole("issued_at", self.issued_at, 1, 2**40 - 1)
        whole("valid_until", self.valid_until, self.issued_at, self.issued_at + LONGEST_S)

    def to_json(self) -> bytes:
        """The canonical JSON that is signed."""
        return canonical_json(asdict(self))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Offer:
        """The offer in a JSON object. Raises TermsError for anything but exactly its fields."""
        names = [field.name for field in fields(cls)]
        if not isinstance(value, Mapping) or set(value) != set(names):
            raise TermsError(f"an offer must have exactly the fields {', '.join(names)}")
        return cls(**value)

    @classmethod
    def from_json(cls, raw: bytes) -> Offer:
        """The offer in `raw`. Raises TermsError for anything but canonical, complete, in-range
        JSON.
        """
        if len(raw) > MAX_OFFER_BYTES:
            raise TermsError(f"an offer of {len(raw)} bytes is larger than {MAX_OFFER_BYTES}")
        made = cls.from_dict(parse_canonical_json(raw))
        if made.to_json() != raw:
            raise TermsError("an offer must be in canonical form: checksummed addresses")
        return made

    @property
    def policy(self) -> Policy:
        """The rules that the node's own admission goes by."""
        return Policy(
            buyers=self.buyers,
            purposes=self.purposes,
            max_epsilon_per_job=self.max_epsilon_per_job,
            minimum_persons=self.minimum_persons,
            arbiters=self.arbiters,
            longest_deadline_s=self.longest_deadline_s,
            max_job_minutes=self.max_job_minutes,
        )


def _number(name: str, value: object, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        raise TermsError(f"{name}={str(value)[:80]} must be a number from 0 to {high:g}")
    return float(value)


def _account(name: str, value: object) -> str:
    return ANYONE if value == ANYONE else address(name, value)


def _purpose(name: str, value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 200:
        raise TermsError(f"{name}: {str(value)[:80]!r} must be text of 1 to 200 characters")
    return value


def _names(name: str, value: object, one: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_NAMES:
        raise TermsError(f"{name} must be a list of at most {MAX_NAMES}")
    return tuple(one(name, each) for each in value)


def banded(left: float, lifetime: float) -> float:
    """`left` rounded up to a tenth of `lifetime`; 0 stays 0."""
    band = lifetime / BANDS
    return round(math.ceil(round(max(0.0, left) / band, 9)) * band, 9)


def signed(offer: Offer, chain_id: int, market: str, key: bytes) -> bytes:
    """The node's signature over the offer, good on this chain and market alone."""
    return sign(offer_message(chain_id, market, offer.to_json()), key)


def check(offer: Offer, chain_id: int, market: str, signature: bytes) -> None:
    """Raises SignatureError unless `offer.node` signed exactly this offer."""
    check_signature(offer_message(chain_id, market, offer.to_json()), signature, offer.node)


@dataclass(frozen=True)
class Asked:
    """What a job asks of one dataset, from its terms.

    epsilon_whole   its epsilon at the dataset's delta, where it draws everybody in every step; None
                    otherwise: what of it fits is then not said by one number
    operations      of the job, by costs.costs; None where nobody has the model
    """

    request: Request
    epsilon_whole: float | None
    operations: float | None = None


def asked(
    terms: JobTerms, dataset_id: int, delta: float, now: float, operations: float | None = None
) -> Asked:
    """What `terms` ask of a dataset whose budget is counted at `delta`. Raises PlanError or
    ProtocolError for a spec that is none.
    """
    spec = JobSpec.from_dict(terms.spec)
    if dataset_id not in spec.persons:
        raise ProtocolError(f"dataset_id={dataset_id} is not part of this job")
    charges = spec.plan.charges()
    everybody = all(charge.sampling_rate == 1 for charge in charges)
    request = Request(
        buyer=terms.buyer,
        purpose=spec.purpose,
        epsilon=accounting.epsilon(charges, spec.plan.delta),
        delta=spec.plan.delta,
        persons=spec.persons[dataset_id],
        deadline_s=math.floor(terms.deadline - now),
        arbiter=terms.dispute.arbiter if terms.dispute else None,
    )
    return Asked(request, accounting.epsilon(charges, delta) if everybody else None, operations)


def objections(offer: Offer, job: Asked) -> list[str]:
    """Why the node will refuse the job, one sentence each; [] where its rules allow it."""
    found = []
    if offer.state == PAUSED:
        found.append("it is paused and takes no job now")
    found += objections_to(offer.policy, job.request, offer.delta)
    if job.epsilon_whole is not None and job.epsilon_whole > offer.epsilon_left:
        found.append(
            f"epsilon={job.epsilon_whole:.3f} is more than its lifetime budget leaves, at most "
            f"{offer.epsilon_left:g}"
        )
    if job.operations is not None:
        seconds = job.operations / max(1.0, offer.operations_per_second)
        if seconds > offer.max_job_minutes * 60:
            found.append(
                f"operations: the job takes {seconds / 60:.0f} minutes there; it gives a job "
                f"{offer.max_job_minutes} minutes"
            )
        elif seconds > job.request.deadline_s:
            found.append(
                f"deadline: the job takes {seconds / 60:.1f} minutes there; "
                f"{job.request.deadline_s / 60:.1f} minutes are left"
            )
    return found
