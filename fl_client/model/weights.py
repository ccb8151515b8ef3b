"""A model's parameters as safetensors bytes, and the hash that is attested. Knows nothing of torch,
graphs or jobs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fl_client.errors import GraphRefused

MAX_BYTES = 400 * 1024 * 1024
MAX_HEADER_BYTES = 2 * 1024 * 1024  # names and shapes: 100 bytes of each parameter


def to_safetensors(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Canonical safetensors bytes of float32 arrays, names sorted: equal arrays give equal
    bytes.
    """
    return bytes(
        save(
            {name: np.ascontiguousarray(arrays[name], dtype=np.float32) for name in sorted(arrays)}
        )
    )


def from_safetensors(content: bytes) -> dict[str, np.ndarray]:
    """name -> finite float32 array. Raises GraphRefused for anything else (a pickle or a zip under
    this name, say).
    """
    if len(content) > MAX_BYTES:
        raise GraphRefused(f"weights of {len(content)} bytes are larger than {MAX_BYTES}")
    if content[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise GraphRefused(
            "weights must be safetensors; this is a zip or pickle file, which is never opened"
        )
    header = int.from_bytes(content[:8], "little")
    if header > MAX_HEADER_BYTES:
        raise GraphRefused(
            f"weights are not safetensors: a header of {header} bytes is larger than "
            f"{MAX_HEADER_BYTES}"
        )
    try:
        arrays = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise GraphRefused(f"weights are not safetensors: {str(error)[:200]}") from error
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise GraphRefused(
                f"weights: {name[:80]!r} has type {array.dtype}, only float32 is allowed"
            )
        if not np.isfinite(array).all():
            raise GraphRefused(f"weights: {name[:80]!r} holds a number that is not finite")
    return dict(arrays)


def model_hash(arrays: Mapping[str, np.ndarray]) -> bytes:
    """SHA-256 over the canonical safetensors bytes: the hash that nodes attest and the chain
    keeps.
    """
    return hashlib.sha256(to_safetensors(arrays)).digest()
