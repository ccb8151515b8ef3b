"""What the attacks on the engine share: a graph by hand, a gate, people, one of whom is there or
not, and what a step releases.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from fl_client.model.fit import check_loss
from fl_client.model.graph import load_model
from fl_client.model.losses import LOSSES
from fl_client.model.weights import to_safetensors
from fl_client.privacy import selfcheck
from fl_client.privacy.adversary import Attack
from fl_client.privacy.plan import PrivacyPlan
from fl_client.privacy.slots import needed
from fl_client.privacy.training import train_round

VICTIM = np.array([1.5, -0.7], np.float32)
Node = dict[str, str]
PERSONS = 50


def at(name: str) -> Node:
    return {"node": name}


def gate(sharp: float = 100.0) -> list[list[Any]]:
    """Nodes that give g [1, 1]: 1 at the frozen parameter `point`, 0 farther than 1 / sharp off."""
    return [
        ["d", "sub.Tensor", [at("x"), at("p_point")]],
        ["a", "abs.default", [at("d")]],
        ["s", "sum.dim_IntList", [at("a"), [1], True]],
        ["m", "mul.Tensor", [at("s"), -sharp]],
        ["o", "add.Tensor", [at("m"), 1.0]],
        ["g", "relu.default", [at("o")]],
    ]


def people(count: int, width: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Records [count, width] and outcomes [count]."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, width)).astype(np.float32)
    return x, (rng.random(count) < 0.5).astype(np.float32)


def attack(
    arrays: dict[str, Any],
    nodes: list[list[Any]],
    output: str,
    *,
    others: tuple[np.ndarray, np.ndarray],
    victim: np.ndarray,
    outcome: float = 1.0,
    loss: str = "squared_error",
    clip: float = 1.0,
    seed: int = 0,
    slots: int | None = None,
) -> Attack:
    """One patient beside others; the parameter `w` is trained, all others are frozen."""
    x, y = others
    graph = {
        "format": "datahub-graph",
        "version": 1,
        "input": {"name": "x", "shape": [x.shape[1]]},
        "parameters": {"p_" + name: name for name in arrays},
        "nodes": nodes,
        "output": output,
        "frozen": [name for name in arrays if name != "w"],
    }
    return Attack(
        json.dumps(graph).encode(),
        {name: np.asarray(array, np.float32) for name, array in arrays.items()},
        loss,
        np.vstack([x, victim]).astype(np.float32),
        np.append(y, outcome).astype(np.float32),
        np.arange(len(x) + 1),
        1,
        slots or needed(len(x), 1.0),
        seed,
        clip,
    )


def admit(given: Attack, engine: str) -> None:
    """As a node before it takes a job: raises GraphRefused."""
    model = load_model(given.graph, to_safetensors(given.arrays))
    check_loss(model, given.loss)
    selfcheck.check(model, LOSSES[given.loss], given.slots, given.records, engine)


def released(given: Attack, there: bool, engine: str, noise: float) -> np.ndarray:
    """What one step at q = 1 releases of the sum, in clips: [numbers of w], noise of sd `noise`."""
    model = load_model(given.graph, to_safetensors(given.arrays))
    rows = slice(None) if there else slice(-1)
    result = train_round(
        model,
        given.arrays,
        given.features[rows],
        given.targets[rows],
        PrivacyPlan(noise, given.clip, 1.0, 1, 1e-5, 1000.0, 1.0, 1),
        steps=1,
        learning_rate=1.0,
        loss=given.loss,
        expected_persons=PERSONS,
        engine=engine,
    )
    moved = given.arrays["w"].astype(np.float64) - result.arrays["w"]
    return np.asarray(moved.reshape(-1) * PERSONS / given.clip)
