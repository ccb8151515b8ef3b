"""The fall-back: clipped sums by Opacus's own per-sample gradients and optimizer. Knows nothing of
noise or steps.

For a hospital that would rather run what others have reviewed, or that meets a fault in the
book-keeping. Slower, with a gradient per sample in memory, and without dropout: Opacus runs a model
twice, with two masks.
"""

from __future__ import annotations

import warnings

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fl_client.errors import GraphRefused
from fl_client.model.graph import GraphModel, _without_dropout
from fl_client.privacy.clipping import Loss


class _Rows(nn.Module):
    """A graph over rows: samples [B, ...], or patients with their records [B, K, ...]; parameters
    of its own.
    """

    def __init__(self, model: GraphModel, records: int | None):
        super().__init__()
        self._graph, self._records = (
            (model,),
            records,
        )  # in a tuple, or it would be a part with parameters
        for key, parameter in model.named_parameters():
            self.register_parameter(
                key, nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            )

    def forward(self, x: Tensor) -> Tensor:
        own: dict[str, Tensor] = dict(self.named_parameters())

        def of_one(sample: Tensor) -> Tensor:
            output: Tensor = functional_call(self._graph[0], own, (sample[None],))[0]
            return output

        of_row = of_one if self._records is None else vmap(of_one)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no rule for vmap
            return vmap(of_row)(x)


class HooksSummer:
    """Clipped sums of one graph for batches of `rows`, by Opacus; the same signature as
    `clipping.Summer`.
    """

    compiled = False

    def __init__(self, model: GraphModel, loss: Loss, rows: int, records: int | None = None):
        _refuse_dropout(model)
        self.rows = rows
        of_row = loss if records is None else lambda o, y: (vmap(loss)(o, y[:, 0]) * y[:, 1]).sum()
        self._losses = vmap(of_row)
        self._hooked = GradSampleModule(
            _Rows(model, records), loss_reduction="sum", force_functorch=True
        )
        self._trained = [p for p in self._hooked.parameters() if p.requires_grad]
        self.everybody = torch.ones(rows, dtype=torch.bool, device=self._trained[0].device)
        self._optimizer = DPOptimizer(
            torch.optim.SGD(self._trained, lr=0.0),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
            expected_batch_size=rows,
            loss_reduction="sum",
        )

    def sum(self, theta: Tensor, x: Tensor, y: Tensor, mask: Tensor, clip: Tensor) -> Tensor:
        """Sum [P] of the clipped gradients of the rows in `mask`; a row whose gradient is not
        finite counts as nothing.
        """
        nn.utils.vector_to_parameters(theta, self._trained)
        self._optimizer.zero_grad()
        self._optimizer.max_grad_norm = float(clip)
        with torch.enable_grad(), warnings.catch_warnings():
            # torch warns that Opacus's hook fires once the outputs' gradient is there; that is what
            # is wanted: where a graph rounds its input (an embedding), the input's gradient never
            # comes and a hook that waits for it is silent
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            self._losses(self._hooked(x), y).sum().backward()
        good = (
            mask
            & torch.stack([p.grad_sample.flatten(1).square().sum(1) for p in self._trained])
            .sum(0)
            .isfinite()
        )
        for parameter in self._trained:
            each = parameter.grad_sample
            parameter.grad_sample = torch.where(
                good.view(-1, *[1] * (each.dim() - 1)), each, 0.0
            )  # 0 * NaN would be NaN
        self._optimizer.clip_and_accumulate()
        summed = torch.cat([p.summed_grad.reshape(-1) for p in self._trained]).detach()
        self._optimizer.zero_grad()
        return summed


def _refuse_dropout(model: GraphModel) -> None:
    for name, operation, arguments in model._nodes:
        if _without_dropout(operation, list(arguments)) != list(arguments):
            raise GraphRefused(
                f"node {name!r}: engine='hooks' of this hospital trains no dropout; leave it out"
            )


def summer(
    model: GraphModel, loss: Loss, rows: int, steps: int, records: int | None = None
) -> HooksSummer:
    """As `clipping.summer`; nothing is traced, so nothing is kept."""
    return HooksSummer(model, loss, rows, records)
