"""From a listed dataset to records that the ledger knows the owners of: who is in the table, and is
it still the one that was listed? Knows nothing of jobs or chains.
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

import numpy as np

from fl_client.data.identity import Members
from fl_client.data.sources import Source
from fl_client.data.tables import Records, load
from fl_client.errors import ConfigError, DatasetError
from fl_client.node import entries
from fl_client.node.config import write_private
from fl_client.node.entries import DatasetEntry
from fl_client.privacy.ledger import Ledger

PICTURES = "pictures"  # of a node's folder
log = logging.getLogger("datahub.node")


def open_ledger(folder: Path, mend: bool = False) -> tuple[Ledger, bytes]:
    """The node's ledger and the secret that its patients are known by. Raises ConfigError where the
    secret is lost, LedgerError where it is another one, or where the ledger does not know it and is
    not the one that was written last, unless that is about to be mended.
    """
    ledger = Ledger(folder / "ledger.sqlite")
    path = folder / "keys" / "patients.key"
    if not path.exists():
        if ledger.file.has_secret or any(entry.content for entry in entries.read(folder)[0]):
            raise ConfigError(
                f"{path} is missing: without it no patient's history is found; put it back from "
                "your backup"
            )
        write_private(path, secrets.token_hex(32).encode())
    secret = bytes.fromhex(path.read_text().strip())
    if mend:
        ledger.file.note_secret(secret)
    else:
        ledger.file.bind_secret(secret)
    return ledger, secret


def say_dropped(records: Records, source: Source) -> None:
    """Tell the owner, and nobody else, how many rows do not count, and why."""
    if records.dropped:
        why = ", ".join(f"{many} {name}" for name, many in records.lacking.items())
        log.warning(
            "%s: %d rows lack a value and are left out: %s", source.where, records.dropped, why
        )


def members_of(records: Records) -> Members:
    """Who is in records that were read with the node's secret."""
    assert records.members is not None
    return records.members


def read_table(folder: Path, entry: DatasetEntry, secret: bytes) -> Records:
    """The records of a listed table, whoever has withdrawn. Raises DatasetError for a table that
    is not the one that was listed, or cannot be read.
    """
    replace = f"datahub node replace-dataset FOLDER {entry.dataset_id} --file TABLE.csv"
    file = entry.source.file
    if file is not None and not file.exists():
        raise DatasetError(f"{file} is not there; if it was moved: {replace}")
    records = load(entry.source, entry.manifest.schema, secret, folder / PICTURES)
    if entry.content:
        same = members_of(records).content == entry.content
    else:
        same = records.patient_set == entry.patient_set
    if not same:
        raise DatasetError(
            f"{file or entry.source.where} has changed since it was listed; make it the "
            f"next version of this dataset: {replace}"
        )
    return records


def register(folder: Path, ledger: Ledger, entry: DatasetEntry, records: Records) -> DatasetEntry:
    """Have the ledger know the dataset's budget and who is in it; the entry as it is then.

    What a ledger from before patients were known has spent on the dataset binds all of them from
    here on. Raises LedgerError where the budget would rise.
    """
    manifest, members = entry.manifest, members_of(records)
    if entry.patient_set and not entry.content:
        ledger.inherit(entry.patient_set, members)
    ledger.open_dataset(entry.name, manifest.lifetime_epsilon, manifest.delta)
    ledger.set_members(entry.name, members.without(_marked(members, entry)))
    stamp = entry.stamp_now
    if (entry.content, entry.stamp) != (members.content, stamp):
        entry = entries.update(folder, entry.dataset_id, content=members.content, stamp=stamp)
    return entry


def problem(folder: Path, entry: DatasetEntry, secret: bytes) -> str:
    """Why a dataset cannot be served, "" if it can; reads a table only if the file was touched."""
    if entry.content and entry.stamp == entry.stamp_now:
        return ""
    try:
        read_table(folder, entry, secret)
    except DatasetError as error:
        return str(error)
    return ""


def _marked(members: Members, entry: DatasetEntry) -> np.ndarray:
    gone = entry.withdrawn_keys
    return np.array([key in gone for key in members.units], dtype=bool)
