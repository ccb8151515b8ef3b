"""Job terms: one canonical JSON document, its hash, its on-chain struct, and the EIP-712 words
signed about it.

Knows nothing of connections (chain/connection.py) and nothing of what `spec` says about training:
that is for the nodes.

The buyer's whole promise is one JSON document. Its SHA-256 is the `specHash` of the on-chain
struct, and the job id is a hash over that struct, the contract and the chain. So one changed byte
anywhere is another job, which nobody paid.

>>> canonical_json({"b": 1, "a": [1.5, "x"]})
b'{"a":[1.5,"x"],"b":1}'
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from eth_abi.abi import encode as abi_encode
from eth_account import Account
from eth_account.messages import SignableMessage, encode_defunct, encode_typed_data
from eth_utils.address import is_address, to_checksum_address
from eth_utils.crypto import keccak

from datatokens.errors import SignatureError, TermsError
from datatokens.layouts import LINE, OUTCOME, most, pack, unpack
from datatokens.wire import parse

MAX_UNITS = 2**96 - 1
MAX_OUTCOME_UNITS = most(OUTCOME, "reward_units")  # an outcome is one word on the chain
ZERO_ADDRESS = "0x" + "0" * 40
TERMS_STRUCT = (
    "(address,uint96,uint96,uint96,uint96,uint40,uint32,uint16,uint16,address,uint64,bytes32,bytes)"
)
MAX_DATASETS = 64
USUAL_DEADLINE_S = 3 * 24 * 3600  # of a job: people at hospitals have days to decide
DOMAIN_NAME = "datahub"
DOMAIN_VERSION = "1"
MAX_TERMS_BYTES = 64 * 1024
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141  # secp256k1


def canonical_json(value: Any) -> bytes:
    """`value` as JSON bytes with sorted keys and no blanks; the same value gives the same bytes.
    Refuses NaN.
    """
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return text.encode()
    except (TypeError, ValueError) as error:  # UnicodeEncodeError (lone surrogates) is a ValueError
        raise TermsError(f"not representable as canonical JSON: {error}") from error


def parse_canonical_json(raw: bytes) -> Any:
    """The value of `raw`; raises TermsError unless `raw` is exactly the canonical JSON of that
    value.
    """
    value = parse(raw)
    if canonical_json(value) != raw:
        raise TermsError("not canonical JSON: keys must be sorted and unique, with no blanks")
    return value


def whole(field: str, value: object, low: int, high: int) -> int:
    """`value` if it is an integer in [low, high], else TermsError naming the field."""
    if type(value) is not int or not low <= value <= high:
        raise TermsError(f"{field}={value!r} must be a whole number from {low} to {high}")
    return value


def address(field: str, value: object) -> str:
    """`value` as a checksummed address, else TermsError naming the field."""
    if not isinstance(value, str) or not is_address(value):
        raise TermsError(f"{field}={value!r} must be an address of 0x and 40 hexadecimal digits")
    return to_checksum_address(value)


def _exact_keys(what: str, value: object, keys: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TermsError(f"{what} must be an object with the fields {', '.join(keys)}")
    if wrong := set(value) ^ set(keys):
        raise TermsError(
            f"{what} must have exactly the fields {', '.join(keys)}; look at "
            f"{', '.join(sorted(wrong))}"
        )
    return value


@dataclass(frozen=True)
class DatasetTerm:
    """One dataset of a job: who signs for it and what it is paid.

    `price_units` is 0 with a voucher, i.e. 1.0 datatoken of `tier`. Compute is metered:
    `compute_rate_units` for every
    started minute of training, up to `compute_cap_units`, which is escrowed with the rest.
    """

    dataset_id: int
    node: str
    price_units: int
    voucher: bool = False
    tier: int = 0
    compute_rate_units: int = 0
    compute_cap_units: int = 0

    def __post_init__(self) -> None:
        whole("dataset_id", self.dataset_id, 1, 2**32 - 1)
        object.__setattr__(self, "node", address("node", self.node))
        whole("price_units", self.price_units, 0, MAX_UNITS)
        whole("tier", self.tier, 0, 255)
        whole("compute_rate_units", self.compute_rate_units, 0, MAX_OUTCOME_UNITS)
        whole("compute_cap_units", self.compute_cap_units, 0, MAX_OUTCOME_UNITS)
        if type(self.voucher) is not bool:
            raise TermsError(f"voucher={self.voucher!r} must be true or false")
        if self.voucher and self.price_units:
            raise TermsError(f"price_units={self.price_units} must be 0 where a voucher pays")

    def compute_units(self, seconds: float) -> int:
        """What `seconds` of training cost: every started minute, at most the cap."""
        return min(
            self.compute_cap_units, math.ceil(max(0.0, seconds) / 60) * self.compute_rate_units
        )

    @property
    def packed(self) -> bytes:
        """This line in IJobEscrow.Terms.lines (the rate is for the node to check, not for the
        chain).
        """
        values = {name: getattr(self, name) for name in LINE if name != "node"}
        return pack(LINE, {**values, "node": int(self.node, 16)})


@dataclass(frozen=True)
class DisputeTerms:
    """What the buyer and the hospitals agree to do when they disagree.

    `window_s` seconds pass between the attestations and the payment; within them the buyer or a
    node may dispute for `bond_units`; `arbiter` (an account or a contract) rules within 14 days,
    else `silent_bps` basis points are paid.
    """

    window_s: int
    arbiter: str
    bond_units: int
    silent_bps: int

    def __post_init__(self) -> None:
        whole("dispute window_s", self.window_s, 1, 30 * 24 * 3600)
        object.__setattr__(self, "arbiter", address("arbiter", self.arbiter))
        if int(self.arbiter, 16) == 0:
            raise TermsError(f"arbiter={self.arbiter} must not be the zero address")
        whole("bond_units", self.bond_units, 0, MAX_UNITS)
        whole("silent_bps", self.silent_bps, 0, 10_000)


TERMS_FIELDS = (
    "buyer chain_id datasets deadline dispute fee_units market quorum reward_units spec".split()
)


@dataclass(frozen=True)
class JobTerms:
    """Everything a buyer promises and everything a node needs to check it.

    Units are base units of the escrow's payment token; `deadline` is unix seconds; `spec` is the
    training, privacy and purpose part, opaque here. Datasets are kept in ascending order of their
    node address, as the contract demands (one key can then not be counted twice towards the
    quorum). Without `dispute` terms a quorum of attestations pays at once.
    """

    chain_id: int
    market: str
    buyer: str
    datasets: tuple[DatasetTerm, ...]
    reward_units: int
    fee_units: int
    deadline: int
    quorum: int
    spec: Mapping[str, Any]
    dispute: DisputeTerms | None = None

    def __post_init__(self) -> None:
        whole("chain_id", self.chain_id, 1, 2**64 - 1)
        object.__setattr__(self, "market", address("market", self.market))
        object.__setattr__(self, "buyer", address("buyer", self.buyer))
        object.__setattr__(
            self, "datasets", tuple(sorted(self.datasets, key=lambda d: int(d.node, 16)))
        )
        whole("number of datasets", len(self.datasets), 1, MAX_DATASETS)
        if len({d.node for d in self.datasets}) != len(self.datasets):
            raise TermsError("node: each dataset of a job needs a node key of its own")
        if len({d.dataset_id for d in self.datasets}) != len(self.datasets):
            raise TermsError("dataset_id: a dataset can appear only once in a job")
        whole("reward_units", self.reward_units, 0, MAX_OUTCOME_UNITS)
        whole("fee_units", self.fee_units, 0, MAX_UNITS)
        whole("amount_units", self.amount_units, 0, MAX_UNITS)
        whole("deadline", self.deadline, 1, 2**40 - 1)
        whole("quorum", self.quorum, 1, len(self.datasets))
        if not isinstance(self.spec, Mapping):
            raise TermsError("spec must be an object")

    @property
    def amount_units(self) -> int:
        """What the buyer escrows: prices + caps of metered compute + reward pool + fee."""
        return (
            sum(d.price_units + d.compute_cap_units for d in self.datasets)
            + self.reward_units
            + self.fee_units
        )

    def to_json(self) -> bytes:
        """The canonical JSON document that is hashed, sent and shown."""
        document = {name: getattr(self, name) for name in TERMS_FIELDS}
        document["datasets"] = [asdict(line) for line in self.datasets]
        document["dispute"] = asdict(self.dispute) if self.dispute else None
        return canonical_json(document)

    @classmethod
    def from_json(cls, raw: bytes) -> JobTerms:
        """The terms in `raw`. Raises TermsError for anything but canonical, complete, in-range
        terms.
        """
        if len(raw) > MAX_TERMS_BYTES:
            raise TermsError(f"terms of {len(raw)} bytes are larger than {MAX_TERMS_BYTES}")
        value = _exact_keys("terms", parse_canonical_json(raw), TERMS_FIELDS)
        if not isinstance(value["datasets"], list):
            raise TermsError("datasets must be a list")
        line_fields = list(DatasetTerm.__dataclass_fields__)
        lines = [
            DatasetTerm(**_exact_keys("a dataset line", line, line_fields))
            for line in value["datasets"]
        ]
        dispute = value["dispute"]
        if dispute is not None:
            dispute = DisputeTerms(
                **_exact_keys("dispute", dispute, list(DisputeTerms.__dataclass_fields__))
            )
        terms = cls(**{**value, "datasets": tuple(lines), "dispute": dispute})
        if terms.to_json() != raw:
            raise TermsError(
                "terms are not in canonical form: checksummed addresses, datasets ascending by node"
            )
        return terms

    @property
    def spec_hash(self) -> bytes:
        """SHA-256 of the whole document; the `specHash` on-chain."""
        return hashlib.sha256(self.to_json()).digest()

    def to_struct(self) -> tuple[Any, ...]:
        """IJobEscrow.Terms as the tuple that the ABI encoder takes."""
        dispute = self.dispute
        return (
            self.buyer,
            self.amount_units,
            self.reward_units,
            self.fee_units,
            dispute.bond_units if dispute else 0,
            self.deadline,
            dispute.window_s if dispute else 0,
            self.quorum,
            dispute.silent_bps if dispute else 0,
            dispute.arbiter if dispute else ZERO_ADDRESS,
            sum(1 << i for i, line in enumerate(self.datasets) if line.voucher),
            self.spec_hash,
            b"".join(line.packed for line in self.datasets),
        )

    @property
    def job_id(self) -> bytes:
        """keccak256(abi.encode(chain id, market, keccak256(abi.encode(terms)))), as
        IJobEscrow.hashTerms.
        """
        inner = keccak(abi_encode([TERMS_STRUCT], [self.to_struct()]))
        return keccak(
            abi_encode(["uint256", "address", "bytes32"], [self.chain_id, self.market, inner])
        )

    def index_of_dataset(self, dataset_id: int) -> int:
        """Position of a dataset. Raises TermsError for one that is not part of the job."""
        for index, line in enumerate(self.datasets):
            if line.dataset_id == dataset_id:
                return index
        raise TermsError(f"dataset_id={dataset_id} is not part of this job")

    def index_of_node(self, node: str) -> int:
        """Position of the dataset whose node key is `node`. Raises TermsError for a stranger."""
        for index, line in enumerate(self.datasets):
            if line.node == node:
                return index
        raise TermsError(f"node={node} is not part of this job")


@dataclass(frozen=True)
class Outcome:
    """What one dataset gets and what its privacy was charged.

    `epsilon_micro` and `delta_pico` are epsilon in 1e-6 and delta in 1e-12, rounded up, so that the
    public ledger on the chain never says less than was spent.
    """

    compute_units: int
    reward_units: int
    epsilon_micro: int
    delta_pico: int

    def __post_init__(self) -> None:
        for name in OUTCOME:
            whole(name, getattr(self, name), 0, most(OUTCOME, name))

    @property
    def word(self) -> int:
        """One word, as IJobEscrow.Result.outcomes."""
        return int.from_bytes(pack(OUTCOME, vars(self)), "big")

    @classmethod
    def from_word(cls, word: int) -> Outcome:
        """The outcome in one word of the chain."""
        return cls(**unpack(OUTCOME, word.to_bytes(32, "big")))


def privacy_charged(epsilon: float, delta: float) -> tuple[int, int]:
    """(epsilon in 1e-6, delta in 1e-12), both rounded up. Raises TermsError outside 0..1e6 and
    0..1.
    """
    if not 0 <= epsilon <= 1e6 or not 0 <= delta <= 1:
        raise TermsError(
            f"epsilon={epsilon!r} and delta={delta!r} must be from 0 to 1000000 and from 0 to 1"
        )
    return math.ceil(Fraction(epsilon) * 10**6), math.ceil(Fraction(delta) * 10**12)


@dataclass(frozen=True)
class Attestation:
    """What a node signs at the end: this model, this report, who worked, who gets what and was
    charged what.
    """

    job_id: bytes
    model_hash: bytes
    report_hash: bytes
    worked: int
    outcomes: tuple[Outcome, ...]

    @property
    def outcomes_hash(self) -> bytes:
        """keccak256 over the words (Solidity's encodePacked of an array)."""
        return keccak(b"".join(outcome.word.to_bytes(32, "big") for outcome in self.outcomes))

    def to_struct(self) -> tuple[Any, ...]:
        """IJobEscrow.Result as the tuple that the ABI encoder takes."""
        return (
            self.model_hash,
            self.report_hash,
            self.worked,
            [outcome.word for outcome in self.outcomes],
        )


def _typed(
    chain_id: int, market: str, primary: str, fields: Mapping[str, tuple[str, Any]]
) -> SignableMessage:
    return encode_typed_data(
        domain_data={
            "name": DOMAIN_NAME,
            "version": DOMAIN_VERSION,
            "chainId": chain_id,
            "verifyingContract": market,
        },
        message_types={
            primary: [{"name": name, "type": kind} for name, (kind, _) in fields.items()]
        },
        message_data={name: value for name, (_, value) in fields.items()},
    )


def attestation_message(terms: JobTerms, attestation: Attestation) -> SignableMessage:
    """EIP-712 Attestation(bytes32 jobId,bytes32 modelHash,bytes32 reportHash,uint64 worked,bytes32
    outcomesHash).
    """
    return _typed(
        terms.chain_id,
        terms.market,
        "Attestation",
        {
            "jobId": ("bytes32", attestation.job_id),
            "modelHash": ("bytes32", attestation.model_hash),
            "reportHash": ("bytes32", attestation.report_hash),
            "worked": ("uint64", attestation.worked),
            "outcomesHash": ("bytes32", attestation.outcomes_hash),
        },
    )


def acceptance_message(terms: JobTerms) -> SignableMessage:
    """EIP-712 Acceptance(bytes32 jobId): the node has checked everything and will train."""
    return _typed(terms.chain_id, terms.market, "Acceptance", {"jobId": ("bytes32", terms.job_id)})


def rejection_message(terms: JobTerms, reason: str) -> SignableMessage:
    """EIP-712 Rejection(bytes32 jobId,bytes32 reasonHash), reasonHash = keccak256 of the sentence
    in UTF-8.
    """
    fields = {"jobId": ("bytes32", terms.job_id), "reasonHash": ("bytes32", keccak(text=reason))}
    return _typed(terms.chain_id, terms.market, "Rejection", fields)


def offer_message(chain_id: int, market: str, offer: bytes) -> SignableMessage:
    """EIP-712 Offer(bytes32 offerHash): what a node's rules are today; offerHash = keccak256 of the
    document.
    """
    return _typed(chain_id, market, "Offer", {"offerHash": ("bytes32", keccak(offer))})


def sign(message: SignableMessage, key: str | bytes) -> bytes:
    """65-byte signature (r, s, v) with low s."""
    return bytes(Account.sign_message(message, key).signature)


def address_of_key(key: str) -> str:
    """The account of a private key. Raises TermsError for what is none."""
    try:
        return str(Account.from_key(key).address)
    except (ValueError, TypeError) as error:
        raise TermsError("the private key must be 32 bytes, as 64 hexadecimal digits") from error


def sign_text(text: str, key: str | bytes) -> bytes:
    """What a wallet's personal_sign gives for a text (EIP-191)."""
    return sign(encode_defunct(text=text), key)


def check_text(text: str, signature: bytes, signer: str) -> None:
    """Raises SignatureError unless `signer` has signed this text with personal_sign (EIP-191)."""
    check_signature(encode_defunct(text=text), signature, signer)


def well_formed(signature: bytes) -> bool:
    """Whether these are 65 bytes r, s, v with v 27 or 28, r and s of the curve and s the lower of
    its two (EIP-2): the one form that every room and the chain take.
    """
    if len(signature) != 65 or signature[64] not in (27, 28):
        return False
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    return 0 < r < CURVE_ORDER and 0 < s <= CURVE_ORDER // 2


def check_signature(message: SignableMessage, signature: bytes, signer: str) -> None:
    """Raises SignatureError unless `signature` over `message` was made with the key of `signer`."""
    if not well_formed(signature):
        raise SignatureError(f"the signature of {signer} is malformed")
    try:
        found = Account.recover_message(message, signature=signature)
    except Exception as error:
        raise SignatureError(f"the signature of {signer} is malformed") from error
    if found != signer:
        raise SignatureError(f"the signature was made by {found}, not by {signer}")
