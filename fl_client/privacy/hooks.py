"""The fall-back: per-row gradients by Opacus itself, clipped and summed like the others. Knows
nothing of noise or steps.

For a hospital that would rather run what others have reviewed, or that meets a fault in the
book-keeping. Slower, with a gradient per record in memory, and without dropout: Opacus runs a model
twice, with two masks. Opacus's own clipping takes norms and sums in float32, which a hostile graph
overflows, underflows and rounds; clipping.py does it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fl_client.errors import GraphRefused
from fl_client.model.graph import GraphModel, without_dropout
from fl_client.model.losses import Loss
from fl_client.privacy.clipping import Part, clipped_sum


class _Rows(nn.Module):
    """A graph over rows, samples [R, ...]; parameters of its own."""

    def __init__(self, model: GraphModel):
        super().__init__()
        self._graph = (model,)  # in a tuple, or it would be a part with parameters
        for key, parameter in model.named_parameters():
            self.register_parameter(
                key, nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            )

    def forward(self, x: Tensor) -> Tensor:
        own: dict[str, Tensor] = dict(self.named_parameters())

        def of_one(sample: Tensor) -> Tensor:
            output: Tensor = functional_call(self._graph[0], own, (sample[None],))[0]
            return output

        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no rule for vmap
            return vmap(of_one)(x)


class Hooks:
    """Clipped sums of one graph by Opacus's gradients; a `compiling.ClippedSums`."""

    compiled = False

    def __init__(self, model: GraphModel, loss: Loss, slots: int, records: int, steps: int):
        _refuse_dropout(model)
        self.slots, self.records = slots, records
        self._losses = vmap(loss)
        self._hooked = GradSampleModule(_Rows(model), loss_reduction="sum", force_functorch=True)
        inside = list(self._hooked.parameters())
        self._trained = [p for p in inside if p.requires_grad]
        self._frozen = [p for p in inside if not p.requires_grad]
        self._parts = [Part(i, "vector", (i,)) for i in range(len(self._trained))]

    def rows(
        self, theta: Tensor, frozen: Sequence[Tensor], x: Tensor, y: Tensor, weight: Tensor
    ) -> list[Tensor]:
        """As ClippedSums: a gradient per row for every trained parameter."""
        nn.utils.vector_to_parameters(theta, self._trained)
        for own, given in zip(self._frozen, frozen, strict=True):
            own.data = given
        with torch.enable_grad(), warnings.catch_warnings():
            # torch warns that Opacus's hook fires once the outputs' gradient is there; that is what
            # is wanted: where a graph rounds its input (an embedding), the input's gradient never
            # comes and a hook that waits for it is silent
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            torch.autograd.backward((self._losses(self._hooked(x), y) * weight).sum())
        found = [p.grad_sample.detach() for p in self._trained]
        for parameter in self._trained:
            parameter.grad = parameter.grad_sample = None
        return found

    def sum(
        self,
        theta: Tensor,
        frozen: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
        weight: Tensor,
        mask: Tensor,
        clip: Tensor,
    ) -> Tensor:
        """As ClippedSums."""
        return clipped_sum(self._parts, self.rows(theta, frozen, x, y, weight), mask, clip)


def _refuse_dropout(model: GraphModel) -> None:
    for name, operation, arguments in model.nodes:
        if without_dropout(operation, list(arguments)) != list(arguments):
            raise GraphRefused(
                f"node {name!r}: engine='hooks' of this hospital trains no dropout; leave it out"
            )
