"""What the default plan of a logistic regression loses to the best plan of a public grid.

The noise process of `train_round` and the theatre (per-hospital clipped sums with Gaussian noise,
local steps, weighted mean, heavy ball, mean of the last models) in numpy, many plans and
repetitions at once: the gradient of a logistic loss is (p - y) x, so clipping it is clipping p - y.
All plans of a data set see the same standard normal noise, scaled, so that differences are not the
noise's. Called by `python -m tests.benchmarks.utility --plans`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from fl_client.privacy import accounting, defaults
from fl_client.privacy.defaults import Plan
from fl_client.privacy.plan import Charge

METRIC_SHARE = 0.05
DELTA = 1e-5
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
# rounds, local steps, momentum, rate of the constant term; clip; distance (privacy/defaults.py)
SHAPES = (
    (10, 1, 0.0, 1.0),
    (30, 1, 0.8, 1.0),
    (100, 1, 0.8, 1.0),
    (20, 5, 0.5, 1.0),
    (30, 1, 0.5, 4.0),
    (100, 1, 0.8, 4.0),
)
CLIPS = (0.5, 1.0, 2.0)
DISTANCES = tuple(10 ** (k / 2) for k in range(9))


@dataclass(frozen=True)
class Task:
    """A data set: training parts of the hospitals [n, d] with outcomes [n], one held-out part."""

    name: str
    sites: Sequence[tuple[np.ndarray, np.ndarray]]
    test: tuple[np.ndarray, np.ndarray]

    @property
    def persons(self) -> list[int]:
        """Of each hospital."""
        return [len(y) for _, y in self.sites]


def made_up(patients: int, inputs: int, rate: float, hospitals: int, seed: int) -> Task:
    """A table from a logistic model: correlated inputs, two in five of them yes or no, scaled by
    public constants that are off by up to half a standard deviation and a factor of 1.6; a third of
    the weights, at least four, are not 0. 20,000 held-out patients.
    """
    random = np.random.default_rng(seed)
    number = patients + 20_000
    loads = random.standard_normal((inputs, max(2, inputs // 4))) / math.sqrt(max(2, inputs // 4))
    common = random.standard_normal((number, loads.shape[1])) @ loads.T
    hidden = 0.7 * (common + random.standard_normal((number, inputs)))
    cut, centre = random.uniform(-0.5, 1.5, inputs), random.uniform(-0.4, 0.4, inputs)
    scaled = (hidden - centre) / np.exp(random.uniform(-0.5, 0.5, inputs))
    x = np.where(random.random(inputs) < 0.4, (hidden > cut) - 0.5, scaled)
    weights = random.standard_normal(inputs) * (random.random(inputs) < max(0.3, 4 / inputs))
    logits = x @ weights
    logits *= 1.2 / max(logits.std(), 1e-9)
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if _sigmoid(logits + middle).mean() > rate else (middle, high)
    y = (random.random(number) < _sigmoid(logits + middle)).astype(np.float32)
    x = x.astype(np.float32)
    parts = np.arange(patients) % hospitals
    sites = [(x[:patients][parts == h], y[:patients][parts == h]) for h in range(hospitals)]
    name = f"{patients:,} x {inputs}, {100 * rate:g} %"
    return Task(name, sites, (x[patients:], y[patients:]))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -80, 80))))


def grid() -> list[tuple[Plan, float]]:
    """Every plan of the public grid, with its distance."""
    found = []
    for (rounds, local, momentum, constant), clip, far in product(SHAPES, CLIPS, DISTANCES):
        rate = defaults.step_length(far, rounds, local, clip, momentum)
        rates = {"bias": constant}
        last = max(1, rounds // 4)
        found.append((Plan(rounds, local, rate, clip, 1.0, momentum, rates, last), far))
    return found


def whole_noise(epsilon: float) -> float:
    """The noise multiplier of one Gaussian mechanism that costs epsilon at DELTA."""
    low, high = 0.1, 1000.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        spent = accounting.epsilon([Charge(middle, 1.0, 1, "whole budget")], DELTA)
        low, high = (middle, high) if spent > epsilon else (low, middle)
    return high


def scores(task: Task, plans: Sequence[Plan], whole: float, repeats: int, seed: int) -> np.ndarray:
    """Held-out AUC [plans, repeats] of jobs whose training has 95 % of the budget `whole`."""
    found = np.zeros((len(plans), repeats))
    shapes = sorted({(p.rounds, p.local_steps, p.average_last) for p in plans})
    for shape in shapes:
        rounds, local, _ = shape
        chosen = [
            i for i, p in enumerate(plans) if (p.rounds, p.local_steps, p.average_last) == shape
        ]
        columns = [plans[i] for i in chosen for _ in range(repeats)]
        noise = whole * math.sqrt(rounds * local / (1 - METRIC_SHARE))
        weights = _train(task, columns, rounds, local, noise, repeats, np.random.default_rng(seed))
        found[chosen] = _auc(_with_ones(task.test[0]) @ weights, task.test[1]).reshape(-1, repeats)
    return found


def _train(
    task: Task,
    columns: Sequence[Plan],
    rounds: int,
    local: int,
    noise: float,
    repeats: int,
    random: np.random.Generator,
) -> np.ndarray:
    def row(values: Iterator[float]) -> np.ndarray:
        return np.array(list(values), dtype=np.float32)

    clip, rate = row(p.clip_norm for p in columns), row(p.learning_rate for p in columns)
    momentum = row(p.server_momentum for p in columns)
    constant = row(p.server_rates.get("bias", 1.0) for p in columns)
    sites = [(_with_ones(x), y.astype(np.float32)[:, None]) for x, y in task.sites]
    norms = [np.linalg.norm(x, axis=1)[:, None] for x, _ in sites]
    total = sum(task.persons)
    now = last = np.zeros((sites[0][0].shape[1], len(columns)), np.float32)
    tail = np.zeros_like(now)
    for number in range(rounds):
        mean = np.zeros_like(now)
        for (x, y), norm in zip(sites, norms, strict=True):
            here = now.copy()
            for _ in range(local):
                slope = x @ here
                np.negative(slope, out=slope)
                np.exp(np.clip(slope, -80, 80, out=slope), out=slope)
                slope += 1
                np.reciprocal(slope, out=slope)
                slope -= y
                np.clip(slope, -clip / norm, clip / norm, out=slope)
                same = random.standard_normal((len(here), repeats), np.float32)
                noised = x.T @ slope + noise * clip * np.tile(same, len(columns) // repeats)
                here -= rate / len(y) * noised
            mean += here * np.float32(len(y) / total)
        mean[-1] += (constant - 1) * (mean[-1] - now[-1])
        now, last = mean + momentum * (now - last), now
        if number >= rounds - columns[0].average_last:
            tail += now
    return tail


def _with_ones(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.ones((len(x), 1))], 1).astype(np.float32)


def _auc(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Of every column; equal scores are as good as never there."""
    ranked = targets[np.argsort(logits, axis=0)]
    ill = float(targets.sum())
    ranks = (ranked * np.arange(1, len(targets) + 1)[:, None]).sum(0)
    return np.asarray((ranks - ill * (ill + 1) / 2) / (ill * (len(targets) - ill)))


@dataclass(frozen=True)
class Row:
    """One line of the table: held-out AUC, and the standard error of the difference."""

    task: str
    epsilon: float
    best: float
    best_plan: str
    default: float
    default_plan: str
    error: float


def compare(task: Task, epsilon: float, repeats: int) -> Row:
    """The default's AUC beside that of the plan that is best on fresh noise.

    The best of a hundred noisy means is too good to be true. So half of the runs choose five plans
    and the other half says how good they and the default are.
    """
    inputs = task.test[0].shape[1]
    default = defaults.plan(defaults.MODEL, task.persons, inputs, epsilon, DELTA)
    plans, whole = grid(), whole_noise(epsilon)
    first = scores(task, [p for p, _ in plans], whole, repeats, 1).mean(1)
    few = [plans[i] for i in np.argsort(-first)[:5]]
    again = scores(task, [*(p for p, _ in few), default], whole, 2 * repeats, 2)
    means = again.mean(1)
    winner = int(means[:-1].argmax())
    apart = again[winner] - again[-1]
    return Row(
        task.name,
        epsilon,
        float(means[winner]),
        _shown(few[winner][0], few[winner][1]),
        float(means[-1]),
        _shown(default, defaults.distance(task.persons, inputs, epsilon, DELTA)),
        float(apart.std() / math.sqrt(len(apart))),
    )


def _shown(plan: Plan, far: float) -> str:
    steps = f"{plan.rounds} x {plan.local_steps}"
    constant = plan.server_rates.get("bias", 1.0)
    return f"{steps}, C {plan.clip_norm:g}, D {far:.0f}, m {plan.server_momentum:g}, b {constant:g}"
