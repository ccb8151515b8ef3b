"""One embedded chain with a market for all tests of the hub; a new hub on it for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bank_world import World, found_world

from datahub.market import catalogue
from datatokens.chain.rpc_server import running_devchain
from tests.datahub.hub_world import HubWorld, manifest, open_hub, publish_manifests


@pytest.fixture(scope="session")
def bank() -> Iterator[World]:
    with running_devchain(instant=True) as url:
        made = found_world(url)
        publish_manifests(made)
        yield made


@pytest.fixture
def bare_hub(bank: World, tmp_path: Path) -> HubWorld:
    """A hub that has not been sent a manifest yet."""
    return open_hub(bank, tmp_path)


@pytest.fixture
def hub(bare_hub: HubWorld) -> HubWorld:
    """A hub with all three datasets in its catalogue."""
    for number in bare_hub.bank.dataset_ids:
        catalogue.put_manifest(bare_hub.desk, number, manifest(number).as_dict())
    return bare_hub
