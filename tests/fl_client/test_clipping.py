"""Clipped sums beside Opacus and autograd, and the bound that they rest on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from fl_client.model.export import export_model
from fl_client.model.graph import GraphModel, load_model
from fl_client.model.losses import LOSSES
from fl_client.privacy import clipping
from fl_client.privacy.clipping import Part, clipped_sum, most_patients, proved_margin
from fl_client.privacy.compiling import frozen_of
from fl_client.privacy.gradients import Loss, RowGradients, kept_layers
from fl_client.privacy.noise import MARGIN
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


def trained_of(graph: GraphModel) -> list[Tensor]:
    return [p.detach() for p in graph.parameters() if p.requires_grad]


def ours(
    graph: GraphModel,
    loss: Loss,
    x: Tensor,
    y: Tensor,
    mask: Tensor,
    clip: float,
    weight: Tensor | None = None,
) -> list[Tensor]:
    """The clipped sum, one tensor for each trained parameter; several rows a patient by `mask`."""
    of_rows = RowGradients(graph, loss, len(x) // len(mask))
    trained = trained_of(graph)
    weight = torch.ones(len(x), dtype=x.dtype) if weight is None else weight
    rows = of_rows(trained, frozen_of(graph), x, y, weight, of_rows.zeros(len(x), x))
    flat = clipped_sum(of_rows.parts, rows, mask, torch.tensor(clip, dtype=torch.float64))
    sizes = [p.numel() for p in trained]
    return [f.view(p.shape) for f, p in zip(flat.split(sizes), trained, strict=True)]


def by_opacus(name: str, clip: float) -> Tensor:
    """Sum of the gradients of Opacus's hooks, each clipped to `clip`, flat."""
    module, _, x, y = built(name)
    hooked = GradSampleModule(module, loss_reduction="mean")
    batch_loss((CASES | WHOLE)[name][2], hooked(x), y).backward()
    each = torch.cat([p.grad_sample.flatten(1) for p in hooked.parameters()], 1)
    return (each * (clip / each.norm(dim=1).clamp(min=clip))[:, None]).sum(0)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize(
    ("name", "clip"), [*product(CASES, (0.01, 1.0, 1e6)), *product(WHOLE, (1.0,))]
)
def test_clipped_sum__float64__is_that_of_opacus_hooks(
    name: str, clip: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-10 without what the bound adds to a norm, to 1e-5 of a clip with it."""
    module, graph, x, y = built(name)
    order = [n for n, _ in module.named_parameters()]
    assert order == list(graph.parameter_names), "or the flat vectors are of another order"
    theirs = by_opacus(name, clip)
    everybody = torch.ones(ROWS, dtype=torch.bool)
    loss = LOSSES[(CASES | WHOLE)[name][2]]
    bounded = torch.cat([s.flatten() for s in ours(graph, loss, x, y, everybody, clip)])
    assert float((bounded - theirs).norm()) <= 1e-5 * min(clip * ROWS, float(theirs.norm()) + clip)
    monkeypatch.setattr(clipping, "KAPPA", 0.0)
    monkeypatch.setattr(clipping, "ROUNDING", 1.0)
    exact = torch.cat([s.flatten() for s in ours(graph, loss, x, y, everybody, clip)])
    # rows are float64 here, so that nothing but the formulas is compared
    torch.testing.assert_close(exact, theirs, rtol=1e-10, atol=1e-12 * float(theirs.abs().max()))


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
    for row in range(3):
        sums = ours(graph, loss, x, torch.ones(3, dtype=kind), torch.arange(3) == row, 1e30)
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


@pytest.mark.parametrize("records", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_clipped_sum__patients_of_several_rows__is_the_clipped_weighted_sum_of_theirs(
    name: str, records: int
) -> None:
    _, graph, x, y = built(name)
    loss, patients = LOSSES[CASES[name][2]], ROWS // records
    x, y = x[: patients * records], y[: patients * records]
    weight = torch.rand(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    alone = torch.stack(
        [
            torch.cat(
                [s.flatten() for s in ours(graph, loss, x, y, torch.arange(len(x)) == i, 1e30)]
            )
            for i in range(len(x))
        ]
    )
    each = (alone * weight[:, None]).view(patients, records, -1).sum(1)
    for clip in (0.01, 1e6):
        expected = (each * (clip / each.norm(dim=1).clamp(min=clip))[:, None]).sum(0)
        everybody = torch.ones(patients, dtype=torch.bool)
        found = torch.cat([s.flatten() for s in ours(graph, loss, x, y, everybody, clip, weight)])
        assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("name", CASES)
def test_clipped_sum__rows_that_do_not_count__are_as_if_they_were_not_there(name: str) -> None:
    _, graph, x, y = built(name)
    loss, mask = LOSSES[CASES[name][2]], torch.arange(ROWS) % 3 != 1
    masked = ours(graph, loss, x, y, mask, 1.0)
    fewer = ours(graph, loss, x[mask], y[mask], torch.ones(int(mask.sum()), dtype=torch.bool), 1.0)
    x[~mask], y[~mask] = torch.nan, torch.nan
    hostile = ours(graph, loss, x, y, mask, 1.0)
    for total, other, third in zip(masked, fewer, hostile, strict=True):
        torch.testing.assert_close(total, other, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(third, other, rtol=1e-10, atol=1e-12)


# -- the bound -------------------------------------------------------------------------------------


def test_proved_margin__as_many_patients_as_allowed__is_under_half_of_the_stated_one() -> None:
    for positions in (1, 2, 9, 64, 1024, 50_176, 2**20, 2**28):
        assert proved_margin(most_patients(positions), positions) <= MARGIN / 2
    assert most_patients(1) > 10_000 and most_patients(1024) > 500


def numbers(count: int) -> st.SearchStrategy[list[float]]:
    """float32, with many that are huge, tiny, alike or each other's opposite."""
    some = st.sampled_from([0.0, 1.0, -1.0, 1 + 2**-23, -1 + 2**-24, 1e30, -1e30, 1e-30, 2**-60])
    return st.lists(some | st.floats(-(2.0**60), 2.0**60, width=32), min_size=count, max_size=count)


def exact_sum(left: list[float], right: list[float]) -> list[list[float]]:
    """sum_t l_t r_t^T of [T, 2] and [T, 2], in exact fractions, as floats."""
    from fractions import Fraction

    found = [[Fraction(0)] * 2 for _ in range(2)]
    for t in range(len(left) // 2):
        for i in range(2):
            for j in range(2):
                found[i][j] += Fraction(left[2 * t + i]) * Fraction(right[2 * t + j])
    return [[float(f) for f in row] for row in found]


@given(st.integers(1, 6).flatmap(lambda t: st.tuples(numbers(2 * t), numbers(2 * t))))
@settings(max_examples=300, deadline=None)
def test_factors__whatever_cancels__neither_sum_nor_its_rounding_is_beyond_the_clip(
    both: tuple[list[float], list[float]],
) -> None:
    """The book-keeping rule against exact arithmetic: the clipped sum has norm 1 at most, and is
    the exact one times c to within the bound of the docstring.
    """
    left, right = (torch.tensor(each, dtype=torch.float32).view(1, -1, 2) for each in both)
    part, mask = [Part(0, "factors", (0, 1))], torch.ones(1, dtype=torch.bool)
    total = clipped_sum(part, [left, right], mask, torch.tensor(1.0))
    assert float(total.norm()) <= 1 + MARGIN
    gradient = torch.tensor(exact_sum(left.flatten().tolist(), right.flatten().tolist()))
    norm = float(gradient.double().norm())
    assert norm == 0 or float(total.norm()) <= norm * (1 + 1e-6) + MARGIN


@given(numbers(8), numbers(8), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_clipped_sum__one_patient_more__moves_it_by_at_most_the_clip_and_the_margin(
    left: list[float], right: list[float], victim: int
) -> None:
    """Four patients of two rows each, factors and vectors, with and without one of them."""
    rows = [
        torch.tensor(left, dtype=torch.float32).view(8, 1, 1),
        torch.tensor(right, dtype=torch.float32).view(8, 1, 1),
        torch.tensor(right[::-1], dtype=torch.float32).view(8, 1),
    ]
    parts = [Part(0, "factors", (0, 1)), Part(1, "vector", (2,))]
    everybody, clip = torch.ones(4, dtype=torch.bool), torch.tensor(1.0)
    others = torch.arange(4) != victim
    moved = clipped_sum(parts, rows, everybody, clip) - clipped_sum(parts, rows, others, clip)
    assert float(moved.norm()) <= 1 + MARGIN


def test_clipped_sum__sixty_five_thousand_positions_that_cancel__stay_within_the_margin() -> None:
    """The worst that one float64 matrix product can round, beside the proof."""
    positions, patients = 1024, 64
    source = torch.Generator().manual_seed(0)
    left = torch.randn(patients, positions // 2, 3, generator=source) * 1e10
    left = torch.cat([left, -left], 1)
    right = torch.randn(patients, positions // 2, 3, generator=source)
    right = torch.cat([right, right * (1 + 2**-22)], 1)
    part, everybody = [Part(0, "factors", (0, 1))], torch.ones(patients, dtype=torch.bool)
    clip = torch.tensor(1.0)
    whole = clipped_sum(part, [left, right], everybody, clip)
    for victim in range(0, patients, 7):
        others = torch.arange(patients) != victim
        moved = whole - clipped_sum(part, [left, right], others, clip)
        assert float(moved.norm()) <= 1 + proved_margin(patients, positions)


def test_kept_layers__a_weight_used_twice__gets_ordinary_gradients_and_the_right_sum() -> None:
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
    names = {n for layer in kept_layers(graph).values() for n in (layer.weight, layer.bias)}
    kept = {graph.parameter_names[i] for i in names if i is not None}
    assert kept == {"head.weight", "head.bias"}
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
    sums = ours(graph, loss, x, y, torch.ones(6, dtype=torch.bool), 1e9)
    for total, expected in zip(sums, whole, strict=True):
        torch.testing.assert_close(total, expected.double(), rtol=1e-5, atol=1e-6)
