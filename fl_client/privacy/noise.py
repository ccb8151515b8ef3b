"""Randomness that privacy rests on: Gaussian noise on a grid, and who is drawn. Knows nothing of
models or records.

The key stream is AES-256 in counter mode under a key of the operating system's (NIST SP 800-38A;
what a CTR_DRBG does between its reseedings): who sees noise values, even many, learns nothing of
the others. A normal comes from three words by Box and Muller (1958), in float64; the radius is as
fine near 0 and far out as float64 is, so that rounding the noise hides which floats it can be.

What leaves a node is a whole number of grid steps: the sum is rounded to a grid of sensitivity *
2**-20, a rounded Gaussian is added, and the integer is released. As x + round(G) = round(x + G) for
an integer x, that is post-processing of the ordinary Gaussian mechanism on integers, whose
sensitivity counts the sum's rounding. Floating-point numbers near 0 would be finer than the noise
and name it (Mironov 2012; Holohan & Braghin 2021, 2107.10138).
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
GRID = 2.0**-20  # of the sensitivity
# The proved error of a clipped sum (clipping.py), in units of the clip, by which the sensitivity is
# enlarged; what is measured is a thousand times smaller.
MARGIN = 2.0**-10
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
        """int64 [count] of 64 random bits each; `words_for(n)` of them for `gaussian`."""
        if not count:
            return _NONE
        held = bytearray(8 * count + BLOCK - 1)
        self._stream.update_into(bytes(8 * count), held)
        return torch.frombuffer(held, dtype=torch.int64, count=count)

    def normal(self, count: int, sd: float) -> np.ndarray:
        """float64 [count] of mean 0 and standard deviation `sd`."""
        return gaussian(self.words(words_for(count)))[:count].mul_(sd).numpy()

    def drawn(self, count: int, rate: float) -> np.ndarray:
        """Which of `count` are drawn, each independently with probability `rate`: their numbers,
        ascending (Poisson).

        A rate of 1 draws everybody. The grid makes a rate at most 2**-53 larger or smaller than
        asked.
        """
        return np.flatnonzero((uniform(self.words(count)) < rate).numpy())

    def order(self, count: int) -> np.ndarray:
        """A uniformly random permutation of 0 .. count - 1, int64 [count]."""
        while True:  # two equal keys would favour the lower number
            keys = self.words(count).numpy()
            order = np.argsort(keys)
            if not (np.diff(keys[order]) == 0).any():
                return order


def words_for(count: int) -> int:
    """How many random words `gaussian` makes at least `count` numbers of: three for two."""
    return 3 * ((count + 1) // 2)


def uniform(words: Tensor) -> Tensor:
    """float64 [n], each strictly between 0 and 1, on the grid (k + 1/2) / 2**53, of 53 bits of
    int64 words [n].
    """
    # 2**53 - 1/2 has no float64: the largest becomes the one below 1
    return (((words & BITS).to(torch.float64) + 0.5) * STEP).clamp(max=1 - STEP)


def gaussian(words: Tensor) -> Tensor:
    """float64 [2 n] of mean 0 and standard deviation 1, of words [3 n]; can be traced and compiled.

    A uniform of 53 bits alone would leave gaps between the radii far out, and near 0 ones that a
    grid of 2**-20 of a large noise can see. So v in (0, 1/2) has 106 bits, as many of them as
    float64 holds, and the radius is that of v or of 1 - v by a bit of its own.
    """
    coarse, fine, angle = words.chunk(3)
    half = ((coarse & BITS).to(torch.float64) + uniform(fine)) * (STEP / 2)
    radius = (torch.where(coarse < 0, half.log(), (-half).log1p()) * -2.0).sqrt()
    turn = uniform(angle) * (2.0 * math.pi)
    return torch.cat([turn.cos() * radius, turn.sin() * radius])


def grid_scale(sensitivity: float, noise_multiplier: float, size: int) -> tuple[float, float]:
    """(grid step, noise sd in grid steps) for `size` numbers whose L2 sensitivity is `sensitivity`.

    Rounding a sum to the grid moves each number by half a step, so two sums of neighbours differ by
    at most (1 + MARGIN) / GRID + sqrt(size) steps (triangle inequality).
    """
    return sensitivity * GRID, noise_multiplier * ((1 + MARGIN) / GRID + math.sqrt(size))


def on_grid(total: Tensor, words: Tensor, scale: Tensor) -> Tensor:
    """float64 [n]: sums [n] on the grid, with noise; what may leave. `scale` is `grid_scale(...)`,
    float64 [2]; words [words_for(n)].
    """
    noise = gaussian(words)[: len(total)] * scale[1]
    return ((total / scale[0]).round() + noise.round()) * scale[0]


def released(
    total: np.ndarray, sensitivity: float, noise_multiplier: float, random: SecureRandom
) -> np.ndarray:
    """float64 [n]: a few sums [n] with noise, on the grid. For the many of a step see
    training.py.
    """
    sums = torch.from_numpy(np.ascontiguousarray(total, dtype=np.float64))
    scale = torch.tensor(grid_scale(sensitivity, noise_multiplier, len(sums)), dtype=torch.float64)
    noised: np.ndarray = on_grid(sums, random.words(words_for(len(sums))), scale).numpy()
    return noised
