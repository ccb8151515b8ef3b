"""Seal a result to its buyer with HPKE (RFC 9180), and open it. Whoever stores the result cannot
read it.

Suite: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, all of which browsers have too; `info`
binds the job. Knows nothing of runs.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fl_client.errors import GraphRefused
from fl_client.model.weights import from_safetensors, model_hash, to_safetensors
from fl_server.errors import ResultError

SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
# Signed by a wallet, it gives the key that results are sealed to: whoever has the wallet can make
# it again, in a browser or anywhere else.
KEY_MESSAGE = (
    "datahub: the key that opens my models, version 2.\n"
    "Sign this only on the page of a hub that you have chosen: whoever has the signature can read "
    "the models that you buy."
)
MAX_PART_BYTES = 1024 * 1024 * 1024


@dataclass(frozen=True)
class Contents:
    """What is sealed: parameters (name -> float32), the model's graph, and the report (canonical
    JSON). With terms and schema, which the buyer has, it is a result (datahub/buyer/results.py).
    """

    arrays: Mapping[str, np.ndarray]
    graph: bytes
    report: bytes


def _info(job_id: str) -> bytes:
    return b"datahub result " + job_id.encode()


def result_key(signature: bytes) -> bytes:
    """The X25519 private key that follows from a wallet's signature (65 bytes) over KEY_MESSAGE."""
    return HKDF(SHA256(), 32, salt=None, info=b"datahub result key 2").derive(signature)


def seal(contents: Contents, buyer_public_key: str, job_id: str) -> bytes:
    """The contents as ciphertext that only the holder of the X25519 key (hexadecimal) can open."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.safetensors", to_safetensors(contents.arrays))
        archive.writestr("graph.json", contents.graph)
        archive.writestr("report.json", contents.report)
    key = X25519PublicKey.from_public_bytes(bytes.fromhex(buyer_public_key))
    return SUITE.encrypt(buffer.getvalue(), key, _info(job_id))


def unseal(
    ciphertext: bytes, private_key: bytes, job_id: str, expected_model_hash: bytes | None = None
) -> Contents:
    """Open a sealed result; with `expected_model_hash` (from the chain) also check that it is the
    attested model.

    Raises ResultError if the key, the job or the content is not the right one.
    """
    try:
        plain = SUITE.decrypt(
            ciphertext, X25519PrivateKey.from_private_bytes(private_key), _info(job_id)
        )
        with zipfile.ZipFile(io.BytesIO(plain)) as archive:
            parts = {}
            for name in ("model.safetensors", "graph.json", "report.json"):
                if archive.getinfo(name).file_size > MAX_PART_BYTES:
                    raise ResultError(f"the result's {name} is larger than {MAX_PART_BYTES} bytes")
                parts[name] = archive.read(name)
        arrays = from_safetensors(parts["model.safetensors"])
    except InvalidTag as error:
        raise ResultError(
            "the result does not open: it was sealed to another key or for another job"
        ) from error
    except (ValueError, KeyError, zipfile.BadZipFile, GraphRefused) as error:
        raise ResultError(f"the result is damaged: {error}") from error
    if expected_model_hash is not None and model_hash(arrays) != expected_model_hash:
        raise ResultError(
            "the model in the result is not the one that the hospitals attested on-chain"
        )
    return Contents(arrays, parts["graph.json"], parts["report.json"])
