"""What a model trained privately is worth, on real data, beside the same training without privacy,
alone, and pooled. Every file is read as a node reads it: by a source and a schema (real_data.py).

    python -m tests.benchmarks.utility [--quick] [--json FILE] [--only heart,stroke,xray,mnist,brca]
    [--seeds N]

Every figure comes from the node's own engine (`fl_client.privacy.training.train_round`, plans by
`accounting.calibrate`, loss metrics paid for) and the theatre's average, without messages.
`per_hospital`: every hospital adds its own noise, as the product does; `central`: noise once, as if
one node held all records; `local`: each hospital alone, judged on its own test part; `none`:
federated, the same engine without clipping and noise. Mean and sd are over runs: noise is
cryptographic and never the same twice, and the seed picks the stroke trial's split.

    python -m tests.benchmarks.utility --plans [--json FILE]      the default plans beside a grid
    python -m tests.benchmarks.utility --coverage [--json FILE]   the intervals of a report

Recipes: tables take the buyer's defaults (`fl_client.privacy.defaults`); pictures take fixed
wavelet features with a linear head (`models.scattering`), whose settings were chosen on the
official validation pictures and on 10,000 of the training digits. Data: ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from fl_client.data.tables import Records, load
from fl_client.model.export import export_model
from fl_client.model.families import build
from fl_client.model.graph import GraphModel, load_model, parameters, predict
from fl_client.model.losses import LOSSES
from fl_client.privacy import compiling, defaults
from fl_client.privacy.accounting import calibrate
from fl_client.privacy.compiling import book_keeping, frozen_of
from fl_client.privacy.noise import SecureRandom
from fl_client.privacy.plan import PrivacyPlan
from fl_client.privacy.training import _put_back, by_patient, clipped_total, train_round
from fl_server.aggregation import server_step, weighted_mean
from tests import real_data
from tests.benchmarks import coverage, plans
from tests.real_data import SHARED

NOT_CLIPPED = 1e9
Site = tuple[np.ndarray, np.ndarray]  # features [n, width] float32, targets [n] float32


@dataclass(frozen=True)
class Recipe:
    """How one data set is trained; `learning_rate` is epsilon -> step size; None is the buyer's
    default. `plain_*` is for
    training without privacy."""

    outputs: int
    loss: str
    rounds: int | None
    clip: float
    learning_rate: Callable[[float], float] | None
    sampling_rate: float
    average_last: int | None
    plain_rounds: int
    plain_learning_rate: float
    delta: float
    epsilons: tuple[float, ...] = (0.5, 1, 2, 4, 8)
    arms: tuple[str, ...] = ("per_hospital", "central", "local", "none")
    local_steps: int = 1


TABLE = Recipe(1, "binary_cross_entropy", None, 1.0, None, 1.0, None, 200, 1.0, 1e-5)
RECIPES: Mapping[str, Recipe] = {
    "heart": TABLE,
    "stroke": TABLE,
    "xray": Recipe(
        1,
        "binary_cross_entropy",
        150,
        0.1,
        lambda epsilon: 20.0,
        1.0,
        38,
        300,
        0.05,
        1e-5,
        (0.5, 1, 2, 3, 4, 8),
        ("per_hospital", "central", "none"),
    ),
    "mnist": Recipe(
        10,
        "cross_entropy",
        22,
        0.1,
        lambda epsilon: min(64.0, 24.0 * epsilon),
        4096 / 60_000,
        5,
        439,
        0.05,
        1e-5,
        (0.5, 1, 2, 3, 4, 8),
        ("central", "none"),
        20,
    ),
    "brca": Recipe(
        5,
        "logistic_hazard",
        30,
        1.0,
        lambda epsilon: 0.25 if epsilon < 4 else 3.0,
        1.0,
        15,
        400,
        0.5,
        1e-4,
        arms=("per_hospital", "central", "none"),
    ),
}


@dataclass(frozen=True)
class Data:
    """Hospitals' training parts, their own test parts (empty where there is one for all), and the
    common test part.
    """

    sites: list[Site]
    tests: list[Site]
    test: Site


def _site(features: np.ndarray, targets: np.ndarray) -> Site:
    return np.ascontiguousarray(features, dtype=np.float32), np.asarray(
        targets, dtype=np.float32
    ).reshape(-1)


def _pooled(sites: list[Site]) -> Site:
    return np.concatenate([x for x, _ in sites]), np.concatenate([y for _, y in sites])


def _of(records: Records) -> Site:
    return np.asarray(records.features[:]), records.targets


def heart(seed: int) -> Data:
    """Four hospitals, FLamby's split."""
    with TemporaryDirectory() as folder:
        parts = real_data.heart(Path(folder)).values()
    tests = [_of(test) for _, test in parts]
    return Data([_of(train) for train, _ in parts], tests, _pooled(tests))


@lru_cache(maxsize=1)
def _stroke() -> tuple[Site, list[dict[str, str]]]:
    records, rows = real_data.stroke()
    return _of(records), rows


def stroke(seed: int) -> Data:
    """Eighteen sites of the trial, 70 % for training by the seed."""
    (x, y), rows = _stroke()
    site = np.array([row["SITE"] for row in rows])
    train = np.random.default_rng(seed).random(len(y)) < 0.7
    names = np.unique(site)
    tests = [_site(x[~train & (site == s)], y[~train & (site == s)]) for s in names]
    return Data(
        [_site(x[train & (site == s)], y[train & (site == s)]) for s in names],
        tests,
        _pooled(tests),
    )


def brca(seed: int) -> Data:
    """Six regions, FLamby's split; survival in five intervals."""
    with TemporaryDirectory() as folder:
        parts = real_data.brca(Path(folder)).values()
    tests = [_of(test) for _, test in parts]
    return Data([_of(train) for train, _ in parts], tests, _pooled(tests))


def _wavelets(records: Records) -> np.ndarray:
    """The fixed part of `models.scattering` of a node's pictures [n, 1, 28, 28], from -1 to 1;
    computed once, as nothing trains it.
    """
    fixed = build("scattering", 1, 28, 1)[:-1]  # type: ignore[index]
    made = []
    with torch.no_grad():
        for start in range(0, len(records.targets), 250):
            rows = torch.from_numpy(records.features[start : start + 250]).flatten(1)
            made.append(fixed(rows * 0.5 + 0.5))
    return torch.cat(made).numpy()


def _pictures(pictures: np.ndarray, labels: np.ndarray, target: dict[str, Any]) -> Site:
    """PNG files, read as a node does."""
    with TemporaryDirectory() as folder:
        source = real_data.png_folder(Path(folder) / "own", pictures, labels.ravel().tolist())
        schema = real_data.picture_schema(target)
        records = load(source, schema, b"s" * 32, Path(folder) / "store")
        return _wavelets(records), records.targets


@lru_cache(maxsize=1)
def _xray() -> tuple[Site, Site]:
    target = {"name": "label", "kind": "yes/no"}
    with np.load(SHARED / "pneumoniamnist" / "pneumoniamnist_dev.npz") as file:
        train, test = (
            _pictures(file[f"{part}_images"], file[f"{part}_labels"], target)
            for part in ("train", "test")
        )
    return train, test


def xray(seed: int) -> Data:
    """Four hospitals of 40, 30, 20 and 10 % of the children, with different parts of pneumonia, by
    the seed.
    """
    (x, y), test = _xray()
    random = np.random.default_rng(seed)
    order = random.permutation(len(y))
    sites, used = [], np.zeros(len(y), dtype=bool)
    for size, part in ((1875, 0.74), (1419, 0.85), (942, 0.6)):
        ill = order[(y[order] == 1) & ~used[order]][: round(size * part)]
        well = order[(y[order] == 0) & ~used[order]][: size - len(ill)]
        mine = np.concatenate([ill, well])
        used[mine] = True
        sites.append(_site(x[mine], y[mine]))
    sites.append(_site(x[~used], y[~used]))
    return Data(sites, [], test)


@lru_cache(maxsize=1)
def _mnist() -> tuple[Site, Site]:
    target = {"name": "label", "kind": "classes", "levels": list(range(10))}
    train, test = (
        _pictures(
            real_data.read_idx(SHARED / "mnist" / f"{part}-images-idx3-ubyte.gz"),
            real_data.read_idx(SHARED / "mnist" / f"{part}-labels-idx1-ubyte.gz"),
            target,
        )
        for part in ("train", "test-dev")
    )
    return train, test


def mnist(seed: int) -> Data:
    """All digits in one place."""
    train, test = _mnist()
    return Data([train], [], test)


SOURCES: Mapping[str, Callable[[int], Data]] = {
    "heart": heart,
    "stroke": stroke,
    "xray": xray,
    "mnist": mnist,
    "brca": brca,
}


def concordance(hazards: np.ndarray, targets: np.ndarray) -> float:
    """Harrell's C of logits of hazards [n, intervals], by the interval in which each was last seen
    (targets of `logistic_hazard`); ties of the risk count one half.
    """
    intervals = hazards.shape[1]
    risk = np.log1p(np.exp(hazards)).sum(1)  # minus the logarithm of the survival to the end
    event = targets[:, :intervals].any(1)
    seen = targets[:, intervals:].sum(1)  # intervals at risk, the one of the event included
    right = pairs = 0.0
    for i in np.flatnonzero(event):
        later = (seen > seen[i]) | ((seen == seen[i]) & ~event)
        right += float((risk[i] > risk[later]).sum()) + 0.5 * float((risk[i] == risk[later]).sum())
        pairs += int(later.sum())
    return right / pairs if pairs else math.nan


def auc(scores: np.ndarray, targets: np.ndarray) -> float:
    """Area under the ROC curve; ties count one half. NaN where there is one class only."""
    _, first, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[first]
    ill = targets > 0
    pairs = int(ill.sum()) * int((~ill).sum())
    return (
        float((ranks[ill].sum() - ill.sum() * (ill.sum() + 1) / 2) / pairs) if pairs else math.nan
    )


def accuracy(scores: np.ndarray, targets: np.ndarray) -> float:
    """Part that is right: the largest of several scores, or one score's sign."""
    guess = scores.argmax(1) if scores.shape[1] > 1 else scores[:, 0] > 0
    return float((guess == targets).mean())


@lru_cache(maxsize=64)
def _noise(
    epsilon: float, delta: float, rate: float, steps: int, rounds: int
) -> tuple[float, float]:
    return calibrate(epsilon, delta, rate, steps, rounds)


def train(recipe: Recipe, sites: list[Site], epsilon: float | None) -> GraphModel:
    """The federated model of these hospitals, each with its own noise; without privacy where
    epsilon is None.
    """
    width = sites[0][0].shape[1]
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(width, recipe.outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    model = load_model(*export_model(layer, torch.zeros(1, width)))
    if epsilon is None:
        return _train_plainly(recipe, sites, model)
    persons = [len(y) for _, y in sites]
    chosen = (
        defaults.plan(defaults.MODEL, persons, width, epsilon, recipe.delta)
        if recipe.rounds is None or recipe.learning_rate is None
        else defaults.Plan(
            recipe.rounds,
            recipe.local_steps,
            recipe.learning_rate(epsilon),
            recipe.clip,
            recipe.sampling_rate,
            0.0,
            {},
            recipe.average_last or max(1, recipe.rounds // 4),
        )
    )
    steps = chosen.rounds * chosen.local_steps
    noise, metric_noise = _noise(epsilon, recipe.delta, chosen.sampling_rate, steps, chosen.rounds)
    plan = PrivacyPlan(
        noise,
        chosen.clip_norm,
        chosen.sampling_rate,
        steps,
        recipe.delta,
        metric_noise,
        metric_clip=defaults.metric_clip(metric_noise, persons),
        metric_steps=chosen.rounds,
    )
    arrays = last = parameters(model)
    tail: list[dict[str, np.ndarray]] = []
    for _ in range(chosen.rounds):
        replies = [
            train_round(
                model,
                arrays,
                x,
                y,
                plan,
                steps=chosen.local_steps,
                learning_rate=chosen.learning_rate,
                loss=recipe.loss,
                expected_persons=len(y),
            ).arrays
            for x, y in sites
        ]
        mean = weighted_mean(replies, persons)
        last, arrays = (
            arrays,
            server_step(mean, arrays, last, chosen.server_momentum, chosen.server_rates),
        )
        tail = [*tail, arrays][-chosen.average_last :]
    return _with(model, {name: np.mean([each[name] for each in tail], axis=0) for name in arrays})


def _with(model: GraphModel, arrays: Mapping[str, np.ndarray]) -> GraphModel:
    theta = torch.cat(
        [
            torch.from_numpy(np.asarray(arrays[name], np.float32)).reshape(-1)
            for name in model.parameter_names
        ]
    )
    with torch.no_grad():
        _put_back(model, theta)
    return model


def _train_plainly(recipe: Recipe, sites: list[Site], model: GraphModel) -> GraphModel:
    """Gradient descent on everybody's mean loss, which is what averaging one full step of each
    hospital is.
    """
    x, y = (torch.from_numpy(part) for part in _pooled(sites))
    rows = max(1, round(len(y) * recipe.sampling_rate))
    size = min(rows, 4096)
    run = book_keeping(model, LOSSES[recipe.loss], size, 1, 1)
    random, clip = SecureRandom(), torch.tensor(NOT_CLIPPED)
    table, frozen = by_patient(x.numpy(), y.numpy(), None, 1), frozen_of(model)
    with torch.no_grad():
        theta = torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])
        for _ in range(recipe.plain_rounds):
            drawn = random.drawn(len(y), recipe.sampling_rate)
            places = torch.full((-(-len(drawn) // size) * size,), len(y))  # the last are nobody
            places[: len(drawn)] = torch.from_numpy(drawn)
            total = clipped_total(run, theta, frozen, table, places, clip)
            theta -= (total * (recipe.plain_learning_rate / rows)).float()
        _put_back(model, theta)
    return model


def score(name: str, arm: str, epsilon: float | None, seed: int) -> dict[str, float]:
    """The measures of one run.

    auc: of all test records together; acc: mean over the hospitals' test parts; site_auc: likewise,
    where both classes
    are there.
    """
    torch.set_num_threads(1)
    # a node serves few datasets; here eighteen sites of different size take turns in one process
    compiling.KEEP = 64
    recipe, data = RECIPES[name], SOURCES[name](seed)
    if arm == "local":
        models = [train(recipe, [site], epsilon) for site in data.sites]
    else:
        models = [train(recipe, [_pooled(data.sites)] if arm == "central" else data.sites, epsilon)]
    tests = data.tests or [data.test]
    each = [predict(models[i % len(models)], x) for i, (x, _) in enumerate(tests)]
    if recipe.loss == "logistic_hazard":
        return {"c": concordance(np.concatenate(each), np.concatenate([y for _, y in tests]))}
    figures = {
        "acc": statistics.mean(accuracy(s, y) for s, (_, y) in zip(each, tests, strict=True))
    }
    if recipe.outputs == 1:
        figures["auc"] = auc(np.concatenate(each)[:, 0], np.concatenate([y for _, y in tests]))
    if data.tests:
        figures["site_auc"] = float(
            np.nanmean([auc(s[:, 0], y) for s, (_, y) in zip(each, tests, strict=True)])
        )
    return figures


def _tasks(name: str, quick: bool, seeds: int) -> list[tuple[str, str, float | None, int]]:
    recipe = RECIPES[name]
    epsilons: list[float | None] = [1, 4] if quick else list(recipe.epsilons)
    cells = [(a, e) for a in recipe.arms for e in ([None] if a == "none" else epsilons)]
    if "local" in recipe.arms:
        cells.append(("local", None))
    return [(name, arm, epsilon, seed) for arm, epsilon in cells for seed in range(seeds)]


def _key(name: str, arm: str, epsilon: float | None) -> str:
    if epsilon is None:
        return f"{name}.none" if arm == "none" else f"{name}.{arm}.none"
    return f"{name}.{arm}.{epsilon:g}"


def measure(names: list[str], quick: bool, seeds: int, console: Console) -> dict[str, float]:
    """Flat figures: KEY.auc, KEY.acc, KEY.site_auc and the same with .sd, over `seeds` runs
    each.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for name in names:
        started = time.monotonic()
        SOURCES[name](0)  # what is computed once is then there in every process
        tasks = _tasks(name, quick, seeds)
        with (
            ProcessPoolExecutor(os.cpu_count(), get_context("fork")) as pool,
            Progress(console=console) as progress,
        ):
            bar = progress.add_task(name, total=len(tasks))
            for (_, arm, epsilon, _), figures in zip(
                tasks, pool.map(score, *zip(*tasks, strict=True)), strict=True
            ):
                found.setdefault(_key(name, arm, epsilon), []).append(figures)
                progress.advance(bar)
        console.print(f"{name}: {len(tasks)} trainings in {time.monotonic() - started:.0f} s")
    flat: dict[str, float] = {f"{name}.seeds": seeds for name in names}
    for key, runs in found.items():
        for what in sorted(set(runs[0])):
            values = [run[what] for run in runs]
            flat[f"{key}.{what}"] = round(statistics.mean(values), 4)
            flat[f"{key}.{what}.sd"] = (
                round(statistics.stdev(values), 4) if len(values) > 1 else 0.0
            )
    return flat


def show(flat: Mapping[str, float], names: list[str], console: Console) -> None:
    """One table per data set: arms down, epsilon across, mean and sd."""
    for name in names:
        recipe = RECIPES[name]
        for what in ("auc", "site_auc", "acc", "c"):
            if not any(key.startswith(f"{name}.") and key.endswith(f".{what}") for key in flat):
                continue
            columns: list[float | None] = [*recipe.epsilons, None]
            table = Table(
                f"{name} {what}",
                *(f"eps {e:g}" if e else "no DP" for e in columns),
                box=None,
                pad_edge=False,
            )
            for arm in recipe.arms:
                cells = []
                for epsilon in columns:
                    group = "none" if epsilon is None and arm != "local" else arm
                    key = f"{_key(name, group, epsilon)}.{what}"
                    cells.append(f"{flat[key]:.3f} ±{flat[key + '.sd']:.3f}" if key in flat else "")
                if arm != "none":
                    table.add_row(arm, *cells)
            console.print(table)


def early_deaths(seed: int) -> Data:
    """The trial as four hospitals, which wants to know who dies within 14 days: one in eleven."""
    (x, _), rows = _stroke()
    site = [row["SITE"] for row in rows]
    y = np.array([float(row["ID14"]) for row in rows])
    train = np.random.default_rng(seed).random(len(y)) < 0.7
    large = ("UK", "ITAL", "SWIT")
    place = np.array([large.index(name) if name in large else len(large) for name in site])
    parts = [train & (place == number) for number in range(len(large) + 1)]
    return Data([_site(x[part], y[part]) for part in parts], [], _site(x[~train], y[~train]))


# patients, inputs, event rate, of made-up tables over four hospitals
MADE_UP = (
    (200, 5, 0.5),
    (1_000, 20, 0.07),
    (1_000, 20, 0.5),
    (5_000, 5, 0.01),
    (5_000, 20, 0.02),
    (5_000, 60, 0.2),
    (20_000, 20, 0.05),
    (20_000, 100, 0.3),
    (100_000, 10, 0.01),
)


def show_plans(quick: bool, console: Console) -> dict[str, float]:
    """The default plan's held-out AUC beside the best of the grid, on real and made-up tables."""
    tasks = []
    if SHARED.exists():
        for name, source in {
            "heart": heart,
            "stroke": stroke,
            "early deaths": early_deaths,
        }.items():
            data = source(0)
            tasks.append(plans.Task(name, data.sites, data.test))
    shapes = MADE_UP[:3] if quick else MADE_UP
    tasks += [plans.made_up(*shape, 4, seed) for seed, shape in enumerate(shapes)]
    flat: dict[str, float] = {}
    for task in tasks:
        patients = sum(task.persons)
        repeats = 8 if patients < 3_000 else 4 if patients < 15_000 else 1
        for epsilon in (1.0, 4.0) if quick or patients >= 15_000 else plans.EPSILONS:
            row = plans.compare(task, epsilon, repeats)
            lost = row.best - row.default
            console.print(
                f"{row.task:<20} epsilon {epsilon:<3g} AUC: best {row.best:.3f} ({row.best_plan}), "
                f"default {row.default:.3f}, lost {lost:+.4f} ±{row.error:.4f}"
            )
            key = f"plans.{row.task}.{epsilon:g}"
            flat |= {f"{key}.best": round(row.best, 4), f"{key}.default": round(row.default, 4)}
            flat |= {f"{key}.lost": round(lost, 4), f"{key}.error": round(row.error, 4)}
    return flat


def show_coverage(quick: bool, console: Console) -> dict[str, float]:
    """Part of the 95 % intervals that hold the exact figure, and their width, by kind of scores."""
    cells = list(coverage.measure(3 if quick else 8, 8 if quick else 15))
    shown = Table("scores", *coverage.NAMES, "width of the AUC's", box=None)
    flat: dict[str, float] = {}
    for kind in coverage.KINDS:
        mine = [cell for cell in cells if cell.kind == kind]
        held = {n: statistics.mean(c.held[n] for c in mine) for n in coverage.NAMES}
        width = statistics.mean(c.width["auc"] for c in mine)
        shown.add_row(kind, *(f"{100 * held[n]:.1f} %" for n in held), f"{width:.3f}")
        flat |= {f"coverage.{kind}.{n}": round(held[n], 4) for n in held}
        flat[f"coverage.{kind}.auc.width"] = round(width, 4)
    for rate in coverage.RATES:
        mine = [cell for cell in cells if cell.rate == rate]
        held = {n: statistics.mean(c.held[n] for c in mine) for n in coverage.NAMES}
        shown.add_row(f"{100 * rate:g} % events", *(f"{100 * held[n]:.1f} %" for n in held), "")
        flat |= {f"coverage.{rate:g}.{n}": round(held[n], 4) for n in held}
    console.print(shown)
    return flat


def keep(path: Path | None, flat: Mapping[str, float], names: list[str]) -> None:
    """Write the flat figures; those in the file of other `names` stay."""
    if path:
        before = json.loads(path.read_text()) if path.exists() else {}
        kept = {k: v for k, v in before.items() if k.split(".")[0] not in names}
        path.write_text(json.dumps(kept | dict(flat), indent=1) + "\n")


def main() -> int:
    """Print the tables and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="the two tables, two epsilons, two seeds"
    )
    parser.add_argument("--only", default="heart,stroke,xray,mnist,brca", help="comma-separated")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--json",
        type=Path,
        help="file to write the flat figures to; figures in it of other data sets stay",
    )
    parser.add_argument("--plans", action="store_true", help="the default plans, nothing else")
    parser.add_argument("--coverage", action="store_true", help="the intervals, nothing else")
    given = parser.parse_args()
    console = Console(width=120)
    torch.set_num_threads(1)
    if given.plans or given.coverage:
        if given.plans:
            keep(given.json, show_plans(given.quick, console), ["plans"])
        if given.coverage:
            keep(given.json, show_coverage(given.quick, console), ["coverage"])
        return 0
    names = ["heart", "stroke"] if given.quick else given.only.split(",")
    if unknown := [n for n in names if n not in SOURCES]:
        print(f"--only={unknown[0]} must be one or more of {', '.join(SOURCES)}", file=sys.stderr)
        return 2
    if not SHARED.exists():
        print(f"skipped: the data is not here ({SHARED.name}/ of ../shared)", file=sys.stderr)
        return 0
    flat = measure(names, given.quick, 2 if given.quick else given.seeds, console)
    show(flat, names, console)
    keep(given.json, flat, names)
    return 0


if __name__ == "__main__":
    sys.exit(main())
