"""A buyer's file is data: what is allowed is computed per sample, everything else is refused in one
sentence.
"""

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import fl_client
from fl_client.errors import GraphRefused
from fl_client.model import graph
from fl_client.model.export import export_model
from fl_client.model.families import build
from fl_client.model.graph import (
    OPERATIONS,
    GraphModel,
    load_model,
    parameters,
    predict,
    with_parameters,
)
from fl_client.model.losses import LOSSES
from fl_client.model.weights import from_safetensors, model_hash, to_safetensors


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x.unflatten(1, (4, 8))).mean(1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.scale = nn.Parameter(torch.tensor(0.5))  # a parameter without dimensions
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image = x.view(-1, 1, 4, 8)
        return self.head(
            (image + self.scale * torch.relu(self.norm(self.first(image)))).mean((2, 3))
        )


class BatchStatistics(nn.Linear):
    """Batch normalisation without a module of that name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(
            super().forward(x).reshape(-1, 1), None, None, training=True
        )


class Sequence(nn.Module):
    """Eight steps of four numbers through an LSTM of two layers."""

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.memory = nn.LSTM(4, 3, num_layers=2, batch_first=True, **more)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, (last, _) = self.memory(x.view(-1, 8, 4))
        return self.head(outputs.mean(1) + last[-1])


class Recurrent(nn.Module):
    """Eight steps of four numbers through a GRU of two layers."""

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.memory = nn.GRU(4, 3, num_layers=2, batch_first=True, **more)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, last = self.memory(x.view(-1, 8, 4))
        return self.head(outputs.mean(1) + last[-1])


class Words(nn.Module):
    """Numbers as words of an embedding; what is out of range is cut into it by a node, and by the
    oracle here.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3, **more)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.table(x.clamp(0, 4).long())).mean(1))


class Encoder(nn.Module):
    """torch's own transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x.view(-1, 4, 8)).mean(1))


class Adapter(nn.Module):
    """A frozen layer with a low-rank adapter beside it (LoRA)."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(32, 8).requires_grad_(False)
        self.down, self.up = nn.Linear(32, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.base(x) + self.up(self.down(x))))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "logistic_regression": lambda: nn.Linear(32, 1),
    "mlp": lambda: build("mlp", 32),
    "dropout": lambda: nn.Sequential(
        nn.Linear(32, 64), nn.GELU(), nn.Dropout(0.5), nn.Linear(64, 2)
    ),
    "cnn": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 4, 4)),
        nn.Conv2d(2, 4, 3),
        nn.LayerNorm([4, 2, 2]),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4, 2),
    ),
    "cnn1d": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 32)),
        nn.Conv1d(1, 4, 5),
        nn.ReLU6(),
        nn.MaxPool1d(2),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
        nn.Softplus(),
        nn.Linear(8, 1),
    ),
    "residual": Residual,
    "attention": Attention,
    "lstm": Sequence,
    "gru": Recurrent,
    "gru without bias": lambda: Recurrent(bias=False),
    "embedding": Words,
    "embedding with padding": lambda: Words(padding_idx=1),
    "transformer layer": Encoder,
    "adapter": Adapter,
}


# nodes of several hospitals attest this hash, so another version of a library must not change it
GOLDEN_HASH = "960787393fc539f25f1e180811f33a5dc358de7423c9ef39db7325bcc6809f29"


def loaded(module: nn.Module, width: int = 32) -> GraphModel:
    return load_model(*export_model(module, torch.zeros(1, width)))


def rows(n: int, width: int = 32) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(n, width)).astype(np.float32)


# -- export, load, predict -------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_export_and_load__a_module__computes_the_same(name: str) -> None:
    torch.manual_seed(3)
    module = MODULES[name]()
    expected = module.eval()(torch.from_numpy(rows(6))).detach().numpy()
    np.testing.assert_allclose(predict(loaded(module), rows(6)), expected, rtol=1e-4, atol=1e-5)
    assert not module.training, "exporting must leave the buyer's module in its mode"


@pytest.mark.parametrize("name", MODULES)
def test_gradients__of_a_loaded_model__equal_autograd_on_the_module(name: str) -> None:
    torch.manual_seed(3)
    module = MODULES[name]().eval()
    model = loaded(module).eval()
    x = torch.from_numpy(rows(1))
    module(x).sum().backward()
    model(x).sum().backward()
    original = dict(module.named_parameters())
    for parameter_name, parameter in zip(model.parameter_names, model.parameters(), strict=True):
        assert parameter.requires_grad is original[parameter_name].requires_grad
        if not parameter.requires_grad:
            continue
        expected = original[parameter_name].grad.reshape(parameter.shape)  # [] travels as [1]
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-5)


def test_predict__many_rows_and_none__gives_one_output_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = loaded(build("mlp", 32))
    whole = predict(model, rows(50))
    monkeypatch.setattr(graph, "PREDICT_ELEMENTS", 7 * model.elements)  # 8 pieces
    np.testing.assert_allclose(predict(model, rows(50)), whole, rtol=1e-4, atol=1e-6)
    assert predict(model, rows(0)).shape == (0, 1)
    with pytest.raises(GraphRefused, match="features have shape"):
        predict(model, rows(5, 31))


def test_predict__model_with_dropout__is_the_same_every_time_and_leaves_the_mode() -> None:
    model = loaded(MODULES["dropout"]())
    assert np.array_equal(predict(model, rows(6)), predict(model, rows(6)))
    assert model.training
    x = torch.from_numpy(rows(1))
    assert not torch.equal(model(x), model(x)), "in training mode dropout is at work"


def test_with_parameters__new_values__gives_a_twin_and_leaves_the_model() -> None:
    model = loaded(build("mlp", 32))
    before = parameters(model)
    changed = {name: array + 1 for name, array in before.items()}
    twin = with_parameters(model, changed)
    assert model_hash(parameters(twin)) == model_hash(changed)
    assert model_hash(parameters(model)) == model_hash(before)
    changed["0.weight"][:] = 7
    assert not (parameters(twin)["0.weight"] == 7).any(), (
        "the twin must not share memory with the caller"
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: a.pop("0.bias"),
        lambda a: a.update(more=a["0.bias"]),
        lambda a: a.update({"0.bias": a["0.bias"][:-1]}),
        lambda a: a.update({"0.bias": a["0.bias"][None]}),
        lambda a: a.update({"0.bias": np.full_like(a["0.bias"], np.nan)}),
        lambda a: a.update({"0.bias": np.full_like(a["0.bias"], np.inf)}),
    ],
)
def test_with_parameters__names_shapes_or_numbers_differ__refuses(
    spoil: Callable[[dict], object],
) -> None:
    model = loaded(build("mlp", 32))
    arrays = parameters(model)
    spoil(arrays)
    with pytest.raises(GraphRefused, match="parameter"):
        with_parameters(model, arrays)


def test_model_hash__fixed_arrays__is_the_same_on_every_machine_and_version() -> None:
    arrays = {"b": np.arange(3, dtype=np.float32), "a": np.ones((2, 2), dtype=np.float32)}
    assert model_hash(arrays).hex() == GOLDEN_HASH
    assert model_hash(dict(reversed(arrays.items()))).hex() == GOLDEN_HASH
    assert model_hash({**arrays, "b": arrays["b"][::-1]}).hex() != GOLDEN_HASH
    assert model_hash({"b": arrays["a"], "a": arrays["b"]}).hex() != GOLDEN_HASH


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (nn.Sequential(nn.Linear(32, 4), nn.BatchNorm1d(4)), "GroupNorm"),
        (
            nn.Sequential(
                nn.Linear(32, 4), nn.BatchNorm1d(4, affine=False, track_running_stats=False)
            ),
            "GroupNorm",
        ),
        (BatchStatistics(32, 4), "GroupNorm"),
        (
            nn.Sequential(nn.Linear(32, 4), nn.ReLU(inplace=True)),
            "'relu_.default' .*in place; use relu",
        ),
        (
            nn.Sequential(nn.Unflatten(1, (4, 8)), nn.RNN(8, 2, batch_first=True)),
            "RNN is not allowed: use LSTM or GRU",
        ),
        (Recurrent(bidirectional=True), "of one direction"),
        (nn.GRU(32, 1), "returns a pair"),
        (Sequence(bidirectional=True), "must be batch_first, of one direction"),
        (nn.LSTM(32, 1), "returns a pair"),
        (nn.Sequential(nn.Linear(32, 4), nn.GELU(approximate="tanh")), "named arguments|type str"),
    ],
)
def test_export_model__a_module_no_node_would_run__says_what_to_use_instead(
    module: nn.Module, sentence: str
) -> None:
    with pytest.raises(GraphRefused, match=sentence):
        export_model(module, torch.zeros(1, 32))


def test_export_model__python_control_flow_on_data__is_refused_in_a_sentence() -> None:
    class Branch(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.sum() > 0 else -super().forward(x)

    with pytest.raises(GraphRefused, match="cannot be exported"):
        export_model(Branch(32, 1), torch.zeros(1, 32))


# -- the allow-list, one by one --------------------------------------------------------------------

X = {"node": "x"}  # 12 numbers of one sample, after the view below [1, 2, 6] or [1, 2, 2, 3]
W = {"node": "w"}  # the parameter, [6]
LIST, IMAGE = [1, 2, 6], [1, 2, 2, 3]
K1, K2 = {"node": "k1"}, {"node": "k2"}
OPERATION_EXAMPLES: dict[str, tuple[list[int], list[Any]]] = {
    "embedding.clamped": (LIST, [{"node": "m"}, X]),
    "linear.default": (LIST, [X, {"node": "m"}]),
    "matmul.default": (LIST, [X, {"node": "m"}]),
    "conv1d.default": (LIST, [X, K1]),
    "conv2d.default": (IMAGE, [X, K2, None, [1, 1], [1, 1]]),
    "group_norm.default": (LIST, [X, 2]),
    "layer_norm.default": (LIST, [X, [6], W]),
    "elu.default": (LIST, [X, 0.7]),
    "leaky_relu.default": (LIST, [X, 0.2]),
    "hardtanh.default": (LIST, [X, 0.0, 6.0]),
    "softmax.int": (LIST, [X, -1]),
    "log_softmax.int": (LIST, [X, 2]),
    "scaled_dot_product_attention.default": (LIST, [X, X, X]),
    "dropout.default": (LIST, [X, 0.0, True]),
    "max_pool1d.default": (LIST, [X, [2]]),
    "avg_pool1d.default": (LIST, [X, [2]]),
    "adaptive_avg_pool1d.default": (LIST, [X, [3]]),
    "max_pool2d.default": (IMAGE, [X, [2, 2], [1, 1]]),
    "avg_pool2d.default": (IMAGE, [X, [2, 2], [1, 1]]),
    "adaptive_avg_pool2d.default": (IMAGE, [X, [1, 2]]),
    "add.Tensor": (LIST, [X, W]),
    "sub.Tensor": (LIST, [X, W]),
    "mul.Tensor": (LIST, [X, W]),
    "div.Tensor": (LIST, [X, W]),
    "sqrt.default": (LIST, [{"node": "positive"}]),
    "pow.Tensor_Scalar": (LIST, [X, 2]),
    "clamp.default": (LIST, [X, -0.5, 0.5]),
    "mean.dim": (LIST, [X, [1]]),
    "sum.dim_IntList": (LIST, [X, [2], True]),
    "cat.default": (LIST, [[X, X], 1]),
    "stack.default": (LIST, [[X, X], 1]),
    "flatten.using_ints": (LIST, [X, 1]),
    "unflatten.int": (LIST, [X, 2, [2, 3]]),
    "view.default": (LIST, [X, [1, 12]]),
    "reshape.default": (LIST, [X, [1, 3, 4]]),
    "permute.default": (LIST, [X, [0, 2, 1]]),
    "transpose.int": (LIST, [X, 1, 2]),
    "unsqueeze.default": (LIST, [X, 1]),
    "squeeze.dim": ([1, 1, 12], [X, 1]),
    "expand.default": ([1, 1, 12], [X, [1, 3, 12]]),
    "select.int": (LIST, [X, 1, 0]),
    "slice.Tensor": (LIST, [X, 1, 1, 2**63 - 1]),
} | {
    f"{name}.default": (LIST, [X])
    for name in "relu gelu silu hardswish mish softplus sigmoid tanh neg exp abs contiguous".split()
}


def _graph_of(operation: str) -> GraphModel:
    """x -> view -> * w -> `operation` -> flatten -> sum to one number."""
    shape, arguments = OPERATION_EXAMPLES[operation]
    weights = {"w": (6,), "m": (6, 6), "k1": (2, 2, 2), "k2": (2, 2, 2, 2)}
    chance = np.random.default_rng(11)
    rename = json.loads(json.dumps(arguments).replace('{"node": "x"}', '{"node": "shaped"}'))
    nodes = [
        ["rough", "view.default", [{"node": "input"}, LIST]],
        ["scaled", "mul.Tensor", [{"node": "rough"}, W]],
        ["shaped", "view.default", [{"node": "scaled"}, shape]],
        ["square", "mul.Tensor", [{"node": "shaped"}, {"node": "shaped"}]],
        ["positive", "add.Tensor", [{"node": "square"}, 0.1]],
        ["result", operation, rename],
        ["flat", "flatten.using_ints", [{"node": "result"}, 1]],
        ["curved", "mul.Tensor", [{"node": "flat"}, {"node": "flat"}]],
        ["summed", "sum.dim_IntList", [{"node": "curved"}, [1], True]],
    ]
    spec = {
        "format": "datahub-graph",
        "version": 1,
        "input": {"name": "input", "shape": [12]},
        "parameters": {name: name for name in weights},
        "nodes": nodes,
        "output": "summed",
    }
    arrays = {
        name: (0.5 + chance.random(shape)).astype(np.float32) for name, shape in weights.items()
    }
    return load_model(json.dumps(spec).encode(), to_safetensors(arrays))


def test_operations__every_one__has_an_example_here() -> None:
    assert set(OPERATION_EXAMPLES) == set(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations__each_one__vmap_keeps_samples_apart_and_changes_no_input(
    operation: str,
) -> None:
    model = _graph_of(operation)
    values = {key: p.detach() for key, p in model.named_parameters()}
    before = {key: value.clone() for key, value in values.items()}
    x = torch.from_numpy(rows(4, 12))
    untouched = x.clone()

    def gradient(values: dict, sample: torch.Tensor) -> dict:
        return grad(lambda v: functional_call(model, v, (sample[None],))[0].sum())(values)

    together = vmap(gradient, in_dims=(None, 0), randomness="different")(values, x)
    for i in range(4):
        for key, alone in gradient(values, x[i]).items():
            torch.testing.assert_close(together[key][i], alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(x, untouched)
    assert all(torch.equal(values[key], before[key]) for key in values)
    other = x.clone()
    other[3] = torch.nan  # whatever one patient holds, the three others' gradients stay as they are
    changed = vmap(gradient, in_dims=(None, 0), randomness="different")(values, other)
    for key, gradients in changed.items():
        assert torch.equal(gradients[:3], together[key][:3])


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations__each_schema__mutates_and_aliases_no_written_memory(name: str) -> None:
    if name == "embedding.clamped":
        return  # our own, a function of tensors; what it calls is in the examples above
    schema = OPERATIONS[name]._schema
    assert not schema.is_mutable
    texts = [a for a in schema.arguments if a.type.kind() == "StringType"]
    assert all(a.has_default_value() for a in texts), "a text argument can only stay away"
    assert not name.split(".")[0].endswith("_")


# -- hostile files ---------------------------------------------------------------------------------

LINEAR = {
    "format": "datahub-graph",
    "version": 1,
    "input": {"name": "x", "shape": [3]},
    "parameters": {"p_weight": "weight", "p_bias": "bias"},
    "nodes": [["linear", "linear.default", [X, {"node": "p_weight"}, {"node": "p_bias"}]]],
    "output": "linear",
}
WEIGHTS = {"weight": np.ones((1, 3), dtype=np.float32), "bias": np.zeros(1, dtype=np.float32)}


def refused(spec: object, arrays: dict[str, np.ndarray] | bytes = WEIGHTS) -> str:
    raw = spec if isinstance(spec, bytes) else json.dumps(spec).encode()
    with pytest.raises(GraphRefused) as refusal:
        load_model(raw, arrays if isinstance(arrays, bytes) else to_safetensors(arrays))
    sentence = str(refusal.value)
    assert "\n" not in sentence
    assert len(sentence) < 500
    return sentence


def test_load_model__the_honest_file_under_the_hostile_ones__is_accepted() -> None:
    model = load_model(json.dumps(LINEAR).encode(), to_safetensors(WEIGHTS))
    assert predict(model, np.array([[1, 2, 3]], dtype=np.float32)).tolist() == [[6.0]]
    assert (model.input_shape, model.output_shape, model.elements) == ((3,), (1,), 1)


def _node(operation: Any, *arguments: Any, name: Any = "evil") -> dict:
    return {
        **LINEAR,
        "nodes": [*LINEAR["nodes"], [name, operation, list(arguments)]],
        "output": name,
    }


HOSTILE_GRAPHS: dict[str, tuple[Any, str]] = {
    "runs a command": (_node("torch.os.system", X), "'torch.os.system' is not allowed"),
    "reaches through python": (_node("__class__.__mro__", X), "not allowed"),
    "reads a file": (
        _node("from_file.default", "/etc/passwd"),
        "'from_file.default' is not allowed",
    ),
    "writes in place": (_node("add_.Tensor", X, 1), "in place; use add"),
    "resizes": (_node("resize_.default", X, [10]), "in place"),
    "mixes a batch": (_node("batch_norm.default", X), "batch statistics mix patients"),
    "operation is no text": (_node(["linear.default"], X), "not allowed"),
    "operation is null": (_node(None, X), "not allowed"),
    "text argument": (_node("gelu.default", X, "tanh"), "type str is not allowed"),
    "object argument": (_node("add.Tensor", X, {"node": "x", "code": "1"}), "refers to something"),
    "forward reference": (_node("add.Tensor", X, {"node": "later"}), "not defined before it"),
    "refers to itself": (_node("add.Tensor", X, {"node": "evil"}), "not defined before it"),
    "reference is no text": (_node("add.Tensor", X, {"node": ["x"]}), "not defined before it"),
    "defines a name twice": (_node("add.Tensor", X, 1, name="linear"), "defined twice"),
    "defines the input again": (_node("add.Tensor", X, 1, name="x"), "defined twice"),
    "name with a newline": (
        _node("add.Tensor", X, 1, name="a\nINFO accepted"),
        r"must be \[name, operation",
    ),
    "name of 1000 letters": (
        _node("add.Tensor", X, 1, name="a" * 1000),
        r"must be \[name, operation",
    ),
    "huge number": (_node("view.default", X, [10**9]), "out of range"),
    "astronomic number": (_node("mul.Tensor", X, 10**300), "out of range"),
    "deep list": (_node("view.default", X, [[[[[1]]]]]), "too deep"),
    "long list": (_node("cat.default", [X] * 10_001, 0), "too long"),
    "memory bomb": (_node("expand.default", X, [100_000, 100_000, 3]), "numbers"),
    "memory bomb in many steps": (
        {
            **LINEAR,
            "nodes": [
                *LINEAR["nodes"],
                *[[f"n{i}", "expand.default", [X, [16_000_000, 3]]] for i in range(9)],
            ],
            "output": "n8",
        },
        "are allowed",
    ),
    "work bomb by convolution": (
        {
            **LINEAR,
            "input": {"name": "x", "shape": [1, 2000, 2000]},
            "nodes": [
                [
                    "evil",
                    "conv2d.default",
                    [X, {"node": "p_weight"}, {"node": "p_bias"}, [1, 1], [1000, 1000]],
                ]
            ],
            "output": "evil",
        },
        "one sample takes 3e\\+13 operations",
    ),
    "work bomb by pooling": (
        {
            **LINEAR,
            "input": {"name": "x", "shape": [1, 2000, 2000]},
            "nodes": [["evil", "avg_pool2d.default", [X, [1000], [1, 1]]]],
            "output": "evil",
        },
        "one sample takes 1e\\+12 operations",
    ),
    "work bomb by matrices": (
        {
            **LINEAR,
            "input": {"name": "x", "shape": [4000, 1000]},
            "nodes": [
                ["t", "transpose.int", [X, 1, 2]],
                ["a", "matmul.default", [X, {"node": "t"}]],
                ["b", "matmul.default", [{"node": "a"}, {"node": "a"}]],
            ],
            "output": "b",
        },
        "one sample takes 2e\\+11 operations",
    ),
    "shapes that do not fit": (_node("view.default", X, [7]), "does not fit its arguments"),
    "too few arguments": (_node("linear.default", X), "does not fit its arguments"),
    "too many arguments": (_node("relu.default", X, 1, 2, 3), "does not fit its arguments"),
    "dropout of everything and more": (
        _node("dropout.default", X, 7.0, True),
        "does not fit its arguments",
    ),
    "stride of zero": (_node("avg_pool1d.default", X, [1], [0]), "does not fit its arguments"),
    "window of zero": (_node("max_pool1d.default", X, [0]), "does not fit its arguments"),
    "negative padding": (
        _node("avg_pool1d.default", X, [2], [1], [-1]),
        "does not fit its arguments",
    ),
    "slice without a step": (_node("slice.Tensor", X, 1, 0, 3, 0), "does not fit its arguments"),
    "no groups": (_node("group_norm.default", X, 0), "does not fit its arguments"),
    "groups of nothing": (_node("group_norm.default", X, 2), "does not fit its arguments"),
    "axis that is not there": (_node("select.int", X, 7, 0), "does not fit its arguments"),
    "row that is not there": (_node("select.int", X, 1, 3), "does not fit its arguments"),
    "adaptive pool of a billion": (
        _node("adaptive_avg_pool1d.default", X, [10**9]),
        "out of range",
    ),
    "adaptive pools in many steps": (
        {
            **LINEAR,
            "nodes": [
                [f"n{i}", "adaptive_avg_pool1d.default", [X, [49_000_000]]] for i in range(5)
            ],
            "output": "n4",
        },
        "are allowed",
    ),
    "makes integers": (_node("softmax.int", X, 1, 3), "float32|does not fit"),
    "makes doubles": (_node("softmax.int", X, 1, 7), "does not give one float32 tensor"),
    "nine dimensions": (_node("view.default", X, [1] * 8 + [3]), "at most 8 dimensions"),
    "output of a batch": (_node("view.default", X, [3, 1]), "the output has shape"),
    "output of nothing": (_node("slice.Tensor", X, 1, 3, 3), "the output has shape"),
    "output is not there": ({**LINEAR, "output": "nobody"}, "output must be one of the nodes"),
    "output is no text": ({**LINEAR, "output": ["linear"]}, "output must be one of the nodes"),
    "no nodes": ({**LINEAR, "nodes": []}, "nodes must be a list of 1 to 5000"),
    "too many nodes": (
        {**LINEAR, "nodes": [[f"n{i}", "relu.default", [X]] for i in range(5001)]},
        "nodes must be a list of 1 to 5000",
    ),
    "nodes as an object": (
        {**LINEAR, "nodes": {"linear": "linear.default"}},
        "nodes must be a list",
    ),
    "unknown field": ({**LINEAR, "code": "import os"}, "exactly the fields"),
    "missing field": ({k: v for k, v in LINEAR.items() if k != "version"}, "exactly the fields"),
    "frozen is no list": ({**LINEAR, "frozen": "weight"}, "must be a list of parameter names"),
    "frozen names nothing": (
        {**LINEAR, "frozen": ["nothing"]},
        "must be a list of parameter names",
    ),
    "frozen twice": (
        {**LINEAR, "frozen": [next(iter(LINEAR["parameters"].values()))] * 2},
        "each parameter once",
    ),
    "frozen is everything": (
        {**LINEAR, "frozen": list(LINEAR["parameters"].values())},
        "at least one to train",
    ),
    "later version": ({**LINEAR, "version": 2}, "version=2 must be"),
    "version true": ({**LINEAR, "version": True}, "version=True must be"),
    "other format": ({**LINEAR, "format": "onnx"}, "format='onnx'"),
    "input without shape": ({**LINEAR, "input": {"name": "x", "shape": []}}, "input.shape"),
    "input of zero": ({**LINEAR, "input": {"name": "x", "shape": [0]}}, "input.shape"),
    "input true": ({**LINEAR, "input": {"name": "x", "shape": [True]}}, "input.shape"),
    "input too large": ({**LINEAR, "input": {"name": "x", "shape": [3000, 3000]}}, "input.shape"),
    "input named like a parameter": (
        {**LINEAR, "input": {"name": "p_bias", "shape": [3]}},
        "name of a parameter",
    ),
    "no parameters": ({**LINEAR, "parameters": {}}, "parameters must map"),
    "parameters as a list": ({**LINEAR, "parameters": ["weight"]}, "parameters must map"),
    "two nodes, one parameter": (
        {**LINEAR, "parameters": {"p_weight": "weight", "p_bias": "weight"}},
        "each once",
    ),
    "parameter path": (
        {**LINEAR, "parameters": {"p_weight": "../../weight", "p_bias": "bias"}},
        "parameters must map",
    ),
    "a list": ([LINEAR], "must be an object"),
    "null": (None, "must be an object"),
    "not a number": (
        json.dumps(_node("add.Tensor", X, float("nan"))).encode(),
        "NaN is not allowed",
    ),
    "infinity": (
        json.dumps(_node("add.Tensor", X, 1)).replace("1]]", "1e999]]").encode(),
        "not finite",
    ),
    "a field twice": (json.dumps(LINEAR)[:-1].encode() + b', "output": "x"}', "twice"),
    "truncated": (json.dumps(LINEAR).encode()[:-5], "not JSON"),
    "nested without end": (b"[" * 500_000, "not JSON of at most 12 levels"),
    "nested without end behind a quote": (b'"\\"' + b'{"a":' * 100_000, "not JSON"),
    "digits without end": (b'{"format": ' + b"9" * 10_000 + b"}", "not JSON"),
    "not text": (b"\xff\xfe\x00\x00", "not JSON"),
    "empty": (b"", "not JSON"),
    "over a megabyte": (b" " * (1024 * 1024 + 1), "larger than 1048576"),
}


@pytest.mark.parametrize("name", HOSTILE_GRAPHS)
def test_load_model__hostile_graph__is_refused_in_one_sentence(name: str) -> None:
    spec, sentence = HOSTILE_GRAPHS[name]
    said = refused(spec, _weights_beside(name))
    assert re.search(sentence, said), said


def _weights_beside(name: str) -> dict[str, np.ndarray]:
    return (
        {**WEIGHTS, "weight": np.ones((1, 1, 2000, 2000), np.float32)}
        if "convolution" in name
        else WEIGHTS
    )


def hostile_files() -> Iterator[tuple[str, bytes, bytes]]:
    """(name, graph, weights) of everything in this file that must be refused."""
    honest = json.dumps(LINEAR).encode(), to_safetensors(WEIGHTS)
    for name, (spec, _) in HOSTILE_GRAPHS.items():
        raw = spec if isinstance(spec, bytes) else json.dumps(spec).encode()
        yield name, raw, to_safetensors(_weights_beside(name))
    for name, (arrays, _) in HOSTILE_WEIGHTS.items():
        yield (
            f"weights: {name}",
            honest[0],
            arrays if isinstance(arrays, bytes) else to_safetensors(arrays),
        )
    for make in (_pickled, _old_pickle, _torch_file, _zip, _exported_program):
        content = make(Bomb(Path("never")))
        yield f"graph: {make.__name__}", content, honest[1]
        yield f"weights: {make.__name__}", honest[0], content


class Bomb:
    """A pickle that leaves a file behind if anything ever opens it."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def _pickled(bomb: Bomb) -> bytes:
    return pickle.dumps(bomb)


def _old_pickle(bomb: Bomb) -> bytes:
    return pickle.dumps(bomb, protocol=0)


def _torch_file(bomb: Bomb) -> bytes:
    out = io.BytesIO()
    torch.save({"weight": bomb}, out)
    return out.getvalue()


def _zip(bomb: Bomb) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(bomb))
    return out.getvalue()


def _exported_program(bomb: Bomb) -> bytes:
    out = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(3, 1), (torch.zeros(1, 3),)), out)
    return out.getvalue()


@pytest.mark.parametrize("make", [_pickled, _old_pickle, _torch_file, _zip, _exported_program])
@pytest.mark.parametrize("place", ["graph", "weights"])
def test_load_model__a_file_that_runs_code_when_opened__is_refused_unopened(
    make: Callable[[Bomb], bytes], place: str, tmp_path: Path
) -> None:
    canary = tmp_path / "the code ran"
    content = make(Bomb(canary))
    said = refused(content) if place == "graph" else refused(LINEAR, content)
    assert "zip or pickle file" in said or "not JSON" in said or "not safetensors" in said
    assert not canary.exists()


def _raw_safetensors(header: object, data: bytes = b"") -> bytes:
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data


HOSTILE_WEIGHTS: dict[str, tuple[dict[str, np.ndarray] | bytes, str]] = {
    "empty": (b"", "not safetensors"),
    "header longer than the file": ((10**15).to_bytes(8, "little") + b"{}", "not safetensors"),
    "offsets outside": (
        _raw_safetensors({"weight": {"dtype": "F32", "shape": [1, 3], "data_offsets": [0, 12]}}),
        "not safetensors",
    ),
    "shape and offsets differ": (
        _raw_safetensors(
            {"weight": {"dtype": "F32", "shape": [10**6], "data_offsets": [0, 4]}}, b"0000"
        ),
        "not safetensors",
    ),
    "sizes that overflow": (
        _raw_safetensors(
            {"weight": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}}, b"0000"
        ),
        "not safetensors",
    ),
    "unknown type": (
        _raw_safetensors(
            {"weight": {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 4]}}, b"0000"
        ),
        "not safetensors",
    ),
    "two tensors in one place": (
        _raw_safetensors(
            {
                "weight": {"dtype": "F32", "shape": [1, 3], "data_offsets": [0, 12]},
                "bias": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
            },
            b"0" * 12,
        ),
        "not safetensors",
    ),
    "a hole between tensors": (
        _raw_safetensors(
            {
                "weight": {"dtype": "F32", "shape": [1, 3], "data_offsets": [0, 12]},
                "bias": {"dtype": "F32", "shape": [1], "data_offsets": [16, 20]},
            },
            b"0" * 20,
        ),
        "not safetensors",
    ),
    "half precision": (
        _raw_safetensors(
            {"weight": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}, b"0000"
        ),
        "only float32",
    ),
    "brain floats": (
        _raw_safetensors(
            {"weight": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"0000"
        ),
        "only float32|not safetensors",
    ),
    "not a number": ({**WEIGHTS, "bias": np.array([np.nan], np.float32)}, "not finite"),
    "infinite": ({**WEIGHTS, "bias": np.array([np.inf], np.float32)}, "not finite"),
    "one missing": ({"weight": WEIGHTS["weight"]}, "exactly the parameters"),
    "one too many": ({**WEIGHTS, "more": WEIGHTS["bias"]}, "exactly the parameters"),
    "another shape": ({**WEIGHTS, "weight": np.ones((1, 4), np.float32)}, "does not fit"),
    "nothing in it": ({**WEIGHTS, "bias": np.zeros(0, np.float32)}, "is empty"),
    "nine dimensions": ({**WEIGHTS, "bias": np.zeros((1,) * 9, np.float32)}, "deeper than 8"),
}


def test_load_model__hostile_graph__leaves_no_stack_trace_in_the_nodes_log(
    capfd: pytest.CaptureFixture,
) -> None:
    refused(HOSTILE_GRAPHS["stride of zero"][0])
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("name", HOSTILE_WEIGHTS)
def test_load_model__hostile_weights__are_refused_in_one_sentence(name: str) -> None:
    arrays, sentence = HOSTILE_WEIGHTS[name]
    assert re.search(sentence, refused(LINEAR, arrays))


def test_load_model__too_many_parameters__refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "MAX_PARAMETERS", 3)
    assert refused(LINEAR) == "4 parameters are more than 3"


def test_from_safetensors__too_large__refuses_before_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fl_client.model.weights.MAX_BYTES", 10)
    with pytest.raises(GraphRefused, match="larger than 10"):
        from_safetensors(to_safetensors(WEIGHTS))


ROOM = Path(fl_client.__file__).parent
# those that look at no buyer's bytes: the hospital's own folder, connection, bundle, commands and
# pictures
ELSEWHERE = set(
    (
        "config.py supernode.py bundle.py cli.py owner_cli.py listing.py job_folder.py entries.py "
        "counter.py table_cli.py album.py shards.py survey.py snapshots.py "
        "archive.py backup.py sealed.py backup_cli.py "
        # around what sees one: these start it and shut it in
        "workers.py zygote.py walls.py kernel.py probe.py machine_cli.py audit_log.py page.py "
        "pack.py "
        # the machine, and how the node stands
        "preflight.py service.py contacts.py state.py"
    ).split()
)
SEE_A_MODEL = sorted(p for p in ROOM.rglob("*.py") if p.name not in ELSEWHERE)


@pytest.mark.parametrize("path", SEE_A_MODEL, ids=lambda p: p.relative_to(ROOM).as_posix())
def test_source__the_files_that_see_a_buyers_model__name_nothing_that_runs_code(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = {
        a.name
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
        for a in n.names
    }
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not (imported | modules) & {
        "pickle",
        "marshal",
        "importlib",
        "subprocess",
        "os",
        "sys",
        "ctypes",
        "dill",
    }
    called = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    forbidden = {
        "eval",
        "exec",
        "compile",
        "__import__",
        "torch.load",
        "torch.export.load",
        "torch.jit.load",
        "open",
    }
    assert not called & forbidden


# -- the format's document -------------------------------------------------------------------------

DOCUMENT = (Path(graph.__file__).parent / "GRAPH_FORMAT.md").read_text()


def test_document__operations__are_those_of_the_table() -> None:
    section = DOCUMENT.split("## Operations")[1]
    assert set(re.findall(r"`([a-z_0-9]+\.\w+)`", section)) == set(OPERATIONS)


def test_document__limits_and_losses__are_those_of_the_code() -> None:
    numbers = {
        int(n) for n in re.findall(r"\| (\d+) \|", DOCUMENT.split("## Limits")[1].split("##")[0])
    }
    assert numbers == {
        graph.MAX_GRAPH_BYTES,
        graph.MAX_NODES,
        graph.MAX_PARAMETERS,
        graph.MAX_DIMENSIONS,
        graph.MAX_INPUT_ELEMENTS,
        graph.MAX_ELEMENTS,
        graph.MAX_TOTAL_ELEMENTS,
        graph.MAX_OPERATIONS,
        graph.MAX_DEPTH,
    }
    assert all(f"`{name}`" in DOCUMENT for name in LOSSES)


def test_document__example__is_accepted() -> None:
    example = re.search(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    assert example is not None
    weights = to_safetensors(
        {"weight": np.zeros((1, 13), np.float32), "bias": np.zeros(1, np.float32)}
    )
    assert load_model(example[1].encode(), weights).input_shape == (13,)
