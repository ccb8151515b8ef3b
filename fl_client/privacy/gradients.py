"""Gradients of single rows, by book-keeping on a model's graph. Knows nothing of clipping, noise
or patients: a row is one record.

The single-sample graph runs under vmap with a zero added to the output of every layer whose weights
are used there and nowhere else. The derivative by that zero is the layer's output gradient of each
row; with the layer's input it gives the row's weight gradient as factors, from which clipping.py
takes norms and clipped sums without a second backward pass and mostly without a gradient per row
ever existing (Bu et al. 2023, 2210.00038). Weights used in any other way, and those of which a
gradient per row is smaller than its factors, get one each. One row's tensors depend on one row by
construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fl_client.model.graph import GraphModel, Node
from fl_client.model.losses import Loss
from fl_client.privacy.clipping import Part


class Layer(NamedTuple):
    """A node whose gradients are kept as factors; numbers of its weight and bias among the trained
    parameters, None where there is none to train.
    """

    node: Node
    weight: int | None
    bias: int | None


class _Found(NamedTuple):
    """What a rule makes of a layer: (rule of clipping.py, tensors, facts) for weight and bias."""

    weight: tuple[str, tuple[Tensor, ...], tuple[Any, ...]] | None
    bias: tuple[str, tuple[Tensor, ...], tuple[Any, ...]]


def _vector(each: Tensor) -> tuple[str, tuple[Tensor, ...], tuple[Any, ...]]:
    return "vector", (each,), ()


def _positions(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1])  # [R, ..., D] -> [R, T, D]


def _as_factors(times: int, records: int, shape: Sequence[int]) -> bool:
    """Whether norms by T x T inner products take less than a gradient of `shape` for each row."""
    return times == 1 or 2 * (times * records) ** 2 < math.prod(shape)


def _linear(node: Node, shape: Any, given: Tensor, gradient: Tensor, records: int) -> _Found:
    left, right = _positions(gradient), _positions(given)
    if shape is None:
        return _Found(None, _vector(left.sum(1)))
    if _as_factors(left.shape[1], records, shape):
        return _Found(("factors", (left, right), ()), _vector(left.sum(1)))
    return _Found(_vector(left.mT @ right), _vector(left.sum(1)))


def _conv2d(node: Node, shape: Any, given: Tensor, gradient: Tensor, records: int) -> _Found:
    if gradient.dim() == 4:  # a sample without a batch dimension of its own
        given, gradient = given[:, None], gradient[:, None]
    rows = gradient.shape[0]
    output = gradient.flatten(3)  # [R, N, P, T]
    bias = _vector(output.sum((1, 3)))
    if shape is None:
        return _Found(None, bias)
    stride, padding, dilation = _how(node)
    if _as_factors(output.shape[1] * output.shape[3], records, shape):
        facts = (tuple(shape[2:]), stride, padding, dilation)
        return _Found(("patches", (gradient, given), facts), bias)
    patches = functional.unfold(given.flatten(0, 1), shape[2:], dilation, padding, stride)
    each = (output.flatten(0, 1) @ patches.mT).reshape(rows, -1, *shape).sum(1)
    return _Found(_vector(each), bias)


def _how(node: Node) -> list[tuple[int, int]]:
    """Stride, padding and dilation of a convolution, each for both directions."""
    named = [*node.arguments[3:6], *[1, 0, 1][len(node.arguments[3:6]) :]]
    return [(value, value) if isinstance(value, int) else (value[0], value[-1]) for value in named]


def _group_norm(node: Node, shape: Any, given: Tensor, gradient: Tensor, records: int) -> _Found:
    epsilon = node.arguments[4] if len(node.arguments) > 4 else 1e-5
    flat = functional.group_norm(given.flatten(0, 1), node.arguments[1], eps=epsilon)
    normal = flat.view_as(given)
    return _Found(_vector(_per_channel(gradient * normal)), _vector(_per_channel(gradient)))


def _per_channel(tensor: Tensor) -> Tensor:
    return tensor.flatten(3).sum((1, 3)) if tensor.dim() > 3 else tensor.sum(1)


def _layer_norm(node: Node, shape: Any, given: Tensor, gradient: Tensor, records: int) -> _Found:
    sizes = node.arguments[1]
    epsilon = node.arguments[4] if len(node.arguments) > 4 else 1e-5
    normal = functional.layer_norm(given, sizes, eps=epsilon)
    wide = (given.shape[0], -1, *sizes)
    both = ((gradient * normal).reshape(wide).sum(1), gradient.reshape(wide).sum(1))
    return _Found(*map(_vector, both))


# operation -> (where its weight and bias stand among its arguments, dimensions of the weight, how
# their gradients come from input and output)
_KEPT: Mapping[str, tuple[tuple[int, int], int | None, Callable[..., _Found]]] = {
    "linear.default": ((1, 2), 2, _linear),
    "conv2d.default": ((1, 2), 4, _conv2d),
    "group_norm.default": ((2, 3), 1, _group_norm),
    "layer_norm.default": ((2, 3), None, _layer_norm),
}


def _uses(model: GraphModel) -> dict[str, int]:
    """How often each node is used; the output once more."""
    uses: dict[str, int] = {model.output_node: 1}

    def count(argument: Any) -> None:
        if isinstance(argument, dict):
            uses[argument["node"]] = uses.get(argument["node"], 0) + 1
        elif isinstance(argument, list):
            for item in argument:
                count(item)

    for node in model.nodes:
        count(node.arguments)
    return uses


def kept_layers(model: GraphModel) -> dict[str, Layer]:
    """Node -> its layer, of those whose trained parameters are used there and nowhere else."""
    trained: dict[str, int] = {}
    for node, key in model.keys.items():
        if getattr(model, key).requires_grad:
            trained[node] = len(trained)
    uses, found = _uses(model), {}
    for node in model.nodes:
        if node.operation not in _KEPT:
            continue
        (places, dimensions, _), arguments = _KEPT[node.operation], node.arguments
        if node.operation == "conv2d.default" and len(arguments) > 6 and arguments[6] != 1:
            continue
        named = [arguments[p] if p < len(arguments) else None for p in places]
        names = [place["node"] if isinstance(place, dict) else None for place in named]
        ours = [n for n in names if n in trained]
        inputs = [a["node"] for a in arguments[:1] if isinstance(a, dict)]
        # a weight that is computed, an input that is a parameter, a shape that the rule is not for
        odd = any(n is not None and n not in model.keys for n in names)
        odd = odd or any(n in model.keys for n in inputs)
        for n, wanted in zip(names, (dimensions, None if dimensions is None else 1), strict=True):
            if n in model.keys and wanted is not None:
                odd = odd or getattr(model, model.keys[n]).dim() != wanted
        if ours and not odd and all(uses[n] == 1 for n in ours):
            weight, bias = (trained.get(n) if n is not None else None for n in names)
            found[node.name] = Layer(node, weight, bias)
    return found


class RowGradients:
    """Gradient tensors of single rows of one graph and loss.

    Called with (trained [..], frozen [..], x [R, ...], y [R], weight [R], added) it gives tensors
    [R, ...], of which `parts` says what they are, from the first call on. A row's loss is
    multiplied
    by its weight. `added` is `zeros(R)`. `records` rows of a patient follow each other: it decides
    alone how gradients are kept, not what they are.
    """

    def __init__(self, model: GraphModel, loss: Loss, records: int = 1):
        self.model, self.loss, self.records = model, loss, records
        self.layers = kept_layers(model)
        covered = {n for layer in self.layers.values() for n in (layer.weight, layer.bias)}
        self.trained = [n for n, key in model.keys.items() if getattr(model, key).requires_grad]
        self.frozen = [n for n in model.keys if n not in self.trained]
        self.free = [i for i in range(len(self.trained)) if i not in covered]
        self.parts: list[Part] = []
        self.shapes: dict[str, tuple[int, ...]] = {}  # of the kept nodes' outputs for one sample
        with torch.no_grad():
            own: dict[str, Tensor] = {n: getattr(model, key) for n, key in model.keys.items()}
            like = next(iter(own.values()))
            own[model.input_node] = like.new_empty((1, *model.input_shape))
            own = {n: v.to("meta") for n, v in own.items()}
            model.walk(own, self._measure)

    def _measure(self, node: Node, given: list[Any], made: Tensor) -> Tensor:
        if node.name in self.layers:
            self.shapes[node.name] = tuple(made.shape)
        return made

    def _times(self, name: str) -> int:
        """Positions of one row at which a linear layer or a convolution is used."""
        shape = self.shapes[name]
        linear = self.layers[name].node.operation == "linear.default"
        return math.prod(shape) // shape[-1 if linear else -3]

    @property
    def positions(self) -> int:
        """The most positions of a patient at which a layer's factors may be kept."""
        times = (self._times(n) for n in self.layers if "norm" not in self.layers[n].node.operation)
        return max(times, default=1) * self.records

    @property
    def held(self) -> int:
        """Numbers of the gradients per row that are kept for one row."""
        sizes = [getattr(self.model, self.model.keys[node]).shape for node in self.trained]
        total: int = sum(math.prod(sizes[i]) for i in self.free)
        for name, layer in self.layers.items():
            if layer.weight is not None and (
                "norm" in layer.node.operation
                or not _as_factors(self._times(name), self.records, sizes[layer.weight])
            ):
                total += math.prod(sizes[layer.weight])
            if layer.bias is not None:
                total += math.prod(sizes[layer.bias])
        return total

    @property
    def written(self) -> int:
        """Numbers of gradients per row that are written for one row: a weight that is used in
        several places gets one for each of them, and they are added.
        """
        uses, total = _uses(self.model), self.held
        for name in (self.trained[i] for i in self.free):
            size = math.prod(getattr(self.model, self.model.keys[name]).shape)
            total += (uses.get(name, 1) - 1) * size
        return total

    def zeros(self, rows: int, like: Tensor) -> dict[str, Tensor]:
        """Zeros [rows, *output of the node for one sample] for every kept node."""
        return {name: like.new_zeros((rows, *shape)) for name, shape in self.shapes.items()}

    def __call__(
        self,
        trained: Sequence[Tensor],
        frozen: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
        weight: Tensor,
        added: Mapping[str, Tensor],
    ) -> list[Tensor]:
        model, layers = self.model, self.layers
        fixed = dict(zip(self.frozen, frozen, strict=True))
        fixed |= dict(zip(self.trained, trained, strict=True))

        def of_one(
            zeros: Mapping[str, Tensor],
            own: Sequence[Tensor],
            sample: Tensor,
            target: Tensor,
            weight: Tensor,
        ) -> tuple[Tensor, dict[str, Tensor]]:
            every = {**fixed, **{self.trained[i]: v for i, v in zip(self.free, own, strict=True)}}
            inputs: dict[str, Tensor] = {}

            def visit(node: Node, given: list[Any], made: Tensor) -> Tensor:
                if node.name not in layers:
                    return made
                inputs[node.name] = given[0]
                return made + zeros[node.name]

            value = self.loss(
                model.walk({**every, model.input_node: sample[None]}, visit)[0], target
            )
            if value.dim() != 0:
                shape = tuple(value.shape)
                raise ValueError(f"the loss of one sample has shape {shape} and must be one number")
            return value * weight, inputs

        derivative = grad(of_one, argnums=(0, 1), has_aux=True)
        with sdpa_kernel(SDPBackend.MATH):  # vmap has no rule for the fused kernels
            (outputs, own), inputs = vmap(
                derivative, in_dims=(0, None, 0, 0, 0), randomness="different"
            )(dict(added), [trained[i] for i in self.free], x, y, weight)
        tensors: list[Tensor] = []
        parts: list[Part] = []

        def keep(i: int, rule: str, each: tuple[Tensor, ...], facts: tuple[Any, ...]) -> None:
            numbers = tuple(range(len(tensors), len(tensors) + len(each)))
            parts.append(Part(i, rule, numbers, facts))
            tensors.extend(each)

        for i, each in zip(self.free, own, strict=True):
            keep(i, *_vector(each))
        for name, layer in layers.items():
            shape = None if layer.weight is None else tuple(trained[layer.weight].shape)
            rule = _KEPT[layer.node.operation][2]
            found = rule(layer.node, shape, inputs[name], outputs[name], self.records)
            if layer.weight is not None and found.weight is not None:
                keep(layer.weight, *found.weight)
            if layer.bias is not None:
                keep(layer.bias, *found.bias)
        self.parts = parts
        return tensors
