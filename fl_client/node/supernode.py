"""A Flower SuperNode that runs only what is installed here. Knows nothing of jobs, money or
privacy.

It dials out to the SuperLink with Flower's own session (TLS, node authentication, heartbeats),
takes turns at messages (turns.py), opens no port, and answers every message with one ClientApp that
is already loaded. A run whose bundle is not datahub's metadata-only bundle is answered with an
error, and no bundle is ever fetched or unpacked. Built on Flower's private modules, as is
bundle.py; tests pin Flower's version and hold the list of such files.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supernode import fleet_http_connection
from flwr.supernode.fleet_http_connection import http_request_response

from fl_client.node import gate
from fl_client.node.bundle import bundle_hash
from fl_client.node.skew import clock_problem
from fl_client.node.turns import Received, Turns

log = logging.getLogger("datahub.node")

LOOK_S = 0.25  # at everything but messages
TOO_MUCH = "the SuperLink does not take a reply so large or slow"
NOT_TAKEN: dict[int, str] = {  # a turn's status -> what it means
    httpx.codes.CONFLICT: "another process takes this node's messages with the same key",
    httpx.codes.REQUEST_TIMEOUT: TOO_MUCH,
    httpx.codes.REQUEST_ENTITY_TOO_LARGE: TOO_MUCH,
}
AGAIN_S, AGAIN_CAP_S = 0.1, 2.0  # after a turn that failed
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
    spoke: Callable[[], None] = lambda: None,
) -> None:
    """Answer the SuperLink's messages with `app` until `stop` is set; reconnects for ever.

    `superlink` is host:port, `key` the SuperNode's key (NIST curve); `between` is called between
    two looks for a message, a few times a second, `spoke` in another thread whenever a turn was
    taken. Must run in the main thread (Flower's rule).
    """
    while not stop.is_set():
        try:
            _serve_session(app, superlink, ca_file, key, stop, on_connected, between, spoke)
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
    spoke: Callable[[], None],
) -> None:
    with (
        http_request_response(
            superlink, False, ca_file.read_bytes(), (key, key.public_key())
        ) as connection,
        closing(_Hand(Turns(superlink, ca_file, key, connection[0]), spoke)) as hand,
    ):
        node_id = connection[0]
        on_connected(node_id)
        while not stop.is_set():
            between()
            if received := hand.taken(LOOK_S):
                hand.give(received.letter, reply_to(app, received, node_id))


class _Hand:
    """Takes turns in a thread of its own, so that the node can look about while one waits."""

    def __init__(self, turns: Turns, spoke: Callable[[], None] = lambda: None):
        self._turns, self._closed, self._spoke = turns, False, spoke
        self._in: queue.Queue[Received] = queue.Queue(1)
        self._out: queue.Queue[tuple[str, bytes]] = queue.Queue(1)
        self._refused = False
        threading.Thread(target=self._run, name="turns", daemon=True).start()

    def taken(self, seconds: float) -> Received | None:
        """The next message, if it comes within `seconds`. Raises NoSession."""
        try:
            return self._in.get(timeout=seconds)
        except queue.Empty:
            if self._refused:
                raise NoSession("it no longer knows this node") from None
            return None

    def give(self, letter: str, reply: bytes) -> None:
        """The reply to the message that was taken last."""
        self._out.put((letter, reply))

    def close(self) -> None:
        """End the turn that waits."""
        self._closed = True
        self._turns.close()

    def _run(self) -> None:
        letter, reply, pause = "", b"", AGAIN_S
        while not self._closed:
            try:
                received = self._turns.take(letter, reply)
            except Exception as error:  # noqa: BLE001 without its hand, a node only seems to live
                status = 0
                if isinstance(error, httpx.HTTPStatusError):
                    status = error.response.status_code
                self._refused = status == httpx.codes.UNAUTHORIZED
                if self._closed or self._refused:
                    return
                if pause == AGAIN_S:
                    why = f"the SuperLink does not answer ({error!r:.200})"
                    log.warning("%s; asking again", NOT_TAKEN.get(status, why))
                # the reply goes again with the next turn, as nobody waits for it twice; but for one
                # that another try would not bring there either
                if NOT_TAKEN.get(status) == TOO_MUCH:
                    letter, reply = "", b""
                time.sleep(pause)
                pause = min(AGAIN_CAP_S, 2 * pause)
                continue
            pause = AGAIN_S
            self._spoke()
            letter, reply = "", b""
            if received is not None:
                self._in.put(received)
                letter, reply = self._out.get()


def reply_to(app: ClientApp, received: Received, node_id: int) -> bytes:
    """The reply to a message as it came; never raises. What is no message is answered as such, or
    it would come again.
    """
    try:
        message = message_from_proto(ProtoMessage.FromString(received.content))
        metadata = message.metadata.__dict__
        metadata["_message_id"], metadata["_run_id"] = received.letter, received.run_id
        metadata["_dst_node_id"] = node_id
        reply = answer(app, message, received.bundle, node_id)
        return bytes(message_to_proto(reply).SerializeToString())
    except Exception as error:
        log.exception("a message of run %s was lost", received.run_id)
        broken = ProtoMessage()
        broken.metadata.message_type = "query"  # without one it is no message
        broken.error.code = ErrorCode.UNKNOWN
        broken.error.reason = gate.error(type(error).__name__)
        return bytes(broken.SerializeToString())


def answer(app: ClientApp, message: Message, fab_hash: str, node_id: int) -> Message:
    """The reply to one message; never raises. Errors carry the exception's type only: its text may
    hold data.
    """
    if fab_hash != bundle_hash():
        log.warning("refused run %s: foreign bundle %s", message.metadata.run_id, fab_hash[:16])
        reason = gate.error(FOREIGN_BUNDLE, (FOREIGN_BUNDLE,))
        return Message(Error(ErrorCode.INVALID_FAB, reason), reply_to=message)
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
        reason = gate.error(type(error).__name__)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
