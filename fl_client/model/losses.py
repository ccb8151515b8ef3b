"""What a model can be trained for: its loss on one sample, the outputs it takes and the target that
goes with them. Knows nothing of privacy or jobs; fit.py says whether a model fits.

    loss                    outputs   target of a record
    binary_cross_entropy    1         0 or 1
    cross_entropy           classes   a class, from 0
    squared_error           1         a number
    multilabel_soft_margin  labels    0 or 1 for each label
    logistic_hazard         intervals for each interval of time: an event; then, for each, at risk
    output                  1         none: the output itself, for sums of what a graph works out

`logistic_hazard` is the likelihood of discrete-time survival: output i is the logit of an event in
interval i for who is at risk there (Gensheimer & Narasimhan 2019, 1805.00917, equation 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

Shape = tuple[int, ...]
MOST_CLASSES = 64  # a table of classes by classes has 4,096 cells
MOST_LABELS = 40  # each has a table of scores of its own (privacy/looks.py)
MOST_INTERVALS = 64

_PROBABILITY = "the loss applies it itself, so the model would be trained wrongly"
_NEVER_NEGATIVE = "its numbers are never below 0, which the loss reads as never under 50 %"
_OF_LOGITS: Mapping[str, str] = {
    "sigmoid.default": _PROBABILITY,
    "softmax.int": _PROBABILITY,
    "log_softmax.int": _PROBABILITY,
    **dict.fromkeys(
        ("relu.default", "softplus.default", "exp.default", "abs.default", "sqrt.default"),
        _NEVER_NEGATIVE,
    ),
}


@dataclass(frozen=True)
class Loss:
    """`of`(output of one sample without its batch dimension, its target) is a scalar.

    least, most   how many outputs, as a vector; one number may also be without a dimension
    parts         numbers of the target for each output; 0 where it is one number whatever there is
    endings       operation that a model must not end in -> why
    bounded       why it must not end in numbers that are cut off at 0; empty where it may
    """

    name: str
    of: Callable[[Tensor, Tensor], Tensor]
    least: int = 1
    most: int = 1
    parts: int = 0
    endings: Mapping[str, str] = field(default_factory=dict, hash=False)
    bounded: str = ""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return self.of(output, target)

    def takes(self, outputs: Shape) -> bool:
        """Whether a model's output of this shape for one sample will do."""
        one = self.most == 1 and outputs == ()
        return one or (len(outputs) == 1 and self.least <= outputs[0] <= self.most)

    @property
    def wanted(self) -> str:
        """Which outputs, in words."""
        return "one number" if self.most == 1 else f"{self.least} to {self.most} numbers in a row"

    def target(self, outputs: Shape) -> Shape:
        """The shape of a record's target for such outputs."""
        return (self.parts * outputs[0],) if self.parts else ()


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


def _multilabel_soft_margin(output: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(output, target)


def _logistic_hazard(output: Tensor, target: Tensor) -> Tensor:
    event, at_risk = target.view(2, -1).unbind(0)
    each = functional.binary_cross_entropy_with_logits(output, event, reduction="none")
    # not each * at_risk: an infinite loss of an interval that does not count must not count
    return torch.where(at_risk > 0, each, torch.zeros_like(each)).sum()


def _output(output: Tensor, target: Tensor) -> Tensor:
    return output.reshape(())


LOSSES: Mapping[str, Loss] = {
    one.name: one
    for one in (
        Loss(
            "binary_cross_entropy",
            _binary_cross_entropy,
            endings=_OF_LOGITS,
            bounded=_NEVER_NEGATIVE,
        ),
        Loss(
            "cross_entropy",
            _cross_entropy,
            2,
            MOST_CLASSES,
            # log_softmax of log_softmax is log_softmax: a model that ends in it is trained rightly
            endings={"sigmoid.default": _PROBABILITY, "softmax.int": _PROBABILITY},
            bounded=_PROBABILITY,
        ),
        Loss("squared_error", _squared_error),
        Loss(
            "multilabel_soft_margin",
            _multilabel_soft_margin,
            2,
            MOST_LABELS,
            1,
            endings=_OF_LOGITS,
            bounded=_NEVER_NEGATIVE,
        ),
        Loss(
            "logistic_hazard",
            _logistic_hazard,
            1,
            MOST_INTERVALS,
            2,
            endings=_OF_LOGITS,
            bounded=_NEVER_NEGATIVE,
        ),
        Loss("output", _output),
    )
}
