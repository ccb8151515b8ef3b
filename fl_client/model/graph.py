"""The model as data: a JSON graph of allowed operations plus safetensors, made by export.py,
interpreted at a node.

A buyer's file is never executed, unpickled or compiled: the node parses JSON strictly, looks every
operation up in a table, dry-runs the graph on fake tensors to bound its memory, and interprets it.
Knows nothing of privacy or jobs.

Format, version 1:
    {"format": "datahub-graph", "version": 1, "input": {"name": str, "shape": [features...]},
     "parameters": {node name: parameter name}, "nodes": [[name, operation, [arguments]], ...],
     "output": name,
     "frozen": [parameter names]}
An argument is {"node": name} of an earlier node, a number, true/false, null, or a list of these.
The graph is the one of a single sample (batch size 1): what it computes for one patient cannot
depend on another. "frozen" may be left out; what it names is used as it came and gets no gradient.
An LSTM or GRU is written out step by step, an embedding is a lookup of the input, cut into its
table's range.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fl_client.errors import GraphRefused
from fl_client.model.weights import from_safetensors

# a refusal is one sentence: torch would write a stack trace into the node's log for every shape
# that does not fit
logging.getLogger("torch._subclasses.fake_tensor").disabled = True

FORMAT, VERSION = "datahub-graph", 1
MAX_GRAPH_BYTES = 1024 * 1024
MAX_NODES = 5000
MAX_PARAMETERS = 50_000_000
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 50_000_000  # of one intermediate value of one sample
MAX_TOTAL_ELEMENTS = 200_000_000  # of all intermediate values of one sample together: 800 MB
MAX_INPUT_ELEMENTS = 4_000_000
MAX_INTEGER = MAX_ELEMENTS
MAX_OPERATIONS = (
    10**11
)  # multiplications and additions of one sample's forward pass (ResNet-18 at 224 x 224: 4e9)
PREDICT_ELEMENTS = 64_000_000  # intermediate values held at once by `predict`: 256 MB

# Every operation was read with these questions: can it name a file, an object or code; does it
# change its input; does it keep state; can it see more than its arguments; does vmap treat samples
# apart (tests/fl_client/test_graph.py asks the last two of every one)? Extend by the same review.
_REVIEWED = (
    "linear.default matmul.default conv1d.default conv2d.default group_norm.default "
    "layer_norm.default "
    "relu.default gelu.default silu.default elu.default leaky_relu.default hardtanh.default "
    "hardswish.default "
    "mish.default softplus.default sigmoid.default tanh.default softmax.int log_softmax.int "
    "scaled_dot_product_attention.default dropout.default max_pool1d.default max_pool2d.default "
    "avg_pool1d.default avg_pool2d.default adaptive_avg_pool1d.default adaptive_avg_pool2d.default "
    "add.Tensor sub.Tensor mul.Tensor div.Tensor neg.default exp.default sqrt.default abs.default "
    "pow.Tensor_Scalar clamp.default mean.dim sum.dim_IntList cat.default stack.default "
    "flatten.using_ints "
    "unflatten.int view.default reshape.default contiguous.default permute.default transpose.int "
    "unsqueeze.default squeeze.dim expand.default select.int slice.Tensor"
)


def _lookup(table: Tensor, index: Tensor, padding_index: int | None = None) -> Tensor:
    """Rows of `table` [rows, width] by numbers [...]; the row of padding, if one is named, gets no
    gradient.

    A node's inputs are float32, so they are cut to whole numbers and into the table's range, and
    what is not a number is
    row 0. A wrong index can so neither stop a round nor read on.
    """
    # cut to the range as whole numbers: float32 has no 2**24 + 3 and rounds it up, a row too many
    whole = index.nan_to_num(0.0).clamp(0.0, 2.0**31).to(torch.int64).clamp(max=len(table) - 1)
    return functional.embedding(whole, table, padding_index)


OPERATIONS: Mapping[str, Any] = {
    **{
        name: getattr(getattr(torch.ops.aten, name.split(".")[0]), name.split(".")[1])
        for name in _REVIEWED.split()
    },
    "embedding.clamped": _lookup,  # the only one that is our own
}
NO_STATISTICS = "use GroupNorm or LayerNorm: batch statistics mix patients"
NO_LOOPS = "use LSTM or GRU, or write its cells out with Linear and tanh"
INSTEAD = {
    "batch_norm": NO_STATISTICS,
    "native_batch_norm": NO_STATISTICS,
    "_native_batch_norm_legit_functional": NO_STATISTICS,
    "rnn_tanh": NO_LOOPS,
    "rnn_relu": NO_LOOPS,
    "hardsigmoid": "use sigmoid; as the last step, none at all: the loss applies it",
    "log_sigmoid_forward": "as the last step take it away: the loss applies it",
    "embedding": "look up the model's own input or a part of it, as in embedding(x.long())",
}
_POOLS = {"max_pool1d.default", "max_pool2d.default", "avg_pool1d.default", "avg_pool2d.default"}
MAX_DEPTH = 12  # an honest graph has 7
_BRACKET = re.compile(rb"[\[\]{}]")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")


def unknown(operation: str) -> str:
    """The sentence that refuses an operation and says what to use instead."""
    base = operation.split(".")[0]
    hint = INSTEAD.get(base, "see fl_client.model.graph.OPERATIONS for what is allowed")
    if base.endswith("_") and not base.startswith("_"):
        hint = f"it changes its input in place; use {base.rstrip('_')} (inplace=False)"
    return f"operation {operation[:80]!r} is not allowed: {hint}"


class Node(NamedTuple):
    """One step of a graph: its name, the operation in OPERATIONS, and what that is given."""

    name: str
    operation: str
    arguments: list[Any]


# (node, what it was given, what it made) -> what stands in its place
Visit = Callable[[Node, list[Any], Tensor], Tensor]


class GraphModel(nn.Module):
    """A checked graph with its parameters. `forward` takes [1, features...].

    input_shape      features..., without the batch dimension
    output_shape     of one sample: () or (outputs,)
    elements         numbers that one forward pass of one sample makes
    work             multiplications and additions of that pass, and one for each number that it
                     makes, or reads without counting otherwise
    parameter_names  as in the weights file
    keys             node that stands for a parameter -> the parameter's name in this module
    nodes, input_node, output_node   the graph
    """

    def __init__(self, graph: Mapping[str, Any], arrays: Mapping[str, np.ndarray]):
        super().__init__()
        self.input_shape: tuple[int, ...] = tuple(graph["input"]["shape"])
        self.parameter_names: tuple[str, ...] = tuple(graph["parameters"].values())
        self.output_shape: tuple[int, ...] = ()
        self.elements = self.work = 0
        self.input_node: str = graph["input"]["name"]
        self.keys = {node: f"p{i}" for i, node in enumerate(graph["parameters"])}
        self.nodes = [Node(*node) for node in graph["nodes"]]
        self.output_node: str = graph["output"]
        frozen = set(graph.get("frozen", ()))
        for key, name in zip(self.keys.values(), self.parameter_names, strict=True):
            self.register_parameter(
                key, nn.Parameter(torch.from_numpy(arrays[name].copy()), name not in frozen)
            )

    @property
    def frozen_names(self) -> list[str]:
        """Names, as in the weights file, of the parameters that are not trained."""
        named = zip(self.parameter_names, self.keys.values(), strict=True)
        return [name for name, key in named if not getattr(self, key).requires_grad]

    def walk(self, values: Mapping[str, Tensor], visit: Visit | None = None) -> Tensor:
        """The output, from the input and every parameter by node, node by node: the interpreter.

        `visit` sees every node and gives what the later ones work on. Dropout is at work only in
        training mode (`train()`, `eval()`). Raises whatever torch raises where a node does not
        fit.
        """
        every: dict[str, Any] = dict(values)
        for node in self.nodes:
            given = [_resolve(argument, every) for argument in node.arguments]
            if not self.training:
                given = without_dropout(node.operation, given)
            made = OPERATIONS[node.operation](*given)
            every[node.name] = made if visit is None else visit(node, given, made)
        output: Tensor = every[self.output_node]
        return output

    def forward(self, sample: Tensor) -> Tensor:
        """The graph's output for one sample."""
        own = {node: getattr(self, key) for node, key in self.keys.items()}
        return self.walk({**own, self.input_node: sample})


def _resolve(argument: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(argument, dict):
        return values[argument["node"]]
    return [_resolve(item, values) for item in argument] if isinstance(argument, list) else argument


def without_dropout(operation: str, given: list[Any]) -> list[Any]:
    """What an operation is given, with its dropout switched off."""
    if operation == "dropout.default":
        return [*given[:2], False]
    if operation == "scaled_dot_product_attention.default" and len(given) > 4:
        return [*given[:4], 0.0, *given[5:]]
    return given


def parameters(model: GraphModel) -> dict[str, np.ndarray]:
    """Parameter name -> float32 array (copies)."""
    keys = model.keys.values()
    return {
        name: getattr(model, key).detach().cpu().numpy().copy()
        for name, key in zip(model.parameter_names, keys, strict=True)
    }


def with_parameters(model: GraphModel, arrays: Mapping[str, np.ndarray]) -> GraphModel:
    """A model of the same graph with these parameters; `model` stays as it is.

    Raises GraphRefused if names or shapes differ, or a number is not finite.
    """
    if set(arrays) != set(model.parameter_names):
        raise GraphRefused(f"parameters must be {sorted(model.parameter_names)}")
    fresh: dict[str, nn.Parameter | None] = {}
    for key, name in zip(model.keys.values(), model.parameter_names, strict=True):
        array = np.array(arrays[name], dtype=np.float32, order="C")
        wanted = tuple(getattr(model, key).shape)
        if array.shape != wanted or not np.isfinite(array).all():
            raise GraphRefused(f"parameter {name!r} must hold finite numbers of shape {wanted}")
        fresh[key] = nn.Parameter(torch.from_numpy(array), getattr(model, key).requires_grad)
    twin = copy.copy(model)
    twin._parameters = fresh  # the checked graph is shared, the parameters are not
    return twin


def load_model(graph: bytes, weights: bytes) -> GraphModel:
    """The model in two hostile files, checked and dry-run. Raises GraphRefused with one sentence;
    runs none of it.
    """
    spec = parse_graph(graph)
    arrays = from_safetensors(weights)
    names = list(spec["parameters"].values())
    if set(names) != set(arrays) or len(set(names)) != len(names):
        raise GraphRefused(
            "weights must hold exactly the parameters that the graph names, each once"
        )
    for name, array in arrays.items():
        if array.size == 0 or array.ndim > MAX_DIMENSIONS:
            raise GraphRefused(
                f"parameter {name!r}: shape {array.shape[:9]} is empty or deeper than "
                f"{MAX_DIMENSIONS}"
            )
    total = sum(array.size for array in arrays.values())
    if total > MAX_PARAMETERS:
        raise GraphRefused(f"{total} parameters are more than {MAX_PARAMETERS}")
    model = GraphModel(spec, arrays)
    _dry_run(model)
    return model


def parse_graph(raw: bytes) -> dict[str, Any]:
    """The checked document in graph.json. Raises GraphRefused."""
    if len(raw) > MAX_GRAPH_BYTES:
        raise GraphRefused(f"a graph of {len(raw)} bytes is larger than {MAX_GRAPH_BYTES}")
    if raw[:2] == b"PK" or raw[:1] == b"\x80":
        raise GraphRefused(
            "a graph must be JSON; this is a zip or pickle file, which is never opened"
        )
    _check_depth(raw)
    try:
        spec = json.loads(raw.decode(), parse_constant=_no_constant, object_pairs_hook=_no_repeats)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise GraphRefused(f"the graph is not JSON: {str(error)[:100]}") from error
    fields = {"format", "version", "input", "parameters", "nodes", "output"}
    if not isinstance(spec, dict) or set(spec) - {"frozen"} != fields:
        raise GraphRefused(f"the graph must be an object with exactly the fields {sorted(fields)}")
    if spec["format"] != FORMAT or spec["version"] != VERSION or type(spec["version"]) is not int:
        found = f"format={repr(spec['format'])[:80]} version={repr(spec['version'])[:80]}"
        raise GraphRefused(f"{found} must be {FORMAT!r} {VERSION}")
    known = _check_input(spec["input"]) | _check_parameters(spec["parameters"])
    _check_frozen(spec.get("frozen", []), set(spec["parameters"].values()))
    if spec["input"]["name"] in spec["parameters"]:
        raise GraphRefused("the input has the name of a parameter")
    if not isinstance(spec["nodes"], list) or not 1 <= len(spec["nodes"]) <= MAX_NODES:
        raise GraphRefused(f"nodes must be a list of 1 to {MAX_NODES}")
    for node in spec["nodes"]:
        if not (
            isinstance(node, list)
            and len(node) == 3
            and _is_name(node[0])
            and isinstance(node[2], list)
        ):
            raise GraphRefused(f"node {repr(node)[:80]} must be [name, operation, [arguments]]")
        name, operation, arguments = node
        if not isinstance(operation, str) or operation not in OPERATIONS:
            raise GraphRefused(unknown(str(operation)[:80]))
        for argument in arguments:
            _check_argument(argument, known, name, 0)
        if name in known:
            raise GraphRefused(f"node {name!r} is defined twice")
        known.add(name)
    if not isinstance(spec["output"], str) or spec["output"] not in known:
        raise GraphRefused("the output must be one of the nodes")
    return spec


def _check_depth(raw: bytes) -> None:
    """Before json.loads, whose recursion overruns the C stack where an imported library has raised
    Python's limit.
    """
    depth = 0
    for found in _BRACKET.finditer(_STRING.sub(b"", raw)):
        depth += 1 if found.group() in b"[{" else -1
        if depth > MAX_DEPTH:
            raise GraphRefused(f"the graph is not JSON of at most {MAX_DEPTH} levels")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not allowed")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a field is there twice")
    return dict(pairs)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _check_input(value: Any) -> set[str]:
    if (
        not isinstance(value, dict)
        or set(value) != {"name", "shape"}
        or not _is_name(value["name"])
    ):
        raise GraphRefused(
            f"input={repr(value)[:80]} must be a name (letters, digits, _ and .) and a shape"
        )
    shape = value["shape"]
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) < MAX_DIMENSIONS
        or any(type(d) is not int or not 1 <= d <= MAX_INPUT_ELEMENTS for d in shape)
        or math.prod(shape) > MAX_INPUT_ELEMENTS
    ):
        raise GraphRefused(
            f"input.shape={repr(shape)[:80]} must be 1 to 7 numbers; their product at most "
            f"{MAX_INPUT_ELEMENTS}"
        )
    return {value["name"]}


def _check_parameters(value: Any) -> set[str]:
    if (
        not isinstance(value, dict)
        or not value
        or not all(_is_name(k) and _is_name(v) for k, v in value.items())
    ):
        raise GraphRefused(
            "parameters must map node names to names of letters, digits, _ and ., at least one"
        )
    return set(value)


def _check_frozen(value: Any, names: set[str]) -> None:
    if not isinstance(value, list) or not all(isinstance(n, str) and n in names for n in value):
        raise GraphRefused(f"frozen={repr(value)[:80]} must be a list of parameter names")
    if len(set(value)) != len(value) or set(value) == names:
        raise GraphRefused("frozen must name each parameter once, and leave at least one to train")


def _check_argument(argument: Any, known: set[str], where: str, depth: int) -> None:
    if isinstance(argument, dict):
        if (
            set(argument) != {"node"}
            or not isinstance(argument["node"], str)
            or argument["node"] not in known
        ):
            raise GraphRefused(
                f"node {where[:80]!r} refers to something that is not defined before it"
            )
    elif isinstance(argument, list):
        if depth > 3 or len(argument) > 10_000:
            raise GraphRefused(f"node {where[:80]!r}: a list is too deep or too long")
        for item in argument:
            _check_argument(item, known, where, depth + 1)
    elif type(argument) is int:
        if abs(argument) > MAX_INTEGER and argument != 2**63 - 1:  # slice's "to the end"
            raise GraphRefused(f"node {where[:80]!r}: {argument} is out of range")
    elif type(argument) is float:
        if not math.isfinite(argument):
            raise GraphRefused(f"node {where[:80]!r}: a number is not finite")
    elif argument is not None and type(argument) is not bool:
        raise GraphRefused(
            f"node {where[:80]!r}: an argument of type {type(argument).__name__} is not allowed"
        )


def _dry_run(model: GraphModel) -> None:
    """Forward and per-sample gradients on fake tensors: nothing is computed, however large it
    claims to be.

    Fills in `model.output_shape`, `elements` and `work`.
    """
    shapes = {node: tuple(getattr(model, key).shape) for node, key in model.keys.items()}
    with (
        FakeTensorMode(),
        sdpa_kernel(SDPBackend.MATH),
    ):  # as in training: the fused kernels have no rule for vmap
        fake: dict[str, Tensor] = {node: torch.empty(shape) for node, shape in shapes.items()}
        sample = torch.empty((1, *model.input_shape))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            output = _dry_forward(model, {**fake, model.input_node: sample}, counter)
        if output.dim() < 1 or output.dim() > 2 or output.shape[0] != 1 or output.numel() == 0:
            raise GraphRefused(
                f"the output has shape {tuple(output.shape)}; [1] or [1, outputs] is needed"
            )
        model.output_shape = tuple(output.shape[1:])

        def of_one(values: dict[str, Tensor], one: Tensor) -> Tensor:
            return model.walk({**values, model.input_node: one[None]}).sum()

        try:
            vmap(grad(of_one), in_dims=(None, 0), randomness="different")(
                fake, torch.empty((2, *model.input_shape))
            )
        except Exception as error:  # torch raises many kinds; all mean the same here
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise GraphRefused(f"the model has no per-sample gradient: {first[:200]}") from error


def _dry_forward(model: GraphModel, values: dict[str, Tensor], counter: FlopCounterMode) -> Tensor:
    pooled = reached = counted = read = 0

    def visit(node: Node, given: list[Any], made: Any) -> Tensor:
        nonlocal pooled, reached, counted, read
        name, operation, arguments = node
        if (
            not isinstance(made, Tensor)
            or made.dtype != torch.float32
            or made.dim() > MAX_DIMENSIONS
        ):
            raise GraphRefused(
                f"node {name!r} ({operation}) does not give one float32 tensor of at most 8 "
                "dimensions"
            )
        model.elements += made.numel()
        if made.numel() > MAX_ELEMENTS or model.elements > MAX_TOTAL_ELEMENTS:
            raise GraphRefused(
                f"node {name!r} needs {made.numel()} numbers, {model.elements} with those before "
                f"it; {MAX_ELEMENTS} and {MAX_TOTAL_ELEMENTS} are allowed"
            )
        if operation in _POOLS:  # the counter counts none of these
            pooled += made.numel() * _window(operation, arguments[1])
        # a matrix times a vector, a sum: what the counter does not know looks at every number
        here = counter.get_total_flops() + pooled
        seen = sum(each.numel() for each in _tensors(given))
        read += max(0, seen - made.numel() - (here - counted))
        counted = here
        model.work = here + read + model.elements
        if (work := model.work - model.elements) > MAX_OPERATIONS:
            raise GraphRefused(
                f"node {name!r}: one sample takes {work:.0e} operations, over {MAX_OPERATIONS:.0e}"
            )
        reached += 1
        return made

    try:
        return model.walk(values, visit)
    except GraphRefused:
        raise
    except Exception as error:  # torch raises many kinds on nonsense; all mean the same here
        name, operation, _ = model.nodes[reached]
        raise GraphRefused(f"node {name!r} ({operation}) does not fit its arguments") from error


def _tensors(given: Any) -> list[Tensor]:
    if isinstance(given, list):
        return [tensor for each in given for tensor in _tensors(each)]
    return [given] if isinstance(given, Tensor) else []


def _window(operation: str, size: Any) -> int:
    sizes = size if isinstance(size, list) else [size]
    return int(sizes[0] ** (2 if "2d" in operation else 1) if len(sizes) == 1 else math.prod(sizes))


def predict(model: GraphModel, features: np.ndarray) -> np.ndarray:
    """Outputs [n, ...] of the model for features [n, ...], one sample at a time under vmap, without
    dropout.
    """
    quiet = copy.copy(model).eval()
    batch = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    if tuple(batch.shape[1:]) != model.input_shape:
        raise GraphRefused(
            f"features have shape {tuple(batch.shape[1:])}; the model takes {model.input_shape}"
        )
    if len(batch) == 0:
        return np.zeros((0, *model.output_shape), dtype=np.float32)
    of_many = vmap(lambda sample: quiet(sample[None])[0])
    with torch.no_grad():
        parts = [
            of_many(part)
            for part in torch.split(batch, max(1, PREDICT_ELEMENTS // max(1, model.elements)))
        ]
    outputs: np.ndarray = torch.cat(parts).numpy()
    return outputs
