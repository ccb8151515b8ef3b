"""One differentially private round on one hospital's records. Knows nothing of ledgers, messages or money.

One row is one patient, the unit of privacy. Per-sample gradients come from vmap(grad) over the single-sample graph, so
that one patient's gradient depends on one patient by construction; Opacus's DPOptimizer clips, sums, adds the noise
and steps; every patient is drawn with probability q, independently (true Poisson, empty batches included). Sums are
divided by constants of the job's terms, never by a function of the records. DP-SGD: Abadi et al. 2016, 1607.00133.

Randomness: torch generators seeded with 63 bits of the operating system's. They are not cryptographic: who learns a
generator's state learns the noise. Every noise value is the sum of four draws, which closes the known attacks on
the floating-point grid of a single draw (Holohan & Braghin 2021, 2107.10138, section 5.1).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from fl_client.errors import GraphRefused
from fl_client.graph import GraphModel, parameters, with_parameters
from fl_client.privacy import PrivacyPlan

CHUNK_ELEMENTS = 64_000_000  # numbers of per-sample gradients and activations held at once: 256 MB


def _binary_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(output.reshape(()), target)


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    # a target that is no class would stop the round, which everybody sees; NaN counts as the guard below says
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


def check_loss(model: GraphModel, loss: str) -> None:
    """Raises GraphRefused unless `loss` is in LOSSES and fits the model's output. Ask before anything is charged."""
    if loss not in LOSSES:
        raise GraphRefused(f"loss={loss[:80]!r} must be one of {', '.join(LOSSES)}")
    outputs = model.output_shape
    if loss == "cross_entropy" and (len(outputs) != 1 or outputs[0] < 2):
        raise GraphRefused(f"the model's output of shape {outputs} must be (classes,), 2 or more, for cross_entropy")
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
) -> RoundResult:
    """`steps` DP-SGD steps from `arrays` on features [n, ...], targets [n]; releases parameters and one loss.

    Both are private: the parameters by `steps` mechanisms (plan.noise_multiplier, plan.sampling_rate), the loss by
    one (plan.metric_noise_multiplier, rate 1). The loss is the mean over patients of the incoming model's.
    `expected_persons` is the released count, a constant. `seconds` is not private: it depends on n. `model` stays as
    it is. Raises GraphRefused if arrays, features or loss do not fit the model.
    """
    started = time.monotonic()
    check_loss(model, loss)
    if tuple(features.shape[1:]) != model.input_shape or targets.shape != features.shape[:1]:
        raise GraphRefused(
            f"features {features.shape} and targets {targets.shape} must be [n, *{model.input_shape}] and [n]"
        )
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
        expected_batch_size=plan.sampling_rate * expected_persons,  # a float: it is only divided by
        loss_reduction="mean",
        generator=noise_source,
        secure_mode=True,
    )
    model.train()
    # Dropout draws from torch's global generator, whose state at start is a known constant: with known masks that
    # move by one row when a patient is added, the sum would have no bounded sensitivity.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(secrets.randbits(63))
        for batch in _poisson_batches(len(y), plan.sampling_rate, steps):
            _step(model, optimizer, x, y, batch, loss)
    return RoundResult(parameters(model), loss_mean, str(device), time.monotonic() - started)


def _poisson_batches(n: int, sampling_rate: float, steps: int) -> Iterator[Tensor]:
    """Row numbers of each step. In float64, since on Opacus's float32 grid a rate of 1e-6 is really 1.3 % higher."""
    source = torch.Generator()
    source.manual_seed(secrets.randbits(63))
    for _ in range(steps):
        # rand is below 1, so q=1 is everybody
        drawn = torch.rand(n, generator=source, dtype=torch.float64) < sampling_rate
        yield drawn.nonzero().reshape(-1)


def _chunks(model: GraphModel, rows: Tensor) -> Sequence[Tensor]:
    """`rows` in pieces whose gradients and activations fit in memory; one empty piece for no rows."""
    of_one = sum(p.numel() for p in model.parameters()) + 3 * model.elements
    return torch.split(rows, max(1, CHUNK_ELEMENTS // of_one))


def _step(model: GraphModel, optimizer: DPOptimizer, x: Tensor, y: Tensor, batch: Tensor, loss: str) -> None:
    """One noisy step over `batch`, in physical chunks; an empty batch still adds its noise."""
    chunks = _chunks(model, batch)
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
    finite = torch.stack([g.reshape(len(y), -1).isfinite().all(1) for g in gradients.values()]).all(0)
    return {
        # where, not a product: 0 * NaN is NaN
        key: torch.where(finite.view(-1, *[1] * (g.dim() - 1)), g, torch.zeros_like(g))
        for key, g in gradients.items()
    }


def _noised_loss(
    model: GraphModel,
    x: Tensor,
    y: Tensor,
    plan: PrivacyPlan,
    loss: str,
    expected_persons: int,
    source: torch.Generator,
) -> float:
    """Sum of losses clipped to [0, metric_clip] + noise of sd metric_noise_multiplier * metric_clip, over the count."""
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    with torch.no_grad():
        for rows in _chunks(model, torch.arange(len(y))):
            if len(rows):
                values = vmap(lambda s, t: LOSSES[loss](model(s[None])[0], t))(x[rows], y[rows])
                values = torch.where(values.isfinite(), values, torch.full_like(values, plan.metric_clip))
                total += values.clamp(0.0, plan.metric_clip).to(torch.float64).sum()
    sd = plan.metric_noise_multiplier * plan.metric_clip
    # four draws of variance sd^2 over 2, like Opacus's secure mode
    noise = torch.normal(0.0, sd, (4,), generator=source, device=x.device, dtype=torch.float64).sum() / 2
    return float((total + noise) / expected_persons)
