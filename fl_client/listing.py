"""What a hospital does once: list a dataset on-chain, publish its manifest and contributors, register its node.

Runs on the hospital's machine with the owner's key, which is used here and not kept. Only public documents leave:
the manifest (whose person count is noised and charged to the ledger) and the contributors' addresses and weights.
"""

from __future__ import annotations

import csv
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from datatokens.chain import connect
from datatokens.errors import TermsError
from datatokens.merkle import MAX_WEIGHT, Tree
from datatokens.registry import Registry
from datatokens.revenue import Revenue
from datatokens.terms import address, sign, supernode_message, whole
from fl_client.config import DatasetEntry, NodeConfig, add_dataset
from fl_client.datasets import PLATFORM_MINIMUM_PERSONS, Manifest, Schema, check_cohort, load
from fl_client.errors import ConfigError, DatasetError
from fl_client.ledger import Ledger
from fl_client.privacy import Charge

COUNT_NOISE = 5.0  # sd of the released person count; sensitivity 1, so also its noise multiplier


@dataclass(frozen=True)
class Listing:
    """How a dataset is offered. price_units per job; contributor_bps of 10000 go to contributors."""

    name: str
    description: str
    price_units: int
    contributor_bps: int
    lifetime_epsilon: float
    delta: float
    minimum_persons: int = PLATFORM_MINIMUM_PERSONS
    symbol: str = "DT"
    compute_rate_units: int = 0  # for every started minute of training


def hub_request(hub: str, method: str, path: str, body: Any = None) -> Any:
    """One call of the hub's API. Raises ConfigError with the hub's own sentence."""
    try:
        answer = httpx.request(method, hub.rstrip("/") + path, json=body, timeout=60)
    except httpx.HTTPError as error:
        raise ConfigError(f"the hub at {hub} does not answer: {error}") from error
    if answer.is_error:
        try:
            sentence = answer.json()["error"]
        except (ValueError, KeyError, TypeError):
            sentence = answer.text[:200]
        raise ConfigError(f"the hub refused: {sentence}")
    return answer.json()


def read_contributors(path: Path) -> list[tuple[str, int]]:
    """[(address, weight), ...] from a CSV file with the header account,weight. Raises DatasetError naming the line."""
    entries: list[tuple[str, int]] = []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != ["account", "weight"]:
            raise DatasetError(f"{path.name}: the header must be account,weight")
        for row in reader:
            try:
                entries.append((address("account", row["account"]), whole("weight", int(row["weight"]), 1, MAX_WEIGHT)))
            except (TermsError, ValueError, TypeError) as error:
                raise DatasetError(f"{path.name} line {reader.line_num}: {error}") from error
    if not entries or len({account for account, _ in entries}) != len(entries):
        raise DatasetError(f"{path.name}: there must be at least one contributor, each account once")
    return entries


def list_dataset(
    config: NodeConfig,
    owner_key: str,
    file: Path,
    schema: Schema,
    listing: Listing,
    contributors: Sequence[tuple[str, int]],
) -> DatasetEntry:
    """List `file` as a dataset owned by `owner_key`. Raises NodeError or BankError; the table never leaves."""
    records = load(file, schema)
    check_cohort(records.persons, listing.minimum_persons)
    key = records.patient_set
    ledger = Ledger(config.folder / "ledger.sqlite")
    ledger.open_patient_set(key, listing.lifetime_epsilon, listing.delta)
    manifest = Manifest(
        hospital=config.name,
        name=listing.name,
        description=listing.description,
        persons=_released_count(config.folder, ledger, key, records.persons, listing.minimum_persons),
        minimum_persons=listing.minimum_persons,
        lifetime_epsilon=listing.lifetime_epsilon,
        delta=listing.delta,
        schema=schema,
        compute_rate_units=listing.compute_rate_units,
    )
    chain = connect(config.chain, owner_key)
    dataset_id = Registry(chain, config.registry).list_dataset(
        config.node_address,
        listing.price_units,
        listing.contributor_bps,
        manifest.hash,
        f"{config.hub}/api/datasets",
        listing.symbol,
    )
    entry = DatasetEntry(dataset_id, file.resolve(), key, manifest)
    add_dataset(config.folder, entry)
    hub_request(config.hub, "PUT", f"/api/datasets/{dataset_id}/manifest", manifest.as_dict())
    post_contributors(config, owner_key, dataset_id, contributors)
    return entry


def post_contributors(
    config: NodeConfig, owner_key: str, dataset_id: int, contributors: Sequence[tuple[str, int]]
) -> int:
    """Post a contributor tree on-chain and its list to the hub, so that everybody can check and claim; the epoch.

    The first list is live at once; a later one must be activated after its dispute window (Revenue.activate_contributors).
    """
    revenue = Revenue(connect(config.chain, owner_key), config.market)
    epoch = revenue.next_epoch(dataset_id)
    tree = Tree(dataset_id, epoch, contributors)
    uri = f"{config.hub}/api/datasets/{dataset_id}/contributors"
    posted = revenue.post_contributors(dataset_id, tree.root, uri)
    if posted != epoch:
        raise ConfigError(f"dataset {dataset_id}: another list was posted at the same moment; post this one again")
    body = {"epoch": epoch, "entries": [[account, weight] for account, weight in contributors]}
    hub_request(config.hub, "PUT", f"/api/datasets/{dataset_id}/contributors", body)
    return epoch


def _released_count(folder: Path, ledger: Ledger, key: str, persons: int, minimum: int) -> int:
    """The noised count, drawn once per patient set and charged before it is drawn; the same ever after."""
    path = folder / "datasets" / f"count-{key[:32]}.txt"
    if path.exists():
        return int(path.read_text())
    ledger.charge(key, Charge(COUNT_NOISE, 1.0, 1, "released count"))
    noise = np.random.Generator(np.random.PCG64(secrets.randbits(128))).normal(0.0, COUNT_NOISE)
    released = max(minimum, PLATFORM_MINIMUM_PERSONS, round(persons + noise))
    path.parent.mkdir(exist_ok=True)
    path.write_text(str(released))
    return released


def register_node(config: NodeConfig) -> int:
    """Tell the hub which key this node's SuperNode dials in with, signed by the node key; Flower's node id."""
    pem = config.supernode_public_key
    body = {
        "node": config.node_address,
        "supernode_public_key": pem.decode(),
        "binding": sign(supernode_message(config.chain_id, config.market, pem), config.node_key).hex(),
    }
    return int(hub_request(config.hub, "POST", "/api/nodes", body)["supernode_id"])


