"""Once, one patient chose what was executed, answered or billed: an index cut in float32 raised for
them alone, their second record chose the code path, their 64 records doubled the billed seconds.
"""

from __future__ import annotations

import logging
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from fl_client.model.graph import OPERATIONS, load_model
from fl_client.model.losses import LOSSES
from fl_client.model.weights import to_safetensors
from fl_client.node.rounds import train
from fl_client.privacy.adversary import (
    Attack,
    control_flow,
    engine_for,
    gradient_shift,
    propose,
    search,
    tables,
)
from fl_client.privacy.noise import MARGIN
from fl_client.privacy.slots import round_seconds
from fl_client.privacy.training import CHUNK_ELEMENTS, ENGINES, RoundResult, chunks
from fl_client.protocol import Trained, pack
from tests.clinic import Clinic, accepted, weights
from tests.conftest import plan
from tests.faults.attacks import VICTIM, admit, at, attack, gate, people

MODE = {"book-keeping": "traced", "hooks": "hooks"}
ROWS = 2**24 + 4  # float32 has no 2**24 + 3, the last one's number


def far_index() -> Attack:
    """The victim alone looks up a row far behind the end of a table of 2**24 + 4."""
    nodes = [
        *gate(),
        ["i_", "mul.Tensor", [at("g"), 3e38]],
        ["i", "select.int", [at("i_"), 1, 0]],
        ["e", "embedding.clamped", [at("p_table"), at("i")]],
        ["out", "linear.default", [at("e"), at("p_w")]],
    ]
    table = np.zeros((ROWS, 1), np.float32)
    table[-1] = 1.0
    arrays = {"w": np.zeros((1, 1)), "point": VICTIM[None], "table": table}
    return attack(arrays, nodes, "out", others=people(50), victim=VICTIM)


def two_records() -> Attack:
    """A graph whose gradients are kept in another way for several records than for one."""
    nodes = [
        ["c", "expand.default", [at("x"), [2, 2]]],
        ["cc", "mul.Tensor", [at("c"), 1.0]],
        ["a", "group_norm.default", [at("cc"), 1, at("p_g"), at("p_h")]],
        ["b", "mean.dim", [at("a"), [0], True]],
        ["out", "linear.default", [at("b"), at("p_w")]],
    ]
    arrays = {"w": np.zeros((1, 2)), "g": np.ones(2), "h": np.zeros(2)}
    given = attack(arrays, nodes, "out", others=people(20), victim=VICTIM)
    second = given.features[-1:] + 1, given.targets[-1:], given.patients[-1:]
    return given._replace(
        features=np.vstack([given.features, second[0]]),
        targets=np.append(given.targets, second[1]),
        patients=np.append(given.patients, second[2]),
        records=2,
    )


def test_embedding__index_far_out__is_the_last_row_of_a_table_longer_than_float32_counts() -> None:
    table = torch.zeros(ROWS, 1)
    table[-1] = 1.0
    far = torch.tensor([3e38, float("inf"), 2.0**24, -1e9, float("nan")])
    found = OPERATIONS["embedding.clamped"](table, far)
    assert found.flatten().tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_train_round__index_far_out__no_exception_inside_or_outside(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = far_index()
    with caplog.at_level(logging.ERROR, "datahub.node"):
        assert control_flow(given, "traced") == 0.0
    assert not caplog.records  # nor one that was caught: it would silence everybody
    assert gradient_shift(given, "traced") * (1 + MARGIN) == pytest.approx(1.0, rel=1e-6)
    engine_for.cache_clear()  # a table of 64 MB


def test_chunks__large_frozen_table_and_the_fall_back_engine__few_rows_at_once() -> None:
    """Opacus makes a gradient per row of frozen parameters, too: 150 times 64 MB at once."""
    given = far_index()
    model = load_model(given.graph, to_safetensors(given.arrays))
    loss = LOSSES[given.loss]
    work = chunks(model, 150, 1, loss, "hooks")
    assert work.slots * ROWS <= CHUNK_ELEMENTS and work.slots * work.times >= 150
    assert chunks(model, 150, 1, loss, "book-keeping").times == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_train_round__second_record_of_one_patient__same_shapes_and_operations(engine: str) -> None:
    given = two_records()
    admit(given, engine)  # records of the manifest: the table is not asked
    with_one, without = tables(given)
    assert with_one.x.shape[1:] == without.x.shape[1:] == (2, 2)
    assert control_flow(given, MODE[engine]) == 0.0


@pytest.mark.parametrize("mode", ["traced", "hooks"])
@pytest.mark.parametrize("family", ["linear_ghost", "embedding", "group_norm"])
def test_public_entries__one_adversarial_patient__equal_control_flow(
    family: str, mode: str
) -> None:
    found = search(family, mode, seconds=0.0, graphs=2, most=3, measure=control_flow)
    assert found.attack is not None and found.ratio == 0.0


def test_replies__with_and_without_one_patient__equal_length() -> None:
    given = propose("linear", np.full(24, 0.4), np.zeros(64))
    model = load_model(given.graph, to_safetensors(given.arrays))
    lengths = set()
    for table in tables(given):
        assert table.x.shape[1:] == (given.records, *model.input_shape)
        reply = Trained(to_safetensors(given.arrays), 0.0, 0.0, 0.0, 1e-5, "patient", 0.1, "cpu")
        lengths.add(len(pack(reply)))
    assert len(lengths) == 1


def test_round_result__holds_no_time() -> None:
    assert {field.name for field in fields(RoundResult)} == {"arrays", "loss_mean", "device"}


def test_round_seconds__are_those_of_the_terms() -> None:
    # 3 passes for each of 5 steps at q = 1 and one look, of 600 patients with 4 records and 10^6
    # operations, at 10^10 a second
    assert round_seconds(replace(plan(), steps=5), 5, 600, 4, 10**6) == pytest.approx(3.9)


@pytest.mark.parametrize("patients", [40, 41])
def test_train__one_patient_more_in_the_table__bills_the_same_seconds(
    clinic: Clinic, patients: int
) -> None:
    clinic.rewrite_table(patients)
    terms = accepted(clinic)
    reply = train(clinic.room(), terms.job_id.hex(), 1, weights())
    assert reply.compute_seconds == 0.1 and len(reply.model) == len(to_safetensors(weights()))
