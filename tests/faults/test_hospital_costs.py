"""A buyer's model within every limit of its format must not hold a hospital's machine: costs are
worked out before anything heavy, and a clock ends what takes longer. Counted, never timed.
"""

import json
import struct
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fl_client.errors import GraphRefused, PolicyRefusal, ProtocolError, Stopping
from fl_client.model.export import export_model
from fl_client.model.graph import GraphModel, load_model
from fl_client.model.losses import LOSSES
from fl_client.model.weights import to_safetensors
from fl_client.node import admission, limits
from fl_client.node.admission import NOT_NOW, admit, work_of
from fl_client.node.rounds import evaluate, train
from fl_client.privacy import costs, selfcheck
from fl_client.privacy.plan import PrivacyPlan
from fl_client.privacy.training import chunks
from fl_client.protocol import Refused, Signed, sha256_hex
from fl_client.worker.serve import Desk
from tests.benchmarks.dp_step import ViT, resnet
from tests.clinic import GRAPH, WEIGHTS, Clinic, accepted, refusal, weights

BCE = LOSSES["binary_cross_entropy"]
PLAN = PrivacyPlan(1.5, 1.0, 1.0, 10, 1e-5, 20.0, 2.0, 10)
MINUTES, GB, LEFT_S = 240, 4, 3600.0


def deep(width: int, depth: int, inputs: int = 2) -> tuple[bytes, bytes]:
    """cpu_graph.py's: one matrix used `depth` times, 4 MB of weights at a width of 1000."""
    arrays = {
        "a": np.full((width, inputs), 0.01, np.float32),
        "w": np.eye(width, dtype=np.float32),
        "o": np.full((1, width), 0.01, np.float32),
    }
    nodes = [["n0", "linear.default", [{"node": "x"}, {"node": "pa"}]]]
    for i in range(depth):
        nodes.append([f"n{i + 1}", "linear.default", [{"node": f"n{i}"}, {"node": "pw"}]])
    nodes.append(["out", "linear.default", [{"node": f"n{depth}"}, {"node": "po"}]])
    return written(nodes, {"pa": "a", "pw": "w", "po": "o"}, inputs), to_safetensors(arrays)


def written(nodes: list, parameters: dict[str, str], inputs: int = 2, output: str = "out") -> bytes:
    document = {
        "format": "datahub-graph",
        "version": 1,
        "input": {"name": "x", "shape": [inputs]},
        "parameters": parameters,
        "nodes": nodes,
        "output": output,
    }
    return json.dumps(document).encode()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
    """One entry for every step of a graph that was evaluated, on fake tensors or real ones."""
    seen: list[None] = []
    walk = GraphModel.walk

    def counting(self: GraphModel, *given: object) -> torch.Tensor:
        seen.extend([None] * len(self.nodes))
        return walk(self, *given)

    monkeypatch.setattr(GraphModel, "walk", counting)
    yield seen


def asked_with(clinic: Clinic, model: tuple[bytes, bytes], **changes: object) -> str:
    files = {"graph_hash": sha256_hex(model[0]), "weights_hash": sha256_hex(model[1])}
    return refusal(clinic, clinic.paid(clinic.spec(**files, **changes)), *model)


def test_buyer_sends_a_deep_model_of_4_MB__refused_before_it_is_computed_once(
    clinic: Clinic, steps: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfcheck, "check", lambda *_: pytest.fail("the model was computed"))
    model = deep(1000, 1200)
    assert len(model[1]) < 4.1e6
    room = clinic.room()
    work = work_of(room, "00" * 32, clinic.spec(), room.datasets[0], lambda: model, LEFT_S)
    with pytest.raises(PolicyRefusal, match=r"checking this model takes .* gives a check 60 s"):
        Desk().check(work.check())
    # the dry run, its gradient, one look at the shapes each for chunks and costs: all without data
    assert len(steps) <= 5 * 1202


def test_buyer_sends_50000_steps_or_5000_repeated_ones__refused(clinic: Clinic) -> None:
    assert "nodes must be a list of 1 to 5000" in asked_with(clinic, deep(1, 12_000))
    with pytest.raises(GraphRefused, match="larger than"):
        load_model(*deep(1, 50_000))


def test_job_takes_longer_than_the_node_gives_or_than_is_left__refused_with_the_numbers() -> None:
    model = load_model(*deep(300, 30))
    found = costs.costs(model, BCE, PLAN, 10, 10_000, 4)
    with pytest.raises(
        PolicyRefusal, match=r"this job takes .* operations, \d+ minutes .* a job 2 minutes"
    ):
        costs.refuse(found, 2, GB, LEFT_S)
    with pytest.raises(PolicyRefusal, match=r"deadline: this job takes .*; 1\.0 minutes are left"):
        costs.refuse(found, MINUTES, GB, 60.0)
    costs.refuse(found, 10 * MINUTES, GB, 1e6)
    many = costs.costs(model, BCE, PLAN, 10, 20_000, 4)
    assert 1.9 < many.job / found.job < 2.1, "twice the patients, twice the work"


def test_one_patient_needs_more_memory_than_the_node_gives__refused() -> None:
    nodes: list = [["h", "linear.default", [{"node": "x"}, {"node": "pa"}]]]
    nodes += [["e0", "expand.default", [{"node": "h"}, [30_000_000, 1]]]]
    nodes += [[f"e{i}", "tanh.default", [{"node": f"e{i - 1}"}]] for i in (1, 2)]
    nodes += [
        ["s", "sum.dim_IntList", [{"node": "e2"}, [0]]],
        ["out", "view.default", [{"node": "s"}, [1, 1]]],
    ]
    arrays = {"a": np.ones((1, 2), np.float32)}
    model = load_model(written(nodes, {"pa": "a"}), to_safetensors(arrays))
    found = costs.costs(model, BCE, PLAN, 1, 40, 8)
    with pytest.raises(PolicyRefusal, match=r"memory: training takes 8.* GB .* a job 4 GB"):
        costs.refuse(found, MINUTES, GB, LEFT_S)


def test_chunks__of_a_heavy_model__are_as_small_as_memory_and_work_ask_for() -> None:
    light, heavy = load_model(*deep(10, 2)), load_model(*deep(500, 60))
    assert chunks(light, 200, 1, BCE, "book-keeping").slots == 200
    small = chunks(heavy, 200, 1, BCE, "book-keeping")
    assert small.slots < 40 and small.slots * small.times >= 200


@pytest.mark.parametrize(("module", "shape"), [(resnet, (3, 64, 64)), (ViT, (3, 32, 32))])
def test_honest_network_of_the_repository__passes(module: type, shape: tuple[int, ...]) -> None:
    model = load_model(*export_model(module(), torch.zeros(1, *shape)))
    found = costs.costs(model, LOSSES["cross_entropy"], PLAN, 10, 300, 1)
    costs.refuse(found, MINUTES, GB, 2 * LEFT_S)


def test_selfcheck__passes_over_a_chunk__are_no_more_than_the_estimate_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[None] = []
    called = torch.fx.GraphModule.__call__

    def counting(self: torch.fx.GraphModule, *given: torch.Tensor) -> object:
        calls.append(None)
        return called(self, *given)

    monkeypatch.setattr(torch.fx.GraphModule, "__call__", counting)
    selfcheck.check(load_model(*deep(7, 3)), BCE, 40)
    assert 10 < len(calls) <= 2 * costs.CHECK_PASSES, "rows and their sum are two calls of a pass"


def test_matrix_times_vector__which_no_counter_counts__is_counted() -> None:
    """A step that reads 4,000,000 weights and makes 2,000 numbers is not free."""
    arrays = {"a": np.ones((2000, 2), np.float32), "w": np.ones((2000, 2000), np.float32)}
    nodes = [
        ["h", "linear.default", [{"node": "x"}, {"node": "pa"}]],
        ["v", "select.int", [{"node": "h"}, 0, 0]],
        ["m", "matmul.default", [{"node": "pw"}, {"node": "v"}]],
        ["s", "sum.dim_IntList", [{"node": "m"}, [0], True]],
        ["out", "view.default", [{"node": "s"}, [1, 1]]],
    ]
    model = load_model(written(nodes, {"pa": "a", "pw": "w"}), to_safetensors(arrays))
    assert model.work >= 4_000_000


@pytest.mark.parametrize(
    ("nodes", "sentence"),
    [
        ([["out", "expand.default", [{"node": "x"}, [2**40, 2]]]], "is out of range"),
        ([["out", "expand.default", [{"node": "x"}, [50_000_000, 2]]]], "numbers"),
        ([["out", "unflatten.int", [{"node": "x"}, 1, [2**26, 2**26]]]], "is out of range"),
        (
            [["out", "conv2d.default", [{"node": "x"}, {"node": "pa"}, None, 1, 10**12]]],
            "out of range",
        ),
    ],
)
def test_graph_claims_shapes_of_2_to_the_40__refused_without_making_them(
    nodes: list, sentence: str
) -> None:
    with pytest.raises(GraphRefused, match=sentence):
        load_model(written(nodes, {"pa": "a"}), to_safetensors({"a": np.ones((1, 2), np.float32)}))


def test_weights_with_a_header_of_100_MB__refused_before_it_is_parsed() -> None:
    bomb = struct.pack("<Q", 100_000_000) + b" " * 1000
    with pytest.raises(GraphRefused, match="a header of 100000000 bytes is larger than 2097152"):
        load_model(deep(1, 1)[0], bomb)


def test_admission_takes_longer_than_a_minute__refused_signed_and_the_next_job_is_served(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "CHECK_SECONDS", 0)
    reason = asked_with(clinic, deep(4, 500))
    assert reason == "checking this model took longer than the 0 s that this hospital gives it"
    monkeypatch.undo()
    accepted(clinic)


def test_escrow_pays_back_in_the_middle_of_a_round__it_stops_and_the_charge_stays(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = accepted(clinic)
    room, job = clinic.room(), terms.job_id.hex()
    at_chain, looks = room.escrow.job, []

    def refunded(job_id: bytes) -> object:
        looks.append(job_id)
        found = at_chain(job_id)
        return (
            found
            if len(looks) == 1
            else type(found)(**{**vars(found), "status": limits.Status.REFUNDED})
        )

    monkeypatch.setattr(limits, "LOOK_EVERY_S", -1.0)
    monkeypatch.setattr(room.escrow, "job", refunded)
    entry = room.datasets[0]
    with pytest.raises(ProtocolError, match="no longer holds this job's money: it is refunded"):
        train(room, job, 1, weights())
    spent = room.ledger.epsilon_spent(entry.name)
    assert spent > 0, "charged before it was trained, whatever became of it"
    assert len(looks) == 2
    monkeypatch.undo()
    train(room, job, 1, weights())  # the same round again, at no further charge
    assert room.ledger.epsilon_spent(entry.name) == spent


def test_round_or_last_look_after_the_deadline__refused_before_it_is_charged(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = accepted(clinic, rounds=1)
    room, job = clinic.room(), terms.job_id.hex()
    monkeypatch.setattr(room.chain, "now", lambda: terms.deadline)
    with pytest.raises(ProtocolError, match="the deadline of this job has passed"):
        train(room, job, 1, weights())
    assert room.ledger.rounds(job) == []
    monkeypatch.undo()
    train(room, job, 1, weights())
    monkeypatch.setattr(room.chain, "now", lambda: terms.deadline)
    with pytest.raises(ProtocolError, match="the deadline of this job has passed"):
        evaluate(room, job, weights())
    assert [row.number for row in room.ledger.rounds(job)] == [1]


def test_node_is_stopped_while_it_works__ends_at_once_and_decides_nothing(clinic: Clinic) -> None:
    terms = clinic.paid()
    room = clinic.room()
    room.stopping.set()
    answer = admit(room, terms.to_json(), GRAPH, WEIGHTS)
    assert answer == Refused(NOT_NOW)
    assert isinstance(admit(clinic.room(), terms.to_json(), GRAPH, WEIGHTS), Signed)
    with pytest.raises(Stopping):
        train(room, terms.job_id.hex(), 1, weights())
