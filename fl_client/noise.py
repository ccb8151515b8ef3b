"""Randomness that privacy rests on: Gaussian noise and who is drawn. Knows nothing of models or records.

The key stream is AES-256 in counter mode under a key of the operating system's (NIST SP 800-38A; what a CTR_DRBG
does between its reseedings): who sees noise values, even many, learns nothing of the others. A normal comes from two
uniforms of 53 bits by Box and Muller (1958), in float64. What is released is rounded to float32, 29 bits coarser than
the noise: every value that can be seen stands for millions of noise values whatever the data are, so the gaps between
the float64 values that noise can take (Mironov 2012; Holohan & Braghin 2021, 2107.10138) do not show. The largest
value is 8.6 standard deviations: a cut with a chance of 1e-17.
"""

from __future__ import annotations

import math
import secrets

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

STEP = 2.0**-53


class SecureRandom:
    """A stream of random numbers nobody can predict. One per round; not to be shared between threads."""

    def __init__(self) -> None:
        # a fresh key for each stream, so the counter may start anywhere
        self._stream = Cipher(algorithms.AES(secrets.token_bytes(32)), modes.CTR(bytes(16))).encryptor()

    def uniform(self, count: int) -> np.ndarray:
        """float64 [count], each strictly between 0 and 1, on the grid (k + 1/2) / 2**53."""
        words = np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64)
        numbers = (words >> np.uint64(11)).astype(np.float64)
        numbers += 0.5
        numbers *= STEP
        # 2**53 - 1/2 has no float64: the largest becomes the one below 1
        return np.minimum(numbers, 1 - STEP, out=numbers)

    def normal(self, count: int, sd: float) -> np.ndarray:
        """float64 [count] of mean 0 and standard deviation `sd`."""
        half = (count + 1) // 2
        uniform = torch.from_numpy(self.uniform(2 * half))  # torch's sine is twice as fast as numpy's
        radius, angle = uniform[:half].log_().mul_(-2.0).sqrt_().mul_(sd), uniform[half:].mul_(2.0 * math.pi)
        result = torch.empty(2 * half, dtype=torch.float64)
        torch.mul(torch.cos(angle), radius, out=result[:half])
        torch.mul(torch.sin(angle), radius, out=result[half:])
        return result[:count].numpy()

    def drawn(self, count: int, rate: float) -> np.ndarray:
        """Which of `count` are drawn, each independently with probability `rate`: their numbers, ascending (Poisson).

        A rate of 1 draws everybody. The grid makes a rate at most 2**-53 larger or smaller than asked.
        """
        return np.flatnonzero(self.uniform(count) < rate)
