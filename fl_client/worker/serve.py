"""Inside the walls: answers a node's tasks one after the other, about one job. Knows nothing of
keys, chains, ledgers or files of the node; imports none of them.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import torch

from datatokens.errors import BankError
from datatokens.terms import canonical_json
from datatokens.wire import parse
from fl_client.data.schemas import Schema
from fl_client.errors import NodeError, ProtocolError, Refusal
from fl_client.model.fit import check_fit
from fl_client.model.graph import GraphModel, Node, load_model
from fl_client.model.losses import LOSSES
from fl_client.model.weights import from_safetensors, to_safetensors
from fl_client.privacy import costs, selfcheck
from fl_client.privacy.slots import needed
from fl_client.privacy.training import device, score_table, train_round
from fl_client.protocol import MAX_REASON, JobSpec
from fl_client.worker import probe
from fl_client.worker.tasks import (
    HEAD,
    MOST_SHOWN,
    Check,
    Checked,
    Cohort,
    Data,
    Look,
    No,
    Round,
    Table,
    Tried,
    Try,
    Update,
    data_of,
    frame,
    read,
)

log = logging.getLogger("datahub.worker")


def operations(model: GraphModel) -> list[list[Any]]:
    """[operation, shape of what it makes for one sample, numbers of the steps that it takes that
    from, -1 for the input] of the first MOST_SHOWN steps.
    """
    made: list[list[Any]] = []
    places = {model.input_node: -1} | {node.name: i for i, node in enumerate(model.nodes)}

    def visit(node: Node, given: list[Any], found: Any) -> Any:
        if len(made) < MOST_SHOWN:
            shape = list(getattr(found, "shape", ()))
            taken = sorted({places[name] for name in _named(node.arguments) if name in places})
            made.append([node.operation, shape, taken])
        return found

    model.eval()
    with torch.no_grad():
        own = {node: getattr(model, key) for node, key in model.keys.items()}
        model.walk({**own, model.input_node: torch.zeros(1, *model.input_shape)}, visit)
    return made


def _named(argument: Any) -> Iterator[str]:
    """Names of nodes in an argument of a graph's step."""
    if isinstance(argument, dict):
        yield str(argument["node"])
    elif isinstance(argument, list | tuple):
        for one in argument:
            yield from _named(one)


class Desk:
    """What a worker knows: a job's model once it was checked, a cohort once it was given."""

    def __init__(self) -> None:
        self._job: Check | None = None
        self._spec: JobSpec | None = None
        self._model: GraphModel | None = None
        self._data: Data | None = None

    def check(self, task: Check) -> Checked:
        """Load, fit, cost and self-check a model. Raises Refusal."""
        spec = JobSpec.from_dict(parse(task.spec))
        schema = Schema.from_dict(parse(task.schema))
        model = load_model(task.graph, task.weights)
        check_fit(model, spec.loss, schema.inputs(spec.loss), schema.losses)
        if spec.outputs != schema.losses[spec.loss]:
            raise ProtocolError(f"outputs={spec.outputs} must be {schema.losses[spec.loss]}")
        loss, seconds = LOSSES[spec.loss], 0.0
        if task.left_s >= 0:
            found = costs.costs(
                model, loss, spec.plan, spec.rounds, task.persons, task.records, task.engine
            )
            seconds = costs.refuse(found, task.minutes, task.memory_gb, task.left_s)
        slots = needed(task.persons, spec.plan.sampling_rate)
        selfcheck.check(model, loss, slots, task.records, task.engine)
        self._job, self._spec, self._model = task, spec, model
        shown = canonical_json(operations(model))
        frozen = canonical_json(model.frozen_names)
        return Checked(frozen, shown, model.work, seconds, str(device()))

    def take(self, task: Cohort) -> None:
        """The cohort of the tasks that follow."""
        self._data = data_of(task)

    def train(self, task: Round) -> Update:
        """A round. Raises Refusal."""
        job, spec, model, data = self._at_work()
        result = train_round(
            model,
            from_safetensors(task.model),
            data.features,
            data.targets,
            spec.plan,
            steps=spec.local_steps,
            learning_rate=spec.learning_rate,
            loss=spec.loss,
            expected_persons=job.persons,
            patients=data.patients,
            records_per_patient=job.records,
            engine=job.engine,
        )
        return Update(to_safetensors(result.arrays), float(result.loss_mean))

    def look(self, task: Look) -> Table:
        """The table of scores. Raises Refusal."""
        job, spec, model, data = self._at_work()
        scores = score_table(
            model,
            from_safetensors(task.model),
            data.features,
            data.targets,
            spec.plan,
            loss=spec.loss,
            expected_persons=job.persons,
            patients=data.patients,
            records_per_patient=job.records,
        )
        return Table(tuple(scores))

    def _at_work(self) -> tuple[Check, JobSpec, GraphModel, Data]:
        if not (self._job and self._spec and self._model and self._data):
            raise ProtocolError("a model is checked and a cohort given before a round")
        return self._job, self._spec, self._model, self._data

    def answer(self, task: Any) -> Any:
        """The answer to any task; None for one that has none."""
        work: dict[type, Callable[[Any], Any]] = {
            Check: self.check,
            Cohort: self.take,
            Round: self.train,
            Look: self.look,
            Try: lambda task: Tried(canonical_json(probe.everything(task))),
        }
        try:
            return work[type(task)](task)
        except Refusal as error:
            return No(type(error).__name__, str(error)[:MAX_REASON])
        except (NodeError, BankError) as error:
            log.error("%s", error)
            return No("NodeError", "")


def serve(connection: socket.socket, threads: int) -> None:
    """Answer until the other end closes."""
    torch.set_num_threads(threads)
    # A denormal takes dozens of times as long as another number: one patient's could be heard.
    # Before torch starts its threads, which take the setting over.
    torch.set_flush_denormal(True)
    desk = Desk()
    while head := _exactly(connection, HEAD.size):
        length, kind = HEAD.unpack(head)
        reply = desk.answer(read(kind, _exactly(connection, length)))
        if reply is not None:
            connection.sendall(frame(reply))


def _exactly(connection: socket.socket, length: int) -> bytes:
    """So many bytes; none where the other end has closed."""
    content = bytearray(length)
    view, got = memoryview(content), 0
    while got < length:
        more = connection.recv_into(view[got:])
        if not more:
            return b""
        got += more
    return bytes(content)
