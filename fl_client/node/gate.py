"""The one way out: every answer, error, document and notice of a node passes here before it leaves.

Says of each kind what it may be made of: its schema and size, finite numbers within what the terms
allow, parameters of the names, shapes and bytes that were asked for, no count under the platform's
floor, and sentences that no table, file or database had a part in. What does not fit does not
leave: a fixed sentence is answered, and the log says what was stopped, not what was in it. Knows
nothing of why anything is sent; a test finds whatever sends without asking here.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from safetensors import SafetensorError

from datatokens.errors import BankError, SignatureError, TermsError, TransactionRefused
from datatokens.merkle import MAX_WEIGHT
from datatokens.terms import address, whole
from fl_client.data.manifests import MAX_MANIFEST_BYTES, PLATFORM_MINIMUM_PERSONS, UNITS, Manifest
from fl_client.errors import NodeError, Refusal
from fl_client.model.weights import to_safetensors
from fl_client.node.audit_log import AuditLog
from fl_client.node.config import NodeConfig
from fl_client.node.offer import MAX_OFFER_BYTES, Offer
from fl_client.privacy.looks import cells
from fl_client.privacy.slots import needed
from fl_client.protocol import (
    MAX_REASON,
    Admit,
    Ask,
    Attest,
    Evaluate,
    JobSpec,
    Refused,
    Release,
    Released,
    Scored,
    Signed,
    Train,
    Trained,
    Waiting,
    sha256_hex,
    to_record,
)
from fl_client.worker.walls import WALLS
from fl_client.worker.workers import WorkerEnded

log = logging.getLogger("datahub.node")

STOPPED = "this hospital's gate has stopped the answer; its people see why in the node's log"
ANSWERS: Mapping[type, tuple[type, ...]] = {  # a request -> what may answer it
    Admit: (Signed, Waiting, Refused),
    Ask: (Signed, Waiting, Refused),
    Train: (Trained, Refused),
    Evaluate: (Scored, Refused),
    Attest: (Signed, Waiting, Refused),
    Release: (Released, Refused),
}
SD = 8.0  # noise is further out with a chance of 1e-15
SAID_AGAIN_S = 3600.0  # the same stop is said once an hour: who asks again fills no disk
MOST_STOPS = 1000  # that are remembered for it
MOST_CONTRIBUTORS_BYTES = 64 << 20
_DEVICE = re.compile(r"(cpu|cuda|mps)[\w .:()/+-]{0,70}", re.ASCII)
_HEAD = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w{0,79}", re.ASCII)
# what a refusal may be made from: a buyer's document that is none, a contract's no
_OF_TERMS = (
    *(Refusal, TermsError, TransactionRefused, SignatureError, SafetensorError, WorkerEnded),
    *(ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError),
)
_said: dict[tuple[str, str, str], float] = {}


class Stopped(NodeError):
    """Something was about to leave that may not. The sentence says what kind of thing and why,
    never what was in it.
    """


# -- answers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class About:
    """What an admitted job's figures are held to: its spec, its dataset here, the shapes of its
    model's parameters.
    """

    spec: JobSpec
    dataset_id: int
    shapes: Mapping[str, tuple[int, ...]]


def reply(config: NodeConfig, asked: Any, said: Any, about: About | None = None) -> dict[str, Any]:
    """The record that answers a request: of `said`, or of the fixed refusal in its place. `about`
    is the admitted job that the request is about, if it is about one.
    """
    try:
        # of what is no request nothing is known; only a no answers it
        if type(said) not in ANSWERS.get(type(asked), (Refused,)):
            raise Stopped("an answer of another kind than was asked for")
        record = to_record(said)  # every field of its type, finite, not too long
        _check_answer(config, said, about)
        return record
    except (NodeError, BankError) as error:
        what = f"{type(said).__name__} to {type(asked).__name__}"
        _note(config, what, str(error) if isinstance(error, Stopped) else type(error).__name__)
        return to_record(Refused(STOPPED))


def _check_answer(config: NodeConfig, said: Any, about: About | None) -> None:
    if isinstance(said, Refused | Waiting) and _names_machine(config, said.reason):
        raise Stopped("a sentence that names something of this machine")
    if isinstance(said, Signed) and len(said.signature) != 65:
        raise Stopped("a signature that is none")
    if isinstance(said, Trained | Scored):
        if about is None:
            raise Stopped("figures of a job that is not known")
        _check_figures(said, about.spec, about.spec.persons[about.dataset_id])
        if isinstance(said, Trained):
            _check_parameters(said.model, about.shapes)


def _check_parameters(model: bytes, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Byte for byte the one form that such arrays have: names, shapes, and then their numbers."""
    head, length = _head_of(tuple(sorted(shapes.items())))
    if not model.startswith(head) or len(model) != length:
        raise Stopped("parameters of other names, shapes or form than were asked for")
    if not np.isfinite(np.frombuffer(model, "<f4", offset=len(head))).all():
        raise Stopped("a parameter that is not finite")


@lru_cache(8)
def _head_of(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> tuple[bytes, int]:
    """(all before the numbers, the whole length) of parameters of these names and shapes."""
    made = to_safetensors({name: np.zeros(shape, np.float32) for name, shape in shapes})
    return made[: 8 + int.from_bytes(made[:8], "little")], len(made)


def _check_figures(said: Trained | Scored, spec: JobSpec, persons: int) -> None:
    plan, most = spec.plan, needed(persons, 1.0)
    if said.log_head and not _HEAD.fullmatch(said.log_head):
        raise Stopped("a head of a log that is none")
    for name in ("epsilon_job", "epsilon_lifetime", "delta_lifetime"):
        if not (math.isfinite(value := getattr(said, name)) and value >= 0):
            raise Stopped(f"{name} is not a number from 0 up")
    if isinstance(said, Scored):
        noise = SD * plan.score_noise_multiplier
        if len(said.scores) != cells(spec.loss, spec.outputs):
            raise Stopped("a table of another size than the terms have")
        if not all(-noise <= cell <= most + noise for cell in said.scores):
            raise Stopped("a table with a number that no patients and noise come to")
        return
    noise = SD * plan.metric_noise_multiplier * plan.metric_clip / persons
    if not -noise <= said.loss <= plan.metric_clip * most / persons + noise:
        raise Stopped("a loss that no patients and noise come to")
    if set(filter(None, said.no_walls.split(", "))) - set(WALLS):
        raise Stopped("a wall that there is not")
    if said.unit not in UNITS or not _DEVICE.fullmatch(said.device):
        raise Stopped("a unit or a device that is none")
    if not 0 <= said.compute_seconds <= 1e9:
        raise Stopped("a bill that is none")


def sentence(config: NodeConfig, error: Exception) -> str:
    """What a refusal says outside: its own sentence where that was made of terms, policy and ledger
    alone, else the fixed one.
    """
    text, why = str(error)[:MAX_REASON], ""
    if not isinstance(error, Refusal | TermsError | TransactionRefused) or _of_own_trouble(error):
        why = "a refusal made from this node's own trouble"
    elif _names_machine(config, text):
        why = "a refusal that names a path or address of this machine"
    if why:
        _note(config, type(error).__name__, why)
        return STOPPED
    return "".join(c if c.isprintable() else " " for c in text)


def _of_own_trouble(error: BaseException) -> bool:
    """Whether what a refusal was made from may have quoted a table, a file or a database."""
    for _ in range(20):
        if isinstance(error, TransactionRefused):  # a contract's words, whatever carried them
            return False
        made_from = error.__cause__ or error.__context__
        if made_from is None:
            return False
        if not isinstance(made_from, _OF_TERMS):
            return True
        error = made_from
    return True


def _names_machine(config: NodeConfig, text: str) -> bool:
    places = [str(config.folder), str(config.folder.resolve()), config.chain]
    places += [str(entry.source.file or "") for entry in config.datasets]
    return any(len(place) > 3 and place in text for place in places)


def error(name: str, known: tuple[str, ...] = ()) -> str:
    """What a message that failed is answered with: one of the `known` sentences, or the name of
    what was raised, never its text.
    """
    return name if name in known or _NAME.fullmatch(name) else "Error"


# -- documents for the hub -------------------------------------------------------------------------


def _manifest(path: re.Match[str], body: Any) -> None:
    manifest = Manifest.from_dict(body)
    if manifest.as_dict() != body:
        raise Stopped("a manifest with something else in it")
    if manifest.persons < max(PLATFORM_MINIMUM_PERSONS, manifest.minimum_persons):
        raise Stopped(f"a manifest with a count under {PLATFORM_MINIMUM_PERSONS}, or its own floor")


def _offer(path: re.Match[str], body: Any) -> None:
    _fields(body, "offer", "signature")
    offer = Offer.from_json(body["offer"].encode())
    if str(offer.dataset_id) != path[1] or len(bytes.fromhex(body["signature"])) != 65:
        raise Stopped("an offer of another dataset, or without a signature")


def _contributors(path: re.Match[str], body: Any) -> None:
    _fields(body, "epoch", "entries")
    whole("epoch", body["epoch"], 0, 2**32 - 1)
    for account, weight in body["entries"]:
        address("account", account)
        whole("weight", weight, 1, MAX_WEIGHT)


def _registration(path: re.Match[str], body: Any) -> None:
    _fields(body, "node", "supernode_public_key")
    address("node", body["node"])
    pem = body["supernode_public_key"].encode()
    key = load_pem_public_key(pem)
    if key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) != pem:
        raise Stopped("a key with something beside it")


def _fields(body: Any, *names: str) -> None:
    if not isinstance(body, dict) or set(body) != set(names):
        raise Stopped(f"other fields than {', '.join(names)}")


def _nothing(path: re.Match[str], body: Any) -> None:
    if body is not None:
        raise Stopped("a question with a document")


Check = Callable[[re.Match[str], Any], None]
# what a node may send a hub: method, path, name, how many bytes, what it must be
DOCUMENTS: tuple[tuple[str, str, str, int, Check], ...] = (
    ("PUT", r"/api/v1/datasets/(\d{1,10})/manifest", "manifest", MAX_MANIFEST_BYTES * 2, _manifest),
    ("PUT", r"/api/v1/datasets/(\d{1,10})/offer", "offer", MAX_OFFER_BYTES * 2, _offer),
    ("PUT", r"/api/v1/datasets/(\d{1,10})/contributors", "contributors", MOST_CONTRIBUTORS_BYTES,
     _contributors),
    ("POST", r"/api/v1/nodes", "registration", 4096, _registration),
    ("GET", r"/api/v1/network", "network", 4, _nothing),
    ("GET", r"/api/v1/jobs/[0-9a-f]{64}/(?:terms|report)", "job", 4, _nothing),
    ("GET", r"/api/v1/schemas/[0-9a-f]{64}", "schema", 4, _nothing),
)  # fmt: skip


def document(method: str, path: str, body: Any = None) -> tuple[str, bytes]:
    """(what it is called, its bytes) of what is about to be sent to a hub. Raises Stopped for what
    a node does not send.
    """
    for allowed, pattern, name, most, check in DOCUMENTS:
        if method == allowed and (found := re.fullmatch(pattern, path, re.ASCII)):
            try:
                content = b"" if body is None else json.dumps(body, allow_nan=False).encode()
                check(found, body)
            except Stopped as error:
                raise Stopped(f"the gate has stopped the {name}: {error}") from error
            except (NodeError, BankError, ValueError, TypeError, UnsupportedAlgorithm) as error:
                raise Stopped(f"the gate has stopped the {name}: it is none") from error
            if len(content) > most:
                raise Stopped(f"the gate has stopped the {name}: more than {most} bytes")
            return name, content
    raise Stopped(f"the gate has stopped {method} {path[:80]!r}: a node does not send that")


def released(config: NodeConfig, method: str, path: str, body: Any) -> None:
    """Have the log say which document is about to leave. Raises Stopped, or where the log cannot be
    written, NodeError.
    """
    try:
        name, content = document(method, path, body)
    except Stopped as error:
        _note(config, path, str(error))
        raise
    AuditLog(config.folder).note("released", what=name, path=path, **fingerprint(content))


def fingerprint(content: bytes) -> dict[str, Any]:
    """What the log says of bytes that leave."""
    return {"bytes": len(content), "sha256": sha256_hex(content)}


# -- notices ---------------------------------------------------------------------------------------

NOTICE: Mapping[str, str] = {  # a field of a notice -> what it must look like
    "event": r"[a-z ]{1,40}",
    "node": r"[^\x00-\x1f\x7f]{1,200}",
    "job": r"[0-9a-f]{64}",
    "dataset": r"\d{0,10}",
    "until": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    "look": r"datahub node [a-z-]+ [^\x00-\x1f\x7f]{1,4096}",
}


def notice(said: Mapping[str, str]) -> dict[str, str]:
    """What people are told outside the node: exactly these fields. Raises Stopped."""
    if set(said) != set(NOTICE):
        raise Stopped("the gate has stopped a notice: other fields than it has")
    for name, pattern in NOTICE.items():
        if not re.fullmatch(pattern, said[name]):
            raise Stopped(f"the gate has stopped a notice: its {name} is none")
    return dict(said)


def _note(config: NodeConfig, what: str, why: str) -> None:
    """Say what was stopped, to the hospital alone."""
    now, key = time.monotonic(), (str(config.folder), what, why)
    if now - _said.get(key, now - SAID_AGAIN_S) < SAID_AGAIN_S:
        return
    if len(_said) >= MOST_STOPS:
        _said.clear()
    _said[key] = now
    log.error("the gate has stopped %s: %s", what, why)
    try:
        AuditLog(config.folder).note("stopped", what=what[:200], why=why[:500])
    except (NodeError, OSError) as error:  # it did not leave either way
        log.error("the audit log cannot say so: %s", error)
