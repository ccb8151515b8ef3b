"""The cryptographic generator: its distribution, and that no two streams agree."""

from __future__ import annotations

import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fl_client.privacy import clipping
from fl_client.privacy.noise import STEP, SecureRandom, gaussian, uniform

ALARM = 1e-7  # an honest run fails so often


def test_uniform__many__is_uniform_and_never_at_the_ends() -> None:
    numbers = uniform(SecureRandom().words(400_000)).numpy()
    assert kstest(numbers, "uniform").pvalue > ALARM
    assert numbers.min() > 0 and numbers.max() < 1


def test_uniform__largest_and_smallest_words__stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    random = SecureRandom()
    for words, expected in ((b"\xff" * 8, 1 - STEP), (b"\0" * 8, STEP / 2)):

        def fill(zeros: bytes, held: bytearray, words: bytes = words) -> None:
            held[: len(zeros)] = words * (len(zeros) // 8)

        monkeypatch.setattr(random, "_stream", SimpleNamespace(update_into=fill))
        assert uniform(random.words(1)).item() == expected
    assert abs(random.normal(2, 1.0)).max() <= math.sqrt(-2 * math.log(STEP / 2)) < 8.7


@pytest.mark.parametrize("count", [1, 2, 7, 100_001])
def test_normal__any_count__is_normal_of_this_deviation(count: int) -> None:
    random = SecureRandom()
    drawn = np.concatenate([random.normal(count, 3.0) for _ in range(math.ceil(100_000 / count))])
    assert random.normal(count, 3.0).shape == (count,)
    assert kstest(drawn / 3.0, "norm").pvalue > ALARM
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 6 / math.sqrt(len(drawn))


def test_normal__the_two_halves_of_a_draw__are_not_tied() -> None:
    random = SecureRandom()
    one, other = np.split(random.normal(200_000, 1.0), 2)
    assert abs(np.corrcoef(one, other)[0, 1]) < 6 / math.sqrt(100_000)
    assert abs(np.corrcoef(one**2, other**2)[0, 1]) < 6 / math.sqrt(100_000)


def test_streams__two__share_nothing() -> None:
    assert not set(SecureRandom().words(1000).tolist()) & set(SecureRandom().words(1000).tolist())


@pytest.mark.parametrize("count", [2, 1000, 65_536])
def test_gaussian__compiled__is_what_it_is_uncompiled(count: int) -> None:
    """A compiler with its own logarithm or sine would be a generator that nobody looked at."""
    extremes = torch.tensor(
        [0, -1, 2**53 - 1, 1], dtype=torch.int64
    )  # the radius' words, then the angle's
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler here: nothing to compare")
    example = (SecureRandom().words(count),)
    fast = clipping.compiled(clipping.traced(gaussian, example), example)
    words = SecureRandom().words(count)
    words[: min(4, count // 2)] = extremes[: min(4, count // 2)]
    assert torch.allclose(fast(words), gaussian(words), rtol=1e-12, atol=1e-12)
