"""What travels between the theatre and a node: the job's training spec, the requests and the
replies.

The only file that knows their wire form: both sides build and read the typed messages below, and a
key on the wire is a field's name here. Knows nothing of Flower and of who sends what: everything
that arrives is checked field by field. `JobSpec` is the `spec` part of the job terms
(datatokens.terms), so its hash is on-chain and nobody can change it after payment.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, ClassVar, TypeVar, cast, get_args, get_origin, get_type_hints

from datatokens.errors import TermsError
from datatokens.terms import MAX_TERMS_BYTES, whole
from datatokens.wire import parse
from fl_client.errors import ProtocolError
from fl_client.privacy.plan import METRICS, Charge, PrivacyPlan

SPEC_VERSION = 4
MAX_ROUNDS = 1000
MAX_OUTPUTS = 64
MAX_CODES = 20
_CODE = re.compile(r"[A-Z]{2,10}:\d{7}", re.ASCII)


@dataclass(frozen=True)
class JobSpec:
    """How the model is trained, for whom and why.

    purpose            what the buyer declares; matched against the owner's list
    buyer_public_key   X25519 key that the result is sealed to (64 hexadecimal digits)
    schema_hash        SHA-256 of the feature schema that every dataset of the job shares
                       (hexadecimal)
    graph_hash, weights_hash   SHA-256 of the model's graph and of its first weights (hexadecimal)
    loss, outputs      a name in fl_client.model.losses.LOSSES, and how many numbers the model gives
    rounds, local_steps, learning_rate, average_last   FedAvg; the result is the mean of the last
                                                       rounds' models
    server_momentum    what of a step the theatre adds to the next one, 0 to 0.99; it works on
                       noised means, so a node need not know
    server_rates       parameter name -> what the theatre multiplies that parameter's mean step by,
                       0.01 to 100, at most 16 names; 1 for all others
    plan               the privacy plan of each hospital, whole job
    persons            dataset id -> number of patients as the hospital released it (noised); the
                       averaging weight,
                       the constant that sums are divided by, and the weight of the reward split
    salt               makes two otherwise equal orders two jobs
    answer_by          when every hospital must have said yes or no (unix seconds); 0 in older
                       terms, which say nothing of it
    purpose_codes      what the buyer declares in codes of the Data Use Ontology and of diseases
                       (fl_client.node.purposes)
    """

    purpose: str
    buyer_public_key: str
    schema_hash: str
    graph_hash: str
    weights_hash: str
    loss: str
    outputs: int
    rounds: int
    local_steps: int
    learning_rate: float
    average_last: int
    server_momentum: float
    server_rates: Mapping[str, float]
    plan: PrivacyPlan
    persons: Mapping[int, int]
    salt: str
    answer_by: int = 0
    purpose_codes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.purpose) <= 200:
            raise ProtocolError(f"purpose={self.purpose!r} must have 1 to 200 characters")
        for name in ("buyer_public_key", "schema_hash", "graph_hash", "weights_hash", "salt"):
            if not _is_hex32(getattr(self, name)):
                raise ProtocolError(f"{name}={getattr(self, name)!r} must be 64 hexadecimal digits")
        if _of_small_order(self.buyer_public_key):
            raise ProtocolError(
                f"buyer_public_key={self.buyer_public_key!r}: nothing can be sealed to that point"
            )
        try:
            whole("answer_by", self.answer_by, 0, 2**40 - 1)
            whole("outputs", self.outputs, 1, MAX_OUTPUTS)
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
        momentum = self.server_momentum
        if type(momentum) is not float or not 0 <= momentum <= 0.99:
            raise ProtocolError(f"server_momentum={momentum!r} must be a number from 0.0 to 0.99")
        rates = self.server_rates
        if not isinstance(rates, Mapping) or len(rates) > 16:
            raise ProtocolError("server_rates must map at most 16 parameter names to numbers")
        for name, factor in rates.items():
            if not isinstance(name, str) or not 1 <= len(name) <= 200:
                raise ProtocolError(f"server_rates: {name!r:.80} must have 1 to 200 characters")
            if type(factor) is not float or not 0.01 <= factor <= 100:
                raise ProtocolError(
                    f"server_rates[{name!r:.80}]={factor!r:.80} must be a number from 0.01 to 100"
                )
        codes = self.purpose_codes
        if not isinstance(codes, tuple) or len(codes) > MAX_CODES:
            raise ProtocolError(f"purpose_codes must be a list of at most {MAX_CODES}")
        for code in codes:
            if not isinstance(code, str) or not _CODE.fullmatch(code):
                raise ProtocolError(f"purpose_codes: {code!r:.80} must look like DUO:0000006")
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
            "outputs": self.outputs,
            "rounds": self.rounds,
            "local_steps": self.local_steps,
            "learning_rate": self.learning_rate,
            "average_last": self.average_last,
            "server_momentum": self.server_momentum,
            "server_rates": dict(self.server_rates),
            "plan": self.plan.as_dict(),
            "persons": {str(dataset_id): count for dataset_id, count in self.persons.items()},
            "salt": self.salt,
            "answer_by": self.answer_by,
            "purpose_codes": list(self.purpose_codes),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> JobSpec:
        """The spec in `value`; raises ProtocolError or PlanError for anything missing, unknown or
        out of range.
        """
        fields = set(cls.__dataclass_fields__) | {"version"}
        if value.get("version") == 2:  # its jobs stay readable, and those under way go on
            outputs = 2 if value.get("loss") == "cross_entropy" else 1
            value = {**value, "version": 3, "outputs": outputs}
        if value.get("version") == 3:
            value = {**value, "version": SPEC_VERSION, "answer_by": 0, "purpose_codes": []}
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
            isinstance(k, str) and k.isascii() and k.isdigit() and len(k) <= 20 for k in persons
        ):
            raise ProtocolError("persons must map dataset ids to counts")
        parsed = {
            **{k: value[k] for k in fields - {"version", "plan", "persons", "purpose_codes"}},
            "purpose_codes": _listed(value["purpose_codes"]),
            "plan": PrivacyPlan.from_dict(value["plan"]),
            "persons": {int(k): v for k, v in persons.items()},
        }
        return cls(**parsed)


def _listed(value: object) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ProtocolError("purpose_codes must be a list")
    return tuple(value)


def _is_hex32(value: object) -> bool:
    return (
        isinstance(value, str) and len(value) == 64 and all(c in "0123456789abcdef" for c in value)
    )


_FIELD = 2**255 - 19
# u-coordinates on Curve25519 and its twist whose multiples by any X25519 key are zero (RFC 7748,
# section 6.1; the two long ones are of order 8)
_SMALL_ORDER = {
    0,
    1,
    _FIELD - 1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
}


def _of_small_order(key: str) -> bool:
    u = int.from_bytes(bytes.fromhex(key), "little") & (2**255 - 1)
    return u % _FIELD in _SMALL_ORDER


def sha256_hex(content: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


# -- messages --------------------------------------------------------------------------------------
#
# One record each way, parameters as safetensors bytes in one field: every record, array and chunk
# of a message is an object that the SuperLink stores and serves by itself, and a round costs per
# object, not per byte. The number in an annotation is the greatest length that a field may have.

REQUEST, REPLY = "request", "reply"  # the names of the two records
MAX_REASON = 2000  # characters of a refusal's sentence
MAX_NUMBER = 1e12
MAX_SCORES = 4096

JobId = Annotated[str, 64]
Signature = Annotated[bytes, 65]  # r, s, v: datatokens.terms.well_formed
Parameters = Annotated[bytes, 400 * 1024 * 1024]
T = TypeVar("T")


@dataclass(frozen=True)
class Admit:
    """Will you take this job? Answered by Signed (the acceptance)."""

    kind: ClassVar[str] = "query.admit"  # "query" and "train" are Flower's, the rest is ours

    terms: Annotated[bytes, MAX_TERMS_BYTES]
    graph: Annotated[bytes, 64 * 1024 * 1024]
    weights: Parameters


@dataclass(frozen=True)
class Train:
    """Train round `round` (from 1) from these parameters. Answered by Trained."""

    kind: ClassVar[str] = "train.round"

    job: JobId
    round: int
    model: Parameters


@dataclass(frozen=True)
class Evaluate:
    """Look at the final model. Answered by Scored."""

    kind: ClassVar[str] = "evaluate.final"

    job: JobId
    model: Parameters


@dataclass(frozen=True)
class Attest:
    """Vouch for this model and report. Answered by Signed (the attestation)."""

    kind: ClassVar[str] = "query.attest"

    job: JobId
    model: Parameters
    report: Annotated[bytes, 16 * 1024 * 1024]


@dataclass(frozen=True)
class Release:
    """This job will not run. Answered by Released."""

    kind: ClassVar[str] = "query.release"

    job: JobId


@dataclass(frozen=True)
class Ask:
    """What has become of a job that was sent before? Answered as Admit, or as Attest where that is
    what a person holds.
    """

    kind: ClassVar[str] = "query.ask"

    job: JobId


@dataclass(frozen=True)
class Waiting:
    """Not yet: a person at the hospital decides, until `until` (unix seconds) at the latest."""

    until: int
    reason: Annotated[str, MAX_REASON]


@dataclass(frozen=True)
class Refused:
    """No, to any request, in one sentence; signed where that sends the buyer's money back, else
    with no bytes.
    """

    reason: Annotated[str, MAX_REASON]
    signature: Signature = b""


@dataclass(frozen=True)
class Signed:
    """Yes: the node key's signature over the acceptance, or over the attestation."""

    signature: Signature


@dataclass(frozen=True)
class Trained:
    """New parameters; the mean loss as released; epsilon of the job so far and of the patients'
    whole history, at these deltas; what is protected; the work done.
    """

    model: Parameters
    loss: float
    epsilon_job: float
    epsilon_lifetime: float
    delta_lifetime: float
    unit: Annotated[str, 20]
    compute_seconds: float
    device: Annotated[str, 80]
    log_head: Annotated[str, 64] = ""  # the newest line of the node's audit log then
    no_walls: Annotated[str, 300] = ""  # names of walls that its machine has not, with commas


@dataclass(frozen=True)
class Scored:
    """The noised table of the final model's scores (fl_client.privacy.looks), the epsilons after
    it, and the newest line of the node's audit log then.
    """

    scores: Annotated[tuple[float, ...], MAX_SCORES]
    epsilon_job: float
    epsilon_lifetime: float
    delta_lifetime: float
    log_head: Annotated[str, 64] = ""


@dataclass(frozen=True)
class Released:
    """The job's reservation is free."""


def _shape(kind: Any) -> Mapping[str, tuple[str, type, int]]:
    """Wire key -> (field, its type, greatest length) of a message's class."""
    hints, shape = get_type_hints(kind, include_extras=True), {}
    for field in fields(kind):
        hint, most = hints[field.name], 0
        if get_origin(hint) is Annotated:
            hint, most = get_args(hint)
        shape[field.name.replace("_", "-")] = (field.name, get_origin(hint) or hint, most)
    return shape


def _checked(key: str, value: Any, kind: type, most: int) -> Any:
    """`value` as the field's type; raises ProtocolError for another type, a number that is not
    finite or above 1e12 either way, or a length above `most`.
    """
    if kind is tuple and isinstance(value, list | tuple):
        value = tuple(_checked(key, number, float, 0) for number in value)
    if type(value) is not kind:
        raise ProtocolError(f"{key}={str(value)[:80]!r} must be of type {kind.__name__}")
    if isinstance(value, float) and not abs(value) <= MAX_NUMBER:  # not a number is neither
        raise ProtocolError(f"{key}={value} must be a finite number, at most {MAX_NUMBER:g}")
    if isinstance(value, str | bytes | tuple) and len(value) > most:
        raise ProtocolError(f"{key} has a length of {len(value)}; {most} is the most")
    return value


def from_record(kind: type[T], record: object) -> T:
    """The message in a record from the wire. Raises ProtocolError unless it has exactly the fields
    of `kind`, each of its type, finite and not too long.
    """
    shape = _shape(kind)
    if not isinstance(record, Mapping) or set(record) != set(shape):
        found = sorted(map(str, record))[:20] if isinstance(record, Mapping) else "no record"
        raise ProtocolError(
            f"{kind.__name__.lower()} must have exactly the fields {sorted(shape)}, not {found}"
        )
    values = {
        name: _checked(key, record[key], type_, most) for key, (name, type_, most) in shape.items()
    }
    return kind(**values)


def read_reply(kind: type[T], record: object) -> T | Refused | Waiting:
    """A reply that should be a `kind`: that, or what stands in its place. Raises ProtocolError."""
    if isinstance(record, Mapping) and set(record) == set(_shape(Refused)):
        return from_record(Refused, record)
    if isinstance(record, Mapping) and set(record) == set(_shape(Waiting)):
        return from_record(Waiting, record)
    return from_record(kind, record)


def to_record(message: Any) -> dict[str, Any]:
    """A message as the record that `from_record` reads. Raises ProtocolError for what the other
    side would not take.
    """
    record = {}
    for key, (name, kind, most) in _shape(type(message)).items():
        value = _checked(key, getattr(message, name), kind, most)
        record[key] = list(value) if kind is tuple else value
    return record


def pack(message: Any) -> bytes:
    """A message as bytes to keep: 4 bytes length, its record as JSON with the length of each field
    of bytes, then those bytes.
    """
    record = to_record(message)
    blobs = {key: value for key, value in record.items() if isinstance(value, bytes)}
    head = json.dumps(record | {key: len(blob) for key, blob in blobs.items()}).encode()
    return len(head).to_bytes(4, "big") + head + b"".join(blobs.values())


def unpack(kind: type[T], kept: bytes) -> T:
    """What `pack` kept; fields that an older version did not know have their default. Raises
    ProtocolError for anything else.
    """
    start = 4 + int.from_bytes(kept[:4], "big")
    known = {f.name.replace("_", "-"): f.default for f in fields(cast(Any, kind))}
    younger = {key: value for key, value in known.items() if value is not MISSING}
    try:
        record = younger | parse(kept[4:start])
        for key, (_, type_, _) in _shape(kind).items():
            if type_ is bytes:
                end = start + whole(key, record[key], 0, len(kept) - start)
                record[key], start = kept[start:end], end
    except (ValueError, KeyError, TypeError, TermsError) as error:
        raise ProtocolError(f"this is not a kept {kind.__name__.lower()}: {error}") from error
    if start != len(kept):
        raise ProtocolError(f"this is not a kept {kind.__name__.lower()}: its length is wrong")
    return from_record(kind, record)
