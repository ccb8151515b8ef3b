"""The self-check lets every honest model pass, and names each planted failure of an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_client.errors import GraphRefused
from fl_client.model.export import export_model
from fl_client.model.graph import GraphModel, load_model
from fl_client.model.losses import LOSSES
from fl_client.privacy import clipping, compiling, selfcheck
from fl_client.privacy.training import ENGINES
from tests.fl_client.test_clipping import CASES

WIDTH = 5


def linear() -> GraphModel:
    torch.manual_seed(0)
    layer = nn.Linear(WIDTH, 1, bias=False)
    return load_model(*export_model(layer, torch.zeros(1, WIDTH)))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_check__honest_model__passes_and_leaves_torchs_seed_alone(
    name: str, several: bool, engine: str
) -> None:
    make, shape, loss = CASES[name]
    torch.manual_seed(3)
    model = load_model(*export_model(make(), torch.zeros(1, *shape)))
    before = torch.random.get_rng_state()
    selfcheck.check(model, LOSSES[loss], 7, 2 if several else 1, engine)
    assert torch.equal(torch.random.get_rng_state(), before)


@dataclass(frozen=True)
class Planted:
    """An engine for one linear layer without a bias, with a fault: x [S, K, D] -> a "gradient" for
    each patient [S, D]; how these are clipped and summed.
    """

    each: Callable[[Tensor], Tensor]
    total: Callable[[Tensor, Tensor], Tensor]
    slots: int = 7
    records: int = 1

    def rows(self, theta: Tensor, frozen: Any, x: Tensor, *_: Tensor) -> list[Tensor]:
        found = self.each(x.view(self.slots, self.records, -1))
        return [found.repeat_interleave(self.records, 0)]

    def sum(
        self, theta: Tensor, frozen: Any, x: Tensor, y: Tensor, w: Tensor, mask: Tensor, _: Tensor
    ) -> Tensor:
        found = self.each(x.view(self.slots, self.records, -1)).double()
        return self.total(found, mask)


def _mean(x: Tensor) -> Tensor:
    return x.mean(1)


def _sound(each: Tensor, mask: Tensor) -> Tensor:
    return _clipped(each)[mask].sum(0)


def _clipped(each: Tensor) -> Tensor:
    """Each row to norm 1 at most; a row that is not finite to zeros."""
    norms = each.norm(dim=1, keepdim=True)
    return torch.where(norms.isfinite(), each / norms.clamp(min=1.0), 0.0)


FAULTS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], str]] = {
    "mixes": (
        lambda x: x.mean(1) - torch.nan_to_num(x.mean(1)).mean(0),
        _sound,
        "other patients' records move the gradient of patient",
    ),
    "mixes in the last bit": (
        lambda x: x.mean(1) * torch.where(x[0].isnan().any(), 1 + 2.0**-23, 1.0),
        _sound,
        "other patients' records move the gradient of patient 1",
    ),
    "takes a neighbour's record": (
        lambda x: torch.cat([x[:, :1], x.roll(1, 0)[:, -1:]], 1).mean(1),
        _sound,
        "other patients' records move",
    ),
    "no clip": (
        _mean,
        lambda each, mask: torch.nan_to_num(each, posinf=0, neginf=0)[mask].sum(0),
        "moves the clipped sum by .* is allowed",
    ),
    "clips late": (_mean, lambda each, mask: _sound(each, mask) * 3, "moves the clipped sum by"),
    "no guard": (
        _mean,
        lambda each, mask: (each / each.norm(dim=1, keepdim=True).clamp(min=1.0))[mask].sum(0),
        "infinite or not a number",
    ),
    "mean": (
        _mean,
        lambda each, mask: _clipped(each)[mask].mean(0) * 40,
        "moves the clipped sum by",
    ),
    "of another length": (
        _mean,
        lambda each, mask: _sound(each, mask)[:-1],
        "4 numbers of a gradient for 5 that are trained",
    ),
}


@pytest.mark.parametrize("records", [1, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_check__planted_fault__is_refused_by_name(
    fault: str, records: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    each, total, said = FAULTS[fault]
    planted = Planted(each, total, records=records)
    monkeypatch.setitem(ENGINES, "book-keeping", lambda *_: planted)
    with pytest.raises(GraphRefused, match=f"self-check: .*{said}"):
        selfcheck.check(linear(), LOSSES["binary_cross_entropy"], 7, records)


@pytest.mark.parametrize("records", [1, 2])
def test_check__sound_engine_of_the_same_kind__passes(
    records: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = Planted(_mean, _sound, records=records)
    monkeypatch.setitem(ENGINES, "book-keeping", lambda *_: planted)
    selfcheck.check(linear(), LOSSES["binary_cross_entropy"], 7, records)


def test_check__norms_left_out_of_the_real_engine__is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = clipping.RULES["factors"]

    def without_norms(*given: Any) -> Any:
        squared, total = real(*given)
        return squared * 0, total

    monkeypatch.setitem(clipping.RULES, "factors", without_norms)
    monkeypatch.setattr(compiling, "_ENGINES", type(compiling._ENGINES)())
    with pytest.raises(GraphRefused, match="moves the clipped sum by"):
        selfcheck.check(linear(), LOSSES["squared_error"], 7)


def test_check__graph_that_cannot_be_traced__is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no rule\nand a long trace")

    monkeypatch.setitem(ENGINES, "book-keeping", broken)
    with pytest.raises(GraphRefused, match=r"cannot be traced: no rule$"):
        selfcheck.check(linear(), LOSSES["squared_error"], 7)


def test_check__dropout_under_hooks__is_refused_in_a_sentence() -> None:
    model = load_model(
        *export_model(nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, 1)), torch.zeros(1, WIDTH))
    )
    selfcheck.check(model, LOSSES["squared_error"], 7)
    with pytest.raises(
        GraphRefused,
        match=r"^node '.*': engine='hooks' of this hospital trains no dropout; leave it out$",
    ):
        selfcheck.check(model, LOSSES["squared_error"], 7, engine="hooks")
