"""The node registry as typed calls: hospitals, the keys their nodes sign with, the machines those
keys vouch for.

Knows nothing of datasets, jobs or money.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from eth_account.messages import SignableMessage, encode_typed_data
from eth_utils.crypto import keccak
from web3.logs import DISCARD

from datatokens.chain.connection import Chain
from datatokens.errors import TermsError
from datatokens.terms import MAX_UNITS, address, whole

DOMAIN_NAME, DOMAIN_VERSION = "datahub nodes", "1"
FOREVER = 2**40 - 1  # unix seconds: no end
MAX_OVERLAP_S = 2**32 - 1
MAX_HARDWARE_BYTES = 256


class KeyState(StrEnum):
    """What a key may do; only an active one accepts jobs and vouches for machines."""

    UNKNOWN = "unknown"
    WAITING = "not valid yet"
    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True)
class KeyStatus:
    """A key now: its state, its hospital (0 = none) and that hospital's owner (None for unknown and
    revoked keys).
    """

    state: KeyState
    hospital_id: int
    owner: str | None
    valid_from: int
    valid_until: int


@dataclass(frozen=True)
class Offer:
    """What a hospital offers in general: base units of a token for every started minute, its
    machine in words.
    """

    payment_token: str
    minute_units: int
    version: int
    hardware: str


def public_point(pem: bytes) -> bytes:
    """The uncompressed point (04, x, y) of an elliptic curve's public key. Raises TermsError for
    anything else.
    """
    return _curve_key(pem).public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


def canonical_pem(pem: str) -> str:
    """The one spelling of a public key: PEM takes blanks, breaks and texts around it. Raises
    TermsError as `public_point`.
    """
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return _curve_key(pem.encode()).public_bytes(serialization.Encoding.PEM, form).decode()


def _curve_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TermsError("the SuperNode's public key is not a PEM public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TermsError("the SuperNode's public key is not one of an elliptic curve")
    return key


class NodeRegistry:
    """NodeRegistry.sol, as a dataset registry names it."""

    def __init__(self, chain: Chain, registry: str):
        self.chain = chain
        where = chain.read(chain.contract("DatasetRegistry", registry).functions.nodes())
        self.contract = chain.contract("NodeRegistry", where)

    def register(self, uri: str) -> int:
        """A new hospital of the connection's account; its id. `uri`: its registration file
        (ERC-8004).
        """
        receipt = self.chain.send(self.contract.get_function_by_signature("register(string)")(uri))
        (event,) = self.contract.events.Registered().process_receipt(receipt, errors=DISCARD)
        return int(event["args"]["agentId"])

    def consent_message(self, hospital_id: int, owner: str) -> SignableMessage:
        """EIP-712 NodeKeyConsent(uint256 hospitalId,address owner): what a key signs to serve a
        hospital.
        """
        return self._typed(
            "NodeKeyConsent",
            {"hospitalId": ("uint256", hospital_id), "owner": ("address", address("owner", owner))},
        )

    def supernode_message(self, key: str, point: bytes) -> SignableMessage:
        """EIP-712 SuperNode(bytes publicKey,uint256 serial): a node key vouches for the machine
        that dials in for it.

        Good once: the serial is the registry's next one for this key.
        """
        serial = self.chain.read(self.contract.functions.superNodeSerial(address("key", key)))
        return self._typed(
            "SuperNode", {"publicKey": ("bytes", point), "serial": ("uint256", serial)}
        )

    def add_key(
        self,
        hospital_id: int,
        key: str,
        consent: bytes,
        valid_from: int = 0,
        valid_until: int = FOREVER,
    ) -> None:
        """Let `key` serve a hospital of the connection's account, from and until then (unix
        seconds).
        """
        whole("valid_from", valid_from, 0, FOREVER)
        whole("valid_until", valid_until, valid_from + 1, FOREVER)
        self.chain.send(
            self.contract.functions.addNodeKey(
                hospital_id, address("key", key), valid_from, valid_until, consent
            )
        )

    def rotate_key(self, old: str, new: str, overlap_s: int, consent: bytes) -> None:
        """Let `new` serve from now on, `old` for `overlap_s` seconds more. By the hospital's
        owner.
        """
        whole("overlap_s", overlap_s, 0, MAX_OVERLAP_S)
        self.chain.send(
            self.contract.functions.rotateNodeKey(
                address("old", old), address("new", new), overlap_s, consent
            )
        )

    def revoke_key(self, key: str) -> None:
        """End a key at once and for good. By the hospital's owner, or with the key itself."""
        self.chain.send(self.contract.functions.revokeNodeKey(address("key", key)))

    def bind_supernode(self, key: str, point: bytes, signature: bytes) -> None:
        """Write down which machine dials in for `key`; `signature` is over `supernode_message`. By
        anybody.
        """
        self.chain.send(
            self.contract.functions.bindSuperNode(address("key", key), point, signature)
        )

    def set_offer(
        self, hospital_id: int, payment_token: str, minute_units: int, hardware: str
    ) -> None:
        """Say what the hospital offers in general. Raises TermsError for more than 256 bytes of
        hardware.
        """
        whole("minute_units", minute_units, 0, MAX_UNITS)
        whole("bytes of hardware", len(hardware.encode()), 0, MAX_HARDWARE_BYTES)
        token = address("payment_token", payment_token)
        self.chain.send(
            self.contract.functions.setOffer(hospital_id, token, minute_units, hardware)
        )

    def status(self, key: str) -> KeyStatus:
        """What a key may do now, and for whom."""
        key = address("key", key)
        state, owner = self.chain.read(self.contract.functions.keyStatus(key))
        hospital_id, _, valid_from, valid_until, _ = self.chain.read(
            self.contract.functions.nodeKey(key)
        )
        return KeyStatus(
            list(KeyState)[state],
            hospital_id,
            owner if int(owner, 16) else None,
            valid_from,
            valid_until,
        )

    def vouches(self, key: str, point: bytes) -> bool:
        """Whether an active node key vouches for the machine with this public key."""
        return bytes(
            self.chain.read(self.contract.functions.superNodeOf(address("key", key)))
        ) == keccak(point)

    def offer(self, hospital_id: int) -> Offer | None:
        """What a hospital offers; None if it never said."""
        found = Offer(*self.chain.read(self.contract.functions.offer(hospital_id)))
        return found if found.version else None

    def owner(self, hospital_id: int) -> str:
        """Who owns a hospital. Raises TransactionRefused for one that is not registered."""
        return str(self.chain.read(self.contract.functions.ownerOf(hospital_id)))

    def _typed(self, primary: str, fields: dict[str, tuple[str, Any]]) -> SignableMessage:
        return encode_typed_data(
            domain_data={
                "name": DOMAIN_NAME,
                "version": DOMAIN_VERSION,
                "chainId": self.chain.chain_id,
                "verifyingContract": self.contract.address,
            },
            message_types={
                primary: [{"name": name, "type": kind} for name, (kind, _) in fields.items()]
            },
            message_data={name: value for name, (_, value) in fields.items()},
        )
