"""Frozen numbers sent anew in a round, and a weight of one dimension, once got past the node."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor, nn, ones, ops, zeros

from fl_client.errors import ProtocolError
from fl_client.model.export import export_model
from fl_client.model.weights import from_safetensors
from fl_client.node.admission import admit
from fl_client.node.rounds import evaluate, train
from fl_client.protocol import Signed, sha256_hex
from tests.clinic import Clinic


class Adapter(nn.Module):
    """A frozen layer in front of one that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(2, 3), nn.Linear(3, 1)
        self.base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.base(x))


class Dot(nn.Module):
    """A linear operation whose weight has one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return ops.aten.linear.default(x, self.weight)


def admitted(clinic: Clinic, module: nn.Module) -> tuple[str, dict[str, np.ndarray]]:
    """A paid and accepted job for this model: its id, its first parameters."""
    graph, weights = export_model(module, zeros(1, 2))
    hashes = {"graph_hash": sha256_hex(graph), "weights_hash": sha256_hex(weights)}
    terms = clinic.paid(clinic.spec(rounds=1, **hashes))
    assert isinstance(admit(clinic.room(), terms.to_json(), graph, weights), Signed)
    return terms.job_id.hex(), from_safetensors(weights)


def test_train__frozen_number_other_than_admitted__is_refused_and_costs_nothing(
    clinic: Clinic,
) -> None:
    job, arrays = admitted(clinic, Adapter())
    room = clinic.room()
    other = {**arrays, "base.weight": np.full_like(arrays["base.weight"], 3e38)}
    with pytest.raises(ProtocolError, match=r"base\.weight is frozen and must stay as it was"):
        train(room, job, 1, other)
    assert not room.ledger.rounds(job), "nothing was charged"
    trained = from_safetensors(train(room, job, 1, arrays).model)
    assert np.array_equal(trained["base.weight"], arrays["base.weight"])
    assert not np.array_equal(trained["head.weight"], arrays["head.weight"])
    with pytest.raises(ProtocolError, match=r"base\.bias is frozen"):
        evaluate(room, job, {**trained, "base.bias": trained["base.bias"] + 1})


def test_train__weight_of_one_dimension__is_admitted_and_trained(clinic: Clinic) -> None:
    job, arrays = admitted(clinic, Dot())
    trained = from_safetensors(train(clinic.room(), job, 1, arrays).model)
    assert trained["weight"].shape == (2,)
    assert not np.array_equal(trained["weight"], arrays["weight"])
