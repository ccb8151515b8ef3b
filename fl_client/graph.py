"""The model as data: a JSON graph of allowed operations plus safetensors, exported by a buyer, interpreted at a node.

A buyer's file is never executed, unpickled or compiled: the node parses JSON strictly, looks every operation up in a
table, dry-runs the graph on fake tensors to bound its memory, and interprets it. Knows nothing of privacy or jobs.

Format, version 1:
    {"format": "datahub-graph", "version": 1, "input": {"name": str, "shape": [features...]},
     "parameters": {node name: parameter name}, "nodes": [[name, operation, [arguments]], ...], "output": name}
An argument is {"node": name} of an earlier node, a number, true/false, null, or a list of these. The graph is the
one of a single sample (batch size 1): what it computes for one patient cannot depend on another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fl_client.errors import GraphRefused
from fl_client.weights import from_safetensors, to_safetensors

FORMAT, VERSION = "datahub-graph", 1
MAX_GRAPH_BYTES = 1024 * 1024
MAX_NODES = 5000
MAX_PARAMETERS = 50_000_000
MAX_ELEMENTS = 50_000_000  # of one intermediate value of one sample, and of all of them together x 4
MAX_INPUT_ELEMENTS = 4_000_000
MAX_INTEGER = 1_000_000

# Every operation was read with these questions: can it name a file, an object or code; does it change its input;
# does it keep state; can it see more than its arguments? Extend by the same review.
OPERATIONS: Mapping[str, Any] = {
    name: getattr(getattr(torch.ops.aten, name.split(".")[0]), name.split(".")[1])
    for name in (
        "linear.default conv1d.default conv2d.default group_norm.default layer_norm.default relu.default gelu.default "
        "silu.default sigmoid.default tanh.default softmax.int log_softmax.int elu.default leaky_relu.default "
        "max_pool2d.default avg_pool2d.default adaptive_avg_pool2d.default flatten.using_ints view.default "
        "reshape.default permute.default transpose.int unsqueeze.default squeeze.dim add.Tensor sub.Tensor mul.Tensor "
        "div.Tensor matmul.default mean.dim sum.dim_IntList cat.default select.int slice.Tensor dropout.default"
    ).split()
}
INSTEAD = {
    "batch_norm": "use GroupNorm or LayerNorm: batch statistics mix patients",
    "_native_batch_norm_legit_functional": "use GroupNorm or LayerNorm: batch statistics mix patients",
    "native_batch_norm": "use GroupNorm or LayerNorm: batch statistics mix patients",
}


def export_model(module: nn.Module, example: Tensor) -> tuple[bytes, bytes]:
    """(graph JSON, safetensors) of `module` for inputs like `example`, shape [1, features...]. The buyer's side.

    Raises GraphRefused naming an operation that no node would run, and what to use instead.
    """
    # the message of torch.export speaks of its own internals, so the cause is kept and the sentence is ours
    try:
        program = torch.export.export(module.train(), (example[:1],))
    except Exception as error:
        raise GraphRefused(f"the model cannot be exported as a graph: {str(error).splitlines()[0][:200]}") from error
    signature = program.graph_signature
    nodes = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        operation = str(node.target).removeprefix("aten.")
        if operation not in OPERATIONS:
            raise GraphRefused(_unknown(operation))
        if node.kwargs:
            raise GraphRefused(f"operation {operation}: named arguments ({', '.join(node.kwargs)}) are not allowed")
        nodes.append([node.name, operation, [_encode(argument) for argument in node.args]])
    if signature.buffers or signature.lifted_tensor_constants:
        names = [*signature.buffers, *signature.lifted_tensor_constants]
        raise GraphRefused(f"buffers are not allowed ({names[0]}): make it a parameter, or use GroupNorm for BatchNorm")
    output = next(n for n in program.graph.nodes if n.op == "output").args[0][0].name
    graph = {
        "format": FORMAT,
        "version": VERSION,
        "input": {"name": signature.user_inputs[0], "shape": list(example.shape[1:])},
        "parameters": dict(signature.inputs_to_parameters),
        "nodes": nodes,
        "output": output,
    }
    arrays = {
        name: program.state_dict[name].detach().to(torch.float32).cpu().numpy()
        for name in signature.inputs_to_parameters.values()
    }
    content = json.dumps(graph, separators=(",", ":")).encode(), to_safetensors(arrays)
    load_model(*content)
    return content


def _encode(argument: Any) -> Any:
    if isinstance(argument, torch.fx.Node):
        return {"node": argument.name}
    if isinstance(argument, list | tuple):
        return [_encode(item) for item in argument]
    if argument is None or type(argument) in (bool, int, float):
        return argument
    raise GraphRefused(f"an argument of type {type(argument).__name__} is not allowed in a graph")


def _unknown(operation: str) -> str:
    hint = INSTEAD.get(operation.split(".")[0], "see fl_client.graph.OPERATIONS for what is allowed")
    return f"operation {operation[:80]!r} is not allowed: {hint}"


class GraphModel(nn.Module):
    """A checked graph with its parameters. `forward` takes [1, features...] and interprets node by node."""

    def __init__(self, graph: Mapping[str, Any], arrays: Mapping[str, np.ndarray]):
        super().__init__()
        self.input_shape: tuple[int, ...] = tuple(graph["input"]["shape"])
        self.parameter_names: tuple[str, ...] = tuple(graph["parameters"].values())
        self._input = graph["input"]["name"]
        self._keys = {node: f"p{i}" for i, node in enumerate(graph["parameters"])}
        self._nodes = [(name, OPERATIONS[operation], arguments) for name, operation, arguments in graph["nodes"]]
        self._output = graph["output"]
        for (node, key), name in zip(self._keys.items(), self.parameter_names, strict=True):
            del node
            self.register_parameter(key, nn.Parameter(torch.from_numpy(arrays[name].copy())))

    def forward(self, sample: Tensor) -> Tensor:
        """The graph's output for one sample."""
        values = {node: getattr(self, key) for node, key in self._keys.items()}
        values[self._input] = sample

        def resolve(argument: Any) -> Any:
            if isinstance(argument, dict):
                return values[argument["node"]]
            return [resolve(item) for item in argument] if isinstance(argument, list) else argument

        for name, operation, arguments in self._nodes:
            values[name] = operation(*(resolve(argument) for argument in arguments))
        output: Tensor = values[self._output]
        return output


def parameters(model: GraphModel) -> dict[str, np.ndarray]:
    """Parameter name -> float32 array (copies)."""
    keys = model._keys.values()
    return {
        name: getattr(model, key).detach().cpu().numpy().copy()
        for name, key in zip(model.parameter_names, keys, strict=True)
    }


def load_model(graph: bytes, weights: bytes) -> GraphModel:
    """The model in two hostile files, checked and dry-run. Raises GraphRefused with one sentence; runs none of it."""
    spec = _parse(graph)
    arrays = from_safetensors(weights)
    names = list(spec["parameters"].values())
    if set(names) != set(arrays) or len(set(names)) != len(names):
        raise GraphRefused("weights must hold exactly the parameters that the graph names, each once")
    total = sum(array.size for array in arrays.values())
    if total > MAX_PARAMETERS:
        raise GraphRefused(f"{total} parameters are more than {MAX_PARAMETERS}")
    model = GraphModel(spec, arrays)
    _dry_run(spec, arrays)
    return model


def _parse(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_GRAPH_BYTES:
        raise GraphRefused(f"a graph of {len(raw)} bytes is larger than {MAX_GRAPH_BYTES}")
    if raw[:2] == b"PK" or raw[:1] == b"\x80":
        raise GraphRefused("a graph must be JSON; this is a zip or pickle file, which is never opened")
    try:
        spec = json.loads(raw.decode(), parse_constant=_no_constant)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise GraphRefused(f"the graph is not JSON: {str(error)[:100]}") from error
    fields = {"format", "version", "input", "parameters", "nodes", "output"}
    if not isinstance(spec, dict) or set(spec) != fields:
        raise GraphRefused(f"the graph must be an object with exactly the fields {sorted(fields)}")
    if spec["format"] != FORMAT or spec["version"] != VERSION or type(spec["version"]) is not int:
        raise GraphRefused(f"format={spec['format']!r} version={spec['version']!r} must be {FORMAT!r} {VERSION}")
    known = _check_input(spec["input"]) | _check_parameters(spec["parameters"])
    if spec["input"]["name"] in spec["parameters"]:
        raise GraphRefused("the input has the name of a parameter")
    if not isinstance(spec["nodes"], list) or not 1 <= len(spec["nodes"]) <= MAX_NODES:
        raise GraphRefused(f"nodes must be a list of 1 to {MAX_NODES}")
    for node in spec["nodes"]:
        if not (isinstance(node, list) and len(node) == 3 and _is_name(node[0]) and isinstance(node[2], list)):
            raise GraphRefused("a node must be [name, operation, [arguments]]")
        name, operation, arguments = node
        if not isinstance(operation, str) or operation not in OPERATIONS:
            raise GraphRefused(_unknown(str(operation)))
        for argument in arguments:
            _check_argument(argument, known, name, 0)
        if name in known:
            raise GraphRefused(f"node {name!r} is defined twice")
        known.add(name)
    if not isinstance(spec["output"], str) or spec["output"] not in known:
        raise GraphRefused("the output must be one of the nodes")
    return spec


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not allowed")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 200


def _check_input(value: Any) -> set[str]:
    if not isinstance(value, dict) or set(value) != {"name", "shape"} or not _is_name(value["name"]):
        raise GraphRefused("input must be {name, shape}")
    shape = value["shape"]
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= 8
        or any(type(d) is not int or not 1 <= d <= MAX_INPUT_ELEMENTS for d in shape)
        or math.prod(shape) > MAX_INPUT_ELEMENTS
    ):
        raise GraphRefused(f"input.shape must be 1 to 8 whole numbers whose product is at most {MAX_INPUT_ELEMENTS}")
    return {value["name"]}


def _check_parameters(value: Any) -> set[str]:
    if not isinstance(value, dict) or not value or not all(_is_name(k) and _is_name(v) for k, v in value.items()):
        raise GraphRefused("parameters must map node names to parameter names, at least one")
    return set(value)


def _check_argument(argument: Any, known: set[str], where: str, depth: int) -> None:
    if isinstance(argument, dict):
        if set(argument) != {"node"} or not isinstance(argument["node"], str) or argument["node"] not in known:
            raise GraphRefused(f"node {where[:80]!r} refers to something that is not defined before it")
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
        raise GraphRefused(f"node {where[:80]!r}: an argument of type {type(argument).__name__} is not allowed")


def _dry_run(spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Shapes only: nothing is computed and nothing is allocated, however large the graph claims to be."""
    with FakeTensorMode() as mode, torch.no_grad():
        values: dict[str, Any] = {
            node: mode.from_tensor(torch.empty(arrays[name].shape)) for node, name in spec["parameters"].items()
        }
        values[spec["input"]["name"]] = torch.empty((1, *spec["input"]["shape"]))
        total = 0
        for name, operation, arguments in spec["nodes"]:

            def resolve(argument: Any) -> Any:
                if isinstance(argument, dict):
                    return values[argument["node"]]
                return [resolve(item) for item in argument] if isinstance(argument, list) else argument

            try:
                result = OPERATIONS[operation](*(resolve(argument) for argument in arguments))
            except Exception as error:  # torch raises many kinds on nonsense; all mean the same here
                raise GraphRefused(f"node {name[:80]!r} ({operation}) does not fit its arguments") from error
            if not isinstance(result, Tensor):
                raise GraphRefused(f"node {name[:80]!r} ({operation}) does not give one tensor")
            total += result.numel()
            if result.numel() > MAX_ELEMENTS or total > 4 * MAX_ELEMENTS:
                raise GraphRefused(f"node {name[:80]!r} needs {result.numel()} elements; {MAX_ELEMENTS} are allowed")
            values[name] = result
        output: Tensor = values[spec["output"]]
        if output.dtype != torch.float32 or output.dim() < 1 or output.shape[0] != 1 or output.dim() > 2:
            raise GraphRefused(f"the output has shape {tuple(output.shape)}; [1, classes] in float32 is needed")


def predict(model: GraphModel, features: np.ndarray) -> np.ndarray:
    """Outputs [n, ...] of the model for features [n, ...], one sample at a time under vmap."""
    with torch.no_grad():
        batch = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
        outputs: Tensor = torch.vmap(lambda sample: model(sample[None])[0], randomness="different")(batch)
    return outputs.numpy()


def with_parameters(model: GraphModel, arrays: Mapping[str, np.ndarray]) -> GraphModel:
    """`model` itself, with these parameters. Raises GraphRefused if names or shapes differ."""
    _set_parameters(model, arrays, tuple(model._keys.values()))
    return model


def _set_parameters(model: GraphModel, arrays: Mapping[str, np.ndarray], keys: Sequence[str]) -> None:
    if set(arrays) != set(model.parameter_names):
        raise GraphRefused(f"parameters must be {sorted(model.parameter_names)}")
    with torch.no_grad():
        for name, key in zip(model.parameter_names, keys, strict=True):
            parameter = getattr(model, key)
            if tuple(arrays[name].shape) != tuple(parameter.shape):
                raise GraphRefused(f"parameter {name!r} must have shape {tuple(parameter.shape)}")
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(arrays[name], dtype=np.float32)))
