"""Book-keeping beside Opacus's own hooks, in float64: the same clipped sums to 1e-10 on every kind
of layer.
"""

from __future__ import annotations

import math
import shutil
from collections import OrderedDict
from collections.abc import Callable
from itertools import product

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fl_client.model.export import export_model
from fl_client.model.graph import GraphModel, load_model
from fl_client.privacy import clipping
from fl_client.privacy.training import LOSSES
from tests.benchmarks.dp_step import ViT, resnet
from tests.fl_client.test_graph import MODULES


class Residual(nn.Module):
    """A block of a ResNet with GroupNorm: two convolutions, a strided one on the shortcut."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm_one, self.norm_two = nn.GroupNorm(2, outside), nn.GroupNorm(2, outside)
        self.short = nn.Conv2d(inside, outside, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_two(self.two(torch.relu(self.norm_one(self.one(x)))))
        return torch.relu(y + self.short(x))


class Patches(nn.Module):
    """A small vision transformer's first steps: patches by a convolution, layer norm, linear over
    positions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.norm = nn.LayerNorm(12)
        self.mix = nn.Linear(12, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(torch.nn.functional.gelu(self.mix(self.norm(rows))).mean(1))


class Dilated(nn.Module):
    """A convolution with every argument, and a fully connected head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 5, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 1))
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(x)).mean((2, 3)))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "linear": (lambda: nn.Linear(6, 1), (6,), "binary_cross_entropy"),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(13, 8), nn.ReLU(), nn.Linear(8, 1)),
        (13,),
        "squared_error",
    ),
    "no bias": (
        lambda: nn.Sequential(nn.Linear(7, 9, bias=False), nn.Tanh(), nn.Linear(9, 4)),
        (7,),
        "cross_entropy",
    ),
    "linear over few positions": (
        lambda: nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Flatten(), nn.Linear(60, 4)),
        (3, 6),
        "cross_entropy",
    ),
    "linear over many positions": (
        lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(90, 4)),
        (30, 2),
        "cross_entropy",
    ),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.GroupNorm(4, 8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            Residual(8, 6, 2),
            nn.Flatten(),
            nn.Linear(24, 4),
        ),
        (3, 8, 8),
        "cross_entropy",
    ),
    "patches": (Patches, (3, 8, 8), "cross_entropy"),
    "dilated": (Dilated, (2, 9, 7), "cross_entropy"),
}
WHOLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {  # as buyers bring them
    "resnet-18": (resnet, (3, 64, 64), "cross_entropy"),
    "vision transformer": (ViT, (3, 32, 32), "cross_entropy"),
}
ROWS = 11
LONG = 10**12  # steps of a job that compiling pays for, where there is a compiler


def built(name: str) -> tuple[nn.Module, GraphModel, Tensor, Tensor]:
    """A module, its graph with the same numbers, both in float64, and records some of which are far
    out.
    """
    make, shape, loss = (CASES | WHOLE)[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = make()
        graph = load_model(*export_model(module, torch.zeros(1, *shape))).double()
        x = torch.randn(ROWS, *shape, dtype=torch.float64) * torch.logspace(-1, 1, ROWS).view(
            -1, *[1] * len(shape)
        )
        y = torch.randint(0, 4 if loss == "cross_entropy" else 2, (ROWS,)).double()
    return module.double(), graph, x, y


def batch_loss(loss: str, outputs: Tensor, y: Tensor) -> Tensor:
    if loss == "cross_entropy":
        return nn.functional.cross_entropy(outputs, y.long())
    if loss == "squared_error":
        return nn.functional.mse_loss(outputs[:, 0], y)
    return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], y)


def ours(
    graph: GraphModel, name: str, x: Tensor, y: Tensor, mask: Tensor, clip: float
) -> list[Tensor]:
    values = [p.detach() for p in graph.parameters()]
    added = {node: zeros.double() for node, zeros in clipping.zeros_to_add(graph, x).items()}
    loss = LOSSES[(CASES | WHOLE)[name][2]]
    return clipping.clipped_sum(graph, loss)(
        values, x, y, mask, torch.tensor(clip, dtype=torch.float64), added
    )


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize(
    ("name", "clip"), [*product(CASES, (0.01, 1.0, 1e6)), *product(WHOLE, (1.0,))]
)
def test_clipped_sum__float64__equals_opacus_hooks_to_1e_10(name: str, clip: float) -> None:
    module, graph, x, y = built(name)
    hooked = GradSampleModule(module, loss_reduction="mean")
    optimizer = DPOptimizer(
        torch.optim.SGD(hooked.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=ROWS,
        loss_reduction="mean",
    )
    batch_loss((CASES | WHOLE)[name][2], hooked(x), y).backward()
    optimizer.clip_and_accumulate()
    theirs = {n: p.summed_grad for n, p in hooked._module.named_parameters()}
    sums = ours(graph, name, x, y, torch.ones(ROWS, dtype=torch.bool), clip)
    assert len(sums) == len(theirs)
    largest = max(
        float(each.abs().max()) for each in theirs.values()
    )  # the bias of attention's keys has gradient 0
    for parameter, total in zip(graph.parameter_names, sums, strict=True):
        torch.testing.assert_close(total, theirs[parameter], rtol=1e-10, atol=1e-12 * largest)


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", [*MODULES, *CASES, *WHOLE])
def test_clipped_sum__one_row_alone_unclipped__is_its_gradient_by_autograd(
    name: str, kind: torch.dtype, tolerance: float
) -> None:
    """Per-sample gradients of every architecture beside eager autograd, relative to the largest of
    all numbers.
    """
    make, shape = (MODULES[name], (32,)) if name in MODULES else (CASES | WHOLE)[name][:2]
    torch.manual_seed(3)
    module = make().eval()
    graph = load_model(*export_model(module, torch.zeros(1, *shape))).eval().to(kind)
    module.to(kind)
    x = torch.randn(3, *shape, dtype=kind)
    loss = lambda output, target: (output.square().sum() - target) * 1e-2  # noqa: E731
    values = [p.detach() for p in graph.parameters()]
    added = {node: zeros.to(kind) for node, zeros in clipping.zeros_to_add(graph, x).items()}
    for row in range(3):
        mask, clip = torch.arange(3) == row, torch.tensor(1e30, dtype=kind)
        sums = clipping.clipped_sum(graph, loss)(
            values, x, torch.ones(3, dtype=kind), mask, clip, added
        )
        module.zero_grad()
        loss(module(x[row : row + 1])[0], 1.0).backward()
        trained = [
            (n, p)
            for n, p in zip(graph.parameter_names, graph.parameters(), strict=True)
            if p.requires_grad
        ]
        assert len(sums) == len(trained)
        eager = dict(module.named_parameters())
        largest = max(float(eager[n].grad.abs().max()) for n, _ in trained)
        for (parameter, _), total in zip(trained, sums, strict=True):
            expected = eager[parameter].grad.reshape(total.shape)
            assert float((total - expected).abs().max()) <= tolerance * largest


@pytest.mark.parametrize("name", CASES)
def test_clipped_sum__rows_that_do_not_count__are_as_if_they_were_not_there(name: str) -> None:
    _, graph, x, y = built(name)
    mask = torch.arange(ROWS) % 3 != 1
    masked = ours(graph, name, x, y, mask, 1.0)
    fewer = ours(graph, name, x[mask], y[mask], torch.ones(int(mask.sum()), dtype=torch.bool), 1.0)
    x[~mask], y[~mask] = torch.nan, torch.nan
    hostile = ours(graph, name, x, y, mask, 1.0)
    for total, other, third in zip(masked, fewer, hostile, strict=True):
        torch.testing.assert_close(total, other, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(third, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_summer__traced__is_the_same_function(name: str) -> None:
    _, graph, x, y = built(name)
    graph, x, y = graph.float(), x.float(), y.float()
    mask, clip = torch.arange(ROWS) < ROWS - 2, torch.tensor(0.7)
    run = clipping.summer(graph, LOSSES[CASES[name][2]], ROWS, 1)
    assert clipping.summer(graph, LOSSES[CASES[name][2]], ROWS, 1) is run, "traced once"
    theta = torch.cat([p.detach().reshape(-1) for p in graph.parameters()])
    values = [p.detach() for p in graph.parameters()]
    added = clipping.zeros_to_add(graph, x)
    sums = clipping.clipped_sum(graph, LOSSES[CASES[name][2]])(values, x, y, mask, clip, added)
    expected = torch.cat([each.reshape(-1) for each in sums])
    torch.testing.assert_close(run.sum(theta, x, y, mask, clip), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "cnn", "patches", "dilated"])
def test_summer__compiled__is_the_same_function(name: str) -> None:
    _, graph, x, y = built(name)
    graph, x, y = graph.float(), x.float(), y.float()
    loss = LOSSES[CASES[name][2]]
    plain, compiled = (clipping.Summer(graph, loss, ROWS, steps) for steps in (1, LONG))
    theta = torch.cat([p.detach().reshape(-1) for p in graph.parameters()])
    mask, clip = torch.arange(ROWS) != 4, torch.tensor(0.7)
    x[2] = torch.nan
    torch.testing.assert_close(
        compiled.sum(theta, x, y, mask, clip),
        plain.sum(theta, x, y, mask, clip),
        rtol=1e-4,
        atol=1e-5,
    )
    if not compiled.compiled:
        pytest.skip("no C++ compiler here: traced was compared with traced")


def test_summer__compiled_for_patients_with_records__is_the_same_function() -> None:
    _, graph, x, y = built("mlp")
    graph, people = graph.float(), ROWS // 2
    x = x.float()[: 2 * people].view(people, 2, -1)
    y = torch.stack(
        [
            y.float()[: 2 * people].view(people, 2),
            torch.tensor([[0.5, 0.5]] * (people - 1) + [[1.0, 0.0]]),
        ],
        2,
    )
    theta = torch.cat([p.detach().reshape(-1) for p in graph.parameters()])
    sums = [
        clipping.Summer(graph, LOSSES["squared_error"], people, steps, 2).sum(
            theta, x, y, torch.ones(people, dtype=torch.bool), torch.tensor(0.7)
        )
        for steps in (1, LONG)
    ]
    torch.testing.assert_close(*sums, rtol=1e-4, atol=1e-5)


def test_summer__compiled_with_dropout__drops_others_each_time_and_every_sample_its_own() -> None:
    """Dropout on features of one: a sample's sum of outputs counts what it kept."""
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 1, bias=False))
    graph = load_model(*export_model(module, torch.zeros(1, 64))).train()
    run = clipping.Summer(graph, LOSSES["squared_error"], 8, LONG)
    theta, x = torch.zeros(64), torch.ones(8, 64)
    nobody = torch.zeros(8, dtype=torch.bool)
    kept = torch.stack(
        [  # the gradient by weight i is -2 * 2 where feature i was kept, 0 where it was dropped
            run.sum(theta, x, torch.ones(8), nobody | (torch.arange(8) == row), torch.tensor(1e9))
            / -4.0
            for row in range(8)
            for _ in range(25)
        ]
    )
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert len(kept.unique(dim=0)) == 200
    assert abs(kept.mean() - 0.5) < 5.4 * 0.5 / math.sqrt(
        kept.numel()
    )  # an honest run fails once in 10^7


def test_summer__tensors_that_do_not_fit__refuses_them() -> None:
    """Compiled code would read beyond them."""
    _, graph, x, y = built("mlp")
    run = clipping.summer(graph.float(), LOSSES["squared_error"], ROWS, 1)
    theta = torch.cat([p.detach().reshape(-1) for p in graph.parameters()])
    fitting = [theta, x.float(), y.float(), torch.ones(ROWS, dtype=torch.bool), torch.tensor(0.7)]
    run.sum(*fitting)
    turned = x.float().t().contiguous().t()
    for place, tensor in (
        (0, theta[:-1]),
        (1, x.float()[:-1]),
        (1, turned),
        (2, y),
        (3, torch.ones(ROWS)),
        (4, torch.ones(1)),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            run.sum(*fitting[:place], tensor, *fitting[place + 1 :])


def test_summer__compiler_breaks_down__runs_traced_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("omp.h: no such file\nand much more")

    monkeypatch.setattr(torch._inductor, "standalone_compile", broken)
    monkeypatch.setattr(clipping, "pays_from", lambda *_: 5)
    monkeypatch.setattr(clipping, "_SUMMERS", OrderedDict())
    _, graph, x, y = built("mlp")
    loss = LOSSES["squared_error"]
    short = clipping.summer(graph.float(), loss, ROWS, 4)
    assert not short.compiled
    long = clipping.summer(graph, loss, ROWS, 5)
    assert not long.compiled
    theta = torch.cat([p.detach().reshape(-1) for p in graph.parameters()])
    given = (theta, x.float(), y.float(), torch.ones(ROWS, dtype=torch.bool), torch.tensor(0.7))
    assert torch.equal(long.sum(*given), short.sum(*given))
    assert clipping.summer(graph, loss, ROWS, 10**9) is long, "tried once"
    assert [m for m in caplog.messages if m] == ["not compiled, so slower: omp.h: no such file"]


def test_summer__longer_job_of_the_same_model__is_compiled_then_and_stays_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clipping, "pays_from", lambda *_: 5)
    monkeypatch.setattr(clipping, "compiled", lambda graph, _: lambda *given: graph(*given))
    monkeypatch.setattr(clipping, "_SUMMERS", OrderedDict())
    graph = built("mlp")[1].float()
    kinds = [
        clipping.summer(graph, LOSSES["squared_error"], ROWS, steps).compiled for steps in (4, 5, 4)
    ]
    assert kinds == [False, True, True]


def test_pays_from__step_of_a_millisecond_or_of_a_second__is_thousands_of_steps_or_dozens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler here: nothing ever pays")
    graph = built("mlp")[1].float()
    found = []
    for seconds in (1e-3, 1.0):
        clock = iter([0.0, 9.0, 20.0, 20.0 + seconds])  # the first call is slow and does not count
        monkeypatch.setattr(clipping.time, "perf_counter", lambda clock=clock: next(clock))
        found.append(clipping.Summer(graph, LOSSES["squared_error"], ROWS, 1).pays_from)
    assert found[0] > 5000 and 20 < found[1] < 100


def test_pays_from__no_compiler__never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clipping.shutil, "which", lambda _: None)
    run = clipping.Summer(built("mlp")[1].float(), LOSSES["squared_error"], ROWS, LONG)
    assert run.pays_from == math.inf and not run.compiled


def test_compiled__gives_other_numbers__is_not_used_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A compiler's mistake must not become a gradient that is not clipped."""
    for wrong in (1.01, math.nan):
        monkeypatch.setattr(
            torch._inductor,
            "standalone_compile",
            lambda graph, *_, wrong=wrong, **__: lambda *given: wrong * graph(*given),
        )
        example = (torch.ones(3), torch.ones(3))
        assert clipping.compiled(clipping.traced(lambda a, b: a + b, example), example) is None
    assert caplog.messages == ["not compiled, so slower: compiled, it gives other numbers"] * 2


def test_kept_nodes__a_weight_used_twice__gets_ordinary_gradients_and_the_right_sum() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)
            self.own = nn.Parameter(torch.ones(5))
            self.head = nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(torch.tanh(self.layer(x))) * self.own)

    torch.manual_seed(0)
    graph = load_model(*export_model(Tied(), torch.zeros(1, 5)))
    names = {n for pair in clipping._kept_nodes(graph).values() for n in pair}
    assert {graph.parameter_names[i] for i in names if i is not None} == {
        "head.weight",
        "head.bias",
    }
    x, y = torch.randn(6, 5), torch.zeros(6)
    keys = [key for key, _ in graph.named_parameters()]
    values = [p.detach() for p in graph.parameters()]
    loss = LOSSES["squared_error"]
    whole = torch.func.grad(
        lambda v: sum(
            loss(
                torch.func.functional_call(graph, dict(zip(keys, v, strict=True)), (row[None],))[0],
                t,
            )
            for row, t in zip(x, y, strict=True)
        )
    )(values)
    sums = clipping.clipped_sum(graph, loss)(
        values,
        x,
        y,
        torch.ones(6, dtype=torch.bool),
        torch.tensor(1e9),
        clipping.zeros_to_add(graph, x),
    )
    for total, expected in zip(sums, whole, strict=True):
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)
