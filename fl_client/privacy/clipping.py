"""Clipping as a proof: norms of per-patient gradients that are bounded, not estimated, and their
clipped sum. Knows nothing of models, noise or steps.

A gradient comes as float32 tensors of rows (gradients.py, hooks.py): a *vector* per row, or the
*factors* of sum_t l_t r_t^T, one pair for each position t at which a layer's weight is used. A
patient is K consecutive rows. Everything below reads these tensors as they lie in memory, in
float64, so that the norm that is bounded is that of the very numbers that are summed.

The bound. Let u = 2**-53, and for patient b and layer i: g = sum_t l_t r_t^T over all T positions
of the K rows, M = sum_t |l_t| |r_t|. In float64 the Gram product <g, g> = sum_st (l_s . l_t)
(r_s . r_t) comes out with an error of at most gamma_n M**2, gamma_n = n u / (1 - n u), n its
longest accumulation (Higham 2002, section 3.1): far below KAPPA / 2 for every n < 2**27. So with

    n_b**2 = sum_i (max(gram_i, 0) + KAPPA M_i**2),   c_b = C / max(C, n_b (1 + 2**-30))

both c_b sqrt(sum_i |g_i|**2) <= C and c_b sqrt(sum_i M_i**2) <= C sqrt(2 / KAPPA) hold, whatever
cancels. (A norm alone does not give the second: of two opposite rows a product keeps the rounding,
which a hostile graph makes as large as it likes.) A layer's sum over B patients is a float64 matrix
product of B T terms, whose error is at most gamma_BT sum_b c_b M_i. The others' factors, and so
their c_b, are the same numbers with and without one patient (slots.py); two such sums thus differ
by that patient's clipped gradient and by two errors:

    |difference| <= C (1 + 2 gamma_BT B sqrt(2 / KAPPA)) <= C (1 + MARGIN)   if B**2 T <= POSITIONS

in L2 over all layers together. `noise.MARGIN` is in the sensitivity that the noise is scaled to.
Honest gradients lose next to nothing: their norms grow by KAPPA M**2 / (2 |g|**2), under 1e-4 for
1,000 independent positions. Squares of float32 in float64 neither overflow nor underflow, and where
T = 1 norms are multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

KAPPA = 2.0**-24
ROUNDING = 1 + 2.0**-30  # of norms and of c itself
# B**2 T for B patients of T positions at once: 2 * 2**28 * 2**-53 * sqrt(2 / KAPPA) < MARGIN / 2
POSITIONS = 2**28


class Part(NamedTuple):
    """How one parameter's gradient lies among a gradient function's tensors.

    parameter   its number among the model's trained parameters
    rule        a name in RULES
    tensors     which tensors it reads: [rows, ...] each
    facts       what the rule needs besides (shape, stride, padding, dilation of a convolution)
    """

    parameter: int
    rule: str
    tensors: tuple[int, ...]
    facts: tuple[Any, ...] = ()


# (squared norms [S], c [S] -> the sum over patients of c times the gradient, flat), all float64;
# a patient whose squared norm is not finite gets c = 0
Clipped = tuple[Tensor, Callable[[Tensor], Tensor]]


def gamma(terms: int) -> float:
    """Relative rounding error of a float64 sum of so many terms (Higham 2002, lemma 3.1)."""
    return terms * 2.0**-53 / (1 - terms * 2.0**-53)


def proved_margin(patients: int, positions: int) -> float:
    """By how much, in clips, one patient may move a sum over `patients` beyond the clip itself."""
    return 2 * gamma(patients * positions + 2) * patients * math.sqrt(2 / KAPPA)


def most_patients(positions: int) -> int:
    """How many may be summed at once where a layer is used at so many positions of a patient."""
    return max(1, math.isqrt(POSITIONS // max(1, positions)))


def _zero_where_none(c: Tensor, tensor: Tensor) -> Tensor:
    """Zeros in the rows with c = 0: 0 * NaN would be NaN."""
    return torch.where((c > 0).view(-1, *[1] * (tensor.dim() - 1)), tensor, 0.0)


def _scaled(c: Tensor, tensor: Tensor) -> Tensor:
    return _zero_where_none(c, tensor) * c.view(-1, *[1] * (tensor.dim() - 1))


def _vector(patients: int, facts: tuple[Any, ...], each: Tensor) -> Clipped:
    """Gradients that are there: each [S * K, *shape] float32; a patient's is the sum of K rows."""
    rows = each.reshape(patients, -1, math.prod(each.shape[1:])).double()
    total = rows.sum(1)
    squared = total.square().sum(1)
    if rows.shape[1] > 1:  # rows that cancel: see the bound
        squared = squared + KAPPA * rows.square().sum(2).sqrt().sum(1).square()
    return squared, lambda c: c @ _zero_where_none(c, total)


def _factors(patients: int, facts: tuple[Any, ...], left: Tensor, right: Tensor) -> Clipped:
    """Gradients sum_t l_t r_t^T: left [S * K, T, P], right [S * K, T, D] float32; the sum [P D]."""
    left = left.reshape(patients, -1, left.shape[-1]).double()
    right = right.reshape(patients, -1, right.shape[-1]).double()
    long, wide = left.square().sum(2), right.square().sum(2)
    if left.shape[1] == 1:
        squared = (long * wide)[:, 0]
    else:
        gram = ((left @ left.mT) * (right @ right.mT)).sum((1, 2)).clamp(min=0.0)
        squared = gram + KAPPA * (long.sqrt() * wide.sqrt()).sum(1).square()

    def total(c: Tensor) -> Tensor:
        weighted = _scaled(c, left).flatten(0, 1).t() @ _zero_where_none(c, right).flatten(0, 1)
        return weighted.reshape(-1)

    return squared, total


def _patches(patients: int, facts: tuple[Any, ...], output: Tensor, given: Tensor) -> Clipped:
    """A convolution's factors: output gradient [S * K, N, P, *], input [S * K, N, C, H, W]."""
    rows, size, stride, padding, dilation = output.shape[0], *facts
    patches = functional.unfold(given.flatten(0, 1), size, dilation, padding, stride)
    left = output.flatten(3).transpose(2, 3)  # [rows, N, T, P]
    right = patches.mT.reshape(rows, -1, patches.shape[1])
    return _factors(patients, (), left.reshape(rows, -1, left.shape[3]), right)


RULES: dict[str, Callable[..., Clipped]] = {
    "vector": _vector,
    "factors": _factors,
    "patches": _patches,
}


def clipped_sum(
    parts: Sequence[Part], tensors: Sequence[Tensor], mask: Tensor, clip: Tensor
) -> Tensor:
    """Sum over the patients in `mask` [S] of their gradients clipped to norm `clip`, float64 [P].

    The parts follow each other by parameter. A patient whose gradient is not finite counts as
    nothing.
    """
    found = [RULES[p.rule](len(mask), p.facts, *(tensors[t] for t in p.tensors)) for p in parts]
    norm = torch.stack([squared for squared, _ in found]).sum(0).sqrt() * ROUNDING
    good = mask & norm.isfinite()
    bound = clip.double()
    c = torch.where(good, bound / torch.maximum(norm, bound), 0.0)
    in_order = sorted(range(len(parts)), key=lambda i: parts[i].parameter)
    return torch.cat([found[i][1](c) for i in in_order])
