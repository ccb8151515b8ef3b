"""One private step beside the same step without privacy, in one process: time and memory of every
engine.

    python -m tests.benchmarks.dp_step [--quick] [--json FILE]

Rivals take turns; a figure is the median over turns of process CPU time (on a GPU: wall time,
synchronised), divided by that of the ordinary non-private step (forward, backward, SGD) of the same
run. `NAME_B.ours` includes noise and update; `.mem` is the peak of tensors alive during a step,
parameters included, divided likewise (CPU only); `.ours` is compiled, as the node does for a job of
`.compiled_from_steps` or more. `epoch_mlp` is 800 records, expected batch 64, with sampling,
against a shuffled DataLoader's loop. Knows nothing of utility.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
    GradSampleModuleFastGradientClipping,
)
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, TensorDataset

from fl_client.model.export import export_model
from fl_client.model.graph import load_model
from fl_client.model.losses import LOSSES
from fl_client.privacy.compiling import BookKeeping
from fl_client.privacy.noise import SecureRandom
from fl_client.privacy.slots import needed, seated
from fl_client.privacy.training import Patients, _scale, by_patient, deterministic, step

SIGMA, CLIP, RATE = 1.0, 1.0, 1e-3
LONG = 10**12  # steps of a job that compiling pays for
Action = Callable[[], object]


class Block(nn.Module):
    """A ResNet's basic block with GroupNorm."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm_one, self.norm_two = nn.GroupNorm(8, outside), nn.GroupNorm(8, outside)
        same = inside == outside and stride == 1
        self.short = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_two(self.two(torch.relu(self.norm_one(self.one(x)))))
        return torch.relu(y + self.short(x))


def resnet() -> nn.Module:
    """ResNet-18 with GroupNorm for 3 x 64 x 64 (stem of stride 2 and a max-pool, as for larger
    pictures).
    """
    widths = [
        (64, 64, 1),
        (64, 64, 1),
        (64, 128, 2),
        (128, 128, 1),
        (128, 256, 2),
        (256, 256, 1),
        (256, 512, 2),
        (512, 512, 1),
    ]
    stem = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.GroupNorm(8, 64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    return nn.Sequential(
        *stem,
        *(Block(*w) for w in widths),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


class Attention(nn.Module):
    """A pre-norm transformer block with scaled dot-product attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_one, self.norm_two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_one(x)
        split = [
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        ]
        attended = nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.down(nn.functional.gelu(self.up(self.norm_two(x))))


class ViT(nn.Module):
    """A vision transformer of 4 blocks, width 192, patches of 4 on 3 x 32 x 32, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 192, 4, 4)
        self.blocks = nn.Sequential(*(Attention(192, 3) for _ in range(4)))
        self.head = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )


def cnn() -> nn.Module:
    first = [nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32 * 49, 10))


@dataclass(frozen=True)
class Case:
    """What is measured: how to build it, its input, batch sizes and turns."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    loss: str
    sizes: tuple[int, ...]
    turns: int
    repeat: int


CASES = {
    "mlp": Case(mlp, (13,), "binary_cross_entropy", (32, 128, 256), 31, 20),
    "cnn": Case(cnn, (1, 28, 28), "cross_entropy", (64, 256), 11, 2),
    "resnet": Case(resnet, (3, 64, 64), "cross_entropy", (32,), 7, 1),
    "vit": Case(ViT, (3, 32, 32), "cross_entropy", (32,), 7, 1),
}


def peak_bytes(action: Action) -> int:
    """The most bytes that were allocated and not freed at one time during `action`, by torch's
    profiler (CPU).
    """
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        action()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def batch_loss(loss: str, outputs: Tensor, y: Tensor) -> Tensor:
    """The mean loss of a batch, as everybody writes it."""
    if loss == "cross_entropy":
        return nn.functional.cross_entropy(outputs, y.long())
    return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], y)


class Rivals:
    """Every way to take one step on one batch; each keeps its own copy of the model."""

    def __init__(self, case: Case, rows: int, device: str):
        self.case, self.rows = case, rows
        self.x = torch.randn(rows, *case.shape, device=device)
        self.y = torch.randint(
            0, 10 if case.loss == "cross_entropy" else 2, (rows,), device=device
        ).float()
        self.device, self.pays_from = device, math.inf
        torch.manual_seed(0)
        self.module = case.make().to(device)

    def _module(self) -> nn.Module:
        torch.manual_seed(0)
        return self.case.make().to(self.device)

    def plain(self) -> Action:
        """Not private: forward, backward, SGD."""
        module = self._module()
        optimizer = torch.optim.SGD(module.parameters(), lr=RATE)

        def step() -> None:
            optimizer.zero_grad()
            batch_loss(self.case.loss, module(self.x), self.y).backward()
            optimizer.step()

        return step

    def plain_fused(self) -> Action:
        """Not private, the forward and backward pass compiled."""
        module = self._module()
        optimizer = torch.optim.SGD(module.parameters(), lr=RATE, foreach=True)
        run = torch.compile(
            lambda: batch_loss(self.case.loss, module(self.x), self.y), dynamic=False
        )

        def step() -> None:
            optimizer.zero_grad()
            run().backward()
            optimizer.step()

        return step

    def hooks(self) -> Action:
        """Opacus's default."""
        module = GradSampleModule(self._module(), loss_reduction="mean")
        optimizer = DPOptimizer(
            torch.optim.SGD(module.parameters(), lr=RATE),
            noise_multiplier=SIGMA,
            max_grad_norm=CLIP,
            expected_batch_size=self.rows,
            loss_reduction="mean",
        )

        def step() -> None:
            optimizer.zero_grad()
            batch_loss(self.case.loss, module(self.x), self.y).backward()
            optimizer.step()

        return step

    def ghost(self) -> Action:
        """Opacus's ghost clipping."""
        module = GradSampleModuleFastGradientClipping(
            self._module(), max_grad_norm=CLIP, use_ghost_clipping=True, loss_reduction="mean"
        )
        optimizer = DPOptimizerFastGradientClipping(
            torch.optim.SGD(module.parameters(), lr=RATE),
            noise_multiplier=SIGMA,
            max_grad_norm=CLIP,
            expected_batch_size=self.rows,
            loss_reduction="mean",
        )
        tall = self.case.loss == "cross_entropy"
        criterion = nn.CrossEntropyLoss() if tall else nn.BCEWithLogitsLoss()
        loss = DPLossFastGradientClipping(module, optimizer, criterion, loss_reduction="mean")

        def step() -> None:
            optimizer.zero_grad()
            outputs = module(self.x)
            # one dimension: with [B, 1] Opacus's coefficients would broadcast and clip nothing
            loss(outputs, self.y.long()).backward() if tall else loss(
                outputs[:, 0], self.y
            ).backward()
            optimizer.step()

        return step

    def vmap(self) -> Action:
        """torch.func's per-sample gradients under Opacus's optimizer."""
        module, of = self._module(), LOSSES[self.case.loss]
        optimizer = DPOptimizer(
            torch.optim.SGD(module.parameters(), lr=RATE),
            noise_multiplier=SIGMA,
            max_grad_norm=CLIP,
            expected_batch_size=self.rows,
            loss_reduction="mean",
        )
        each = vmap(
            grad(
                lambda p, sample, target: of(functional_call(module, p, (sample[None],))[0], target)
            ),
            (None, 0, 0),
        )

        def step() -> None:
            gradients = each({n: p.detach() for n, p in module.named_parameters()}, self.x, self.y)
            for name, parameter in module.named_parameters():
                parameter.grad_sample = gradients[name]  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad()

        return step

    def _engine(self, compiled: bool) -> tuple[BookKeeping, Tensor]:
        model = load_model(
            *export_model(self._module().cpu(), torch.zeros(1, *self.case.shape))
        ).to(self.device)
        steps = LONG if compiled else 1
        run = BookKeeping(model, LOSSES[self.case.loss], self.rows, 1, steps)
        self.pays_from = run.pays_from
        return run, torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def ours(self, compiled: bool = False) -> Action:
        """Our engine: clipped sum, cryptographic noise, update."""
        run, theta = self._engine(compiled)
        random, places = SecureRandom(), torch.arange(self.rows, device=self.device)
        clip = torch.tensor(CLIP, device=self.device)
        scale = _scale(CLIP, SIGMA, len(theta), RATE / self.rows, torch.device(self.device))
        table = by_patient(self.x.cpu().numpy(), self.y.cpu().numpy(), None, 1)
        table = Patients(*(each.to(self.device) for each in table))

        def ours() -> None:
            with torch.no_grad():
                step(run, theta, [], table, places, clip, random, scale)

        return ours


def alternate(actions: dict[str, Action], turns: int, repeat: int, device: str) -> dict[str, float]:
    """Median seconds of one call of each, taking turns."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(turns + 2):
        for name, action in actions.items():
            start = clock()
            for _ in range(repeat):
                action()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn > 1:  # the first two warm up
                taken[name].append((clock() - start) / repeat)
    return {name: statistics.median(values) for name, values in taken.items()}


def measure(quick: bool, device: str, console: Console) -> dict[str, float]:
    """{case_rows.engine[.mem]: times the plain step's}."""
    figures: dict[str, float] = {}
    for name, case in CASES.items():
        for rows in case.sizes[:1] if quick else case.sizes:
            rivals = Rivals(case, rows, device)
            actions: dict[str, Action] = {
                "plain": rivals.plain(),
                "hooks": rivals.hooks(),
                "ghost": rivals.ghost(),
                "vmap": rivals.vmap(),
                "ours_traced": rivals.ours(),
                "ours_compiled": rivals.ours(compiled=True),
                "plain_fused": rivals.plain_fused(),
            }
            console.print(f"{name}, batch of {rows}: {', '.join(actions)}")
            seconds = alternate(actions, 3 if quick else case.turns, case.repeat, device)
            memory = {n: peak_bytes(a) for n, a in actions.items()} if device == "cpu" else {}
            held = sum(p.nbytes for p in rivals.module.parameters()) + rivals.x.nbytes
            for engine in actions:
                figures[f"{name}_{rows}.{engine}"] = seconds[engine] / seconds["plain"]
                if memory:
                    figures[f"{name}_{rows}.{engine}.mem"] = (memory[engine] + held) / (
                        memory["plain"] + held
                    )
            if math.isfinite(rivals.pays_from):
                figures[f"{name}_{rows}.compiled_from_steps"] = round(rivals.pays_from)
            figures[f"{name}_{rows}.plain_microseconds"] = seconds["plain"] * 1e6
            figures[f"{name}_{rows}.ours"] = figures[f"{name}_{rows}.ours_compiled"]
            if memory:
                figures[f"{name}_{rows}.ours.mem"] = figures[f"{name}_{rows}.ours_compiled.mem"]
    return figures | epoch(quick, device)


def epoch(quick: bool, device: str) -> dict[str, float]:
    """A whole epoch of the MLP with sampling and noise, beside a shuffled DataLoader's loop."""
    people, expected = 800, 64
    case = CASES["mlp"]
    torch.manual_seed(0)
    x, y = (
        torch.randn(people, 13, device=device),
        torch.randint(0, 2, (people,), device=device).float(),
    )
    module = mlp().to(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    loader = DataLoader(TensorDataset(x, y), batch_size=expected, shuffle=True)

    def plain() -> None:
        for samples, targets in loader:
            optimizer.zero_grad()
            batch_loss(case.loss, module(samples), targets).backward()
            optimizer.step()

    q = expected / people
    rows = needed(people, q)
    actions: dict[str, Action] = {"plain": plain}
    random, clip = SecureRandom(), torch.tensor(CLIP, device=device)
    table = by_patient(x.cpu().numpy(), y.cpu().numpy(), None, 1)
    table = Patients(*(each.to(device) for each in table))
    for kind, steps in (("traced", 1), ("compiled", LONG)):
        model = load_model(*export_model(mlp(), torch.zeros(1, 13))).to(device)
        run = BookKeeping(model, LOSSES[case.loss], rows, 1, steps)
        theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        scale = _scale(CLIP, SIGMA, len(theta), RATE / expected, torch.device(device))

        def ours(run: BookKeeping = run, theta: Tensor = theta, scale: Tensor = scale) -> None:
            with torch.no_grad():
                for _ in range(len(loader)):
                    places = torch.from_numpy(seated(random, people, q, rows)).to(device)
                    step(run, theta, [], table, places, clip, random, scale)

        actions[f"ours_{kind}"] = ours
    seconds = alternate(actions, 5 if quick else 21, 2, device)
    figures = {f"epoch_mlp.{name}": value / seconds["plain"] for name, value in seconds.items()}
    return figures | {"epoch_mlp.ours": figures["epoch_mlp.ours_compiled"]}


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="the smallest batch of each, three turns"
    )
    parser.add_argument("--json", type=Path, help="file to write the flat figures to")
    given = parser.parse_args()
    console = Console(width=150)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    with deterministic():  # for every rival: as a node trains
        figures = measure(given.quick, device, console)
    engines = [
        "plain",
        "plain_fused",
        "hooks",
        "ghost",
        "vmap",
        "ours_traced",
        "ours_compiled",
        "ours",
    ]
    table = Table("time x the plain step (memory x)", *engines, box=None, pad_edge=False)
    for case in dict.fromkeys(name.split(".")[0] for name in figures):
        cells = []
        for engine in engines:
            time_of, memory = figures.get(f"{case}.{engine}"), figures.get(f"{case}.{engine}.mem")
            cells.append(
                "" if time_of is None else f"{time_of:.2f}" + (f" ({memory:.2f})" if memory else "")
            )
        table.add_row(case, *cells)
    console.print(table)
    if given.json:
        given.json.write_text(
            json.dumps({k: round(v, 4) for k, v in figures.items()}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
