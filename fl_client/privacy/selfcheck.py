"""Before a buyer's model meets a patient: its gradients on made-up records, measured. Knows nothing
of jobs or data.

What the engine promises by construction is checked once more on this very graph, on this machine's
kernels and at the batch size that will train: no record moves another's gradient by a bit, one
patient moves the clipped sum by at most the clip (added or removed) or twice the clip (replaced),
and no record, however far out or not a number, makes the sum infinite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fl_client.errors import GraphRefused
from fl_client.model.graph import GraphModel, parameters, with_parameters
from fl_client.model.losses import Loss
from fl_client.privacy.compiling import ClippedSums, frozen_of, made_up, rows_depend_on_others
from fl_client.privacy.noise import MARGIN
from fl_client.privacy.training import ENGINES, chunks, deterministic, device

CLIP = 1.0
FAR_OUT = (50.0, -50.0, 1e30, float("inf"), float("nan"))


def check(
    model: GraphModel, loss: Loss, slots: int, records: int = 1, engine: str = "book-keeping"
) -> None:
    """Raises GraphRefused with what was measured, if the model's clipped sums are not what privacy
    rests on.

    `slots` of a step's batch and `records` of a patient as it will be trained. `engine`: the one
    that will train, a name in `training.ENGINES`.
    """
    quiet = torch.random.get_rng_state()
    try:
        with torch.no_grad():
            # without dropout, whose masks would differ between two sums
            there = with_parameters(model, parameters(model)).to(device())
            with deterministic():
                _check(there.eval(), loss, slots, records, engine)
    finally:
        torch.random.set_rng_state(quiet)


def _check(model: GraphModel, loss: Loss, slots: int, records: int, engine: str) -> None:
    run = _built(model, loss, slots, records, engine)
    x, y, weight, everybody = made_up(model, loss, run.slots, records, device())
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])
    frozen, clip = frozen_of(model), torch.tensor(CLIP, device=x.device)

    def total(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        summed = run.sum(theta, frozen, x, y, weight, mask, clip)
        if summed.shape != theta.shape:
            raise GraphRefused(
                f"self-check: {len(summed)} numbers of a gradient for {len(theta)} that are trained"
            )
        if not summed.isfinite().all():
            raise GraphRefused(
                "self-check: a record that is far out makes the clipped sum infinite or not a "
                "number"
            )
        return summed

    moved_by_others = rows_depend_on_others(
        lambda theta, x, y, weight, *frozen: run.rows(theta, frozen, x, y, weight),
        run.slots, theta, frozen, x, y, weight,
    )  # fmt: skip
    if moved_by_others is not None:
        raise GraphRefused(
            f"self-check: other patients' records move the gradient of patient {moved_by_others}"
        )
    first = torch.arange(len(x), device=x.device) < records
    honest = total(x, y, everybody)
    without = total(x, y, everybody & (torch.arange(run.slots, device=x.device) > 0))
    for factor in FAR_OUT:
        changed, other = (
            torch.where(first.view(-1, *[1] * (old.dim() - 1)), new, old)
            for old, new in ((x, x * factor), (y, 1 - y))
        )
        replaced = total(changed, other, everybody)
        for name, moved, allowed in (
            ("replacing", replaced - honest, 2 * CLIP),
            ("adding", replaced - without, CLIP),
            ("removing", honest - without, CLIP),
        ):
            if float(moved.norm()) > allowed * (1 + MARGIN):
                raise GraphRefused(
                    f"self-check: {name} one patient ({factor:g} times as large) moves the clipped "
                    f"sum by {float(moved.norm()):.3g}; {allowed:g} is allowed"
                )


def _built(model: GraphModel, loss: Loss, slots: int, records: int, engine: str) -> ClippedSums:
    try:
        size = chunks(model, slots, records, loss, engine).slots
        return ENGINES[engine](model, loss, size, records, 1)
    except GraphRefused:
        raise
    except Exception as error:  # torch raises many kinds; all mean the same here
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise GraphRefused(
            f"self-check: the model's clipped gradients cannot be traced: {first[:200]}"
        ) from error
