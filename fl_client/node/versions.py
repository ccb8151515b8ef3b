"""What becomes of a listed dataset: its table is replaced, it is removed, a patient withdraws.

A changed table is a new version of the same dataset, never a new dataset with a fresh budget: the
ledger finds its patients again. Knows nothing of jobs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from datatokens.bindings.registry import Registry, State
from datatokens.chain.connection import connect
from fl_client.data.identity import patient_key
from fl_client.data.manifests import check_cohort
from fl_client.data.sources import Source, moved
from fl_client.data.tables import load
from fl_client.errors import ConfigError, DatasetError
from fl_client.node import entries
from fl_client.node.config import NodeConfig
from fl_client.node.entries import DatasetEntry
from fl_client.node.listing import hub_request, released_count
from fl_client.node.served import (
    PICTURES,
    members_of,
    open_ledger,
    read_table,
    register,
    say_dropped,
)


def replace_dataset(
    config: NodeConfig, owner_key: str, dataset_id: int, source: Source | Path
) -> tuple[DatasetEntry, int]:
    """Make `source`, or the same source in another file, the next version of a dataset: same
    schema, unit and budget, its patients found again by who they are. (the entry, the manifest's
    version on the chain).

    The same table at another place changes nothing but the place. Another table has its count
    noised anew, charged to everybody in it. Raises NodeError or BankError.
    """
    entry = _own(config, dataset_id)
    ledger, secret = open_ledger(config.folder)
    if isinstance(source, Path):
        source = moved(entry.source, source.resolve())
    if bool(source.patients) != (entry.manifest.unit == "patient"):
        raise DatasetError(
            f"patients.columns: privacy of dataset {dataset_id} protects a {entry.manifest.unit}"
        )
    stamp = entries.stamp_of(source.file) if source.file else ""
    records = load(source, entry.manifest.schema, secret, config.folder / PICTURES)
    say_dropped(records, source)
    registry = Registry(connect(config.chain, owner_key), config.registry)
    place = {"source": source, "stamp": stamp}
    if members_of(records).content == entry.content:
        return _published(config, entries.update(config.folder, dataset_id, **place), registry)
    there = records.without(entry.withdrawn_keys)
    check_cohort(there.persons, entry.manifest.minimum_persons)
    if entry.patient_set and not entry.content:
        ledger.inherit(entry.patient_set, members_of(there))
    ledger.open_dataset(entry.name, entry.manifest.lifetime_epsilon, entry.manifest.delta)
    ledger.set_members(entry.name, members_of(there))
    persons = released_count(ledger, entry.name, there, entry.manifest.minimum_persons)
    manifest = replace(entry.manifest, persons=persons)
    # said again where the count happens to be the same: the version is another
    registry.set_manifest(dataset_id, manifest.hash, f"{config.hub}/api/datasets")
    entry = entries.update(
        config.folder,
        dataset_id,
        manifest=manifest,
        content=members_of(records).content,
        **place,
    )
    return _published(config, entry, registry)


def _published(
    config: NodeConfig, entry: DatasetEntry, registry: Registry
) -> tuple[DatasetEntry, int]:
    path = f"/api/datasets/{entry.dataset_id}/manifest"
    hub_request(config.hub, "PUT", path, entry.manifest.as_dict())
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
    entries.remove(config.folder, dataset_id)


def withdraw_patient(config: NodeConfig, identifier: str) -> list[int]:
    """Leave a patient out of the node's datasets, and of their later versions, from the next round
    on; the datasets that held the patient, or whose tables cannot be read now.

    Datasets whose unit is a record lose those of the patient's records that a table with a patient
    column ties to the patient. Nothing of it leaves the node. Raises DatasetError where no table
    that can be read holds the patient, and all can.
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
    if not holds and not unread:
        raise DatasetError("nobody with this identifier is in a dataset of this node")
    for entry in config.datasets:
        keys = {patient} if entry.source.patients else theirs - {patient}
        gone = sorted({*entry.withdrawn, *(key.hex() for key in keys)})
        now = entries.update(config.folder, entry.dataset_id, withdrawn=tuple(gone))
        if entry.dataset_id in tables:
            register(config.folder, ledger, now, tables[entry.dataset_id])
    return sorted([*holds, *unread])


def _own(config: NodeConfig, dataset_id: int) -> DatasetEntry:
    entry = config.dataset(dataset_id)
    if entry is None:
        known = ", ".join(str(e.dataset_id) for e in config.datasets) or "none"
        raise ConfigError(f"dataset_id={dataset_id} is not one of this node's datasets: {known}")
    return entry
