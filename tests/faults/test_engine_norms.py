"""Once, norms were estimated in float32: a square underflowed, a Gram product cancelled, and the
whole gradient of one patient was in the sum (4,000 clips, 2 million clips).
"""

import math

import numpy as np
import pytest

from fl_client.privacy.adversary import Attack, gradient_shift
from fl_client.privacy.noise import MARGIN
from fl_client.privacy.training import ENGINES
from tests.faults.attacks import PERSONS, VICTIM, admit, at, attack, gate, people, released

MODE = {"book-keeping": "traced", "hooks": "hooks"}
MANY, BIG, APART = 2**13, 1e10, 2.0**-13


def underflow() -> Attack:
    """Output gradients of 1e-23, whose squares float32 does not have, times an input of 1e19."""
    nodes = [
        *gate(),
        ["h", "mul.Tensor", [at("g"), 1.5e19]],
        ["z", "linear.default", [at("h"), at("p_w")]],
        ["t", "sum.dim_IntList", [at("z"), [1], True]],
        ["out", "mul.Tensor", [at("t"), 1.3e-23]],
    ]
    arrays = {"w": np.zeros((MANY, 1)), "point": VICTIM[None]}
    return attack(arrays, nodes, "out", others=people(PERSONS), victim=VICTIM, clip=1e-4)


def cancelling() -> Attack:
    """Two positions with opposite output gradients and inputs that differ in their 13th bit."""
    nodes = [
        *gate(),
        ["r", "mul.Tensor", [at("g"), at("p_rows")]],
        ["z", "linear.default", [at("r"), at("p_w")]],
        ["q", "mul.Tensor", [at("z"), at("p_signs")]],
        ["t", "sum.dim_IntList", [at("q"), [1, 2], False]],
    ]
    rows, signs = np.zeros((1, 2, 8)), np.zeros((1, 2, 8))
    rows[0, :, 0] = 1, 1 + APART
    signs[0, :, 0] = BIG, -BIG
    arrays = {"w": np.zeros((8, 8)), "point": VICTIM[None], "rows": rows, "signs": signs}
    return attack(arrays, nodes, "t", others=people(PERSONS), victim=VICTIM)


@pytest.mark.parametrize("engine", ENGINES)
def test_clipped_sum__output_gradient_whose_square_underflows__moves_by_one_clip(
    engine: str,
) -> None:
    given = underflow()
    admit(given, engine)
    assert gradient_shift(given, MODE[engine]) * (1 + MARGIN) == pytest.approx(1.0, abs=1e-6)


# what is clipped by is sqrt(g^2 + kappa M^2): with kappa = 2^-24 and positions that differ by 2^-13
# of one, g = M / 2^14 and so 1 / sqrt(1 + 2^4) of the clip is left; gradients in memory keep all
@pytest.mark.parametrize(("engine", "right"), [("book-keeping", 1 / math.sqrt(17)), ("hooks", 1.0)])
def test_clipped_sum__positions_that_cancel__moves_by_what_the_bound_leaves(
    engine: str, right: float
) -> None:
    given = cancelling()
    admit(given, engine)
    assert gradient_shift(given, MODE[engine]) * (1 + MARGIN) == pytest.approx(right, rel=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("there", [False, True])
def test_train_round__either_attack__releases_one_clip_in_noise(there: bool, engine: str) -> None:
    noise = 0.3  # the least that a plan may have
    along = released(underflow(), there, engine, noise).sum() / math.sqrt(MANY)
    first = released(cancelling(), there, engine, noise)[0]
    # the grid's rounding is noised, too: sqrt(MANY) steps of 2^-20 of the clip
    for found in (along, first):
        assert abs(found) < 1 + 6 * noise * (1 + MARGIN + math.sqrt(MANY) * 2.0**-20)
