"""The demo's hospitals: each makes its node, lists its dataset and contributors, and starts.

By the functions behind `datahub node`, as a hospital's IT would. Knows nothing of what is ordered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from datahub.demo import data as demo_data
from datahub.demo.stack import BUYER, FIRST_CONTRIBUTOR, FIRST_HOSPITAL, TUSD, Stack
from fl_client.data.sources import plain
from fl_client.node import config
from fl_client.node.listing import Listing, list_dataset

# the demo's buyer is known to most of its hospitals, so that nobody has to be asked there
RULE = """
[[rules]]
name = "the demo's buyer"
datasets = ["*"]
buyers = ["{buyer}"]
purposes = ["*"]
models = ["*"]
max_epsilon = 4.5
jobs_per_week = 1000
"""
PRICES = (40, 30, 20, 10)
CONTRIBUTORS = 1000
LIFETIME_EPSILON, SMALL_LIFETIME_EPSILON = 12.0, 5.0
# the last hospital cannot afford the second job
LIFETIMES = (LIFETIME_EPSILON, LIFETIME_EPSILON, LIFETIME_EPSILON, SMALL_LIFETIME_EPSILON)


@dataclass(frozen=True)
class Hospital:
    """A hospital of the demo: its site, folder, dataset id."""

    name: str
    folder: Path
    dataset_id: int


def contributor_list(stack: Stack, site: int) -> list[tuple[str, int]]:
    """1000 contributors of a hospital with weights 1..5; the first three are accounts that the demo
    claims with.
    """
    real = [(stack.accounts[FIRST_CONTRIBUTOR + i][0], 5 - i) for i in range(3)]
    made = [
        (to_checksum_address(keccak(text=f"demo contributor {site} {i}")[:20]), 1 + i % 5)
        for i in range(CONTRIBUTORS - len(real))
    ]
    return real + made


def join(
    stack: Stack,
    data: demo_data.DemoData,
    index: int,
    network: dict[str, Any],
    lifetimes: Sequence[float] = LIFETIMES,
    asks: bool = False,
) -> Hospital:
    """One hospital: make its node, list its dataset, post its contributors, start its process. One
    that `asks` has a person decide about every job; the others know the demo's buyer.
    """
    site = data.sites[index]
    folder = stack.folder / "nodes" / site.key
    made = config.create(
        folder, name=site.hospital, hub=stack.hub_url, chain=stack.chain_url, network=network
    )
    if not asks:
        with (folder / "node.toml").open("a") as toml:
            toml.write(RULE.format(buyer=stack.accounts[BUYER][0]))
    listing = Listing(
        name=f"{data.title}: {site.hospital}",
        description=data.origin,
        price_units=PRICES[index] * TUSD,
        contributor_bps=6000,
        lifetime_epsilon=lifetimes[index],
        delta=data.delta,
        country=site.country,
        conditions=data.conditions,
    )
    owner = stack.accounts[FIRST_HOSPITAL + index][1]
    entry = list_dataset(
        made,
        owner,
        plain(site.table, demo_data.PATIENT),
        data.schema,
        listing,
        contributor_list(stack, index),
    )
    stack.start_node(folder)
    return Hospital(site.hospital, folder, entry.dataset_id)
