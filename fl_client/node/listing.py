"""What a hospital does once: list a dataset on-chain, publish its manifest and contributors,
register its node.

Runs on the hospital's machine with the owner's key, which is used here and not kept. Only public
documents leave: the manifest (whose counts are noised and charged to the ledger) and the
contributors' addresses and weights.
"""

from __future__ import annotations

import csv
import logging
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from eth_account import Account

from datatokens.bindings.escrow import Escrow, Status
from datatokens.bindings.nodes import KeyState, NodeRegistry, public_point
from datatokens.bindings.registry import Registry
from datatokens.bindings.revenue import Revenue
from datatokens.chain.connection import Chain, connect
from datatokens.errors import TermsError
from datatokens.merkle import MAX_WEIGHT, Tree
from datatokens.terms import JobTerms, address, canonical_json, privacy_charged, sign, whole
from fl_client.data.manifests import (
    PLATFORM_MINIMUM_PERSONS,
    Manifest,
    check_about,
    check_cohort,
    check_records_per_patient,
)
from fl_client.data.schemas import Schema
from fl_client.data.sources import Source
from fl_client.data.tables import Records, load
from fl_client.errors import ConfigError, DatasetError
from fl_client.node import entries, gate
from fl_client.node.audit_log import AuditLog
from fl_client.node.config import NodeConfig, next_node_key, promote_next_key
from fl_client.node.entries import DatasetEntry
from fl_client.node.job_folder import of_each
from fl_client.node.served import (
    PICTURES,
    freeze,
    members_of,
    open_ledger,
    say_dropped,
    stamp_of,
)
from fl_client.privacy.ledger import Ledger
from fl_client.privacy.noise import SecureRandom
from fl_client.privacy.plan import Charge
from fl_client.privacy.slots import COUNT_NOISE

log = logging.getLogger("datahub.node")


@dataclass(frozen=True)
class Listing:
    """How a dataset is offered. price_units per job; contributor_bps of 10000 go to
    contributors.
    """

    name: str
    description: str
    price_units: int
    contributor_bps: int
    lifetime_epsilon: float
    delta: float
    minimum_persons: int = PLATFORM_MINIMUM_PERSONS
    symbol: str = "DT"
    compute_rate_units: int = 0  # for every started minute of training
    # how many of one patient count, where the source says which columns tell patients apart
    records_per_patient: int = 1
    country: str = ""  # of the patients, ISO 3166-1 alpha-2
    conditions: tuple[str, ...] = ()  # what they have, in the owner's words or codes


def hub_request(hub: str, method: str, path: str, body: Any = None) -> Any:
    """One call of the hub's API, of those that a node makes. Raises ConfigError with the hub's own
    sentence.
    """
    _, content = gate.document(method, path, body)
    try:
        answer = httpx.request(
            method,
            hub.rstrip("/") + path,
            content=content or None,
            headers={"content-type": "application/json"} if content else None,
            timeout=60,
        )
    except httpx.HTTPError as error:
        raise ConfigError(f"the hub at {hub} does not answer: {error}") from error
    if answer.is_error:
        try:
            sentence = answer.json()["detail"]
        except (ValueError, KeyError, TypeError):
            sentence = answer.text[:200]
        raise ConfigError(f"the hub refused: {sentence}")
    return answer.json()


def publish(config: NodeConfig, method: str, path: str, body: Any) -> Any:
    """A document to the hub, once the log says so. Raises NodeError."""
    gate.released(config, method, path, body)
    return hub_request(config.hub, method, path, body)


def terms_from(hub: str, job_id: str) -> JobTerms | None:
    """The terms of a job as the hub has them, if they are those that the job's id is a hash of."""
    try:
        document = hub_request(hub, "GET", f"/api/v1/jobs/{job_id}/terms")
        terms = JobTerms.from_json(canonical_json(document))
    except (ConfigError, TermsError):
        return None
    return terms if terms.job_id.hex() == job_id else None


def fetch_schema(hub: str, schema_hash: str) -> Schema:
    """The schema of that hash as a hub has it. Raises ConfigError for a hash that is none, or
    where the hub sends another document.
    """
    if not re.fullmatch("[0-9a-f]{64}", schema_hash):
        raise ConfigError(
            f"schema hash {schema_hash[:80]!r} must be 64 hexadecimal digits, as a dataset's page "
            "shows it"
        )
    found = Schema.from_dict(hub_request(hub, "GET", f"/api/v1/schemas/{schema_hash}"))
    if found.hash != schema_hash:
        raise ConfigError(
            f"the hub at {hub} sent another schema, whose hash is {found.hash}; nothing was written"
        )
    return found


def read_contributors(path: Path) -> list[tuple[str, int]]:
    """[(address, weight), ...] from a CSV file with the header account,weight. Raises DatasetError
    naming the line.
    """
    entries: list[tuple[str, int]] = []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != ["account", "weight"]:
            raise DatasetError(f"{path.name}: the header must be account,weight")
        for row in reader:
            try:
                entries.append(
                    (
                        address("account", row["account"]),
                        whole("weight", int(row["weight"]), 1, MAX_WEIGHT),
                    )
                )
            except (TermsError, ValueError, TypeError) as error:
                raise DatasetError(f"{path.name} line {reader.line_num}: {error}") from error
    if not entries or len({account for account, _ in entries}) != len(entries):
        raise DatasetError(
            f"{path.name}: there must be at least one contributor, each account once"
        )
    return entries


def list_dataset(
    config: NodeConfig,
    owner_key: str,
    source: Source,
    schema: Schema,
    listing: Listing,
    contributors: Sequence[tuple[str, int]],
) -> DatasetEntry:
    """List a table as a dataset owned by `owner_key`. Raises NodeError or BankError; the table
    never leaves.
    """
    unit = "patient" if source.patients else "record"  # what privacy protects
    check_records_per_patient(listing.records_per_patient, unit)
    check_about(listing.country, listing.conditions)
    ledger, secret = open_ledger(config.folder)
    stamp = stamp_of(source, schema)
    records = load(source, schema, secret, config.folder / PICTURES)
    say_dropped(records, source)
    check_cohort(records.persons, listing.minimum_persons)
    snapshot = freeze(config.folder, records)
    chain = connect(config.chain, owner_key)
    enrol(config, chain)
    # a name of the node's own: the id on the chain is known only after the count is charged
    name = secrets.token_hex(8)
    ledger.open_dataset(name, listing.lifetime_epsilon, listing.delta)
    ledger.set_members(name, members_of(records))
    persons, left_out = released_count(ledger, name, records, listing.minimum_persons)
    manifest = Manifest(
        hospital=config.name,
        name=listing.name,
        description=listing.description,
        persons=persons,
        minimum_persons=listing.minimum_persons,
        lifetime_epsilon=listing.lifetime_epsilon,
        delta=listing.delta,
        schema=schema,
        compute_rate_units=listing.compute_rate_units,
        unit=unit,
        records_per_patient=listing.records_per_patient,
        left_out=left_out,
        country=listing.country,
        conditions=listing.conditions,
    )
    registry, since = Registry(chain, config.registry), chain.block_number()
    dataset_id = registry.list_dataset(
        config.node_address,
        listing.price_units,
        listing.contributor_bps,
        manifest.hash,
        f"{config.hub}/api/v1/datasets",
        listing.symbol,
    )
    # what is attested after each job is rounded up in the same way, so that a budget used to the
    # end is kept
    epsilon_micro, delta_pico = privacy_charged(listing.lifetime_epsilon, listing.delta)
    registry.set_privacy_budget(dataset_id, epsilon_micro, delta_pico * 10**6)
    entry = DatasetEntry(
        dataset_id,
        source,
        manifest,
        name,
        members_of(records).content,
        stamp,
        since=since,
        snapshot=snapshot,
        reading=source.reading,
    )
    entries.write(config.folder, entry)
    facts = {"dataset": dataset_id, "manifest_hash": manifest.hash.hex(), "persons": persons}
    AuditLog(config.folder).note("listed", **facts, epsilon=listing.lifetime_epsilon)
    publish(config, "PUT", f"/api/v1/datasets/{dataset_id}/manifest", manifest.as_dict())
    post_contributors(config, owner_key, dataset_id, contributors)
    return entry


def post_contributors(
    config: NodeConfig, owner_key: str, dataset_id: int, contributors: Sequence[tuple[str, int]]
) -> int:
    """Post a contributor tree on-chain and its list to the hub, so that everybody can check and
    claim; the epoch.

    The first list is live at once; a later one must be activated after its dispute window
    (Revenue.activate_contributors).
    """
    revenue = Revenue(connect(config.chain, owner_key), config.market)
    epoch = revenue.next_epoch(dataset_id)
    tree = Tree(dataset_id, epoch, contributors)
    uri = f"{config.hub}/api/v1/datasets/{dataset_id}/contributors"
    posted = revenue.post_contributors(dataset_id, tree.root, uri)
    if posted != epoch:
        raise ConfigError(
            f"dataset {dataset_id}: another list was posted at the same moment; post this one again"
        )
    body = {"epoch": epoch, "entries": [[account, weight] for account, weight in contributors]}
    publish(config, "PUT", f"/api/v1/datasets/{dataset_id}/contributors", body)
    return epoch


def released_count(
    ledger: Ledger, name: str, records: Records, minimum: int
) -> tuple[int, int | None]:
    """(noised count of those held, noised count of those left out for want of one complete record),
    drawn once for exactly these patients and charged before they are drawn; the same ever after.
    The second is None where an older ledger drew the first alone.

    Whoever is added or removed is in one of the two and changes it by 1, so that both are one
    Gaussian mechanism of sensitivity 1, at the price of one; it is charged to those left out, too.
    Records that name nobody are in neither count, nor are patients who have withdrawn, nor those
    whom the source or its query leaves out itself.
    """
    members = members_of(records)
    known = ledger.counted(members)
    if known is None:
        charge = Charge(COUNT_NOISE, 1.0, 1, "released count")
        ledger.charge(name, charge, members=members.counted if members.lacking else None)
        noise = SecureRandom().normal(2, COUNT_NOISE)
        held, left_out = (
            round(many + float(one))
            for many, one in zip((records.persons, len(members.lacking)), noise, strict=True)
        )
        ledger.keep_count(members, held, left_out)
        known = held, left_out
    persons, lacking = known
    return (
        max(minimum, PLATFORM_MINIMUM_PERSONS, persons),
        None if lacking is None else max(0, lacking),
    )


def enrol(config: NodeConfig, owner: Chain) -> int:
    """Have this node's key and its SuperNode in the node registry; the hospital's id. Does only
    what is missing.

    A key that nobody has registered becomes the first of a new hospital of the owner's. Raises
    ConfigError for a key
    that is another owner's, or that may not serve any more.
    """
    nodes, key = NodeRegistry(owner, config.registry), config.node_address
    status = nodes.status(key)
    hospital_id = status.hospital_id
    if status.state is KeyState.UNKNOWN:
        hospital_id = nodes.register(f"{config.hub}/api/v1/hospitals/{key}")
        nodes.add_key(
            hospital_id,
            key,
            sign(nodes.consent_message(hospital_id, str(owner.address)), config.node_key),
        )
    elif status.state is not KeyState.ACTIVE:
        raise ConfigError(
            f"the node key {key} is {status.state}; make a new one: datahub node rotate-key "
            f"{config.folder}"
        )
    elif status.owner != owner.address:
        raise ConfigError(
            f"the node key {key} serves hospital {hospital_id} of {status.owner}, not of "
            f"{owner.address}"
        )
    bind_supernode(config, nodes)
    return hospital_id


def bind_supernode(config: NodeConfig, nodes: NodeRegistry) -> None:
    """Have the node key vouch on-chain for the key that this machine dials in with."""
    key, point = config.node_address, public_point(config.supernode_public_key)
    if not nodes.vouches(key, point):
        nodes.bind_supernode(key, point, sign(nodes.supernode_message(key, point), config.node_key))


def rotate_key(config: NodeConfig, owner_key: str, overlap_s: int, stolen: bool) -> str:
    """Give the node a new key and every dataset of its own that key; the new key's address.

    The old key accepts for `overlap_s` seconds more the jobs that were quoted with it, and attests
    those that it has
    accepted whenever they end. A stolen one is revoked at once, and its acceptances are taken back.
    The new key is in
    the folder before it is registered; run again after an interruption, this goes on where it was.
    """
    chain = connect(config.chain, owner_key)
    nodes, registry, old = (
        NodeRegistry(chain, config.registry),
        Registry(chain, config.registry),
        config.node_address,
    )
    key = next_node_key(config.folder)
    new = str(Account.from_key(key).address)
    if nodes.status(new).state is KeyState.UNKNOWN:
        consent = sign(nodes.consent_message(enrol(config, chain), str(chain.address)), key)
        nodes.rotate_key(old, new, 0 if stolen else overlap_s, consent)
    if stolen and nodes.status(old).state is not KeyState.REVOKED:
        nodes.revoke_key(old)
    AuditLog(config.folder).note("key rotated", old=old, new=new, stolen=stolen)
    config = promote_next_key(config.folder, old)
    for entry in config.datasets:
        if registry.dataset(entry.dataset_id).node != new:
            registry.set_node(entry.dataset_id, new)
    if stolen:
        _take_back(config, chain, old)
    bind_supernode(config, nodes)
    return new


def _take_back(config: NodeConfig, chain: Chain, key: str) -> None:
    """Take back what a revoked key has accepted and not attested yet, and say of which jobs that
    cannot be known here.
    """
    escrow = Escrow(chain, config.market)
    known, damaged = of_each(config.folder, lambda one: one.terms)
    for terms in known:
        found = escrow.job(terms.job_id)
        if found.status is Status.FUNDED and any(
            line.node == key and found.accepted >> i & 1 for i, line in enumerate(terms.datasets)
        ):
            escrow.revoke_acceptances(terms, [key])
    for sentence in damaged.values():
        log.error("what the stolen key has accepted is not taken back: %s", sentence)


def register_node(config: NodeConfig) -> int:
    """Tell the hub which key this node's SuperNode dials in with, as the node registry has it;
    Flower's node id.
    """
    body = {
        "node": config.node_address,
        "supernode_public_key": config.supernode_public_key.decode(),
    }
    return int(publish(config, "POST", "/api/v1/nodes", body)["supernode_id"])
