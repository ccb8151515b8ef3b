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
from fl_client.privacy import clipping, selfcheck
from fl_client.privacy.training import ENGINES, LOSSES
from tests.fl_client.test_clipping import CASES

WIDTH = 5


def linear() -> GraphModel:
    torch.manual_seed(0)
    return load_model(*export_model(nn.Linear(WIDTH, 1), torch.zeros(1, WIDTH)))


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
    selfcheck.check(model, LOSSES[loss], several, engine)
    assert torch.equal(torch.random.get_rng_state(), before)


@dataclass(frozen=True)
class Planted:
    """An engine for one linear layer without a bias, with a fault: x [B, D] -> its sum of "clipped"
    gradients [D].
    """

    fault: Callable[[Tensor, Tensor], Tensor]

    def sum(self, theta: Tensor, x: Tensor, y: Tensor, mask: Tensor, clip: Tensor) -> Tensor:
        return self.fault(x.mean(1) if x.dim() == 3 else x, mask)


@dataclass(frozen=True)
class PlantedForPatients(Planted):
    """The same for x [B, K, D] of patients with several records."""

    def sum(self, theta: Tensor, x: Tensor, y: Tensor, mask: Tensor, clip: Tensor) -> Tensor:
        return self.fault(x, mask)


def _clipped(each: Tensor) -> Tensor:
    """Each row to norm 1 at most; a row that is not finite to zeros."""
    norms = each.norm(dim=1, keepdim=True)
    return torch.where(norms.isfinite(), each / norms.clamp(min=1.0), 0.0)


FAULTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "mixes": (
        lambda x, mask: _clipped(x - torch.nan_to_num(x).mean(0))[mask].sum(0),
        "moves the gradient of record 1",
    ),
    "no clip": (
        lambda x, mask: torch.nan_to_num(x, posinf=0, neginf=0)[mask].sum(0),
        "moves the clipped sum by .* is allowed",
    ),
    "clips late": (lambda x, mask: _clipped(x)[mask].sum(0) * 3, "moves the clipped sum by"),
    "no guard": (
        lambda x, mask: (x / x.norm(dim=1, keepdim=True).clamp(min=1.0))[mask].sum(0),
        "infinite or not a number",
    ),
    "mean": (lambda x, mask: _clipped(x)[mask].mean(0) * 40, "moves the clipped sum by"),
}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_check__planted_fault__is_refused_by_name(
    fault: str, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, said = FAULTS[fault]
    monkeypatch.setitem(ENGINES, "book-keeping", lambda *_: Planted(engine))
    with pytest.raises(GraphRefused, match=f"self-check: .*{said}"):
        selfcheck.check(linear(), LOSSES["binary_cross_entropy"], several)


# a patient's records, x [B, K, D]
FAULTS_FOR_PATIENTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "clips records": (
        lambda x, mask: _clipped(x.flatten(0, 1)).view_as(x)[mask].sum((0, 1)),
        "moves the clipped sum by",
    ),
    "takes a neighbour's record": (
        lambda x, mask: _clipped(torch.cat([x[:, :1], x[:, 1:].roll(1, 0)], 1).mean(1))[mask].sum(
            0
        ),
        "moves the gradient of record 1",
    ),
}


@pytest.mark.parametrize("fault", FAULTS_FOR_PATIENTS)
def test_check__several_records_planted_fault__is_refused_by_name(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, said = FAULTS_FOR_PATIENTS[fault]
    monkeypatch.setitem(ENGINES, "book-keeping", lambda *_: PlantedForPatients(engine))
    with pytest.raises(GraphRefused, match=f"self-check: .*{said}"):
        selfcheck.check(linear(), LOSSES["binary_cross_entropy"], several=True)


@pytest.mark.parametrize("several", [False, True])
def test_check__sound_engine_of_the_same_kind__passes(
    several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        ENGINES, "book-keeping", lambda *_: Planted(lambda x, mask: _clipped(x)[mask].sum(0))
    )
    selfcheck.check(linear(), LOSSES["binary_cross_entropy"], several)


def test_check__norms_left_out_of_the_real_engine__is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = clipping._matrix

    def without_norms(left: Tensor, right: Tensor) -> Any:
        squared, total = real(left, right)
        return squared * 0, total

    monkeypatch.setattr(clipping, "_matrix", without_norms)
    monkeypatch.setattr(clipping, "_SUMMERS", type(clipping._SUMMERS)())
    with pytest.raises(GraphRefused, match="moves the clipped sum by"):
        selfcheck.check(linear(), LOSSES["squared_error"])


def test_check__graph_that_cannot_be_traced__is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no rule\nand a long trace")

    monkeypatch.setitem(ENGINES, "book-keeping", broken)
    with pytest.raises(GraphRefused, match=r"cannot be traced: no rule$"):
        selfcheck.check(linear(), LOSSES["squared_error"])


def test_check__dropout_under_hooks__is_refused_in_a_sentence() -> None:
    model = load_model(
        *export_model(nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, 1)), torch.zeros(1, WIDTH))
    )
    selfcheck.check(model, LOSSES["squared_error"])
    with pytest.raises(
        GraphRefused,
        match=r"^node '.*': engine='hooks' of this hospital trains no dropout; leave it out$",
    ):
        selfcheck.check(model, LOSSES["squared_error"], engine="hooks")
