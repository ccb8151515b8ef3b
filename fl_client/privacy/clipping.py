"""Sums of clipped per-sample gradients, by book-keeping on a model's graph. Knows nothing of noise,
steps or records.

The single-sample graph runs under vmap with a zero added to the output of every layer whose weights
are used there and nowhere else. The derivative by that zero is the layer's output gradient of each
sample; with the layer's input it gives the norm of the sample's weight gradient and, once every
sample's clipping factor is known, the clipped sum, without a second backward pass and mostly
without a gradient per sample ever existing (Bu et al. 2023, 2210.00038). Weights used in any other
way get ordinary per-sample gradients. One patient's gradient depends on one patient by
construction.

The function is traced once into plain tensor operations and, where a job is long enough to pay for
it and a C++ compiler is there, compiled. Either is kept as long as the process lives, by everything
that it depends on.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch._inductor
from torch import Tensor
from torch.func import grad, vmap
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fl_client.model.graph import OPERATIONS, GraphModel, _resolve, _without_dropout

KEEP = 8  # summers at a time
# Compiling pays for long jobs alone. Fitted to four networks of 5 thousand to 11 million weights on
# 2 cores, where it takes 10 to 50 s and saves a quarter of a step's time, and 3 microseconds for
# each of its 200 to 2,500 operations.
COMPILE_S, COMPILE_OPERATION_S = 8.0, 0.015
SAVED_PART, SAVED_OPERATION_S = 0.25, 3e-6
Loss = Callable[[Tensor, Tensor], Tensor]
# (squared norms [B], (weights [B], which count [B]) -> their weighted sum, in the parameter's
# shape)
Part = tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]


def _pick(good: Tensor, tensor: Tensor) -> Tensor:
    """Zeros in the rows that do not count: 0 * NaN would be NaN."""
    return torch.where(good.view(-1, *[1] * (tensor.dim() - 1)), tensor, 0.0)


def _scaled(c: Tensor, good: Tensor, tensor: Tensor) -> Tensor:
    return _pick(good, tensor * c.view(-1, *[1] * (tensor.dim() - 1)))


def _matrix(left: Tensor, right: Tensor) -> Part:
    """Gradients sum_t left[b,t] x right[b,t] of samples b, left [B, T, P], right [B, T, D]; the sum
    is [P, D].

    Norms by the smaller of two ways: T x T inner products ("ghost"), or the P x D matrix of each
    sample.
    """
    times, outputs, inputs = left.shape[1], left.shape[2], right.shape[2]
    if times == 1:
        one, other = left[:, 0], right[:, 0]
        squared = one.square().sum(1) * other.square().sum(1)
        return squared, lambda c, good: _scaled(c, good, one).t() @ _pick(good, other)
    if 2 * times * times < outputs * inputs:
        squared = ((left @ left.mT) * (right @ right.mT)).sum((1, 2))
        return (
            squared,
            lambda c, good: (
                _scaled(c, good, left).reshape(-1, outputs).t()
                @ _pick(good, right).reshape(-1, inputs)
            ),
        )
    return _vector(left.mT @ right)


def _vector(each: Tensor) -> Part:
    """Gradients that are there per sample, [B, *shape]."""
    flat = each.reshape(each.shape[0], -1)
    return flat.square().sum(
        1
    ), lambda c, good: _scaled(c, good, flat).sum(0).reshape(each.shape[1:])


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1])  # [B, ..., D] -> [B, T, D]


def _linear(
    arguments: list[Any], shape: Any, given: Tensor, gradient: Tensor
) -> tuple[Part | None, Part]:
    left = _rows(gradient)
    return _matrix(left, _rows(given)) if shape else None, _vector(left.sum(1))


def _conv2d(
    arguments: list[Any], shape: Any, given: Tensor, gradient: Tensor
) -> tuple[Part | None, Part]:
    given, output = given.flatten(0, 1), gradient.flatten(0, 1)  # the sample's own batch of one
    gradient = output.flatten(2)  # [B, P, T]
    bias = _vector(gradient.sum(2))
    if shape is None:
        return None, bias
    stride, padding, dilation = (
        _pair(a) for a in [*arguments[3:6], *[1, 0, 1][len(arguments[3:6]) :]]
    )
    patches = functional.unfold(given, shape[2:], dilation, padding, stride)  # [B, D, T]
    times = gradient.shape[2]
    if 2 * times * times >= shape[0] * patches.shape[1]:
        squared, total = _vector(gradient @ patches.mT)
        return (squared, lambda c, good: total(c, good).reshape(shape)), bias
    squared = ((gradient.mT @ gradient) * (patches.mT @ patches)).sum((1, 2))

    def weighted(c: Tensor, good: Tensor) -> Tensor:
        # the weight gradient of the whole batch, by the kernel that an ordinary backward pass uses
        summed: Tensor = torch.ops.aten.convolution_backward(
            _scaled(c, good, output),
            _pick(good, given),
            given.new_empty(shape),
            None,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            1,
            [False, True, False],
        )[1]
        return summed

    return (squared, weighted), bias


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return value[0], value[-1]


def _group_norm(
    arguments: list[Any], shape: Any, given: Tensor, gradient: Tensor
) -> tuple[Part | None, Part]:
    given, gradient = given.flatten(0, 1), gradient.flatten(0, 1)  # [B, C, ...]
    epsilon = arguments[4] if len(arguments) > 4 else 1e-5
    normal = functional.group_norm(given, arguments[1], eps=epsilon)
    return _vector(_per_channel(gradient * normal)), _vector(_per_channel(gradient))


def _per_channel(tensor: Tensor) -> Tensor:
    return tensor.flatten(2).sum(2) if tensor.dim() > 2 else tensor


def _layer_norm(
    arguments: list[Any], shape: Any, given: Tensor, gradient: Tensor
) -> tuple[Part | None, Part]:
    sizes = arguments[1]
    epsilon = arguments[4] if len(arguments) > 4 else 1e-5
    normal = functional.layer_norm(given, sizes, eps=epsilon)
    wide = (given.shape[0], -1, *sizes)
    return _vector((gradient * normal).reshape(wide).sum(1)), _vector(gradient.reshape(wide).sum(1))


# operation -> (where its weight and bias stand among its arguments, how their gradients come from
# input and output)
_KEPT: Mapping[str, tuple[tuple[int, int], Callable[..., tuple[Part | None, Part]]]] = {
    "linear.default": ((1, 2), _linear),
    "conv2d.default": ((1, 2), _conv2d),
    "group_norm.default": ((2, 3), _group_norm),
    "layer_norm.default": ((2, 3), _layer_norm),
}


def _kept_nodes(model: GraphModel) -> dict[str, tuple[int | None, int | None]]:
    """Node -> (weight, bias), numbers of parameters that are trained and used in this node alone;
    None: there is none.
    """
    numbers = {node: i for i, node in enumerate(model._keys)}
    uses: dict[str, int] = {model._output: 1}

    def count(argument: Any) -> None:
        if isinstance(argument, dict):
            uses[argument["node"]] = uses.get(argument["node"], 0) + 1
        elif isinstance(argument, list):
            for item in argument:
                count(item)

    for _, _, arguments in model._nodes:
        count(arguments)
    found = {}
    for name, operation, arguments in model._nodes:
        if operation not in _KEPT or (
            operation == "conv2d.default" and len(arguments) > 6 and arguments[6] != 1
        ):
            continue
        places = [arguments[p] if p < len(arguments) else None for p in _KEPT[operation][0]]
        names: list[str | None] = [
            place["node"] if isinstance(place, dict) else None for place in places
        ]
        trained = [
            n
            for n in names
            if n is not None and n in numbers and getattr(model, model._keys[n]).requires_grad
        ]
        inputs = [a["node"] for a in arguments[:1] if isinstance(a, dict)]
        fixed = any(n is not None and n not in numbers for n in names) or any(
            n in numbers for n in inputs
        )
        if trained and not fixed and all(uses[n] == 1 for n in trained):
            weight, bias = (numbers[n] if n is not None and n in trained else None for n in names)
            found[name] = (weight, bias)
    return found


def clipped_sum(
    model: GraphModel, loss: Loss, grouped: bool = False
) -> Callable[..., list[Tensor]]:
    """The function (parameters, x [B, ...], y [B], mask [B], clip norm, added) -> sums over B of
    clipped gradients.

    `grouped`: a row is a patient with K records, x [B, K, ...], y [B, K, 2] of targets and weights;
    the gradient that is
    clipped is that of the weighted sum of the patient's losses. It is then made per patient,
    without book-keeping.

    `parameters` are all of the model's, in its order; the sums are of those that are trained, in
    the same order. Rows
    whose mask is False, or whose gradient is not finite, count as nothing. `added` is
    `zeros_to_add(...)`.
    """
    kept, keys = {} if grouped else _kept_nodes(model), list(model._keys.items())
    covered = {n for pair in kept.values() for n in pair if n is not None}
    trained = [i for i, (_, key) in enumerate(keys) if getattr(model, key).requires_grad]
    free = [i for i in trained if i not in covered]
    arguments_of = {name: list(arguments) for name, _, arguments in model._nodes}
    operation_of = {name: operation for name, operation, _ in model._nodes}
    training = model.training

    def of_sums(
        values: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
        mask: Tensor,
        clip: Tensor,
        added: Mapping[str, Tensor],
    ) -> list[Tensor]:
        def of_one(
            zeros: Mapping[str, Tensor], own: Sequence[Tensor], sample: Tensor, target: Tensor
        ) -> tuple[Tensor, dict[str, Tensor]]:
            every: dict[str, Any] = {
                node: value for (node, _), value in zip(keys, values, strict=True)
            }
            every |= {keys[i][0]: value for i, value in zip(free, own, strict=True)}
            every[model._input] = sample[None]
            inputs = {}
            for name, operation, arguments in model._nodes:
                given = [_resolve(argument, every) for argument in arguments]
                result = OPERATIONS[operation](
                    *(given if training else _without_dropout(operation, given))
                )
                if name in kept:
                    inputs[name] = given[0]
                    result = result + zeros[name]
                every[name] = result
            value = loss(every[model._output][0], target)
            if value.dim() != 0:
                raise ValueError(
                    f"the loss of one sample has shape {tuple(value.shape)} and must be one number"
                )
            return value, inputs

        def of_patient(
            zeros: Mapping[str, Tensor], own: Sequence[Tensor], samples: Tensor, targets: Tensor
        ) -> tuple[Tensor, dict[str, Tensor]]:
            values = vmap(lambda s, t: of_one(zeros, own, s, t)[0], randomness="different")(
                samples, targets[:, 0]
            )
            return (values * targets[:, 1]).sum(), {}

        derivative = grad(of_patient if grouped else of_one, argnums=(0, 1), has_aux=True)
        with sdpa_kernel(
            SDPBackend.MATH
        ):  # vmap has no rule for the fused kernels and would go sample by sample
            (outputs, own), inputs = vmap(
                derivative, in_dims=(0, None, 0, 0), randomness="different"
            )(dict(added), [values[i] for i in free], x, y)
        parts: dict[int, Part] = {i: _vector(each) for i, each in zip(free, own, strict=True)}
        for name, (weight, bias) in kept.items():
            rule = _KEPT[operation_of[name]][1]
            shape = None if weight is None else tuple(values[weight].shape)
            of_weight, of_bias = rule(arguments_of[name], shape, inputs[name], outputs[name])
            if weight is not None and of_weight is not None:
                parts[weight] = of_weight
            if bias is not None:
                parts[bias] = of_bias
        norm = torch.stack([squared for squared, _ in parts.values()]).sum(0).sqrt()
        good = mask & norm.isfinite()
        c = torch.where(good, (clip / (norm + 1e-6)).clamp(max=1.0), 0.0)  # as Opacus clips
        return [parts[i][1](c, good) for i in trained]

    return of_sums


def zeros_to_add(model: GraphModel, x: Tensor) -> dict[str, Tensor]:
    """Zeros [B, *output of the node for one sample] for every kept node, for samples like x [B,
    ...].
    """
    kept, shapes = _kept_nodes(model), {}
    with torch.no_grad():
        every: dict[str, Any] = {node: getattr(model, key) for node, key in model._keys.items()}
        every[model._input] = torch.zeros_like(x[:1]) if len(x) else x.new_zeros((1, *x.shape[1:]))
        for name, operation, arguments in model._nodes:
            every[name] = OPERATIONS[operation](
                *(_resolve(argument, every) for argument in arguments)
            )
            if name in kept:
                shapes[name] = every[name].shape
    return {name: x.new_zeros((len(x), *shape)) for name, shape in shapes.items()}


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
        model._nodes,
        model._keys,
        model._input,
        model._output,
        model.input_shape,
        parameters,
        model.training,
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()


class Sums(Protocol):
    """What an engine gives: clipped sums for batches of exactly `rows`."""

    rows: int
    everybody: Tensor  # bool [rows], all True
    compiled: bool

    def sum(self, theta: Tensor, x: Tensor, y: Tensor, mask: Tensor, clip: Tensor) -> Tensor:
        """Sum [P] of the clipped gradients of the rows in `mask`."""


class Summer:
    """Clipped sums of one graph, for batches of exactly `rows` samples, traced, and compiled if
    that pays for `steps`.

    Parameters are one flat vector [P] of those that are trained, in the model's order. With
    `records`, a row is a
    patient with so many of them (see `clipped_sum`).
    """

    def __init__(
        self, model: GraphModel, loss: Loss, rows: int, steps: int, records: int | None = None
    ):
        device = next(model.parameters()).device
        self.rows = rows
        trained = [p for p in model.parameters() if p.requires_grad]
        self._sizes, self._shapes = [p.numel() for p in trained], [p.shape for p in trained]
        per_row = () if records is None else (records,)
        source = torch.Generator().manual_seed(1)
        x = torch.randn((rows, *per_row, *model.input_shape), generator=source).to(device)
        y = (
            torch.randint(0, 2, (rows, *per_row, 2) if per_row else (rows,), generator=source)
            .float()
            .to(device)
        )
        self.everybody, mask = (torch.ones(rows, dtype=torch.bool, device=device) for _ in range(2))
        mask[1:2], x[2:3] = False, torch.nan  # what does not count is compared too
        added = {} if per_row else zeros_to_add(model, x)
        # frozen ones are inputs too: a traced constant would be the first job's
        self._frozen = [p.detach() for p in model.parameters() if not p.requires_grad]
        is_trained = [p.requires_grad for p in model.parameters()]
        theta = torch.cat([p.detach().reshape(-1) for p in trained])

        def of_sum(
            theta: Tensor, x: Tensor, y: Tensor, mask: Tensor, clip: Tensor, *others: Tensor
        ) -> Tensor:
            pieces = iter(
                p.view(s)
                for p, s in zip(torch.split(theta, self._sizes), self._shapes, strict=True)
            )
            rest = iter(others)
            values = [next(pieces) if is_ours else next(rest) for is_ours in is_trained]
            zeros = dict(zip(added, rest, strict=True))
            sums = clipped_sum(model, loss, bool(per_row))(values, x, y, mask, clip, zeros)
            return torch.cat([each.reshape(-1) for each in sums])

        arguments = (
            theta,
            x,
            y,
            mask,
            torch.ones((), device=device),
            *self._frozen,
            *added.values(),
        )
        self._expected = [(each.shape, each.dtype) for each in arguments[:5]]
        graph, arguments = (
            traced(of_sum, arguments, len(added)),
            arguments[: len(arguments) - len(added)],
        )
        self.pays_from = pays_from(graph, arguments)
        faster = compiled(graph, arguments) if steps >= self.pays_from else None
        self.compiled, self._sum = faster is not None, faster or graph
        if steps >= self.pays_from and not self.compiled:
            self.pays_from = math.inf  # one attempt is enough

    def sum(self, theta: Tensor, x: Tensor, y: Tensor, mask: Tensor, clip: Tensor) -> Tensor:
        """Sum [P] of the clipped gradients of the rows in `mask`. Raises ValueError if a shape or a
        type is another.
        """
        given = (theta, x, y, mask, clip)
        # compiled code reads what it was compiled for, whatever is there
        if [(each.shape, each.dtype) for each in given] != self._expected or not all(
            each.is_contiguous() for each in given
        ):
            raise ValueError(
                f"the tensors {[tuple(each.shape) for each in given]} do not fit {self._expected}"
            )
        return self._sum(*given, *self._frozen)


def traced(
    function: Callable[..., Tensor], arguments: Sequence[Tensor], zeros: int = 0
) -> GraphModule:
    """`function` as plain tensor operations, for tensors like these; its last `zeros` arguments are
    taken out.
    """
    graph = make_fx(function)(*arguments)
    _tidy(graph, zeros)
    return graph


def pays_from(graph: GraphModule, arguments: Sequence[Tensor]) -> float:
    """Calls from which compiling is likely to save more time than it takes; runs the graph.
    Infinity: no compiler.
    """
    on_gpu = arguments[0].device.type == "cuda"
    if not on_gpu and shutil.which("g++") is None:
        return math.inf
    seconds, operations = math.inf, len(graph.graph.nodes)
    for _ in range(2):  # the first is slow
        started = time.perf_counter()
        graph(*(each.clone() for each in arguments))
        if on_gpu:
            torch.cuda.synchronize()
        seconds = min(seconds, time.perf_counter() - started)
    return (COMPILE_S + COMPILE_OPERATION_S * operations) / (
        SAVED_PART * seconds + SAVED_OPERATION_S * operations
    )


def compiled(graph: GraphModule, arguments: Sequence[Tensor]) -> Callable[..., Tensor] | None:
    """A traced function compiled for tensors like these; None if this machine cannot, or not to the
    same numbers.

    The function then runs traced: slower, but a job that was paid for runs.
    """
    try:
        # Without torch.compile's guards, and called from C++: both take as long as a small model
        # itself. In the given layout: another one makes the copies of a large network's weights as
        # slow as its convolutions.
        settings = {
            "cpp_wrapper": arguments[0].device.type == "cpu",
            "layout_optimization": False,
            "fallback_random": True,
        }
        with torch._inductor.config.patch(settings):
            copies: list[Any] = [each.clone() for each in arguments]
            artifact = torch._inductor.standalone_compile(
                graph, copies, dynamic_shapes="from_example_inputs"
            )
            _compare(
                artifact, graph, arguments
            )  # a compiler's complaint, too, may come as late as here
    except Exception as error:  # noqa: BLE001 - torch raises many kinds; all mean the same here
        first = (str(error).splitlines() or [type(error).__name__])[0]
        logging.getLogger(__name__).warning("not compiled, so slower: %s", first[:200])
        return None
    return artifact


def _compare(
    artifact: Callable[..., Tensor], graph: GraphModule, arguments: Sequence[Tensor]
) -> None:
    """Raises RuntimeError if they differ by more than rounding, dropout drawn alike."""
    results, device = [], arguments[0].device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for function in (artifact, graph):
            torch.manual_seed(0)
            results.append(function(*(each.clone() for each in arguments)).double())
    found, expected = results
    if not float((found - expected).norm()) <= 1e-3 * float(expected.norm()):
        raise RuntimeError("compiled, it gives other numbers")


_SUMMERS: OrderedDict[tuple[Any, ...], Summer] = OrderedDict()


def summer(
    model: GraphModel, loss: Loss, rows: int, steps: int, records: int | None = None
) -> Summer:
    """The summer for a job of `steps` steps; made once per graph, loss, size and device, and again
    where compiling pays.
    """
    device = next(model.parameters()).device
    key = (_signature(model), loss, rows, records, device)
    found = _SUMMERS.get(key)
    if found is None or (not found.compiled and steps >= found.pays_from):
        found = _SUMMERS[key] = Summer(model, loss, rows, steps, records)
        while len(_SUMMERS) > KEEP:
            _SUMMERS.popitem(last=False)
    _SUMMERS.move_to_end(key)
    found._frozen = [p.detach() for p in model.parameters() if not p.requires_grad]
    return found
