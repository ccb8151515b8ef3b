"""A node's turns at the SuperLink: one request hands in the reply to the last message and waits for
the next one. Both sides read the names of its headers here.

A turn is signed by the SuperNode's key over everything that it says: time, node, message, and the
hash of the body. Knows nothing of what the messages are.
"""

from __future__ import annotations

import hashlib
import ssl
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

PATH = "/v1/fleet/turn"
KEY, SIGNATURE, TIME = "flwr-public-key", "flwr-signature", "flwr-timestamp"
NODE, LETTER, DIGEST = "x-datahub-node", "x-datahub-letter", "x-datahub-sha256"
RUN, BUNDLE = "x-datahub-run", "x-datahub-bundle"  # of an answer
WAIT_S = 25.0  # that the SuperLink holds a turn; nodes and proxies must wait longer
MOST_BYTES = 450 * 1024 * 1024  # a model's parameters (fl_client.protocol) in their envelope
PATIENCE_S = 120.0  # that a node waits for bytes, a large model's among them


@dataclass(frozen=True)
class Received:
    """A message as it came: what to answer it under, its run and that run's bundle (hash)."""

    letter: str
    run_id: int
    bundle: str
    content: bytes


def signed_text(headers: Mapping[str, str]) -> bytes:
    """What a turn's signature is over."""
    return "\n".join(["datahub turn", *(headers[n] for n in (TIME, NODE, LETTER, DIGEST))]).encode()


def trusting(ca_file: Path) -> ssl.SSLContext:
    """TLS towards the SuperLink: its operator's authority and no other. Raises OSError."""
    context = ssl.create_default_context(cafile=str(ca_file))
    # certificates of SuperLinks from before 2026-11-27 do not name their issuer's key, which
    # Python from 3.13 on wants; the authority is pinned, and has issued one certificate
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


class Turns:
    """A node's connection for turns; its id is `node_id`. Close it to end a turn that waits."""

    def __init__(
        self, superlink: str, ca_file: Path, key: ec.EllipticCurvePrivateKey, node_id: int
    ):
        self._key, self._node_id = key, node_id
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self._public = b64encode(public).decode()
        self._client = httpx.Client(
            base_url=f"https://{superlink}",
            verify=trusting(ca_file),
            timeout=httpx.Timeout(10.0, read=WAIT_S + PATIENCE_S, write=PATIENCE_S),
            trust_env=False,
        )

    def take(self, answered: str = "", reply: bytes = b"") -> Received | None:
        """Hand in the `reply` to the message `answered`, and wait for the next message; None where
        none came. Raises httpx.HTTPError, and ValueError or KeyError for what is no message.
        """
        headers = {
            TIME: datetime.now(UTC).isoformat(),
            NODE: str(self._node_id),
            LETTER: answered,
            DIGEST: hashlib.sha256(reply).hexdigest(),
        }
        signature = self._key.sign(signed_text(headers), ec.ECDSA(SHA256()))
        headers |= {KEY: self._public, SIGNATURE: b64encode(signature).decode()}
        with self._client.stream("POST", PATH, content=reply, headers=headers) as answer:
            content = bytearray()
            for part in answer.iter_raw():
                content += part
                if len(content) > MOST_BYTES:
                    raise ValueError(f"a message of more than {MOST_BYTES} bytes")
        if answer.status_code == httpx.codes.NO_CONTENT:
            return None
        answer.raise_for_status()
        said = answer.headers
        return Received(said[LETTER], int(said[RUN]), said[BUNDLE], bytes(content))

    def close(self) -> None:
        """End it."""
        self._client.close()
