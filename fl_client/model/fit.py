"""Does a model fit what it is to be trained for: loss, last step, inputs? Pure; asked by
the buyer before a quote and by every node at admission. Knows nothing of privacy or jobs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fl_client.errors import GraphRefused
from fl_client.model.graph import GraphModel, Node, parse_graph
from fl_client.model.losses import LOSSES, Shape

# these only move numbers about, so that what stands before them is still a model's last step
_MOVES = frozenset(
    "dropout.default flatten.using_ints unflatten.int view.default reshape.default "
    "contiguous.default permute.default transpose.int unsqueeze.default squeeze.dim "
    "expand.default select.int slice.Tensor".split()
)
_BOUNDED = ("clamp.default", "hardtanh.default")  # a hardsigmoid, written out, ends in one


def ending_problem(graph: bytes | GraphModel, loss: str) -> str | None:
    """Why a model must not be trained by `loss` as it ends, and what to do; None if it may.

    A sigmoid before a binary loss, a softmax before cross-entropy: the loss applies both itself.
    Views, squeezes and dropout after it are looked through. `graph` is graph.json or what
    `load_model` made of it. Raises GraphRefused for bytes that are no graph.
    """
    if isinstance(graph, GraphModel):
        nodes, last = graph.nodes, graph.output_node
    else:
        spec = parse_graph(graph)
        nodes, last = [Node(*node) for node in spec["nodes"]], spec["output"]
    node = _last_step({node.name: node for node in nodes}, last)
    if node is None:
        return None
    known = LOSSES.get(loss)
    why = known.endings.get(node.operation) if known else None
    if known and node.operation in _BOUNDED:
        low = node.arguments[1] if len(node.arguments) > 1 else -1.0
        if isinstance(low, int | float) and low >= 0:
            why = why or known.bounded
    if not why:
        return None
    what = node.operation.split(".")[0]
    return (
        f"the model ends in {what} (node {node.name!r}), but {loss} takes what comes before it: "
        f"{why}; take the {what} away"
    )


def _last_step(nodes: Mapping[str, Node], name: str) -> Node | None:
    """The node that makes the output's numbers; None where it is the input or a parameter."""
    node = nodes.get(name)
    while node is not None and node.operation in _MOVES:
        first: Any = node.arguments[0] if node.arguments else None
        node = nodes.get(first["node"]) if isinstance(first, dict) else None
    return node


def check_loss(model: GraphModel, loss: str) -> None:
    """Raises GraphRefused unless `loss` is in LOSSES, fits the model's output and what the model
    ends in.
    """
    if loss not in LOSSES:
        raise GraphRefused(f"loss={loss[:80]!r} must be one of {', '.join(LOSSES)}")
    if not LOSSES[loss].takes(model.output_shape):
        raise GraphRefused(
            f"the model's output of shape {model.output_shape} must be {LOSSES[loss].wanted} for "
            f"{loss}"
        )
    if problem := ending_problem(model, loss):
        raise GraphRefused(problem)


def check_inputs(model: GraphModel, shape: Shape) -> None:
    """Raises GraphRefused unless the model takes inputs of the `shape` that the dataset has."""
    if model.input_shape == shape:
        return
    if len(model.input_shape) == len(shape) == 1:
        raise GraphRefused(
            f"the model takes {model.input_shape[0]} inputs, the dataset has {shape[0]}"
        )
    has = f"{shape[0]} numbers in a row" if len(shape) == 1 else f"pictures of shape {shape}"
    raise GraphRefused(
        f"the model takes inputs of shape {model.input_shape}, the dataset has {has}"
    )


def check_outputs(model: GraphModel, loss: str, losses: Mapping[str, int]) -> None:
    """Raises GraphRefused unless `loss` is one that the dataset's target can be learned by, and the
    model has as many outputs as it takes: `losses` is loss -> outputs.
    """
    if loss not in losses:
        raise GraphRefused(
            f"loss={loss[:80]!r} does not fit the dataset's target: {' or '.join(losses)} does"
        )
    if math.prod(model.output_shape) != losses[loss]:
        raise GraphRefused(
            f"the model has {math.prod(model.output_shape)} outputs, the dataset's target takes "
            f"{losses[loss]} for {loss}"
        )


def check_fit(model: GraphModel, loss: str, shape: Shape, losses: Mapping[str, int]) -> None:
    """Everything in this file. Raises GraphRefused with one sentence."""
    check_loss(model, loss)
    check_inputs(model, shape)
    check_outputs(model, loss, losses)
