"""Before a buyer's model meets a patient: its gradients on made-up records, measured. Knows nothing
of jobs or data.

What the engine promises by construction is checked once more on this very graph: no record moves
another's gradient, one record moves the clipped sum by at most the clip (added or removed) or twice
the clip (replaced), and no record, however far out or not a number, makes the sum infinite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fl_client.errors import GraphRefused
from fl_client.model.graph import GraphModel
from fl_client.privacy.clipping import Loss, Sums
from fl_client.privacy.training import ENGINES

ROWS = 4
RECORDS = 2  # of a patient, where patients have several
CLIP = 1.0
ALMOST = 1 + 1e-3  # sums of float32
FAR_OUT = (50.0, -50.0, 1e30, float("inf"), float("nan"))


def check(
    model: GraphModel, loss: Loss, several: bool = False, engine: str = "book-keeping"
) -> None:
    """Raises GraphRefused with what was measured, if the model's clipped sums are not what privacy
    rests on.

    `several`: as it is trained where a patient has several records; what is changed is then all
    records of one patient.
    `engine`: the one that will train, a name in `training.ENGINES`.
    """
    quiet = torch.random.get_rng_state()
    try:
        with torch.no_grad():
            _check(model, loss, RECORDS if several else None, engine)
    finally:
        torch.random.set_rng_state(quiet)


def _check(model: GraphModel, loss: Loss, records: int | None, engine: str) -> None:
    source = torch.Generator().manual_seed(
        1
    )  # the same records for everybody, so that a refusal can be repeated
    per_row = () if records is None else (records,)
    x = torch.randn((ROWS, *per_row, *model.input_shape), generator=source)
    y = torch.tensor([0.0, 1.0, 0.0, 1.0])
    if records is not None:
        y = torch.stack(
            [y[:, None].expand(-1, records), torch.full((ROWS, records), 1 / records)], -1
        )
    run = _traced(
        model.eval(), loss, records, engine
    )  # without dropout, whose masks would differ between two sums
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])
    clip, everybody = torch.tensor(CLIP), torch.ones(ROWS, dtype=torch.bool)

    def total(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        summed = run.sum(theta, x, y, mask, clip).double()
        if not summed.isfinite().all():
            raise GraphRefused(
                "self-check: a record that is far out makes the clipped sum infinite or not a "
                "number"
            )
        return summed

    others = everybody.clone()
    others[0] = False
    alone = [torch.arange(ROWS) == i for i in range(1, ROWS)]
    honest, without, each = (
        total(x, y, everybody),
        total(x, y, others),
        [total(x, y, one) for one in alone],
    )
    for factor in FAR_OUT:
        changed, flipped = x.clone(), y.clone()
        changed[0] = changed[0] * factor
        if records is None:
            flipped[0] = 1 - y[0]
        else:
            flipped[0, :, 0] = 1 - y[0, :, 0]
        for i, (one, before) in enumerate(zip(alone, each, strict=True), start=1):
            if not torch.equal(total(changed, flipped, one), before):
                raise GraphRefused(
                    f"self-check: one record ({factor:g} times as large) moves the gradient of "
                    f"record {i}"
                )
        replaced = total(changed, flipped, everybody)
        for name, moved, allowed in (
            ("replacing", replaced - honest, 2 * CLIP),
            ("adding", replaced - without, CLIP),
            ("removing", honest - without, CLIP),
        ):
            if float(moved.norm()) > allowed * ALMOST:
                raise GraphRefused(
                    f"self-check: {name} one record ({factor:g} times as large) moves the clipped "
                    "sum by "
                    f"{float(moved.norm()):.3g}; {allowed:g} is allowed"
                )


def _traced(model: GraphModel, loss: Loss, records: int | None, engine: str) -> Sums:
    try:
        return ENGINES[engine](model, loss, ROWS, 1, records)
    except GraphRefused:
        raise
    except Exception as error:  # torch raises many kinds; all mean the same here
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise GraphRefused(
            f"self-check: the model's clipped gradients cannot be traced: {first[:200]}"
        ) from error
