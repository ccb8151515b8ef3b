"""What travels between the theatre and a node: the job's training spec and the wire keys. The only
file with them.

Knows nothing of who sends it: everything that arrives is checked field by field. `JobSpec` is the
`spec` part of the job terms (datatokens.terms), so its hash is on-chain and nobody can change it
after payment.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datatokens.errors import TermsError
from datatokens.terms import whole
from fl_client.errors import ProtocolError
from fl_client.privacy.plan import METRICS, Charge, PrivacyPlan

# Flower message types: "query" and "train" are Flower's, what stands behind the dot is ours.
ADMIT, ROUND, ATTEST, RELEASE = "query.admit", "train.round", "query.attest", "query.release"
EVALUATE = "evaluate.final"

# One ConfigRecord each way, parameters as safetensors bytes in its field "model": every record,
# array and chunk of a message is an object that the SuperLink stores and serves by itself, and a
# round costs per object, not per byte.
JOB = "job"  # the record of a request
ANSWER = "answer"  # the record of a reply

SPEC_VERSION = 1
MAX_ROUNDS = 1000


@dataclass(frozen=True)
class JobSpec:
    """How the model is trained, for whom and why.

    purpose            what the buyer declares; matched against the owner's list
    buyer_public_key   X25519 key that the result is sealed to (64 hexadecimal digits)
    schema_hash        SHA-256 of the feature schema that every dataset of the job shares
                       (hexadecimal)
    graph_hash, weights_hash   SHA-256 of the model's graph and of its first weights (hexadecimal)
    loss               a name in fl_client.privacy.training.LOSSES
    rounds, local_steps, learning_rate, average_last   FedAvg; the result is the mean of the last
                                                       rounds' models
    plan               the privacy plan of each hospital, whole job
    persons            dataset id -> number of patients as the hospital released it (noised); the
                       averaging weight,
                       the constant that sums are divided by, and the weight of the reward split
    salt               makes two otherwise equal orders two jobs
    """

    purpose: str
    buyer_public_key: str
    schema_hash: str
    graph_hash: str
    weights_hash: str
    loss: str
    rounds: int
    local_steps: int
    learning_rate: float
    average_last: int
    plan: PrivacyPlan
    persons: Mapping[int, int]
    salt: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.purpose) <= 200:
            raise ProtocolError(f"purpose={self.purpose!r} must have 1 to 200 characters")
        for name in ("buyer_public_key", "schema_hash", "graph_hash", "weights_hash", "salt"):
            if not _is_hex32(getattr(self, name)):
                raise ProtocolError(f"{name}={getattr(self, name)!r} must be 64 hexadecimal digits")
        try:
            whole("rounds", self.rounds, 1, MAX_ROUNDS)
            whole("local_steps", self.local_steps, 1, 1000)
            whole("average_last", self.average_last, 1, self.rounds)
            for dataset_id, count in self.persons.items():
                whole("dataset_id in persons", dataset_id, 1, 2**64 - 1)
                whole(f"persons of dataset {dataset_id}", count, 1, 10**9)
        except TermsError as error:
            raise ProtocolError(str(error)) from error
        rate = self.learning_rate
        if type(rate) is not float or not math.isfinite(rate) or not 0 < rate <= 1e4:
            raise ProtocolError(f"learning_rate={rate!r} must be a number above 0, at most 10000")
        if (
            self.plan.steps != self.rounds * self.local_steps
            or self.plan.metric_steps != self.rounds
        ):
            raise ProtocolError(
                f"plan: steps={self.plan.steps} and metric_steps={self.plan.metric_steps} must be "
                f"rounds*local_steps={self.rounds * self.local_steps} and rounds={self.rounds}"
            )

    def round_charges(self) -> tuple[Charge, ...]:
        """What one round spends at each hospital."""
        return (
            Charge(
                self.plan.noise_multiplier, self.plan.sampling_rate, self.local_steps, "training"
            ),
            Charge(self.plan.metric_noise_multiplier, 1.0, 1, METRICS),
        )

    def evaluation_charges(self) -> tuple[Charge, ...]:
        """What the table of the final model's scores spends."""
        return (Charge(self.plan.score_noise_multiplier, 1.0, 1, METRICS),)

    def as_dict(self) -> dict[str, Any]:
        """The `spec` object of the job terms."""
        return {
            "version": SPEC_VERSION,
            "purpose": self.purpose,
            "buyer_public_key": self.buyer_public_key,
            "schema_hash": self.schema_hash,
            "graph_hash": self.graph_hash,
            "weights_hash": self.weights_hash,
            "loss": self.loss,
            "rounds": self.rounds,
            "local_steps": self.local_steps,
            "learning_rate": self.learning_rate,
            "average_last": self.average_last,
            "plan": self.plan.as_dict(),
            "persons": {str(dataset_id): count for dataset_id, count in self.persons.items()},
            "salt": self.salt,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> JobSpec:
        """The spec in `value`; raises ProtocolError or PlanError for anything missing, unknown or
        out of range.
        """
        fields = set(cls.__dataclass_fields__) | {"version"}
        if wrong := set(value) ^ fields:
            raise ProtocolError(
                f"spec must have exactly the fields {sorted(fields)}; look at {sorted(wrong)}"
            )
        if value["version"] != SPEC_VERSION:
            raise ProtocolError(f"version={value['version']!r} must be {SPEC_VERSION}")
        for name in ("purpose", "loss"):
            if not isinstance(value[name], str):
                raise ProtocolError(f"{name}={value[name]!r} must be text")
        persons = value["persons"]
        if not isinstance(persons, Mapping) or not all(
            k.isascii() and k.isdigit() for k in persons
        ):
            raise ProtocolError("persons must map dataset ids to counts")
        parsed = {
            **{k: value[k] for k in fields - {"version", "plan", "persons"}},
            "plan": PrivacyPlan.from_dict(value["plan"]),
            "persons": {int(k): v for k, v in persons.items()},
        }
        return cls(**parsed)


def _is_hex32(value: object) -> bool:
    return (
        isinstance(value, str) and len(value) == 64 and all(c in "0123456789abcdef" for c in value)
    )


def sha256_hex(content: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
