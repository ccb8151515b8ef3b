"""One chain of each kind for the whole test run, and a small market on each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bank_world import World, found_world

from datatokens.chain.rpc_server import anvil_binary, running_anvil, running_devchain


@pytest.fixture(scope="session", params=["devchain", "anvil"])
def chain_url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "anvil" and anvil_binary() is None:
        pytest.skip("anvil is not installed: `npm ci` in datatokens/, or put anvil on PATH")
    with running_anvil() if request.param == "anvil" else running_devchain(instant=True) as url:
        yield url


@pytest.fixture(scope="session")
def world(chain_url: str) -> World:
    return found_world(chain_url)
