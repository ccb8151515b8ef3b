"""A node's listed datasets, one file each: datasets/<id>.json. Knows nothing of what is in a table.

A file that cannot be used is a sentence beside the others, so that it takes nobody down with it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl_client.data.manifests import Manifest
from fl_client.data.sources import Source
from fl_client.errors import ConfigError, DatasetError
from fl_client.node.job_folder import private_folder, write_whole


@dataclass(frozen=True)
class DatasetEntry:
    """One listed dataset of the node: its id on-chain, where its table is, the manifest that was
    published.

    source       where its table is and how it is written
    name         what the ledger calls it
    content      fingerprint of its table (Members.content); "" before the table was first read by
                 a version that knows patients
    stamp        what its files looked like when they were last found unchanged (served.stamp_of):
                 while that is equal they are not read again just to say that all is well
    snapshot     SHA-256 of the frozen table that jobs see, and its file's name; with `reading` the
                 cohort's version. Neither leaves the node: who guesses a table could try it out
    reading      SHA-256 of how its table was read then, a query's text included (Source.reading)
    withdrawn    keys of patients who are in the table and take no part any more, hexadecimal
    since        no job of it is in blocks of the chain before this one
    patient_set  what an older ledger called those who are in it; "" where there was none
    """

    dataset_id: int
    source: Source
    manifest: Manifest
    name: str = ""
    content: str = ""
    stamp: str = ""
    withdrawn: tuple[str, ...] = ()
    patient_set: str = ""
    since: int = 0
    snapshot: str = ""
    reading: str = ""

    @property
    def withdrawn_keys(self) -> frozenset[bytes]:
        """The keys of those who have withdrawn."""
        return frozenset(bytes.fromhex(key) for key in self.withdrawn)


def path_of(folder: Path, dataset_id: int) -> Path:
    """Where a dataset of the node in `folder` is written."""
    return folder / "datasets" / f"{dataset_id}.json"


def write(folder: Path, entry: DatasetEntry) -> None:
    """Write a dataset's file, whole or not at all."""
    content = {
        **entry.source.as_dict(),
        "name": entry.name,
        "content": entry.content,
        "stamp": entry.stamp,
        "withdrawn": list(entry.withdrawn),
        "patient_set": entry.patient_set,
        "since": entry.since,
        "snapshot": entry.snapshot,
        "reading": entry.reading,
        "manifest": entry.manifest.as_dict(),
    }
    write_whole(path_of(folder, entry.dataset_id), json.dumps(content, indent=2).encode())


def update(folder: Path, dataset_id: int, **changes: Any) -> DatasetEntry:
    """Change these fields of a dataset's file and no others, whoever else changes it; the entry as
    it is then. Raises ConfigError for a dataset that is not there.
    """
    lock = os.open(folder / "datasets" / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entry = next((e for e in read(folder)[0] if e.dataset_id == dataset_id), None)
        if entry is None:
            raise ConfigError(f"dataset_id={dataset_id} is not one of this node's datasets")
        entry = replace(entry, **changes)
        write(folder, entry)
    finally:
        os.close(lock)
    return entry


def stamp_of(file: Path) -> str:
    """Size and time of a table's file; "" where there is none."""
    try:
        found = file.stat()
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"


def remove(folder: Path, dataset_id: int) -> None:
    """Set a dataset's file aside: it is no longer served. What it has spent stays in the ledger."""
    path = path_of(folder, dataset_id)
    aside = path.parent / "removed"
    private_folder(aside)
    path.replace(aside / path.name)


def read(folder: Path) -> tuple[tuple[DatasetEntry, ...], dict[str, str]]:
    """(the datasets of the node in `folder`, file name -> why it cannot be used)."""
    return _read(folder / "datasets")


def removed(folder: Path) -> tuple[DatasetEntry, ...]:
    """The datasets that were taken off the node; what they have spent is still counted."""
    return _read(folder / "datasets" / "removed")[0]


def stamps(folder: Path) -> dict[str, str]:
    """What tells that a dataset's file has changed: its name, size and time."""
    return {path.name: stamp_of(path) for path in sorted((folder / "datasets").glob("*.json"))}


def _read(where: Path) -> tuple[tuple[DatasetEntry, ...], dict[str, str]]:
    found, problems = [], {}
    for path in sorted(where.glob("*.json"), key=lambda p: (len(p.stem), p.stem)):
        try:
            found.append(_entry(int(path.stem), json.loads(path.read_text())))
        except (DatasetError, ConfigError, OSError, KeyError, TypeError, ValueError) as error:
            problems[path.name] = f"{path.name}: {error}"
    return tuple(found), problems


def _entry(dataset_id: int, value: Mapping[str, Any]) -> DatasetEntry:
    manifest = Manifest.from_dict(value["manifest"])
    source = _source(value)
    if bool(source.patients) != (manifest.unit == "patient"):
        raise ConfigError(
            f"the columns that tell patients apart, {', '.join(source.patients) or 'none'}, do not "
            f"go with the published unit {manifest.unit!r}"
        )
    return DatasetEntry(
        dataset_id,
        source,
        manifest,
        str(value.get("name", dataset_id)),
        str(value.get("content", "")),
        str(value.get("stamp", "")),
        tuple(bytes.fromhex(key).hex() for key in value.get("withdrawn", ())),
        str(value.get("patient_set", "")),
        int(value.get("since", 0)),
        bytes.fromhex(value.get("snapshot", "")).hex(),
        str(value.get("reading", "")),
    )


def _source(value: Mapping[str, Any]) -> Source:
    """The source in a dataset's file; older ones named a CSV file and a patient column, whose
    identifiers were texts.
    """
    if "source" in value:
        return Source.from_dict({k: value[k] for k in ("source", "patients", "columns")})
    column = value.get("patient_column", "")
    if not isinstance(column, str):
        raise ConfigError(f"patient_column={column!r} must be a column's name, or empty")
    columns = (column,) if column else ()
    return Source("csv", Path(value["file"]), patients=columns, identifier="text")
