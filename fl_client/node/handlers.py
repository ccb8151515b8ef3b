"""Flower's side of a node: messages become calls, answers become messages. Decides nothing.

A refusal is an answer, not an exception: its sentence reaches the buyer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from datatokens.errors import BankError
from fl_client import protocol
from fl_client.errors import LedgerError, NodeError, ProtocolError
from fl_client.model.weights import from_safetensors, to_safetensors
from fl_client.node import rounds
from fl_client.node.admission import admit
from fl_client.node.room import DataRoom

log = logging.getLogger("datahub.node")


def _request(message: Message, **kinds: type) -> list[Any]:
    record = message.content.get(protocol.JOB)
    if not isinstance(record, ConfigRecord):
        raise ProtocolError("job: a ConfigRecord is missing")
    for name, kind in kinds.items():
        if type(record.get(name)) is not kind:
            raise ProtocolError(
                f"{name}={str(record.get(name))[:80]!r} must be of type {kind.__name__}"
            )
    return [record[name] for name in kinds]


def _answer(message: Message, answer: Mapping[str, Any]) -> Message:
    return Message(RecordDict({protocol.ANSWER: ConfigRecord(dict(answer))}), reply_to=message)


def make_app(room: DataRoom) -> ClientApp:
    """The ClientApp that answers for `room`."""
    app = ClientApp()

    def refusing(work: Any) -> Any:
        def handler(message: Message, context: Context) -> Message:
            try:
                return work(message)
            except (NodeError, BankError) as error:
                if isinstance(error, LedgerError):
                    log.error("ledger: %s", error)
                return _answer(message, {"accepted": False, "reason": str(error), "signature": b""})

        return handler

    def on_admit(message: Message) -> Message:
        terms, graph, weights = _request(message, terms=bytes, graph=bytes, weights=bytes)
        return _answer(message, admit(room, terms, graph, weights))

    def on_round(message: Message) -> Message:
        job_id, number, model = _request(message, job=str, round=int, model=bytes)
        arrays, metrics = rounds.train(room, job_id, number, from_safetensors(model))
        model = to_safetensors(arrays)
        return _answer(
            message, {"accepted": True, "reason": "", "signature": b"", "model": model, **metrics}
        )

    def on_evaluate(message: Message) -> Message:
        job_id, model = _request(message, job=str, model=bytes)
        metrics = rounds.evaluate(room, job_id, from_safetensors(model))
        return _answer(message, {"accepted": True, "reason": "", "signature": b"", **metrics})

    def on_attest(message: Message) -> Message:
        job_id, report, model = _request(message, job=str, report=bytes, model=bytes)
        return _answer(message, rounds.attest(room, job_id, from_safetensors(model), report))

    def on_release(message: Message) -> Message:
        (job_id,) = _request(message, job=str)
        return _answer(message, rounds.release(room, job_id))

    app.query(protocol.ADMIT.removeprefix("query."))(refusing(on_admit))
    app.train(protocol.ROUND.removeprefix("train."))(refusing(on_round))
    app.evaluate(protocol.EVALUATE.removeprefix("evaluate."))(refusing(on_evaluate))
    app.query(protocol.ATTEST.removeprefix("query."))(refusing(on_attest))
    app.query(protocol.RELEASE.removeprefix("query."))(refusing(on_release))
    return app
