"""One embedded chain with a market for all tests of the hub; a new hub on it for each. A plugin of
tests/conftest.py, as the tests of the hub, of buyers and of faults share it.
"""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from bank_world import World, found_world
from sqlalchemy import text

from datahub.market import catalogue
from datahub.web.api import create_app
from datatokens.chain.rpc_server import running_devchain
from tests.datahub.hub_world import HubWorld, manifest, open_hub, publish_manifests


@pytest.fixture(scope="session")
def hub_bank() -> Iterator[World]:
    with running_devchain(instant=True) as url:
        made = found_world(url)
        publish_manifests(made)
        yield made


@pytest.fixture(scope="session")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of the last test's hub, so that the next one's reads only what is new."""
    return tmp_path_factory.mktemp("index") / "hub.sqlite"


@pytest.fixture
def bare_hub(hub_bank: World, tmp_path: Path, indexed: Path) -> HubWorld:
    """A hub that has not been sent a manifest yet."""
    (tmp_path / "hub").mkdir()
    if indexed.exists():
        shutil.copy(indexed, tmp_path / "hub" / "hub.sqlite")
    hub = open_hub(hub_bank, tmp_path)
    hub.desk.index.catch_up()
    indexed.unlink(missing_ok=True)
    with hub.desk.session() as session:
        session.exec(text(f"VACUUM INTO '{indexed}'"))  # type: ignore[call-overload]
    return hub


@pytest.fixture
def hub(bare_hub: HubWorld) -> HubWorld:
    """A hub with all three datasets in its catalogue."""
    for number in bare_hub.bank.dataset_ids:
        catalogue.put_manifest(bare_hub.desk, number, manifest(number).as_dict())
    return bare_hub


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """An application on a free port of loopback; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=20)


@pytest.fixture
def hub_url(hub: HubWorld) -> Iterator[str]:
    """The hub's own API over HTTP."""
    hub.desk.config.superlink_folder.mkdir(exist_ok=True)
    (hub.desk.config.superlink_folder / "ca.crt").write_text("none is needed here")
    with serving(create_app(hub.desk, drive=False)) as url:
        yield url
