"""Once, a patient's gradient depended on how many others there were and at which row it stood: one
more patient moved the sum by up to 200 clips, the losses and the table of scores with it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import vmap

from fl_client.model.graph import load_model
from fl_client.model.weights import to_safetensors
from fl_client.privacy.adversary import Attack, gradient_shift, loss_shift, score_shift
from fl_client.privacy.noise import MARGIN
from fl_client.privacy.training import ENGINES
from tests.faults.attacks import admit, at, attack, people

MODE = {"book-keeping": "traced", "hooks": "hooks"}
WIDE = 13


def open_where_apart(value: str) -> list[list]:
    """Nodes from a difference of two roundings to an output that is loud where it is not 0."""
    return [
        ["ea", "abs.default", [at(value)]],
        ["es", "reshape.default", [at("ea"), [1, -1]]],
        ["et", "sum.dim_IntList", [at("es"), [1], True]],
        ["eb", "mul.Tensor", [at("et"), 1e30]],
        ["h", "clamp.default", [at("eb"), 0.0, 1.0]],
        ["h3", "mul.Tensor", [at("h"), 1e4]],
        ["out", "linear.default", [at("h3"), at("p_w")]],
    ]


def powers(others: int, seed: int = 0) -> Attack:
    """x to the 2.7 alone and in a row of 64: a processor's vectors round their tails apart."""
    nodes = [
        ["a0", "abs.default", [at("x")]],
        ["a_", "select.int", [at("a0"), 1, 0]],
        ["a", "mul.Tensor", [at("a_"), 1.0]],
        ["many", "mul.Tensor", [at("p_ones"), at("a")]],
    ]
    names = []
    for i, power in enumerate((0.3, 0.7, 1.3, 1.7, 2.3, 2.7)):
        nodes += [
            [f"u{i}", "pow.Tensor_Scalar", [at("a"), power]],
            [f"v{i}", "pow.Tensor_Scalar", [at("many"), power]],
            [f"w{i}", "select.int", [at(f"v{i}"), 1, 0]],
            [f"e{i}", "sub.Tensor", [at(f"u{i}"), at(f"w{i}")]],
            [f"f{i}", "abs.default", [at(f"e{i}")]],
        ]
        names.append(at(f"f{i}"))
    nodes += [["e", "stack.default", [names, 1]], *open_where_apart("e")]
    x, y = people(others + 1, seed=seed)
    arrays = {"w": np.zeros((1, 1)), "ones": np.ones((1, 64))}
    return attack(arrays, nodes, "out", others=(x[1:], y[1:] * 0 + 1), victim=x[0], seed=seed)


def products(others: int, seed: int = 0) -> Attack:
    """A product 13 wide alone and among four copies: rounded by the row's address."""
    rng = np.random.default_rng(5)
    nodes = [
        ["x1", "reshape.default", [at("x"), [1, 1, WIDE]]],
        ["u", "linear.default", [at("x1"), at("p_k")]],
        ["x4", "expand.default", [at("x1"), [1, 4, WIDE]]],
        ["x4c", "mul.Tensor", [at("x4"), 1.0]],
        ["r", "linear.default", [at("x4c"), at("p_k")]],
        ["e", "sub.Tensor", [at("r"), at("u")]],
        *open_where_apart("e"),
    ]
    k = np.repeat(rng.normal(size=(1, WIDE)), 3, 0)
    x, y = people(others + 1, WIDE, seed)
    arrays = {"w": np.zeros((1, 1)), "k": k}
    return attack(
        arrays, nodes, "out", others=(x[1:], y[1:]), victim=x[0],
        outcome=float(y[0]), loss="binary_cross_entropy", seed=seed,
    )  # fmt: skip


ATTACKS = {"powers": powers, "products": products}


def test_powers__patients_in_one_batch__are_loud_or_silent_by_their_place() -> None:
    """Else this attack would show nothing."""
    given = powers(33)
    model = load_model(given.graph, to_safetensors({**given.arrays, "w": np.ones((1, 1), "f4")}))
    same = torch.from_numpy(np.repeat(given.features[:1], 90, 0))
    outputs = vmap(lambda sample: model(sample[None])[0])(same).detach()
    assert set(outputs.flatten().tolist()) == {0.0, 1e4}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ATTACKS)
def test_clipped_sum__one_patient_more__moves_by_their_own_gradient_and_no_other(
    name: str, engine: str
) -> None:
    admit(ATTACKS[name](33), engine)
    for seed in range(8):
        given = ATTACKS[name](20 + 9 * seed, seed)
        # others' rows that differ in one bit would count as 2
        found = gradient_shift(given._replace(slots=160), MODE[engine]) * (1 + MARGIN)
        assert min(abs(found), abs(found - 1)) < 1e-6


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("measure", [loss_shift, score_shift])
def test_losses_and_scores__one_patient_more__move_by_one_patient(name: str, measure) -> None:
    for seed in range(4):
        given = ATTACKS[name](20 + 17 * seed, seed)._replace(slots=60)
        found = measure(given, "traced") * (1 + MARGIN)
        assert found <= 1 + 1e-9
