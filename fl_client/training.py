"""One differentially private round on one hospital's records. Knows nothing of ledgers, messages or money.

Per-sample gradients come from vmap(grad) over the single-sample graph, so that one patient's gradient depends on one
patient by construction; Opacus's DPOptimizer clips, sums, adds the noise and steps; Opacus's sampler draws every
patient with probability q (true Poisson, empty batches included). Sums are divided by constants of the job's terms,
never by a function of the records. DP-SGD: Abadi et al. 2016, 1607.00133.

Randomness: torch generators seeded with 64 bits of the operating system's. They are not hardened against an adversary
who reconstructs a generator's state or exploits floating-point noise (Mironov 2012).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from fl_client.graph import GraphModel, parameters, with_parameters
from fl_client.privacy import PrivacyPlan

CHUNK_ELEMENTS = 64_000_000  # per-sample gradients held at once: 256 MB


def _binary_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(output.reshape(()), target)


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target.to(torch.int64))


def _squared_error(output: Tensor, target: Tensor) -> Tensor:
    return (output.reshape(()) - target) ** 2


# output of one sample (the batch dimension is taken off), its target -> a scalar
LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "binary_cross_entropy": _binary_cross_entropy,
    "cross_entropy": _cross_entropy,
    "squared_error": _squared_error,
}


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
) -> RoundResult:
    """`steps` DP-SGD steps from `arrays` on features [n, ...], targets [n]; releases parameters and one loss.

    Both are private: the parameters by `steps` mechanisms (plan.noise_multiplier, plan.sampling_rate), the loss by
    one (plan.metric_noise_multiplier, rate 1). `expected_persons` is the released count, a constant.
    """
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = with_parameters(model, arrays).to(device)
    x = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).to(device)
    y = torch.from_numpy(np.ascontiguousarray(targets, dtype=np.float32)).to(device)
    noise_source = torch.Generator(device=device)
    noise_source.manual_seed(secrets.randbits(63))
    loss_mean = _noised_loss(model, x, y, plan, loss, expected_persons, noise_source)
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=learning_rate),
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.clip_norm,
        expected_batch_size=plan.sampling_rate * expected_persons,  # type: ignore[arg-type]  a float is only divided by
        loss_reduction="mean",
        generator=noise_source,
    )
    for batch in _poisson_batches(len(y), plan.sampling_rate, steps):
        _step(model, optimizer, x, y, batch, loss)
    result = parameters(model)
    model.to("cpu")
    return RoundResult(result, loss_mean, str(device), time.monotonic() - started)


def _poisson_batches(n: int, sampling_rate: float, steps: int) -> list[Tensor]:
    if sampling_rate >= 1.0 or n == 0:
        return [torch.arange(n)] * steps
    source = torch.Generator()
    source.manual_seed(secrets.randbits(63))
    sampler = UniformWithReplacementSampler(
        num_samples=n, sample_rate=sampling_rate, generator=source, steps=steps
    )
    return [torch.tensor(batch, dtype=torch.int64) for batch in sampler]


def _step(model: GraphModel, optimizer: DPOptimizer, x: Tensor, y: Tensor, batch: Tensor, loss: str) -> None:
    """One noisy step over `batch`, in physical chunks that fit in memory; an empty batch still adds its noise."""
    size = max(1, CHUNK_ELEMENTS // max(1, sum(p.numel() for p in model.parameters())))
    chunks = list(torch.split(batch, size)) if len(batch) else [batch]
    for i, chunk in enumerate(chunks):
        gradients = sample_gradients(model, x[chunk], y[chunk], loss)
        for key, parameter in model.named_parameters():
            parameter.grad_sample = gradients[key]  # type: ignore[attr-defined]
        optimizer.signal_skip_step(do_skip=i < len(chunks) - 1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def sample_gradients(model: GraphModel, x: Tensor, y: Tensor, loss: str) -> dict[str, Tensor]:
    """Per-sample gradients [n, *parameter shape] by parameter key; a sample with a non-finite one gets zeros.

    Without that guard one record that makes the graph emit inf or NaN would show through any noise.
    """
    tensors = {key: parameter.detach() for key, parameter in model.named_parameters()}
    if len(y) == 0:
        return {key: tensor.new_zeros((0, *tensor.shape)) for key, tensor in tensors.items()}

    def of_one(values: dict[str, Tensor], sample: Tensor, target: Tensor) -> Tensor:
        return LOSSES[loss](functional_call(model, values, (sample[None],))[0], target)

    gradients = vmap(grad(of_one), in_dims=(None, 0, 0), randomness="different")(tensors, x, y)
    finite = torch.stack([g.flatten(1).isfinite().all(1) for g in gradients.values()]).all(0)
    return {
        key: torch.where(finite.view(-1, *[1] * (g.dim() - 1)), g, torch.zeros_like(g)) for key, g in gradients.items()
    }


def _noised_loss(
    model: GraphModel, x: Tensor, y: Tensor, plan: PrivacyPlan, loss: str, expected_persons: int, source: torch.Generator
) -> float:
    """Sum of losses clipped to [0, metric_clip] + noise of sd metric_noise_multiplier * metric_clip, over the count."""
    total = x.new_zeros(())
    if len(y):
        with torch.no_grad():
            values = vmap(lambda s, t: LOSSES[loss](model(s[None])[0], t), randomness="different")(x, y)
        worst = torch.full_like(values, plan.metric_clip)
        total = torch.where(values.isfinite(), values, worst).clamp(0.0, plan.metric_clip).sum()
    sd = plan.metric_noise_multiplier * plan.metric_clip
    noise = torch.normal(0.0, sd, (1,), generator=source, device=x.device)[0]
    return float((total + noise) / expected_persons)
