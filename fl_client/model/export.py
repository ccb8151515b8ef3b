"""From a torch module to the model as data, on the buyer's machine: what graph.py then checks and
interprets.

Knows nothing of jobs; a node never imports it. The format is in GRAPH_FORMAT.md.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fl_client.errors import GraphRefused
from fl_client.model.graph import (
    FORMAT,
    NO_LOOPS,
    NO_STATISTICS,
    OPERATIONS,
    VERSION,
    load_model,
    unknown,
)
from fl_client.model.weights import to_safetensors


def export_model(module: nn.Module, example: Tensor) -> tuple[bytes, bytes]:
    """(graph JSON, safetensors) of `module` for inputs like `example`, shape [1, features...]. The
    buyer's side.

    A parameter that needs no gradient stays frozen; one without dimensions becomes one of shape
    [1]. Raises GraphRefused
    naming an operation that no node would run, and what to use instead.
    """
    for (
        part
    ) in module.modules():  # torch.export stumbles over these before it names their operation
        if isinstance(part, nn.modules.batchnorm._BatchNorm | nn.RNNBase) and not isinstance(
            part, nn.LSTM | nn.GRU
        ):
            hint = NO_LOOPS if isinstance(part, nn.RNNBase) else NO_STATISTICS
            raise GraphRefused(f"{type(part).__name__} is not allowed: {hint}")
    module = _unrolled(module)
    was_training = module.training
    # the message of torch.export speaks of its own internals, so the cause is kept and the sentence
    # is ours
    try:
        program = torch.export.export(module.train(), (example[:1],))
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise GraphRefused(f"the model cannot be exported as a graph: {first[:200]}") from error
    finally:
        module.train(was_training)
    signature = program.graph_signature
    nodes = []
    whole: dict[str, str] = {}  # a cast to whole numbers -> what it casts
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        operation = str(node.target).removeprefix("aten.")
        if operation == "_assert_tensor_metadata.default":
            continue  # what it asserts of a cast is so in this graph
        if _is_cast(node) and all(
            str(user.target) == "aten.embedding.default" for user in node.users
        ):
            whole[node.name] = node.args[0].name
            continue
        if (
            operation == "embedding.default"
            and len(node.args) in (2, 3)
            and node.args[1].name in whole
        ):
            table, index, *padding = node.args
            arguments = [_encode(table), {"node": whole[index.name]}, *padding]
            nodes.append([node.name, "embedding.clamped", arguments])
            continue
        if operation not in OPERATIONS:
            raise GraphRefused(unknown(operation))
        if node.kwargs:
            raise GraphRefused(
                f"operation {operation}: named arguments ({', '.join(node.kwargs)}) are not allowed"
            )
        nodes.append([node.name, operation, [_encode(argument) for argument in node.args]])
    if signature.buffers or signature.lifted_tensor_constants:
        names = [*signature.buffers, *signature.lifted_tensor_constants]
        raise GraphRefused(
            f"buffers are not allowed ({names[0]}): make it a parameter, or use GroupNorm for "
            "BatchNorm"
        )
    output = next(n for n in program.graph.nodes if n.op == "output").args[0][0].name
    graph = {
        "format": FORMAT,
        "version": VERSION,
        "input": {"name": signature.user_inputs[0], "shape": list(example.shape[1:])},
        "parameters": dict(signature.inputs_to_parameters),
        "nodes": nodes,
        "output": output,
    }
    state = dict(module.named_parameters())
    if frozen := sorted(
        n for n in signature.inputs_to_parameters.values() if not state[n].requires_grad
    ):
        graph["frozen"] = frozen
    arrays = {
        name: program.state_dict[name].detach().to(torch.float32).cpu().numpy()
        for name in signature.inputs_to_parameters.values()
    }
    content = json.dumps(graph, separators=(",", ":")).encode(), to_safetensors(arrays)
    load_model(*content)
    return content


class _Unrolled(nn.Module):
    """An nn.LSTM or nn.GRU, one direction, batch first, step by step; its parameters keep their
    names.
    """

    def __init__(self, loop: nn.LSTM | nn.GRU):
        super().__init__()
        self.layers, self.width, self.dropout = loop.num_layers, loop.hidden_size, loop.dropout
        self.is_lstm = isinstance(loop, nn.LSTM)
        for name, parameter in loop.named_parameters():
            self.register_parameter(name, parameter)

    def _lstm_cell(
        self, inputs: Tensor, gates: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor]:
        gates = inputs + gates
        enter, forget, new, leave = (
            gates[:, i * self.width : (i + 1) * self.width] for i in range(4)
        )
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
        return torch.sigmoid(leave) * torch.tanh(cell), cell

    def _gru_cell(
        self, inputs: Tensor, gates: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor]:
        reset, update = (
            torch.sigmoid(
                inputs[:, i * self.width : (i + 1) * self.width]
                + gates[:, i * self.width : (i + 1) * self.width]
            )
            for i in range(2)
        )
        new = torch.tanh(inputs[:, 2 * self.width :] + reset * gates[:, 2 * self.width :])
        return new + update * (hidden - new), cell

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        advance = self._lstm_cell if self.is_lstm else self._gru_cell
        last: list[Tensor] = []
        cells: list[Tensor] = []
        for layer in range(self.layers):
            forward, back = (
                getattr(self, f"weight_ih_l{layer}"),
                getattr(self, f"weight_hh_l{layer}"),
            )
            bias, bias_back = (
                getattr(self, f"bias_ih_l{layer}", None),
                getattr(self, f"bias_hh_l{layer}", None),
            )
            inputs = functional.linear(x, forward, bias)  # of every step at once
            # zeros that depend on the input: a graph has no constants
            hidden = cell = inputs[:, 0, : self.width] * 0.0
            steps = []
            for step in range(x.shape[1]):
                hidden, cell = advance(
                    inputs[:, step], functional.linear(hidden, back, bias_back), hidden, cell
                )
                steps.append(hidden)
            x = torch.stack(steps, 1)
            if self.dropout and layer < self.layers - 1:
                x = functional.dropout(x, self.dropout, self.training)
            last.append(hidden)
            cells.append(cell)
        return x, (torch.stack(last), torch.stack(cells)) if self.is_lstm else torch.stack(last)


def _unrolled(module: nn.Module) -> nn.Module:
    """The module, or a copy in which every LSTM and GRU is written out. Raises GraphRefused for one
    that cannot be.
    """
    if not any(isinstance(part, nn.LSTM | nn.GRU) for part in module.modules()):
        return module
    if isinstance(module, nn.LSTM | nn.GRU):
        raise GraphRefused(
            f"an {type(module).__name__} returns a pair; put it into a module that uses its output"
        )
    module = copy.deepcopy(module)
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.LSTM | nn.GRU):
                if child.bidirectional or not child.batch_first or child.proj_size:
                    kind = type(child).__name__
                    raise GraphRefused(
                        f"{name}: an {kind} must be batch_first, of one direction, without "
                        "proj_size"
                    )
                setattr(part, name, _Unrolled(child))
    return module


def _is_cast(node: torch.fx.Node) -> bool:
    """Whether a node of torch.export makes whole numbers of its input."""
    kind = node.meta["val"].dtype if isinstance(node.meta.get("val"), Tensor) else None
    return kind == torch.int64 and str(node.target).removeprefix("aten.").startswith(
        ("to.", "_to_copy.")
    )


def _encode(argument: Any) -> Any:
    if isinstance(argument, torch.fx.Node):
        return {"node": argument.name}
    if isinstance(argument, list | tuple):
        return [_encode(item) for item in argument]
    if argument is None or type(argument) in (bool, int, float):
        return argument
    raise GraphRefused(f"an argument of type {type(argument).__name__} is not allowed in a graph")
