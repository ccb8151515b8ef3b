"""Clipped sums as plain tensor operations: traced once, compiled where that pays, kept. Knows
nothing of records, noise or steps.

Rows' gradients (gradients.py) and their clipped sum (clipping.py) are two functions with tensors in
memory between them: the numbers that are measured are then the numbers that are summed, whatever a
compiler would rather compute twice. Either function is traced into plain tensor operations and, in
a job that is long enough to pay for it and where there is a C++ compiler, compiled. Both are kept
as long as the process lives, by everything that they depend on.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch._inductor
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from fl_client.model.graph import GraphModel
from fl_client.model.losses import Loss
from fl_client.privacy.clipping import clipped_sum
from fl_client.privacy.gradients import RowGradients

KEEP = 8  # engines at a time
# Compiling pays for long jobs alone. Fitted to four networks of 5 thousand to 11 million weights on
# 2 cores, where it takes 10 to 50 s and saves a quarter of a step's time, and 3 microseconds for
# each of its 200 to 2,500 operations.
COMPILE_S, COMPILE_OPERATION_S = 8.0, 0.015
SAVED_PART, SAVED_OPERATION_S = 0.25, 3e-6


class ClippedSums(Protocol):
    """What an engine gives: clipped sums over exactly `slots` patients of `records` rows each.

    Parameters are one flat vector [P] of those that are trained, in the model's order, and a list
    of
    those that are not. x [slots * records, ...], y and weight [slots * records], mask [slots].
    """

    slots: int
    records: int
    compiled: bool

    def rows(
        self, theta: Tensor, frozen: Sequence[Tensor], x: Tensor, y: Tensor, weight: Tensor
    ) -> list[Tensor]:
        """The rows' gradient tensors, [slots * records, ...] each."""

    def sum(
        self,
        theta: Tensor,
        frozen: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
        weight: Tensor,
        mask: Tensor,
        clip: Tensor,
    ) -> Tensor:
        """Sum, float64 [P], of the clipped gradients of the patients in `mask`."""


def _tidy(module: GraphModule, zeros: int) -> None:
    """Take out the last `zeros` inputs with their additions, whose derivatives are there by now,
    and what does nothing.
    """
    aten = torch.ops.aten
    nothing = (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default)
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    added = inputs[len(inputs) - zeros :]
    for node in list(module.graph.nodes):
        if node.target in nothing or (node.target is aten.add.Tensor and node.args[1] in added):
            node.replace_all_uses_with(node.args[0])
    module.graph.eliminate_dead_code()
    for node in added:
        module.graph.erase_node(node)
    module.recompile()


def _signature(model: GraphModel) -> str:
    """Everything about a graph that a traced function depends on."""
    parameters = [(key, tuple(p.shape), p.requires_grad) for key, p in model.named_parameters()]
    facts = (
        model.nodes,
        model.keys,
        model.input_node,
        model.output_node,
        model.input_shape,
        parameters,
        model.training,
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()


class BookKeeping:
    """Clipped sums of one graph by book-keeping; traced, and compiled if that pays for `steps`."""

    def __init__(self, model: GraphModel, loss: Loss, slots: int, records: int, steps: int):
        self.slots, self.records = slots, records
        trained = [p for p in model.parameters() if p.requires_grad]
        sizes, shapes = [p.numel() for p in trained], [p.shape for p in trained]
        of_rows = RowGradients(model, loss, records)
        self.parts = of_rows.parts
        rows, device = slots * records, trained[0].device
        x, y, weight, mask = made_up(model, loss, slots, records, device)
        mask[1:2], x[2 * records : 3 * records] = False, torch.nan  # what does not count, too
        theta = torch.cat([p.detach().reshape(-1) for p in trained])
        # frozen ones are inputs too: a traced constant would be the first job's
        frozen = frozen_of(model)
        added = of_rows.zeros(rows, x)

        def rows_function(
            theta: Tensor, x: Tensor, y: Tensor, weight: Tensor, *more: Tensor
        ) -> Any:
            pieces = torch.split(theta, sizes)
            own = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
            fixed, zeros = more[: len(frozen)], dict(zip(added, more[len(frozen) :], strict=True))
            return tuple(of_rows(own, fixed, x, y, weight, zeros))

        arguments = (theta, x, y, weight, *frozen, *added.values())
        self._expected = [(each.shape, each.dtype) for each in arguments[: 4 + len(frozen)]]
        first = traced(rows_function, arguments, len(added))
        arguments = arguments[: len(arguments) - len(added)]
        tensors, self.parts = first(*arguments), of_rows.parts

        def sum_function(mask: Tensor, clip: Tensor, *tensors: Tensor) -> Tensor:
            return clipped_sum(self.parts, tensors, mask, clip)

        clip = torch.ones((), device=device)
        summed = (mask, clip, *tensors)
        second = traced(sum_function, summed)
        if len(second(*summed)) != len(theta):
            raise ValueError("the gradients are not one for each trained number")
        self.pays_from = pays_from([(first, arguments), (second, summed)])
        self._rows: Callable[..., Any] = first
        self._sum: Callable[..., Tensor] = second
        faster = None
        if steps >= self.pays_from:
            faster = compiled([(first, arguments), (second, summed)])
            if (
                faster is not None
                and rows_depend_on_others(
                    faster[0],
                    slots,
                    theta,
                    frozen,
                    *made_up(model, loss, slots, records, device)[:3],
                )
                is not None
            ):
                logging.getLogger(__name__).warning("not compiled, so slower: rows mix")
                faster = None
            if faster is None:
                self.pays_from = math.inf  # one attempt is enough
            else:
                self._rows, self._sum = faster
        self.compiled = faster is not None

    def rows(
        self, theta: Tensor, frozen: Sequence[Tensor], x: Tensor, y: Tensor, weight: Tensor
    ) -> list[Tensor]:
        """As ClippedSums. Raises ValueError if a shape or a type is another."""
        given = (theta, x, y, weight, *frozen)
        # compiled code reads what it was compiled for, whatever is there
        if [(each.shape, each.dtype) for each in given] != self._expected or not all(
            each.is_contiguous() for each in given
        ):
            found = [tuple(each.shape) for each in given]
            raise ValueError(f"the tensors {found} do not fit {self._expected}")
        return list(self._rows(*given))

    def sum(
        self,
        theta: Tensor,
        frozen: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
        weight: Tensor,
        mask: Tensor,
        clip: Tensor,
    ) -> Tensor:
        """As ClippedSums. Raises ValueError if a shape or a type is another."""
        if (mask.shape, mask.dtype, clip.shape) != ((self.slots,), torch.bool, ()):
            raise ValueError(f"mask {tuple(mask.shape)} and clip do not fit {self.slots} slots")
        return self._sum(mask, clip, *self.rows(theta, frozen, x, y, weight))


def frozen_of(model: GraphModel) -> list[Tensor]:
    """The parameters that are not trained, in the model's order."""
    return [p.detach() for p in model.parameters() if not p.requires_grad]


def made_up(
    model: GraphModel, loss: Loss, slots: int, records: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, y, weight and mask of made-up patients, the same for everybody."""
    source, rows = torch.Generator().manual_seed(1), slots * records
    x = torch.randn((rows, *model.input_shape), generator=source)
    target = loss.target(model.output_shape)
    y = torch.randint(0, 2, (rows, *target), generator=source).float()
    weight = torch.full((rows,), 1 / records)
    mask = torch.ones(slots, dtype=torch.bool)
    return x.to(device), y.to(device), weight.to(device), mask.to(device)


def traced(
    function: Callable[..., Any], arguments: Sequence[Tensor], zeros: int = 0
) -> GraphModule:
    """`function` as plain tensor operations, for tensors like these; its last `zeros` arguments are
    taken out.
    """
    # on fake tensors: nothing is computed twice, and no pass is held in memory as a whole
    graph = make_fx(function, tracing_mode="fake")(*arguments)
    _tidy(graph, zeros)
    return graph


Stage = tuple[GraphModule, Sequence[Tensor]]  # a traced function and tensors that fit it


def pays_from(stages: Sequence[Stage]) -> float:
    """Calls from which compiling these is likely to save more time than it takes; runs them.
    Infinity: no compiler.
    """
    on_gpu = stages[0][1][0].device.type == "cuda"
    if not on_gpu and shutil.which("g++") is None:
        return math.inf
    seconds, operations = math.inf, sum(len(graph.graph.nodes) for graph, _ in stages)
    for _ in range(2):  # the first is slow
        started = time.perf_counter()
        for graph, arguments in stages:
            graph(*arguments)
        if on_gpu:
            torch.cuda.synchronize()
        seconds = min(seconds, time.perf_counter() - started)
    return (COMPILE_S + COMPILE_OPERATION_S * operations) / (
        SAVED_PART * seconds + SAVED_OPERATION_S * operations
    )


def compiled(stages: Sequence[Stage]) -> list[Callable[..., Any]] | None:
    """Traced functions compiled for tensors like these; None if this machine cannot, or not to the
    same numbers.

    They then run traced: slower, but a job that was paid for runs.
    """
    # Without torch.compile's guards, and called from C++: both take as long as a small model
    # itself. In the given layout: another one makes the copies of a large network's weights as slow
    # as its convolutions.
    settings = {
        "cpp_wrapper": stages[0][1][0].device.type == "cpu",
        "layout_optimization": False,
        "fallback_random": True,
    }
    artifacts: list[Callable[..., Any]] = []
    try:
        for graph, arguments in stages:
            with torch._inductor.config.patch(settings):
                copies: list[Any] = [each.clone() for each in arguments]
                artifact = torch._inductor.standalone_compile(
                    graph, copies, dynamic_shapes="from_example_inputs"
                )
                # a compiler's complaint, too, may come as late as here
                _compare(artifact, graph, arguments)
                artifacts.append(artifact)
    except Exception as error:  # noqa: BLE001 - torch raises many kinds; all mean the same here
        first = (str(error).splitlines() or [type(error).__name__])[0]
        logging.getLogger(__name__).warning("not compiled, so slower: %s", first[:200])
        return None
    return artifacts


def _compare(artifact: Callable[..., Any], graph: GraphModule, arguments: Sequence[Tensor]) -> None:
    """Raises RuntimeError if they differ by more than rounding, dropout drawn alike."""
    results = []
    for function in (artifact, graph):
        made = _alike(function, arguments)
        results.append(torch.cat([each.reshape(-1).double() for each in made]))
    found, expected = results
    finite = expected.isfinite()
    far = (found - expected)[finite].norm()
    if not torch.equal(finite, found.isfinite()) or not float(far) <= 1e-3 * float(
        expected[finite].norm()
    ):
        raise RuntimeError("compiled, it gives other numbers")


def _alike(function: Callable[..., Any], arguments: Sequence[Tensor]) -> list[Tensor]:
    """A function's tensors, with dropout that is the same at every call."""
    device = arguments[0].device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        made = function(*(each.clone() for each in arguments))
    return [made] if isinstance(made, Tensor) else list(made)


# what other patients' records may hold
CONTENTS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.zeros_like,
    lambda x: -7.0 * x.flip(-1),
    lambda x: torch.full_like(x, 1e30),
    lambda x: torch.full_like(x, torch.nan),
)


def rows_depend_on_others(
    rows: Callable[..., Any],
    patients: int,
    theta: Tensor,
    frozen: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    weight: Tensor,
) -> int | None:
    """The number of a patient whose rows' tensors change, be it in their last bit, where the
    records
    of others do; None if this machine's kernels keep them apart, as slots.py takes for granted.

    `rows` is called with (theta, x, y, weight, *frozen).
    """
    before = _alike(rows, (theta, x, y, weight, *frozen))
    each = len(x) // patients
    for odd in (0, 1):
        theirs = (torch.arange(len(x), device=x.device) // each) % 2 == odd
        for content in CONTENTS:
            changed = x.clone()
            flipped = torch.where(theirs.view(-1, *[1] * (y.dim() - 1)), 1 - y, y)
            changed[theirs] = content(x)[theirs]
            after = _alike(rows, (theta, changed, flipped, weight, *frozen))
            for one, other in zip(before, after, strict=True):
                one, other = one[~theirs].flatten(1), other[~theirs].flatten(1)
                same = (one == other) | (one.isnan() & other.isnan())
                if not same.all():
                    moved = torch.arange(len(x), device=x.device)[~theirs][~same.all(1)]
                    return int(moved[0]) // each
    return None


_ENGINES: OrderedDict[tuple[Any, ...], BookKeeping] = OrderedDict()


def book_keeping(
    model: GraphModel, loss: Loss, slots: int, records: int, steps: int
) -> BookKeeping:
    """The engine for a job of `steps` steps; made once per graph, loss, size and device, and again
    where compiling pays.
    """
    device = next(model.parameters()).device
    key = (_signature(model), loss, slots, records, device)
    found = _ENGINES.get(key)
    if found is None or (not found.compiled and steps >= found.pays_from):
        found = _ENGINES[key] = BookKeeping(model, loss, slots, records, steps)
        while len(_ENGINES) > KEEP:
            _ENGINES.popitem(last=False)
    _ENGINES.move_to_end(key)
    return found
