"""A Flower SuperNode that runs only what is installed here. Knows nothing of jobs, money or
privacy.

It dials out to the SuperLink with Flower's own fleet connection (TLS, node authentication,
heartbeats), opens no port, and answers every message with one ClientApp that is already loaded. A
run whose bundle is not datahub's metadata-only bundle is answered with an error, and no bundle is
ever fetched or unpacked. Built on Flower's private modules, as is bundle.py; tests pin Flower's
version and hold the list of such files.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.run import RunNotRunningException
from flwr.supernode import fleet_http_connection
from flwr.supernode.fleet_http_connection import http_request_response

from fl_client.node.bundle import bundle_hash
from fl_client.node.skew import clock_problem

log = logging.getLogger("datahub.node")

BUSY_POLL_S, IDLE_POLL_S, BUSY_FOR_S = 0.1, 0.5, 20.0
# a killed node's old session counts as alive for up to 60 s; activation is refused until then
RETRY_S = 3.0
FOREIGN_BUNDLE = (
    "this node runs only its installed code: the run's bundle is not datahub's metadata-only bundle"
)


STOP_WITHIN_S = 1.5


def stop_soon(stop: threading.Event) -> None:
    """Set `stop`, and end the process where that alone does not in STOP_WITHIN_S: in the middle of
    a compiler, or of a call that waits. Whatever counts is on the disk before it is answered.
    """
    stop.set()

    def end() -> None:
        log.warning("stopped in the middle of something; what was charged stays charged")
        logging.shutdown()
        os._exit(0)

    last = threading.Timer(STOP_WITHIN_S, end)
    last.daemon = True
    last.start()


class NoSession(Exception):
    """The SuperLink did not let this node in."""


def _no_session(code: int, message: str | None = None, *_: object, **__: object) -> NoReturn:
    """Instead of Flower's exit, which ends the process after a few refusals: a node tries for
    ever.
    """
    raise NoSession(" ".join((message or f"exit code {code}").split())[:200])


fleet_http_connection.flwr_exit = _no_session


def serve(
    app: ClientApp,
    *,
    superlink: str,
    ca_file: Path,
    key: ec.EllipticCurvePrivateKey,
    stop: threading.Event,
    on_connected: Callable[[int], None],
    between: Callable[[], None] = lambda: None,
) -> None:
    """Answer the SuperLink's messages with `app` until `stop` is set; reconnects for ever.

    `superlink` is host:port, `key` the SuperNode's key (NIST curve); `between` is called between
    two looks for a message, a few times a second. Must run in the main thread (Flower's rule).
    """
    while not stop.is_set():
        try:
            _serve_session(app, superlink, ca_file, key, stop, on_connected, between)
        except NoSession as error:
            if wrong := clock_problem(superlink):
                log.error("%s", wrong)
            log.warning(
                "no session with the SuperLink at %s yet (%s); again in %.0f s",
                superlink,
                error,
                RETRY_S,
            )
            stop.wait(RETRY_S)


def _serve_session(
    app: ClientApp,
    superlink: str,
    ca_file: Path,
    key: ec.EllipticCurvePrivateKey,
    stop: threading.Event,
    on_connected: Callable[[int], None],
    between: Callable[[], None],
) -> None:
    bundles: dict[int, str] = {}
    with http_request_response(
        superlink, False, ca_file.read_bytes(), (key, key.public_key())
    ) as connection:
        node_id, receive, send, get_run, _get_fab, pull_object, push_object, confirm = connection
        on_connected(node_id)
        busy_until = 0.0
        while not stop.is_set():
            between()
            received = receive()
            if received is None:
                stop.wait(BUSY_POLL_S if time.monotonic() < busy_until else IDLE_POLL_S)
                continue
            busy_until = time.monotonic() + BUSY_FOR_S
            message, tree = received
            run_id = message.metadata.run_id
            try:
                if run_id not in bundles:
                    bundles[run_id] = get_run(run_id).fab_hash
                message = pull_and_inflate_object_from_tree(
                    tree,
                    partial(pull_object, run_id),
                    partial(confirm, run_id),
                    return_type=Message,
                    initial_backoff=0.02,
                    backoff_cap=0.25,
                )
                message.metadata.__dict__["_message_id"] = tree.object_id
                started = time.monotonic()
                reply = answer(app, message, bundles[run_id], node_id)
                _push(reply, run_id, time.monotonic() - started, send, push_object)
            except RunNotRunningException:
                log.info("run %s ended meanwhile; its message is dropped", run_id)
            except Exception:
                # A message that cannot be read or a reply that cannot be sent must not end the
                # node: the round's deadline on the other side deals with the silence.
                log.exception("a message of run %s was lost", run_id)


def answer(app: ClientApp, message: Message, fab_hash: str, node_id: int) -> Message:
    """The reply to one message; never raises. Errors carry the exception's type only: its text may
    hold data.
    """
    if fab_hash != bundle_hash():
        log.warning("refused run %s: foreign bundle %s", message.metadata.run_id, fab_hash[:16])
        return Message(Error(ErrorCode.INVALID_FAB, FOREIGN_BUNDLE), reply_to=message)
    context = Context(
        run_id=message.metadata.run_id,
        node_id=node_id,
        node_config={},
        state=RecordDict({"unused": ConfigRecord()}),
        run_config={},
    )
    try:
        return app(message, context)
    except Exception as error:
        log.exception("the app failed on a %s message", message.metadata.message_type)
        return Message(
            Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__), reply_to=message
        )


def _push(
    reply: Message,
    run_id: int,
    seconds: float,
    send: Callable[..., Any],
    push_object: Callable[..., Any],
) -> None:
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with no_object_id_recompute():
        wanted, session = send(reply, get_object_tree(reply), seconds)
        push_objects(
            get_all_nested_objects(reply),
            push_object_fn=partial(push_object, run_id, session),
            object_ids_to_push=wanted,
        )
