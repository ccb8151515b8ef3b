"""Flower's side of a node: messages become calls, answers become messages. Decides nothing.

A refusal is an answer, not an exception: its sentence reaches the buyer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from datatokens.errors import BankError
from fl_client import protocol
from fl_client.errors import NodeError, Refusal
from fl_client.model.weights import from_safetensors
from fl_client.node import gate, rounds
from fl_client.node.admission import NOT_NOW, admit
from fl_client.node.room import DataRoom
from fl_client.protocol import Admit, Ask, Attest, Evaluate, Refused, Release, Train

log = logging.getLogger("datahub.node")
Request = TypeVar("Request")


def make_app(room: DataRoom, after: Callable[[], None] = lambda: None) -> ClientApp:
    """The ClientApp that answers for `room`; `after` is called when an answer is made."""
    app = ClientApp()

    def answering(kind: type[Request], work: Callable[[Request], Any]) -> Any:
        def handler(message: Message, context: Context) -> Message:
            request, said = None, None
            try:
                request = protocol.from_record(kind, message.content.get(protocol.REQUEST))
                said = work(request)
            except Refusal as error:
                said = Refused(gate.sentence(room.config, error))
            except (NodeError, BankError, OSError) as error:  # a full disk decides nothing, too
                log.error("no answer: %s", error)
                said = Refused(NOT_NOW)
            job = room.jobs.get(getattr(request, "job", ""))
            about = None
            if job is not None:
                about = gate.About(job.spec, job.entry.dataset_id, job.model.shapes)
            reply = gate.reply(room.config, request, said, about)
            after()
            return Message(RecordDict({protocol.REPLY: ConfigRecord(reply)}), reply_to=message)

        return handler

    def on_train(asked: Train) -> Any:
        return rounds.train(room, asked.job, asked.round, from_safetensors(asked.model))

    def on_evaluate(asked: Evaluate) -> Any:
        return rounds.evaluate(room, asked.job, from_safetensors(asked.model))

    def on_attest(asked: Attest) -> Any:
        return rounds.attest(room, asked.job, from_safetensors(asked.model), asked.report)

    app.query(Admit.kind.removeprefix("query."))(
        answering(Admit, lambda asked: admit(room, asked.terms, asked.graph, asked.weights))
    )
    app.train(Train.kind.removeprefix("train."))(answering(Train, on_train))
    app.evaluate(Evaluate.kind.removeprefix("evaluate."))(answering(Evaluate, on_evaluate))
    app.query(Ask.kind.removeprefix("query."))(
        answering(Ask, lambda asked: rounds.ask(room, asked.job))
    )
    app.query(Attest.kind.removeprefix("query."))(answering(Attest, on_attest))
    app.query(Release.kind.removeprefix("query."))(
        answering(Release, lambda asked: rounds.release(room, asked.job))
    )
    return app
