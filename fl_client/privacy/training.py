"""One differentially private round on one hospital's records. Knows nothing of ledgers, messages or
money.

A patient, the unit of privacy, is one record or the mean of several: one gradient, clipped once.
Clipped sums come from the single-sample graph under vmap, so that one patient's gradient depends on
one patient by construction (clipping.py); every patient is drawn with probability q, independently
(true Poisson, empty batches included), and the noise has the scale of Opacus's optimizer, sigma *
C, by a cryptographic generator (noise.py). Sums are divided by constants of the job's terms, never
by a function of the records. DP-SGD: Abadi et al. 2016, 1607.00133. Opacus's own engines are what
the tests compare with.

Dropout masks alone come from torch's generator, seeded with 63 bits of the operating system's: they
are no noise, and any mask keeps a patient's gradient below the clip.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional

from fl_client.errors import GraphRefused
from fl_client.model.graph import GraphModel, parameters, with_parameters
from fl_client.privacy import hooks
from fl_client.privacy.clipping import KEEP, Loss, Sums, compiled, summer, traced
from fl_client.privacy.noise import SecureRandom, gaussian
from fl_client.privacy.plan import PrivacyPlan

CHUNK_ELEMENTS = 64_000_000  # numbers of per-sample gradients and activations held at once: 256 MB
MAX_RECORDS = 64  # of one patient; further ones do not count
NOISE_BLOCK = 1 << 16  # noise values at once: they stay in the processor's cache


def _binary_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(output.reshape(()), target)


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    # a target that is no class would stop the round, which everybody sees; NaN counts as the guard
    # below says
    classes = output.shape[-1]
    named = (target >= 0) & (target < classes) & (target == target.floor())
    index = torch.where(named, target, torch.zeros_like(target)).to(torch.int64)
    value = -functional.log_softmax(output, dim=-1).gather(-1, index.reshape(1)).reshape(())
    return torch.where(named, value, torch.full_like(value, torch.nan))


def _squared_error(output: Tensor, target: Tensor) -> Tensor:
    return (output.reshape(()) - target) ** 2


# output of one sample (the batch dimension is taken off), its target -> a scalar
LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "binary_cross_entropy": _binary_cross_entropy,
    "cross_entropy": _cross_entropy,
    "squared_error": _squared_error,
}


# (model, loss, rows, steps of the whole job, records of a patient) -> its clipped sums
ENGINES: dict[str, Callable[[GraphModel, Loss, int, int, int | None], Sums]] = {
    "book-keeping": summer,
    "hooks": hooks.summer,
}


def check_loss(model: GraphModel, loss: str) -> None:
    """Raises GraphRefused unless `loss` is in LOSSES and fits the model's output. Ask before
    anything is charged.
    """
    if loss not in LOSSES:
        raise GraphRefused(f"loss={loss[:80]!r} must be one of {', '.join(LOSSES)}")
    outputs = model.output_shape
    if loss == "cross_entropy" and (len(outputs) != 1 or outputs[0] < 2):
        raise GraphRefused(
            f"the model's output of shape {outputs} must be (classes,), 2 or more, for "
            "cross_entropy"
        )
    if loss != "cross_entropy" and outputs not in ((), (1,)):
        raise GraphRefused(f"the model's output of shape {outputs} must be one number for {loss}")


@dataclass(frozen=True)
class RoundResult:
    """New parameters, the noised mean loss of the incoming model, where and how long it ran."""

    arrays: dict[str, np.ndarray]
    loss_mean: float
    device: str
    seconds: float


def train_round(
    model: GraphModel,
    arrays: Mapping[str, np.ndarray],
    features: np.ndarray,
    targets: np.ndarray,
    plan: PrivacyPlan,
    *,
    steps: int,
    learning_rate: float,
    loss: str,
    expected_persons: int,
    patients: np.ndarray | None = None,
    engine: str = "book-keeping",
) -> RoundResult:
    """`steps` DP-SGD steps from `arrays` on features [n, ...], targets [n]; releases parameters and
    one loss.

    Both are private: the parameters by `steps` mechanisms (plan.noise_multiplier,
    plan.sampling_rate), the loss by
    one (plan.metric_noise_multiplier, rate 1). The loss is the mean over patients of the incoming
    model's.
    `patients` [n] says whose record each is (numbers from 0); None: everyone has one. A patient's
    records count as their
    mean, in gradients and losses. `expected_persons` is the released count, a constant. `seconds`
    is not private: it
    depends on n. `engine` is a name in ENGINES. `model` stays as it is. Raises GraphRefused if
    arrays, features or loss do
    not fit the model.
    """
    started = time.monotonic()
    check_loss(model, loss)
    if tuple(features.shape[1:]) != model.input_shape or targets.shape != features.shape[:1]:
        raise GraphRefused(
            f"features {features.shape} and targets {targets.shape} must be [n, "
            f"*{model.input_shape}] and [n]"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = with_parameters(model, arrays).to(device)
    features, targets = grouped(features, targets, patients)
    records = features.shape[1] if targets.ndim > 1 else None
    x = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).to(device)
    y = torch.from_numpy(np.ascontiguousarray(targets, dtype=np.float32)).to(device)
    random = SecureRandom()
    loss_mean = _noised_loss(model, x, y, plan, loss, expected_persons, random)
    model.train()
    rows = _rows(model, len(y), plan.sampling_rate, records)
    # Dropout draws from torch's global generator, whose state at start is a known constant: with
    # known masks that move by one row when a patient is added, the sum would have no bounded
    # sensitivity.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(secrets.randbits(63))
        run = ENGINES[engine](model, LOSSES[loss], rows, plan.steps, records)
        theta = torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])
        # a float divisor of the terms: q times the released count, as Opacus divides for
        # loss_reduction="mean"
        rate = learning_rate / (plan.sampling_rate * expected_persons)
        clip = torch.tensor(plan.clip_norm, dtype=torch.float32, device=device)
        scale = torch.tensor(
            [plan.noise_multiplier * plan.clip_norm, rate], dtype=torch.float64, device=device
        )
        for _ in range(steps):
            drawn = torch.from_numpy(random.drawn(len(y), plan.sampling_rate)).to(device)
            step(run, theta, x, y, drawn, clip, random, scale)
        _put_back(model, theta)
    return RoundResult(parameters(model), loss_mean, str(device), time.monotonic() - started)


def grouped(
    features: np.ndarray, targets: np.ndarray, patients: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """One row per patient: features [p, K, ...] and [p, K, 2] of targets and weights, which sum to
    1 for each patient.

    K is the most records that a patient has, up to MAX_RECORDS. A patient with fewer has the first
    one again with weight
    0, so that nobody's gradient depends on a record that is not theirs. Unchanged where `patients`
    is None.
    """
    if patients is None:
        return features, targets
    order = np.argsort(patients, kind="stable")
    _, start, count = np.unique(patients[order], return_index=True, return_counts=True)
    count = np.minimum(count, MAX_RECORDS)
    place = np.arange(count.max(initial=1))
    there = place < count[:, None]
    rows = order[np.where(there, start[:, None] + place, start[:, None])]
    weights = np.where(there, 1 / count[:, None], 0.0).astype(np.float32)
    return features[rows], np.stack([targets[rows], weights], -1)


def _rows(model: GraphModel, n: int, sampling_rate: float, records: int | None) -> int:
    """How many samples are worked on at once: a drawn batch as a rule, never more than fits in
    memory.
    """
    of_one = sum(p.numel() for p in model.parameters()) + 3 * model.elements * (records or 1)
    usual = math.ceil(n * sampling_rate + 3 * math.sqrt(n * sampling_rate * (1 - sampling_rate)))
    return max(1, min(n, usual, CHUNK_ELEMENTS // of_one))


def step(
    run: Sums,
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    drawn: Tensor,
    clip: Tensor,
    random: SecureRandom,
    scale: Tensor,
) -> None:
    """theta -= rate * (clipped sum over the rows `drawn` + sd * noise), in place; an empty batch
    adds its noise alone.

    `scale` holds sd and rate, float64 [2]. Sums are float32, of pieces of run.rows; noise is added
    in float64 and the
    result rounded to float32 (noise.py).
    """
    total = (
        run.sum(theta, *_batch(run, x, y, drawn[: run.rows]), clip)
        if len(drawn)
        else torch.zeros_like(theta)
    )
    for start in range(run.rows, len(drawn), run.rows):
        total += run.sum(theta, *_batch(run, x, y, drawn[start : start + run.rows]), clip)
    whole = len(theta) <= NOISE_BLOCK  # views of a small model would take as long as its noise
    blocks = (
        [(theta, total)]
        if whole
        else zip(torch.split(theta, NOISE_BLOCK), torch.split(total, NOISE_BLOCK), strict=True)
    )
    for part, summed in blocks:
        words = random.words(len(part) + len(part) % 2).to(theta.device)
        (_compiled_update(len(part), theta.device) if run.compiled else _update)(
            part, summed, words, scale
        )


def _update(theta: Tensor, total: Tensor, words: Tensor, scale: Tensor) -> Tensor:
    noise = gaussian(words)[: len(theta)]
    return theta.copy_(theta - (noise * scale[0] + total) * scale[1])


@lru_cache(maxsize=KEEP)
def _compiled_update(size: int, device: torch.device) -> Callable[..., Tensor]:
    numbers = torch.zeros(size, device=device)
    words = SecureRandom().words(size + size % 2).to(device)
    scale = torch.ones(2, dtype=torch.float64, device=device)
    arguments = (numbers, numbers.clone(), words, scale)
    graph = traced(_update, arguments)
    return compiled(graph, arguments) or graph


def _batch(run: Sums, x: Tensor, y: Tensor, piece: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Samples, targets and mask of exactly run.rows rows; what is missing is zeros that do not
    count.
    """
    if len(piece) == len(x) == run.rows:
        return x, y, run.everybody
    if len(piece) == run.rows:
        return x[piece], y[piece], run.everybody
    samples, targets = x.new_zeros((run.rows, *x.shape[1:])), y.new_zeros((run.rows, *y.shape[1:]))
    samples[: len(piece)], targets[: len(piece)] = x[piece], y[piece]
    mask = torch.zeros_like(run.everybody)
    mask[: len(piece)] = True
    return samples, targets, mask


def _put_back(model: GraphModel, theta: Tensor) -> None:
    start = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.copy_(theta[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()


def _noised_loss(
    model: GraphModel,
    x: Tensor,
    y: Tensor,
    plan: PrivacyPlan,
    loss: str,
    expected_persons: int,
    random: SecureRandom,
) -> float:
    """Sum of losses clipped to [0, metric_clip] + noise of sd metric_noise_multiplier *
    metric_clip, over the count.
    """
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    of_many = vmap(lambda s, t: LOSSES[loss](model(s[None])[0], t))
    records = x.shape[1] if y.dim() > 1 else None
    with torch.no_grad():
        for rows in torch.split(torch.arange(len(y)), _rows(model, len(y), 1.0, records)):
            if len(rows):
                if records is None:
                    values = of_many(x[rows], y[rows])
                else:
                    each = of_many(x[rows].flatten(0, 1), y[rows][..., 0].flatten()).view(
                        -1, records
                    )
                    values = (each * y[rows][..., 1]).sum(1)
                values = torch.where(
                    values.isfinite(), values, torch.full_like(values, plan.metric_clip)
                )
                total += values.clamp(0.0, plan.metric_clip).to(torch.float64).sum()
    noise = random.normal(1, plan.metric_noise_multiplier * plan.metric_clip)
    return float(np.float32((float(total) + noise[0]) / expected_persons))  # rounded: see noise.py
