"""From a listed dataset to records that the ledger knows the owners of: what jobs see is frozen
when it is listed, and its source is looked at only to say whether it still is that version. Knows
nothing of jobs or chains.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import numpy as np

from datatokens.wire import parse
from fl_client.data import album, snapshots
from fl_client.data.identity import Members
from fl_client.data.schemas import Schema
from fl_client.data.sources import Source
from fl_client.data.tables import Records, load
from fl_client.errors import ConfigError, DatasetError, SourceAway
from fl_client.node import entries
from fl_client.node.audit_log import HOW, AuditLog, LogError
from fl_client.node.config import NodeConfig, write_private
from fl_client.node.entries import DatasetEntry
from fl_client.node.job_folder import REPORT, JobFolder, of_each
from fl_client.privacy.ledger import Ledger

PICTURES, SNAPSHOTS = "pictures", "snapshots"  # of a node's folder
# what nothing lists is left alone for so long: a command beside may have just made it, to list it
YOUNG_S = 3600.0
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


def open_log(config: NodeConfig, ledger: Ledger) -> AuditLog:
    """The node's audit log, every line of it checked, with the heads in the reports that were
    attested here. Raises LogError where it is not the one that was written last.
    """
    log = AuditLog(config.folder)
    head, begun = log.verify(anchors(config)), ledger.file.has_log
    if begun and head.number == 0:
        raise LogError(f"the audit log is gone; {HOW}")
    if not begun:
        ledger.file.note_log()
    return log


def anchors(config: NodeConfig) -> list[str]:
    """The hashes of lines of this node's log that stand in the reports which it has attested."""
    ours = set(config.node_keys)

    def heads(one: JobFolder) -> list[str] | None:
        if (report := one.report) is None or not one.attested_model:
            return None
        with one.reading(REPORT):
            lines = parse(report)["hospitals"]
            return [str(line["log_head"]) for line in lines if line["node"] in ours]

    found, damaged = of_each(config.folder, heads)
    for sentence in damaged.values():  # the chain has its report's hash all the same (witness.py)
        log.error("%s", sentence)
    return [head for some in found for head in some if head]


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


def stamp_of(source: Source, schema: Schema) -> str:
    """What a source's files look like, so that they are read again only where one was touched; ""
    for a query, and for a file that is not there. Raises DatasetError.
    """
    file = entries.stamp_of(source.file) if source.file else ""
    if not file or schema.picture is None:
        return file
    return f"{file} {album.stamp(source, schema.picture)}"


def freeze(folder: Path, records: Records, withdrawn: Collection[bytes] = ()) -> str:
    """Freeze what jobs see, without those who have withdrawn; the snapshot's SHA-256."""
    return snapshots.write(folder / SNAPSHOTS, records.without(withdrawn))


def read_table(folder: Path, entry: DatasetEntry, secret: bytes) -> Records:
    """The records of a listed dataset as they were frozen; frozen anew from the source, if that is
    what was listed, where the snapshot is damaged, gone, of another version, or was not made by the
    version before this one. Those who have withdrawn may be there or not. Raises DatasetError.
    """
    lost = ""
    if entry.snapshot:
        try:
            records = _frozen(folder, entry)
        except DatasetError as error:
            lost = str(error)
        else:
            _leave_out_withdrawn(folder, entry, records)
            return records
    _check_reading(entry)
    try:
        stamp = _stamp_of(entry)
        records = _read_source(folder, entry, secret)
    except DatasetError as error:
        if not lost:
            raise
        raise DatasetError(
            f"{lost}, and cannot be made again: {error}; or put the node's folder back from a "
            "backup"
        ) from error
    if lost:
        log.warning("dataset %d: %s; it was made again from its source", entry.dataset_id, lost)
    entries.update(
        folder,
        entry.dataset_id,
        snapshot=freeze(folder, records, entry.withdrawn_keys),
        reading=entry.source.reading,
        stamp=stamp,
    )
    return records


def _frozen(folder: Path, entry: DatasetEntry) -> Records:
    records = snapshots.read(folder / SNAPSHOTS, entry.snapshot, folder / PICTURES)
    if entry.content not in ("", members_of(records).content):
        # two commands ran into each other, or half of a backup was put back
        raise DatasetError(f"the snapshot {entry.snapshot[:12]} is of another version")
    return records


def _leave_out_withdrawn(folder: Path, entry: DatasetEntry, records: Records) -> None:
    """Freeze anew what still holds somebody who has withdrawn: the command that would have done so
    was killed, or the table was replaced beside it.
    """
    members = members_of(records)
    if not (members.held & _marked(members, entry)).any():
        return
    try:
        snapshot = freeze(folder, records, entry.withdrawn_keys)
        entries.update(folder, entry.dataset_id, snapshot=snapshot)
    except (ConfigError, DatasetError) as error:  # it stops no job: those leave them out anyhow
        log.warning("who has withdrawn from dataset %d is still kept: %s", entry.dataset_id, error)
    else:
        prune(folder, (entry.snapshot,))


def look_at_source(folder: Path, entry: DatasetEntry, secret: bytes) -> str:
    """Whether a dataset's source still is what was listed: "" if so, or why that cannot be said
    now, which stops nothing. Reads files only where one was touched, and runs a query always.
    Raises DatasetError where it has changed.
    """
    _check_reading(entry)
    try:
        stamp = _stamp_of(entry)
        if stamp and stamp == entry.stamp:
            return ""
        _read_source(folder, entry, secret)
    except SourceAway as error:
        return str(error)
    if stamp != entry.stamp:
        entries.update(folder, entry.dataset_id, stamp=stamp)
    return ""


def standing(folder: Path, entry: DatasetEntry, secret: bytes) -> tuple[str, str]:
    """(why a dataset cannot be served, why its source cannot be looked at), each "" if it can."""
    try:
        away = look_at_source(folder, entry, secret)
    except DatasetError as error:
        return str(error), ""
    if not away:
        return "", ""
    if not entry.snapshot:
        return away, ""
    try:
        _frozen(folder, entry)
    except DatasetError as error:
        return f"{error}; {away}", ""
    return "", away


def prune(folder: Path, replaced: Collection[str] = ()) -> None:
    """Delete the snapshots that no dataset of the node lists any more: those `replaced` at once,
    others when nothing has listed them for YOUNG_S. Nothing is deleted while a dataset's file
    cannot be read, as that may list some.
    """
    found, unusable = entries.read(folder)
    if not unusable:
        listed = {entry.snapshot for entry in found}
        snapshots.prune(folder / SNAPSHOTS, listed, YOUNG_S, replaced)


def album_of(folder: Path, entry: DatasetEntry) -> str | None:
    """What the folder of a dataset's pictures is called, if it has some and they are known."""
    try:
        return snapshots.album_of(folder / SNAPSHOTS, entry.snapshot) if entry.snapshot else None
    except DatasetError:
        return None


def prune_pictures(folder: Path, replaced: Collection[str | None] = ()) -> None:
    """Delete the pictures that no snapshot of a listed dataset is of; the same caution."""
    found, unusable = entries.read(folder)
    if unusable or not all(entry.snapshot for entry in found):
        return
    try:
        kept = {snapshots.album_of(folder / SNAPSHOTS, entry.snapshot) for entry in found}
    except DatasetError:
        return
    before = time.time() - YOUNG_S
    for path in (folder / PICTURES).glob("[!.]*"):  # those with a dot are being written
        with suppress(FileNotFoundError):  # somebody else was faster
            goes = path.name in replaced or path.stat().st_mtime <= before
            if goes and path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)


def _stamp_of(entry: DatasetEntry) -> str:
    if entry.source.file is not None and not entries.stamp_of(entry.source.file):
        raise SourceAway(f"{entry.source.file} is not there; if it was moved: {_replace(entry)}")
    return stamp_of(entry.source, entry.manifest.schema)


def _read_source(folder: Path, entry: DatasetEntry, secret: bytes) -> Records:
    """The records of a listed table out of its source, whoever has withdrawn. Raises DatasetError
    for a table that is not the one that was listed, or cannot be read.
    """
    records = load(entry.source, entry.manifest.schema, secret, folder / PICTURES)
    if entry.content:
        same = members_of(records).content == entry.content
    else:
        same = records.patient_set == entry.patient_set
    if not same:
        raise DatasetError(
            f"{entry.source.file or entry.source.where} has changed since it was listed; make it "
            f"the next version of this dataset: {_replace(entry)}"
        )
    return records


def _check_reading(entry: DatasetEntry) -> None:
    if entry.reading and entry.reading != entry.source.reading:
        raise DatasetError(
            "how its table is read (query, columns, words) is not as it was listed; make it the "
            f"next version of this dataset: datahub node replace-dataset FOLDER {entry.dataset_id} "
            "--source SOURCE.toml"
        )


def _replace(entry: DatasetEntry) -> str:
    what = "--file TABLE.csv" if entry.source.file else "--source SOURCE.toml"
    return f"datahub node replace-dataset FOLDER {entry.dataset_id} {what}"


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
    if entry.content != members.content:
        entry = entries.update(folder, entry.dataset_id, content=members.content)
    return entry


def _marked(members: Members, entry: DatasetEntry) -> np.ndarray:
    gone = entry.withdrawn_keys
    return np.array([key in gone for key in members.units], dtype=bool)
