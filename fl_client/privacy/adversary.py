"""A search for graphs that move a sum by more than the clip: what a hostile buyer would try, on
this machine's kernels and compiler. Knows nothing of jobs or ledgers, and of no real record.

A graph is made by hand from numbers between 0 and 1 (`Genes`), passed through `load_model` like a
buyer's file, and trained on two tables that differ by one patient. Both get the same randomness:
others sit in the same slots, the odd patient's slot is empty in one, dropout masks are the same,
and there is no noise. What the sum of clipped gradients moves by, over the clip and its margin, is
at most 1 if clipping.py and slots.py hold; a search by random and mutated numbers tries for more.

What the graphs are made of: a gate that opens for one patient alone, gains from 1e-45 to inf,
positions and records that cancel but for their last bits, and differences of two roundings of one
number, computed at another place or in another shape. The numbers are in frozen parameters, so that
one graph, traced or compiled once, is tried with many.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fl_client.errors import GraphRefused
from fl_client.model.graph import GraphModel, load_model, with_parameters
from fl_client.model.losses import LOSSES
from fl_client.model.weights import to_safetensors
from fl_client.privacy import selfcheck
from fl_client.privacy.compiling import ClippedSums, frozen_of
from fl_client.privacy.noise import MARGIN, SecureRandom
from fl_client.privacy.plan import PrivacyPlan
from fl_client.privacy.training import (
    ENGINES,
    Chunks,
    Patients,
    by_patient,
    chunks,
    clipped_total,
    deterministic,
    device,
    loss_sum,
    score_sum,
    score_table,
    train_round,
)

log = logging.getLogger("datahub.node")

WIDTH = 3  # of a record: two numbers that the gate looks at, and what it lets through
POINT = (1.5, -0.7)
LEAST_CLIP = 1e-4  # of a plan: any fault is largest beside it
LARGEST = float(np.finfo(np.float32).max)
GENES, SHAPE_GENES = 64, 24  # who reads more begins again
LONG = 10**15  # steps of a job that is compiled wherever there is a compiler

# engine as attacked -> (its name in training.ENGINES, steps of the job)
MODES: Mapping[str, tuple[str, int]] = {
    "traced": ("book-keeping", 1),
    "compiled": ("book-keeping", LONG),
    "hooks": ("hooks", 1),
}
Genes = Iterator[float]


class Attack(NamedTuple):
    """A graph with its parameters, and a table whose last patient is the odd one.

    features [n, WIDTH], targets [n], patients [n]; `records` of a patient; `slots` of a batch, of
    which the patients' places are drawn by `seed`.
    """

    graph: bytes
    arrays: dict[str, np.ndarray]
    loss: str
    features: np.ndarray
    targets: np.ndarray
    patients: np.ndarray
    records: int
    slots: int
    seed: int
    clip: float


class Found(NamedTuple):
    """The largest ratio of a search, the attack that made it, and how many were tried."""

    ratio: float
    attack: Attack | None
    tried: int


# -- graphs by hand --------------------------------------------------------------------------------


class Sketch(NamedTuple):
    """A graph while it is drawn."""

    nodes: list[list[Any]]
    arrays: dict[str, np.ndarray]
    trained: list[str]


def _add(sketch: Sketch, operation: str, *arguments: Any) -> dict[str, str]:
    """A node more, and how later ones refer to it."""
    name = f"n{len(sketch.nodes)}"
    sketch.nodes.append([name, operation, list(arguments)])
    return {"node": name}


def _given(sketch: Sketch, array: Any, trained: bool = False) -> dict[str, str]:
    """A parameter more, cut to float32 numbers; frozen, unless it is to be trained."""
    name = f"a{len(sketch.arrays)}"
    with np.errstate(over="ignore"):
        sketch.arrays[name] = np.clip(array, -LARGEST, LARGEST).astype(np.float32)
    if trained:
        sketch.trained.append(name)
    return {"node": f"p_{name}"}


def _files(sketch: Sketch, output: dict[str, str]) -> bytes:
    """The sketch's graph as a buyer would send it."""
    frozen = [name for name in sketch.arrays if name not in sketch.trained]
    graph = {
        "format": "datahub-graph",
        "version": 1,
        "input": {"name": "x", "shape": [WIDTH]},
        "parameters": {f"p_{name}": name for name in sketch.arrays},
        "nodes": sketch.nodes,
        "output": output["node"],
        "frozen": frozen,
    }
    return json.dumps(graph).encode()


def _one_of(genes: Genes, *choices: Any) -> Any:
    return choices[int(next(genes) * len(choices))]


def _between(genes: Genes, low: float, high: float) -> float:
    return low + (high - low) * next(genes)


# exponents of 10 at which float32, or a square in it, ends: largest, smallest, their roots
ENDS = (38.5, -37.9, -45.0, 19.3, -18.9, -22.6)


def _gain(genes: Genes) -> float:
    """A factor from 1e-45 to 1e38, and somewhat beyond; often 1, or near an end of float32."""
    end = _one_of(genes, *ENDS) + _between(genes, -3, 0.5)
    exponent: float = _one_of(genes, *[0.0] * 4, _between(genes, -6, 12), end)
    return math.pow(10.0, exponent)


def _nearly_one(genes: Genes) -> float:
    sign: float = _one_of(genes, 0.0, 1.0, -1.0)
    return 1 + math.ldexp(sign, -round(_between(genes, 1, 30)))


def _alternating(genes: Genes, count: int) -> np.ndarray:
    """[count] factors that cancel, or nearly, or agree, or have nothing to do with each other."""
    odd = np.arange(count) % 2 == 1
    second = _one_of(genes, 1.0, -1.0) * _nearly_one(genes)
    made_up = np.random.default_rng(int(next(genes) * 1000)).normal(size=count)
    paired = np.where(odd, second, 1.0)
    found: np.ndarray = _one_of(genes, paired, paired, paired * np.abs(made_up), made_up)
    return found


def _direction(genes: Genes, size: int) -> np.ndarray:
    """[size] numbers that a factor points along."""
    made_up = np.random.default_rng(int(next(genes) * 1000)).normal(size=size)
    found: np.ndarray = _one_of(genes, np.eye(1, size)[0], np.ones(size), made_up)
    return found


def _sized(vector: np.ndarray, *shape: int) -> np.ndarray:
    return np.resize(vector, shape)


def _gate(sketch: Sketch, genes: Genes, gain: float) -> dict[str, str]:
    """[1, 1]: the third number of the record at POINT and 0 of all others, or everybody's, times
    `gain`.
    """
    away = _add(sketch, "sub.Tensor", {"node": "x"}, _given(sketch, [[*POINT, 0.0]]))
    seen = _one_of(genes, 1.0, 1.0, 0.0)
    far = _add(sketch, "mul.Tensor", away, _given(sketch, [[seen, seen, 0.0]]))
    far = _add(sketch, "abs.default", far)
    far = _add(sketch, "sum.dim_IntList", far, [1], True)
    far = _add(sketch, "mul.Tensor", far, -100.0)
    gate = _add(sketch, "relu.default", _add(sketch, "add.Tensor", far, 1.0))
    strength = _add(sketch, "slice.Tensor", {"node": "x"}, 1, 2, 3)
    through = _add(sketch, "mul.Tensor", gate, strength)
    return _add(sketch, "mul.Tensor", through, _given(sketch, [[gain]]))


def _read_out(sketch: Sketch, genes: Genes, value: dict[str, str], shape: list[int]) -> Any:
    """[1]: the sum of `value`, [1, *shape], times signs: its output gradient is theirs."""
    signs = np.multiply.outer(_alternating(genes, shape[0]), _direction(genes, shape[1]))
    signs = signs[(..., *[None] * (len(shape) - 2))] * np.ones([1, *shape]) * _gain(genes)
    value = _add(sketch, "mul.Tensor", value, _given(sketch, signs))
    return _add(sketch, "sum.dim_IntList", value, list(range(1, len(shape) + 1)), False)


def _spread(sketch: Sketch, genes: Genes, source: Any, shape: list[int]) -> dict[str, str]:
    """`source` [1, 1] times numbers [1, *shape]."""
    numbers = np.multiply.outer(_alternating(genes, shape[0]), _direction(genes, shape[1]))
    numbers = numbers[(..., *[None] * (len(shape) - 2))] * np.ones([1, *shape]) * _gain(genes)
    if len(shape) > 1:
        source = _add(sketch, "reshape.default", source, [1] * (len(shape) + 1))
    return _add(sketch, "mul.Tensor", source, _given(sketch, numbers))


# -- families: (sketch, source [1, 1], genes of the graph's shape, genes of its numbers) -> [1] ----

Family = Callable[[Sketch, Any, Genes, Genes], Any]


def _linear(
    places: tuple[int, ...],
    sizes: tuple[int, ...],
    *,
    weight: bool = True,
    bias: bool = False,
    dropout: bool = False,
) -> Family:
    """A linear layer at T of `places` with inputs and outputs of one of `sizes`."""

    def draw(sketch: Sketch, source: Any, shape: Genes, genes: Genes) -> Any:
        times, wide, high = (_one_of(shape, *each) for each in (places, sizes, sizes))
        rows = _spread(sketch, genes, source, [times, wide])
        if dropout:
            rows = _add(sketch, "dropout.default", rows, 0.5, True)
        layer = [_given(sketch, np.zeros((high, wide)), weight)]
        if bias:
            layer.append(_given(sketch, np.zeros(high), True))
        value = _add(sketch, "linear.default", rows, *layer)
        if dropout:
            value = _add(sketch, "dropout.default", value, 0.5, True)
        return _read_out(sketch, genes, value, [times, high])

    return draw


def _convolution(side: tuple[int, ...], channels: tuple[int, ...]) -> Family:
    def draw(sketch: Sketch, source: Any, shape: Genes, genes: Genes) -> Any:
        size, planes, made = (_one_of(shape, *each) for each in (side, channels, channels))
        image = _spread(sketch, genes, source, [planes, size, 3])
        layer: list[Any] = [_given(sketch, np.zeros((made, planes, 2, 2)), True)]
        layer += [_given(sketch, np.zeros(made), True)] if _one_of(shape, True, False) else [None]
        stride, padding = _one_of(shape, 1, 2), _one_of(shape, 0, 1)
        value = _add(sketch, "conv2d.default", image, *layer, [stride, stride], [padding, padding])
        sides = [(n + 2 * padding - 2) // stride + 1 for n in (size, 3)]
        # alternate over the pixels, not over the channels: these are what is added up
        value = _add(sketch, "reshape.default", value, [1, made, sides[0] * sides[1]])
        value = _add(sketch, "transpose.int", value, 1, 2)
        return _read_out(sketch, genes, value, [sides[0] * sides[1], made])

    return draw


def _norm(layer: bool) -> Family:
    def draw(sketch: Sketch, source: Any, shape: Genes, genes: Genes) -> Any:
        channels, times = _one_of(shape, 2, 4, 8), _one_of(shape, 1, 2, 16)
        numbers = [times, channels] if layer else [channels, times]
        value = _spread(sketch, genes, source, numbers)
        moved = np.multiply.outer(_alternating(genes, numbers[0]), _direction(genes, numbers[1]))
        value = _add(sketch, "add.Tensor", value, _given(sketch, moved[None] * _gain(genes)))
        weights = [_given(sketch, np.zeros(channels), True) for _ in range(2)]
        if layer:
            value = _add(sketch, "layer_norm.default", value, [channels], *weights)
        else:
            value = _add(sketch, "group_norm.default", value, _one_of(shape, 1, 2), *weights)
        return _read_out(sketch, genes, value, numbers)

    return draw


def _embedding(sketch: Sketch, source: Any, shape: Genes, genes: Genes) -> Any:
    rows, wide, times = _one_of(shape, 1, 7, 300), _one_of(shape, 1, 8), _one_of(shape, 1, 2, 16)
    table = _given(sketch, np.zeros((rows, wide)), True)
    index = _spread(sketch, genes, source, [times, 1])
    index = _add(sketch, "reshape.default", index, [1, times])
    value = _add(sketch, "embedding.clamped", table, index)
    loud = _add(sketch, "reshape.default", source, [1, 1, 1])
    return _read_out(sketch, genes, _add(sketch, "mul.Tensor", value, loud), [times, wide])


def _tied(sketch: Sketch, source: Any, shape: Genes, genes: Genes) -> Any:
    """One weight in two layers, and as a bare factor."""
    size, times = _one_of(shape, 1, 4, 16), _one_of(shape, 1, 2, 16)
    tied = _given(sketch, np.zeros((size, size)), True)
    values = [
        _add(sketch, "linear.default", _spread(sketch, genes, source, [times, size]), tied)
        for _ in range(2)
    ]
    value = _add(sketch, "sub.Tensor", *values)
    if _one_of(shape, True, False):
        bare = _add(sketch, "unsqueeze.default", tied, 0)
        bare = _add(sketch, "slice.Tensor", bare, 1, 0, 1)
        value = _add(sketch, "add.Tensor", value, bare)
        loud = _add(sketch, "reshape.default", source, [1, 1, 1])
        value = _add(sketch, "mul.Tensor", value, loud)
    return _read_out(sketch, genes, value, [times, size])


# operations on rows [..., m] that are known to round by place, or might; each may add parameters
_ROUNDED: Mapping[str, Callable[[Sketch, int], list[Any]]] = {
    "linear.default": lambda s, m: [_given(s, _sized(_waves(m), 3, m))],
    "matmul.default": lambda s, m: [_given(s, _sized(_waves(m), 3, m).T)],
    "pow.Tensor_Scalar": lambda s, m: [2.7],
    "mish.default": lambda s, m: [],
    "softmax.int": lambda s, m: [-1],
    "log_softmax.int": lambda s, m: [-1],
    "layer_norm.default": lambda s, m: [[m]],
    "gelu.default": lambda s, m: [],
    "softplus.default": lambda s, m: [],
    "tanh.default": lambda s, m: [],
    "mean.dim": lambda s, m: [[-1], True],
}


def _waves(count: int) -> np.ndarray:
    found: np.ndarray = np.sin(1.0 + 7.0 * np.arange(count))
    return found


def _apart(sketch: Sketch, operation: str, one: Any, wide: int, copies: int) -> dict[str, str]:
    """[1]: 0 where a row, [1, 1, wide], comes out alike alone and among copies of it, else not."""
    if operation.startswith("pow"):
        one = _add(sketch, "abs.default", one)
    many = _add(sketch, "expand.default", one, [1, copies, wide])
    many = _add(sketch, "mul.Tensor", many, 1.0)
    more = _ROUNDED[operation](sketch, wide)
    both = [_add(sketch, operation, value, *more) for value in (many, one)]
    apart = _add(sketch, "abs.default", _add(sketch, "sub.Tensor", *both))
    return _add(sketch, "sum.dim_IntList", apart, [1, 2], False)


def _rounding(sketch: Sketch, source: Any, shape: Genes, genes: Genes) -> Any:
    """One row's results alone and among copies: where two round apart, everything opens. The
    gradient of everybody, not of one patient, is 0 or whole by the place that they are at.
    """
    wide, copies = _one_of(shape, 1, 3, 13, 64), _one_of(shape, 4, 13, 64)
    one = _add(sketch, "reshape.default", source, [1, 1, 1])
    one = _add(sketch, "mul.Tensor", one, _given(sketch, _waves(wide)[None, None]))
    total: Any = None
    for operation in _ROUNDED:
        apart = _apart(sketch, operation, one, wide, copies)
        apart = _add(sketch, "mul.Tensor", apart, _given(sketch, [_one_of(genes, 1e30, 0.0)]))
        total = apart if total is None else _add(sketch, "add.Tensor", total, apart)
    opened = _add(sketch, "clamp.default", total, 0.0, 1.0)
    opened = _add(sketch, "mul.Tensor", opened, _given(sketch, [_gain(genes) * 100]))
    opened = _add(sketch, "reshape.default", opened, [1, 1])
    value = _add(sketch, "linear.default", opened, _given(sketch, np.zeros((1, 1)), True))
    return _add(sketch, "reshape.default", value, [1])


_ALONE: Mapping[str, Family] = {
    "linear": _linear((1,), (1, 13, 256)),
    "linear_ghost": _linear((2, 3, 16), (24, 64)),
    "linear_explicit": _linear((2, 16, 1000), (1, 3, 8)),
    "conv2d_ghost": _convolution((2, 3), (8, 16)),
    "conv2d_explicit": _convolution((8, 40), (1, 2, 3)),
    "group_norm": _norm(layer=False),
    "layer_norm": _norm(layer=True),
    "embedding": _embedding,
    "tied": _tied,
    "bias": _linear((2, 16), (1, 8), weight=False, bias=True),
    "dropout": _linear((1, 2, 16), (4, 24), bias=True, dropout=True),
    "rounding": _rounding,
}


def _together(alone: str = "") -> Family:
    """A layer of every family in one graph, each heard or not: one norm over all. `alone`: the one
    family that is heard.
    """

    def draw(sketch: Sketch, source: Any, shape: Genes, genes: Genes) -> Any:
        total: Any = None
        for name, family in _ALONE.items():
            if name == "dropout":  # the fall-back engine takes none
                continue
            heard = _one_of(genes, 0.0, 1.0, 1.0)
            value = family(sketch, source, shape, genes)
            heard = _given(sketch, [float(name == alone) if alone else heard])
            value = _add(sketch, "mul.Tensor", value, heard)
            total = value if total is None else _add(sketch, "add.Tensor", total, value)
        return total

    return draw


FAMILIES: Mapping[str, Family] = {**_ALONE, "together": _together()}


# -- tables, worlds, measures ----------------------------------------------------------------------


def propose(family: str, shape: np.ndarray, numbers: np.ndarray, alone: str = "") -> Attack:
    """An attack from numbers in [0, 1): `shape` decides the graph and all sizes, `numbers` what is
    in them. `alone`: of the graph with all families, the one that is heard.
    """
    shapes, genes = _endless(shape), _endless(numbers)
    records, others, spare = (
        _one_of(shapes, 1, 2, 3),
        _one_of(shapes, 3, 15, 33),
        _one_of(shapes, 0, 5),
    )
    sketch = Sketch([], {}, [])
    draw = _together(alone) if alone else FAMILIES[family]
    # up before the layers and down behind them: one factor of a gradient large, the other small
    gain = math.pow(10.0, _one_of(genes, 0.0, *ENDS) + _between(genes, -3, 0.5))
    output = draw(sketch, _gate(sketch, genes, gain), shapes, genes)
    down = math.pow(10.0, _one_of(genes, 0.0, _between(genes, -8, 8), _between(genes, -8, 0)))
    output = _add(sketch, "mul.Tensor", output, _given(sketch, [down / gain]))
    rng = np.random.default_rng(int(next(genes) * 2**32))
    theirs = rng.normal(size=(others * records, WIDTH))
    ours = np.tile([*POINT, 0.0], (records, 1))
    strength = _one_of(genes, *[1.0] * 5, _gain(genes), np.nan, np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        ours[:, 2] = _alternating(genes, records) * strength
        ours = ours.astype(np.float32)
    target = _one_of(genes, *[1.0] * 5, -1.0, 1e30, np.nan)
    targets = [rng.choice([0.0, 1.0], others * records), np.full(records, target)]
    patients = [np.repeat(np.arange(others), records), np.full(records, others)]
    tables = [[theirs, ours], targets, patients]
    if _one_of(shapes, True, False):  # the odd one first: everybody else moves up by a row
        tables = [each[::-1] for each in tables]
    features, y, who = (np.concatenate(each) for each in tables)
    return Attack(
        _files(sketch, output),
        sketch.arrays,
        _one_of(shapes, "squared_error", "squared_error", "binary_cross_entropy"),
        features.astype(np.float32),
        y.astype(np.float32),
        who,
        records,
        others + 1 + spare,
        int(next(genes) * 2**32),
        _one_of(genes, *[LEAST_CLIP] * 3, 1.0, 1e4),
    )


def _endless(numbers: np.ndarray) -> Genes:
    while True:
        yield from (float(number) for number in numbers)


class Engine(NamedTuple):
    """A checked graph and the engine that sums its gradients."""

    model: GraphModel
    run: ClippedSums
    work: Chunks


@lru_cache(maxsize=32)
def engine_for(
    graph: bytes, shapes: tuple[tuple[str, tuple[int, ...]], ...], loss: str, size: int,
    records: int, mode: str,
) -> Engine:  # fmt: skip
    """The graph as a node takes it in, with parameters of these shapes. Raises GraphRefused."""
    name, steps = MODES[mode]
    zeros = {key: np.zeros(shape, np.float32) for key, shape in shapes}
    model = load_model(graph, to_safetensors(zeros)).to(device()).train()
    work = chunks(model, size, records, LOSSES[loss], name)
    with torch.no_grad(), deterministic():
        run = ENGINES[name](model, LOSSES[loss], work.slots, records, steps)
    if mode == "compiled" and not run.compiled:
        raise GraphRefused("this machine cannot compile the graph, so it will run traced")
    return Engine(model, run, work)


def _engine(attack: Attack, mode: str) -> Engine:
    shapes = tuple((name, array.shape) for name, array in attack.arrays.items())
    return engine_for(attack.graph, shapes, attack.loss, attack.slots, attack.records, mode)


def tables(attack: Attack) -> tuple[Patients, Patients]:
    """The table with the odd patient, and without."""
    there = attack.patients < attack.patients.max()
    whole = attack.features, attack.targets, attack.patients
    return (
        by_patient(*whole, attack.records),
        by_patient(
            attack.features[there], attack.targets[there], attack.patients[there], attack.records
        ),
    )


def coupled_places(attack: Attack, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Who sits in each of `slots` with and without the odd patient: others in the same ones."""
    persons = int(attack.patients.max()) + 1
    order = np.random.default_rng(attack.seed).permutation(slots)
    seats = np.full(slots, persons, np.int64)
    seats[order[:persons]] = np.arange(persons)
    return seats, np.minimum(seats, persons - 1)  # the last patient's number is nobody's without


def gradient_shift(attack: Attack, mode: str) -> float:
    """What the odd patient moves the clipped sum by, over what is allowed. Raises GraphRefused.

    If a row of another patient moves by a bit it is OTHERS_MOVED at least: some graph makes that
    bit as large as it likes.
    """
    engine = _engine(attack, mode)
    there = device()
    model = with_parameters(engine.model, attack.arrays).to(there)
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])
    clip = torch.tensor(attack.clip, dtype=torch.float32, device=there)
    frozen = frozen_of(model)
    both = coupled_places(attack, engine.work.slots * engine.work.times)
    others, totals, rows = int(attack.patients.max()), [], []
    devices = [there] if there.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices), deterministic():
        for table, seats in zip(tables(attack), both, strict=True):
            total = torch.zeros(len(theta), dtype=torch.float64, device=there)
            table = table.to(there)
            given = engine.run, theta, frozen, table, torch.from_numpy(seats).to(there)
            theirs = np.argsort(seats, kind="stable")[:others]  # slots of the others, in order
            try:
                torch.manual_seed(attack.seed)
                total = clipped_total(*given, clip)
                torch.manual_seed(attack.seed)
                rows.append(_rows(*given, theirs))
            except Exception:  # noqa: BLE001 - any kind counts as zeros, as in a round
                rows.append(())
            totals.append(total)
    shift = float((totals[0] - totals[1]).norm()) / (float(clip) * (1 + MARGIN))
    return max(shift, OTHERS_MOVED) if not all(map(_same, *rows)) else shift


def _rows(
    run: ClippedSums,
    theta: Tensor,
    frozen: list[Tensor],
    table: Patients,
    places: Tensor,
    slots: np.ndarray,
) -> tuple[Tensor, ...]:
    """Gradient tensors [patients, numbers of each] of those in `slots`, copied."""
    pieces = [
        run.rows(theta, frozen, *table.seated(piece)[:3])
        for piece in torch.split(places, run.slots)
    ]
    return tuple(
        torch.cat(each).view(len(places), -1)[slots].cpu() for each in zip(*pieces, strict=True)
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


class _Coupled(SecureRandom):
    """Everybody's places from a seed: the last patient's is the last that is given."""

    def __init__(self, seed: int):
        super().__init__()
        self._seed = seed

    def order(self, count: int) -> np.ndarray:
        return np.random.default_rng(self._seed).permutation(count)


METRIC_CLIP, OTHERS_MOVED = 1.0, 2.0


def loss_shift(attack: Attack, mode: str) -> float:
    """As `gradient_shift`, of the sum of clipped losses."""

    def total(model: GraphModel, table: Patients) -> Tensor:
        random = _Coupled(attack.seed)
        return loss_sum(model, table, METRIC_CLIP, attack.loss, attack.slots, random)

    return _shift(attack, mode, total) / METRIC_CLIP


def score_shift(attack: Attack, mode: str) -> float:
    """As `gradient_shift`, of the table of scores."""

    def total(model: GraphModel, table: Patients) -> Tensor:
        return score_sum(model, table, attack.loss, attack.slots, _Coupled(attack.seed))

    return _shift(attack, mode, total)


def _shift(attack: Attack, mode: str, total: Callable[[GraphModel, Patients], Tensor]) -> float:
    # weights that are not 0: outputs would all be the same
    arrays = {
        name: array if array.any() else np.ones_like(array) for name, array in attack.arrays.items()
    }
    model = with_parameters(_engine(attack, mode).model, arrays).cpu()
    with_one, without = (total(model, table) for table in tables(attack))
    return float((with_one - without).norm()) / (1 + MARGIN)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def control_flow(attack: Attack, mode: str) -> float:
    """0 if a round and a look at the scores go alike with and without the odd patient, else 2:
    exceptions, operations in their order, shapes and sizes of what is released.
    """
    model = _engine(attack, mode).model
    name, steps = MODES[mode]
    plan = PrivacyPlan(1.0, 1.0, 1.0, min(steps, 100_000), 1e-5, 1.0, 1.0, 1)
    there = attack.patients < attack.patients.max()
    seen = []
    for rows in (there, there | True, there):  # once for what is made once, whoever is there
        table = attack.features[rows], attack.targets[rows], plan
        more: dict[str, Any] = {
            "loss": attack.loss,
            "expected_persons": attack.slots,
            "patients": attack.patients[rows],
            "records_per_patient": attack.records,
        }
        with _Operations() as operations:
            try:
                result = train_round(
                    model, attack.arrays, *table, steps=2, learning_rate=1.0, engine=name, **more
                )
                scores = score_table(model, attack.arrays, *table, **more)
                said = f"{len(to_safetensors(result.arrays))} bytes, {len(scores)} scores"
            except Exception as error:  # noqa: BLE001 - any kind is an answer
                said = repr(error)
        seen.append((said, operations.names))
    return 2.0 if seen[1] != seen[2] else 0.0


# -- the search ------------------------------------------------------------------------------------

Measure = Callable[[Attack, str], float]
FORWARD: Mapping[str, Measure] = {"losses": loss_shift, "scores": score_shift}
MUTATED, CHANGED = 0.7, 0.15  # part of attacks that are mutations, and of their numbers


def search(
    family: str,
    mode: str = "traced",
    *,
    seed: int = 0,
    seconds: float = 2.0,
    most: int = 10**9,
    graphs: int = 4,
    measure: Measure = gradient_shift,
    alone: str = "",
    until: float = math.inf,
) -> Found:
    """The largest ratio of `measure` over attacks of a family, for so many seconds or attacks, on
    `graphs` different graphs: random numbers, and mutations of the best. What the self-check of an
    admission refuses does not count. `alone` as in `propose`. Ends early
    with a ratio above `until`.
    """
    rng = np.random.default_rng([seed, *family.encode()])
    shapes = [rng.random(SHAPE_GENES) for _ in range(graphs)]
    best, genes_of_best, ends = Found(0.0, None, 0), (shapes[0], rng.random(GENES)), 0.0
    for tried in range(most):
        if tried == graphs:  # those before it are for tracing and compiling
            ends = time.monotonic() + seconds
        elif tried > graphs and time.monotonic() > ends:
            break
        # the first on each graph is tame: the odd patient's gradient is whole and others' are 0
        numbers = rng.random(GENES) if tried >= graphs else np.zeros(GENES)
        genes = shapes[tried % graphs], numbers
        if tried >= graphs and rng.random() < MUTATED:
            changed = rng.random(GENES) < CHANGED
            genes = genes_of_best[0], np.where(changed, genes[1], genes_of_best[1])
        attack = propose(family, *genes, alone)
        best = best._replace(tried=tried + 1)
        try:
            ratio = measure(attack, mode)
            if ratio > 1:
                _admit(attack, mode)
        except GraphRefused as error:
            log.debug("an attack of %s was refused: %s", family, error)
            continue
        if ratio >= best.ratio * (1 - 1e-6):  # most are at the clip: walk on among these
            genes_of_best = genes
        if best.attack is None or ratio > best.ratio:
            best = Found(ratio, attack, tried + 1)
        if best.ratio > until:
            break
    return best


def _admit(attack: Attack, mode: str) -> None:
    """Raises GraphRefused if a node would not take the graph in."""
    model = with_parameters(_engine(attack, mode).model, attack.arrays)
    name, _ = MODES[mode]
    selfcheck.check(model, LOSSES[attack.loss], attack.slots, attack.records, name)


def families_of(mode: str) -> list[str]:
    """What is tried on an engine: the fall-back refuses dropout."""
    return [name for name in FAMILIES if mode != "hooks" or name != "dropout"]


def survey(engine: str, seconds: float, *, graphs: int = 2, seed: int = 0) -> dict[str, float]:
    """{"family.mode": largest ratio} of everything that a node with this engine runs, in about so
    many seconds and the time that it takes to trace and compile. `engine`: in `training.ENGINES`.
    """
    mode = "hooks" if engine == "hooks" else "traced"
    searches: dict[str, tuple[str, str, Measure]] = {
        f"{name}.{mode}": (name, mode, gradient_shift) for name in families_of(mode)
    }
    if engine != "hooks" and shutil.which("g++"):
        searches["together.compiled"] = ("together", "compiled", gradient_shift)
    for name, measure in FORWARD.items():
        searches[f"{name}.forward"] = ("rounding", mode, measure)
    searches[f"control_flow.{mode}"] = ("embedding", mode, control_flow)
    each = seconds / len(searches)
    return {
        key: search(*given[:2], seed=seed, seconds=each, graphs=graphs, measure=given[2]).ratio
        for key, given in searches.items()
    }
