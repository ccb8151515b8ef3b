"""A question as a model: its gradient under the loss "output" is what each record adds to a table
of sums. Knows nothing of schemas, patients or privacy.

The output is w . phi(x), so the gradient by w is phi(x), whatever w is: one step of DP-SGD from
w = 0 releases the noised sum of everybody's phi, clipped as any gradient is, and the job's
accounting, payment and proofs are those of a training job. phi is a cell of a table (one axis of
cells for each column that is asked by), times 1 for a count and times each of `values`, which lie
within 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

STEEP = 1e6  # of a number's step at an edge: a value nearer than 1e-6 below it is in both cells


@dataclass(frozen=True)
class Edges:
    """Cells of a number: below the first edge, from each edge to the next, from the last on."""

    column: int
    edges: tuple[float, ...]  # as the input has them, increasing

    @property
    def cells(self) -> int:
        """How many."""
        return len(self.edges) + 1


@dataclass(frozen=True)
class Levels:
    """Cells of a category whose levels but the first are inputs in a row from `column` on, each
    above `middle` where it is that level and `width` from one to the other.
    """

    column: int
    count: int  # of inputs: one less than there are cells
    middle: float
    width: float

    @property
    def cells(self) -> int:
        """How many."""
        return self.count + 1


@dataclass(frozen=True)
class Value:
    """A number within 0 and 1: (input - low) / span, cut."""

    column: int
    low: float
    span: float


Axis = Edges | Levels


def _constant(values: Sequence[float]) -> nn.Parameter:
    return nn.Parameter(torch.tensor([list(values)], dtype=torch.float32), requires_grad=False)


class _Edges(nn.Module):
    def __init__(self, axis: Edges):
        super().__init__()
        self.column, self.edges = axis.column, _constant(axis.edges)

    def forward(self, x: Tensor) -> Tensor:
        own = x[:, self.column : self.column + 1]
        above = torch.clamp((own - self.edges) * STEEP + 1.0, 0.0, 1.0)
        nothing = above[:, :1] * 0.0
        return torch.cat([nothing + 1.0, above], 1) - torch.cat([above, nothing], 1)


class _Levels(nn.Module):
    def __init__(self, axis: Levels):
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        axis = self.axis
        own = x[:, axis.column : axis.column + axis.count]
        each = torch.clamp((own - axis.middle) * (2.0 / axis.width) + 0.5, 0.0, 1.0)
        return torch.cat([each.sum(1, keepdim=True) * -1.0 + 1.0, each], 1)


class Sums(nn.Module):
    """The model [1, inputs] -> [1, 1] whose one trained parameter, `weight` [1, cells * (1 +
    values)], is the table: with `count`, the number in each cell comes first, then the sums of each
    value in it.
    """

    def __init__(self, axes: Sequence[Axis], values: Sequence[Value] = (), count: bool = True):
        super().__init__()
        self.axes = nn.ModuleList(
            _Edges(axis) if isinstance(axis, Edges) else _Levels(axis) for axis in axes
        )
        self.values, self.count = tuple(values), count
        cells = math.prod(axis.cells for axis in axes)
        self.weight = nn.Parameter(torch.zeros(1, cells * (count + len(self.values))))

    def forward(self, x: Tensor) -> Tensor:
        cell = x[:, :1] * 0.0 + 1.0
        for axis in self.axes:
            cell = (cell.unsqueeze(-1) * axis(x).unsqueeze(-2)).flatten(1)
        parts = [cell] if self.count else []
        for value in self.values:
            own = x[:, value.column : value.column + 1]
            parts.append(cell * torch.clamp((own - value.low) / value.span, 0.0, 1.0))
        return nn.functional.linear(torch.cat(parts, 1), self.weight)
