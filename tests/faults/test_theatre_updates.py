"""A hospital that answers a round with parameters that no training leads to is dropped, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fl_client.model.weights import to_safetensors
from fl_client.privacy.slots import needed
from fl_client.protocol import Train
from fl_server.aggregation import longest_step
from fl_server.app import conduct
from tests.conftest import spec
from tests.fl_server.test_app import conductor, folder, honest, outcome


@pytest.mark.parametrize("value", [1e30, -3e38, 50.0, float("nan"), float("inf")])
def test_an_update_beyond_the_plan__is_dropped_and_the_others_go_on(
    tmp_path: Path, value: float
) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

    def bad_fourth(dataset_id: int, kind: str, request: ConfigRecord) -> dict[str, Any]:
        if dataset_id == 4 and kind == Train.kind:
            model = to_safetensors({"w": np.full(3, value, np.float32)})
            return honest(dataset_id, kind, request) | {"model": model}
        return honest(dataset_id, kind, request)

    job = folder(tmp_path)
    conduct(job, conductor(bad_fourth))
    (dropped,) = [line for line in job.events() if line["event"] == "dropped"]
    assert dropped["dataset_id"] == 4 and not dropped["silent"]
    assert "the plan allows" in dropped["reason"] or "finite" in dropped["reason"]
    assert outcome(job)["state"] == "attested" and len(outcome(job)["signatures"]) == 3
    report = json.loads((tmp_path / "report.json").read_text())
    assert [line["worked"] for line in report["hospitals"]].count(False) == 1


@given(st.integers(0, 2**32 - 1), st.integers(1, 3000), st.sampled_from([12, 100, 5000]))
def test_the_furthest_that_honest_training_goes__is_within_the_bound(
    seed: int, parameters: int, persons: int
) -> None:
    """Everybody who can have a seat pulls the same way with the whole clip, and noise comes on
    top.
    """
    job, random = spec(), np.random.default_rng(seed)
    plan, seats = job.plan, needed(persons, 1.0)
    pull = random.normal(size=parameters)
    pull *= seats * plan.clip_norm / np.linalg.norm(pull)
    noise = random.normal(size=parameters) * plan.noise_multiplier * plan.clip_norm
    step = job.learning_rate / persons * (pull + noise)
    assert np.linalg.norm(step) <= longest_step(job, persons, seats, parameters)
