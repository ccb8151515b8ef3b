"""A version of a table, frozen: what jobs see of it and the keys that its patients are known by, in
one Parquet file that is named by its own SHA-256. Knows nothing of sources, ledgers or jobs.

    >>> sha256 = write(folder, records)      # whole, or not at all
    >>> read(folder, sha256, albums)         # the same records, or a sentence

What is kept are the inputs, not the cells they came from. A record's key is over all columns of
its row, so cells would have to be kept in full, names and notes among them. Inputs and keys hold
only what jobs and ledgers need, read the same whatever becomes of the code that reads cells, and
let a patient who withdraws be taken out while the keys, which a history is found by, stay.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from datatokens.wire import parse
from fl_client.data.identity import Members
from fl_client.data.readers import literal, quiet_duckdb
from fl_client.data.shards import Shards, synced
from fl_client.data.tables import Records
from fl_client.errors import DatasetError

log = logging.getLogger("datahub.node")

SUFFIX = ".parquet"
# one kind of line each; what a kind does not have is NULL
KINDS = {
    "record": "unit, target_0, ..., place or input_0, input_1, ...: in the order of the table",
    "unit": "key, held: whoever is known",
    "row": "key, unit: of the rows that name somebody",
    "lacking": "key: who is known without one complete record",
}


def write(folder: Path, records: Records) -> str:
    """Freeze `records`, which were read with the node's secret, in `folder`, readable by this user
    alone; the file's SHA-256. Raises DatasetError, and leaves nothing behind.
    """
    beside = None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(SUFFIX, f".{os.getpid()}.", folder)  # 0600
        os.close(descriptor)
        beside = Path(name)
        _copy(records, beside)
        synced(beside)
        sha256 = _hash(beside)
        beside.rename(folder / f"{sha256}{SUFFIX}")
        synced(folder)
    except Exception as error:  # DuckDB's own are of many kinds
        said = str(error).splitlines()[0][:300]
        raise DatasetError(f"{folder}: the snapshot cannot be written: {said}") from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)
    return sha256


def check(folder: Path, sha256: str) -> None:
    """Raises DatasetError where the snapshot is not there, or not as it was written."""
    path = folder / f"{sha256}{SUFFIX}"
    try:
        whole = _hash(path) == sha256
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not whole:
        raise DatasetError(f"{path}: is damaged: its SHA-256 is not its name any more")


def read(folder: Path, sha256: str, albums: Path) -> Records:
    """The records as they were frozen; pictures are read from the folders in `albums`. Raises
    DatasetError where anything of it is not there, or not as it was written.
    """
    check(folder, sha256)
    path = folder / f"{sha256}{SUFFIX}"
    try:
        said = _said(path)
        inputs = [f"input_{i}" for i in range(said["width"])]
        targets = [f"target_{i}" for i in range(math.prod(said["target"]))]
        shown = inputs if said["album"] is None else ["place"]
        record = _lines(path, "record", ["unit", *targets, *shown])
        unit, row = _lines(path, "unit", ["key", "held"]), _lines(path, "row", ["key", "unit"])
        lacking = _lines(path, "lacking", ["key"])["key"]
    except Exception as error:  # as above
        raise DatasetError(f"{path}: cannot be read: {str(error)[:300]}") from error
    if said["album"] is None:
        features: Any = _side_by_side(record, inputs)
    else:
        shards = Shards(albums / said["album"])
        shards.check()
        if shards.sha256 != said["album_sha256"]:
            raise DatasetError(f"{shards.folder}: these are other pictures than were frozen")
        features = shards.only(record["place"].astype(np.int64))
    rows = zip(map(bytes.fromhex, row["key"]), row["unit"].tolist(), strict=True)
    return Records(
        features,
        _side_by_side(record, targets).reshape(-1, *said["target"]),
        said["dropped"],
        record["unit"].astype(np.int64) if said["by_patient"] else None,
        Members(
            [bytes.fromhex(key) for key in unit["key"]],
            unit["held"].astype(bool),
            list(rows),
            [bytes.fromhex(key) for key in lacking],
        ),
        said["lacking"],
    )


def prune(
    folder: Path, listed: Collection[str], untouched_s: float, at_once: Collection[str] = ()
) -> None:
    """Delete the snapshots that are not `listed` and were written more than `untouched_s` ago, or
    are to go `at_once`. What cannot be deleted stops nothing, and is named in the log.
    """
    for path in folder.glob(f"*{SUFFIX}"):
        number = path.name.split(".")[1]  # of the process that writes it, if it has no name yet
        writing = path.name.startswith(".") and Path("/proc", number).exists()
        try:
            young = time.time() - path.stat().st_mtime < untouched_s
            goes = path.stem in at_once or not (young or writing)
            if goes and path.stem not in listed:
                path.unlink()
        except FileNotFoundError:  # somebody else was faster
            continue
        except OSError as error:
            log.warning("%s: cannot be deleted: %s", path, error.strerror or error)


def album_of(folder: Path, sha256: str) -> str | None:
    """The folder of pictures that a snapshot is of. Raises DatasetError."""
    check(folder, sha256)
    album = _said(folder / f"{sha256}{SUFFIX}")["album"]
    return None if album is None else str(album)


def _copy(records: Records, path: Path) -> None:
    members, features = records.members, records.features
    assert members is not None
    if isinstance(features, Shards):
        features = features.only(np.arange(len(features)))
    said = {
        "by_patient": records.patients is not None,
        "dropped": records.dropped,
        "lacking": dict(records.lacking),
        "target": records.targets.shape[1:],
        "width": features.shape[1] if isinstance(features, np.ndarray) else 0,
        "album": None if isinstance(features, np.ndarray) else features.shards.folder.name,
        "album_sha256": None if isinstance(features, np.ndarray) else features.shards.sha256,
    }
    count = len(records.targets)
    lines: dict[str, dict[str, np.ndarray]] = {
        "record": {
            "unit": np.arange(count) if records.patients is None else records.patients,
        }
        | _columns("target", records.targets.reshape(count, math.prod(records.targets.shape[1:]))),
        "unit": {"key": _keys(members.units), "held": np.asarray(members.held, dtype=bool)},
        "row": {
            "key": _keys([key for key, _ in members.rows]),
            "unit": np.array([unit for _, unit in members.rows], dtype=np.int64),
        },
        "lacking": {"key": _keys(members.lacking)},
    }
    if isinstance(features, np.ndarray):
        lines["record"] |= _columns("input", features)
    else:
        lines["record"]["place"] = features.rows
    with quiet_duckdb() as connection:
        for kind, columns_of in lines.items():
            connection.register(f"the_{kind}", columns_of)
        parts = (f"SELECT '{kind}' AS kind, * FROM the_{kind}" for kind in KINDS)  # noqa: S608
        meta = json.dumps(said).replace("'", "''")
        target = str(path).replace("'", "''")
        connection.execute(
            f"COPY ({' UNION ALL BY NAME '.join(parts)}) TO '{target}' "
            f"(FORMAT parquet, USE_TMP_FILE false, KV_METADATA {{records: '{meta}'}})"
        )


def _columns(name: str, table: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{name}_{i}": column for i, column in enumerate(np.ascontiguousarray(table.T))}


def _side_by_side(columns: dict[str, np.ndarray], names: list[str]) -> np.ndarray:
    made = np.empty((len(columns["unit"]), len(names)), np.float32)
    for i, name in enumerate(names):
        made[:, i] = columns[name]
    return made


def _keys(keys: Collection[bytes]) -> np.ndarray:
    made = np.empty(len(keys), dtype=object)
    made[:] = [key.hex() for key in keys]
    return made


def _lines(path: Path, kind: str, names: list[str]) -> dict[str, np.ndarray]:
    with quiet_duckdb() as connection:
        found = connection.execute(
            f"SELECT {', '.join(names)} FROM read_parquet(?) WHERE kind = ?",  # noqa: S608 our names
            [literal(path), kind],
        ).fetchnumpy()
    return {name: np.ma.getdata(found[name]) for name in names}


def _said(path: Path) -> dict[str, Any]:
    with quiet_duckdb() as connection:
        (found,) = connection.execute(
            "SELECT value FROM parquet_kv_metadata(?) WHERE key = 'records'", [literal(path)]
        ).fetchall()
    said: dict[str, Any] = parse(bytes(found[0]))
    return said


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
