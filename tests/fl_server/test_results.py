"""A result opens for its buyer only, for its job only, and only as the model that was attested."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fl_client.model.weights import model_hash
from fl_server.errors import ResultError
from fl_server.results import Contents, seal, unseal

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
PUBLIC = (
    X25519PrivateKey.from_private_bytes(KEY)
    .public_key()
    .public_bytes(Encoding.Raw, PublicFormat.Raw)
    .hex()
)
ARRAYS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
CONTENTS = Contents(ARRAYS, b"{}", b'{"a":1}')


def test_unseal__right_key_and_job__gives_the_result() -> None:
    opened = unseal(seal(CONTENTS, PUBLIC, "ab" * 32), KEY, "ab" * 32, model_hash(ARRAYS))
    assert np.array_equal(opened.arrays["w"], ARRAYS["w"])
    assert (opened.graph, opened.report) == (b"{}", b'{"a":1}')


@pytest.mark.parametrize(("key", "job"), [(OTHER, "ab" * 32), (KEY, "cd" * 32)])
def test_unseal__wrong_key_or_job__refused(key: bytes, job: str) -> None:
    with pytest.raises(ResultError, match="does not open"):
        unseal(seal(CONTENTS, PUBLIC, "ab" * 32), key, job)


def test_unseal__another_model_than_attested__refused() -> None:
    with pytest.raises(ResultError, match="not the one that the hospitals attested"):
        unseal(seal(CONTENTS, PUBLIC, "ab" * 32), KEY, "ab" * 32, b"\0" * 32)


@pytest.mark.parametrize("cut", [0, 10, 60])
def test_unseal__damaged_ciphertext__refused_in_a_sentence(cut: int) -> None:
    with pytest.raises(ResultError):
        unseal(seal(CONTENTS, PUBLIC, "ab" * 32)[:cut], KEY, "ab" * 32)


def test_seal__ciphertext__does_not_show_the_model() -> None:
    assert ARRAYS["w"].tobytes() not in seal(CONTENTS, PUBLIC, "ab" * 32)
