"""The cryptographic generator: its distribution, and that no two streams agree."""

from __future__ import annotations

import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fl_client.privacy import compiling
from fl_client.privacy.noise import (
    GRID,
    MARGIN,
    STEP,
    SecureRandom,
    gaussian,
    grid_scale,
    on_grid,
    released,
    uniform,
    words_for,
)

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
    assert abs(random.normal(2, 1.0)).max() <= math.sqrt(-2 * math.log(STEP**2 / 4)) < 12.3


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
    # the coarse words, then the fine ones', then the angle's
    extremes = torch.tensor([0, -1, 2**53 - 1, 1, -(2**63), 2**63 - 1], dtype=torch.int64)
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler here: nothing to compare")
    example = (SecureRandom().words(words_for(count)),)
    fast = compiling.compiled([(compiling.traced(gaussian, example), example)])[0]
    words = SecureRandom().words(words_for(count))
    few = min(6, count // 2)
    words[:few] = extremes[:few]
    assert torch.allclose(fast(words), gaussian(words), rtol=1e-12, atol=1e-12)


def test_gaussian__far_out_and_near_zero__is_finer_than_any_grid_that_is_used() -> None:
    """Neighbouring words give radii whose distance a grid of 2**-20 of 10,000 sd cannot see."""
    finest = GRID / 1e4 / 4

    def radius(coarse: int, fine: int) -> float:
        return float(gaussian(torch.tensor([coarse, fine, 0]))[0])  # the angle is next to 0

    for coarse in (0, 1, 2, 1000, 2**40, 2**53 - 1):
        for sign in (0, -(2**63)):
            near = radius(coarse + sign, 2**52), radius(coarse + sign, 2**52 + 2**10)
            assert abs(near[0] - near[1]) < finest


# -- what leaves -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("sensitivity", "noise"), [(1.0, 0.3), (0.37, 8.0), (1e4, 1e4), (1e-4, 2)])
def test_released__any_sum__is_a_whole_number_of_grid_steps_with_noise_of_the_promised_size(
    sensitivity: float, noise: float
) -> None:
    total = np.random.default_rng(0).normal(size=200_000) * 30 * sensitivity
    left = released(total, sensitivity, noise, SecureRandom())
    steps = left / (sensitivity * GRID)
    assert np.abs(steps - steps.round()).max() < 1e-3 * max(1.0, noise * 2**-20)
    deviation = (left - total).std() / sensitivity / noise
    # the margin, and sqrt(200,000) of 2**20 for the rounding of the sum
    assert deviation / (1 + 6 / math.sqrt(2 * len(total))) * 1.02 > 1 + MARGIN
    assert deviation < 1.01 + 447 / 2**20


def test_grid_scale__sums_of_neighbours_after_rounding__are_within_the_stated_sensitivity() -> None:
    random = np.random.default_rng(1)
    for size in (1, 7, 1000):
        grid, sd = grid_scale(0.5, 1.0, size)
        for _ in range(50):
            one = random.normal(size=size) * 10
            move = random.normal(size=size)
            other = one + move / np.linalg.norm(move) * 0.5 * (1 + MARGIN)
            assert np.linalg.norm(np.round(one / grid) - np.round(other / grid)) <= sd


def test_on_grid__near_zero__names_no_noise() -> None:
    """Two sums that differ by less than a step leave as numbers of one and the same grid."""
    scale = torch.tensor(grid_scale(1.0, 2.0, 3), dtype=torch.float64)
    words = SecureRandom().words(words_for(3))
    one = on_grid(torch.tensor([1e-30, 0.0, -1e-9], dtype=torch.float64), words, scale)
    other = on_grid(torch.tensor([-1e-30, 1e-12, 1e-9], dtype=torch.float64), words, scale)
    assert torch.equal(one, other)


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_order__any_count__is_a_permutation_and_another_each_time(count: int) -> None:
    random = SecureRandom()
    orders = [random.order(count).tolist() for _ in range(5)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert count < 50 or len({tuple(order) for order in orders}) == 5


def test_order__two_equal_keys__is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    random, drawn = SecureRandom(), [torch.tensor([4, 4, 1]), torch.tensor([7, 5, 6])]
    monkeypatch.setattr(random, "words", lambda _: drawn.pop(0))
    assert random.order(3).tolist() == [1, 2, 0] and not drawn
