"""What becomes of a listed dataset: its table is replaced, it is removed, a patient withdraws.

A changed table is a new version of the same dataset, never a new dataset with a fresh budget: the
ledger finds its patients again. Knows nothing of what jobs do.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from datatokens.bindings.registry import Registry, State
from datatokens.chain.connection import connect
from fl_client.data.identity import patient_key
from fl_client.data.manifests import check_cohort
from fl_client.data.sources import Source, moved
from fl_client.data.tables import load
from fl_client.errors import ConfigError, DatasetError
from fl_client.node import entries
from fl_client.node.audit_log import AuditLog
from fl_client.node.config import NodeConfig
from fl_client.node.entries import DatasetEntry
from fl_client.node.job_folder import JobFolder
from fl_client.node.listing import publish, released_count
from fl_client.node.served import (
    PICTURES,
    album_of,
    freeze,
    members_of,
    open_ledger,
    prune,
    prune_pictures,
    read_table,
    register,
    say_dropped,
    stamp_of,
)
from fl_client.privacy.ledger import Ledger


def replace_dataset(
    config: NodeConfig, owner_key: str, dataset_id: int, source: Source | Path
) -> tuple[DatasetEntry, int]:
    """Make `source`, or the same source in another file, the next version of a dataset: same
    schema, unit and budget, its patients found again by who they are. (the entry, the manifest's
    version on the chain).

    The same table, read in the same way, at another place changes nothing but the place. Another
    table has its counts noised anew, charged to everybody in it. Raises NodeError or BankError.
    """
    entry = _own(config, dataset_id)
    ledger, secret = open_ledger(config.folder)
    if isinstance(source, Path):
        source = moved(entry.source, source.resolve())
    if bool(source.patients) != (entry.manifest.unit == "patient"):
        raise DatasetError(
            f"patients.columns: privacy of dataset {dataset_id} protects a {entry.manifest.unit}"
        )
    stamp = stamp_of(source, entry.manifest.schema)
    records = load(source, entry.manifest.schema, secret, config.folder / PICTURES)
    say_dropped(records, source)
    registry = Registry(connect(config.chain, owner_key), config.registry)
    place = {"source": source, "stamp": stamp, "reading": source.reading}
    place["snapshot"] = freeze(config.folder, records, entry.withdrawn_keys)
    read_alike = source.reading == (entry.reading or entry.source.reading)
    if members_of(records).content == entry.content and read_alike:
        now = entries.update(config.folder, dataset_id, **place)
        prune(config.folder, (entry.snapshot,))
        return _published(config, now, registry)
    there = records.without(entry.withdrawn_keys)
    check_cohort(there.persons, entry.manifest.minimum_persons)
    if entry.patient_set and not entry.content:
        ledger.inherit(entry.patient_set, members_of(there))
    ledger.open_dataset(entry.name, entry.manifest.lifetime_epsilon, entry.manifest.delta)
    ledger.set_members(entry.name, members_of(there))
    floor = entry.manifest.minimum_persons
    persons, left_out = released_count(ledger, entry.name, there, floor)
    manifest = replace(entry.manifest, persons=persons, left_out=left_out)
    # said again where the count happens to be the same: the version is another
    registry.set_manifest(dataset_id, manifest.hash, f"{config.hub}/api/v1/datasets")
    now = entries.update(
        config.folder,
        dataset_id,
        manifest=manifest,
        content=members_of(records).content,
        **place,
    )
    prune(config.folder, (entry.snapshot,))
    return _published(config, now, registry)


def _published(
    config: NodeConfig, entry: DatasetEntry, registry: Registry
) -> tuple[DatasetEntry, int]:
    manifest = entry.manifest
    facts = {"manifest_hash": manifest.hash.hex(), "persons": manifest.persons}
    AuditLog(config.folder).note("replaced", dataset=entry.dataset_id, **facts)
    path = f"/api/v1/datasets/{entry.dataset_id}/manifest"
    publish(config, "PUT", path, entry.manifest.as_dict())
    return entry, registry.standing(entry.dataset_id).version


def remove_dataset(config: NodeConfig, owner_key: str, dataset_id: int) -> None:
    """Retire a dataset on the chain, for good, and take it off the node. What it has spent binds
    its patients for ever. Raises NodeError or BankError.
    """
    entry = _own(config, dataset_id)
    registry = Registry(connect(config.chain, owner_key), config.registry)
    if registry.standing(dataset_id).state is not State.RETIRED:
        registry.set_state(dataset_id, State.RETIRED)
    ledger, _ = open_ledger(config.folder)
    for name in {entry.name, entry.patient_set} & set(ledger.datasets()):
        for job in ledger.jobs(name):
            if not job.closed:
                ledger.close_job(job.job_id)
    AuditLog(config.folder).note("removed", dataset=dataset_id)
    album = album_of(config.folder, entry)
    entries.remove(config.folder, dataset_id)
    prune(config.folder, (entry.snapshot,))
    prune_pictures(config.folder, (album,))


@dataclass(frozen=True)
class JobWithPatient:
    """A job that had used a patient who has withdrawn. `dataset_id` is None for a dataset that the
    node has no file of any more; `model_hash` is "" where this node has attested none.
    """

    job_id: str
    dataset_id: int | None
    dataset: str
    date: str
    model_hash: str


@dataclass(frozen=True)
class Withdrawal:
    """datasets: those that held the patient, or whose tables cannot be read now."""

    datasets: list[int]
    jobs: list[JobWithPatient]


def withdraw_patient(config: NodeConfig, identifier: str) -> Withdrawal:
    """Leave a patient out of the node's datasets, and of their later versions, from the next round
    on; where the patient was, and which jobs had used the patient, by the ledger.

    Datasets whose unit is a record lose those of the patient's records that a table with a patient
    column ties to the patient. Nothing of it leaves the node. Raises DatasetError where no table
    that can be read holds the patient, and all can, and no version before them did.
    """
    ledger, secret = open_ledger(config.folder)
    tables, unread = {}, []
    for entry in config.datasets:
        try:
            tables[entry.dataset_id] = read_table(config.folder, entry, secret)
        except DatasetError:
            unread.append(entry.dataset_id)
    patient = patient_key(secret, identifier)
    theirs = {patient}
    for table in tables.values():
        members = members_of(table)
        theirs |= {record for record, unit in members.rows if members.units[unit] == patient}
    holds = [i for i, table in tables.items() if theirs & set(members_of(table).units)]
    if not holds and not unread and ledger.jobs_of_patient(theirs) is None:
        raise DatasetError("nobody with this identifier is in a dataset of this node")
    # who it is stays in the datasets' files: a log is kept for ever, and shown to others
    AuditLog(config.folder).note("withdrawn", datasets=sorted([*holds, *unread]))
    replaced = []
    for entry in config.datasets:
        keys = {patient} if entry.source.patients else theirs - {patient}
        gone = sorted({*entry.withdrawn, *(key.hex() for key in keys)})
        now = entries.update(config.folder, entry.dataset_id, withdrawn=tuple(gone))
        if entry.dataset_id in tables:
            table = tables[entry.dataset_id]
            register(config.folder, ledger, now, table)
            snapshot = freeze(config.folder, table, now.withdrawn_keys)
            entries.update(config.folder, entry.dataset_id, snapshot=snapshot)
            replaced.append(now.snapshot)
    prune(config.folder, replaced)
    return Withdrawal(sorted([*holds, *unread]), _jobs_with(config, ledger, theirs))


def _jobs_with(config: NodeConfig, ledger: Ledger, keys: Collection[bytes]) -> list[JobWithPatient]:
    """The jobs that were charged to a patient: over datasets that are listed or were removed."""
    known = {
        name: entry
        for entry in (*entries.removed(config.folder), *config.datasets)
        for name in (entry.name, entry.patient_set)
    }
    found = []
    for job in ledger.jobs_of_patient(keys) or ():
        entry = known.get(job.dataset)
        found.append(
            JobWithPatient(
                job.job_id,
                entry.dataset_id if entry else None,
                entry.manifest.name if entry else job.dataset,
                datetime.fromtimestamp(job.at, UTC).date().isoformat(),
                JobFolder(config.folder, job.job_id).attested_model,
            )
        )
    return found


def _own(config: NodeConfig, dataset_id: int) -> DatasetEntry:
    entry = config.dataset(dataset_id)
    if entry is None:
        known = ", ".join(str(e.dataset_id) for e in config.datasets) or "none"
        raise ConfigError(f"dataset_id={dataset_id} is not one of this node's datasets: {known}")
    return entry
