"""Randomness that privacy rests on: Gaussian noise and who is drawn. Knows nothing of models or
records.

The key stream is AES-256 in counter mode under a key of the operating system's (NIST SP 800-38A;
what a CTR_DRBG does between its reseedings): who sees noise values, even many, learns nothing of
the others. A normal comes from two uniforms of 53 bits by Box and Muller (1958), in float64. What
is released is rounded to float32, 29 bits coarser than the noise: every value that can be seen
stands for millions of noise values whatever the data are, so the gaps between the float64 values
that noise can take (Mironov 2012; Holohan & Braghin 2021, 2107.10138) do not show. The largest
value is 8.6 standard deviations: a cut with a chance of 1e-17.
"""

from __future__ import annotations

import math
import secrets

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

STEP, BITS = 2.0**-53, 2**53 - 1
BLOCK = 16  # bytes of AES: the cipher wants so much room, less one, to spare
_NONE = torch.zeros(0, dtype=torch.int64)  # torch reads no empty buffer


class SecureRandom:
    """A stream of random numbers nobody can predict. One per round; not to be shared between
    threads.
    """

    def __init__(self) -> None:
        # a fresh key for each stream, so the counter may start anywhere
        self._stream = Cipher(
            algorithms.AES(secrets.token_bytes(32)), modes.CTR(bytes(16))
        ).encryptor()

    def words(self, count: int) -> Tensor:
        """int64 [count] of 64 random bits each, an even count for `gaussian`."""
        if not count:
            return _NONE
        held = bytearray(8 * count + BLOCK - 1)
        self._stream.update_into(bytes(8 * count), held)
        return torch.frombuffer(held, dtype=torch.int64, count=count)

    def normal(self, count: int, sd: float) -> np.ndarray:
        """float64 [count] of mean 0 and standard deviation `sd`."""
        return gaussian(self.words(count + count % 2))[:count].mul_(sd).numpy()

    def drawn(self, count: int, rate: float) -> np.ndarray:
        """Which of `count` are drawn, each independently with probability `rate`: their numbers,
        ascending (Poisson).

        A rate of 1 draws everybody. The grid makes a rate at most 2**-53 larger or smaller than
        asked.
        """
        return np.flatnonzero((uniform(self.words(count)) < rate).numpy())


def uniform(words: Tensor) -> Tensor:
    """float64 [n], each strictly between 0 and 1, on the grid (k + 1/2) / 2**53, of 53 bits of
    int64 words [n].
    """
    # 2**53 - 1/2 has no float64: the largest becomes the one below 1
    return (((words & BITS).to(torch.float64) + 0.5) * STEP).clamp(max=1 - STEP)


def gaussian(words: Tensor) -> Tensor:
    """float64 [n] of mean 0 and standard deviation 1, of an even number of words [n]; can be traced
    and compiled.
    """
    radius, angle = uniform(words).chunk(2)
    radius, angle = (radius.log() * -2.0).sqrt(), angle * (2.0 * math.pi)
    return torch.cat([angle.cos() * radius, angle.sin() * radius])
