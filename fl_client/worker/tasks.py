"""What a node asks a worker, and what it answers: messages of protocol.py over a socket pair. Knows
nothing of who is at either end; whatever arrives is checked, as a worker may be anybody's by then.

A frame is 8 bytes of length, one byte that says what it is, and the message as `protocol.pack`
keeps it. A worker answers each task with one frame, in order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from datatokens.terms import MAX_TERMS_BYTES
from fl_client.data.shards import Chosen, Pictures, Shards
from fl_client.errors import ProtocolError
from fl_client.protocol import MAX_REASON, MAX_SCORES, Parameters, pack, unpack

MOST_SHOWN = 200  # steps of a graph
MOST_BYTES = 1 << 40  # of a cohort; a worker's own frames are bounded by what is asked
HEAD = struct.Struct(">QB")


@dataclass(frozen=True)
class Check:
    """May this model be trained here? Says all that is public about the job, too. Answered by
    Checked.

    spec, schema  JSON, as in the terms and in the manifest
    persons, records  the manifest's: patients, and records that count of each
    minutes, memory_gb  what the hospital gives a job
    left_s        until the deadline of a job that is new; below 0 for one that was admitted
    """

    spec: Annotated[bytes, MAX_TERMS_BYTES]
    schema: Annotated[bytes, 64 << 20]
    graph: Annotated[bytes, 64 << 20]
    weights: Parameters
    persons: int
    records: int
    engine: Annotated[str, 20]
    minutes: int
    memory_gb: int
    left_s: float


@dataclass(frozen=True)
class Checked:
    """It may: names of what stays as it is (JSON), what it does (JSON: operation, the shape that it
    makes, the steps that it takes, of at most MOST_SHOWN steps), multiplications of one forward
    pass, seconds that the whole job takes at the fixed speed of costs.py (0 for one that was
    admitted), and what it will be trained on: said before a record is seen, so that it tells of
    none.
    """

    frozen: Annotated[bytes, 4 << 20]
    operations: Annotated[bytes, 1 << 20]
    work: int
    seconds: float
    device: Annotated[str, 80]


@dataclass(frozen=True)
class Cohort:
    """Whose records the next tasks are about. No answer. `folder` is that of pictures, "" for
    none.
    """

    arrays: Annotated[bytes, MOST_BYTES]
    folder: Annotated[str, 4096]


@dataclass(frozen=True)
class Round:
    """Train a round of the checked model from these parameters. Answered by Update."""

    model: Parameters


@dataclass(frozen=True)
class Update:
    """The parameters after a round, and the mean loss: both as released."""

    model: Parameters
    loss: float


@dataclass(frozen=True)
class Look:
    """Look at a model of these parameters. Answered by Table."""

    model: Parameters


@dataclass(frozen=True)
class Table:
    """The noised table of scores."""

    scores: Annotated[tuple[float, ...], MAX_SCORES]


@dataclass(frozen=True)
class Try:
    """Try to get through the walls (probe.py): at this folder and file of the node, this port, this
    process. Answered by Tried.
    """

    secret: Annotated[str, 4096]
    port: int
    process: int


@dataclass(frozen=True)
class Tried:
    """What came of it (JSON: wall -> what got through, "" for nothing)."""

    found: Annotated[bytes, 1 << 16]


@dataclass(frozen=True)
class Ready:
    """The first frame of a worker: the walls that it could not raise (JSON: wall -> why)."""

    missing: Annotated[bytes, 1 << 16]


@dataclass(frozen=True)
class No:
    """A refusal of the class `kind` in fl_client.errors."""

    kind: Annotated[str, 40]
    reason: Annotated[str, MAX_REASON]


KINDS: tuple[type, ...] = (
    Check, Checked, Cohort, Round, Update, Look, Table, Try, Tried, Ready, No,
)  # fmt: skip


def frame(message: Any) -> bytes:
    """A message on its way. Raises ProtocolError for what the other end would not take."""
    content = pack(message)
    return b"".join((HEAD.pack(len(content), KINDS.index(type(message))), content))


def read(kind: int, content: bytes) -> Any:
    """The message in a frame. Raises ProtocolError."""
    if kind >= len(KINDS):
        raise ProtocolError(f"a frame of kind {kind}")
    return unpack(KINDS[kind], content)


# -- a cohort as bytes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Records as training.py takes them: features and targets [n, ...], patients [n] or None.
    `of` is what they were made of: the same object, the same records.
    """

    features: np.ndarray | Pictures
    targets: np.ndarray
    patients: np.ndarray | None
    of: object = None

    def nobody(self) -> Data:
        """The same without anybody in it."""
        shape = (0, *self.features.shape[1:])
        patients = None if self.patients is None else self.patients[:0]
        return Data(np.zeros(shape, np.float32), self.targets[:0], patients)


def folder_of(data: Data) -> str:
    """Where a cohort's pictures are; "" for a table."""
    if isinstance(data.features, np.ndarray):
        return ""
    return str(_shards(data.features).folder.resolve())


def _shards(pictures: Pictures) -> Shards:
    return pictures.shards if isinstance(pictures, Chosen) else pictures


def cohort(data: Data) -> Cohort:
    """A cohort on its way."""
    arrays = {"targets": np.ascontiguousarray(data.targets)}
    if data.patients is not None:
        arrays["patients"] = np.ascontiguousarray(data.patients)
    if isinstance(data.features, np.ndarray):
        arrays["features"] = np.ascontiguousarray(data.features)
    elif isinstance(data.features, Chosen):
        arrays["rows"] = np.ascontiguousarray(data.features.rows)
    return Cohort(bytes(save(arrays)), folder_of(data))


def data_of(message: Cohort) -> Data:
    """The cohort that came. Raises ProtocolError."""
    try:
        arrays = load(message.arrays)
        features: np.ndarray | Pictures
        if message.folder:
            features = Shards(Path(message.folder))
            if "rows" in arrays:
                features = features.only(arrays["rows"])
        else:
            features = arrays["features"]
        return Data(features, arrays["targets"], arrays.get("patients"))
    except (SafetensorError, KeyError, ValueError) as error:
        raise ProtocolError(f"this is no cohort: {error}") from error
