"""Commands that only look or claim start fast: they talk to a real hub and load no torch."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from datahub.market import claims
from datahub.web.api import create_app
from datatokens.chain.rpc_server import accounts
from tests.datahub.hub_world import HubWorld
from tests.datahub.test_claims import earning
from tests.datahub.test_contributors import ACCOUNTS

WITHOUT_TORCH = """
import sys
from datahub.cli import main
try:
    main()
except SystemExit as ended:
    if ended.code: raise
heavy = {"torch", "opacus", "flwr", "fastapi"} & set(sys.modules)
assert not heavy, f"loaded {heavy}"
"""


@pytest.fixture
def url(hub: HubWorld) -> Iterator[str]:
    """The hub's own API on a free port of loopback."""
    hub.desk.config.superlink_folder.mkdir()
    (hub.desk.config.superlink_folder / "ca.crt").write_text("none is needed here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_app(hub.desk, drive=False)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=20)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_datasets__the_catalogue__no_torch(url: str) -> None:
    done = run("datasets", "--hub", url, "--json")
    assert done.returncode == 0, done.stderr
    assert [row["manifest"]["persons"] for row in json.loads(done.stdout)[:3]] == [100, 200, 300]


def test_job__where_it_stands__no_torch(hub: HubWorld, url: str) -> None:
    row, _ = hub.job()
    done = run("job", row.job_id, "--hub", url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "funded, 0 of 2 rounds"


def test_claim__a_contributors_share__no_torch(hub: HubWorld, url: str) -> None:
    dataset_id = earning(hub)
    owed = {c.dataset_id: c.claimable_units for c in claims.claims_of(hub.desk, ACCOUNTS[1])}
    key_file = hub.desk.config.folder / "anybody.key"
    key_file.write_text(accounts()[7][1])
    common = ["--hub", url, "--chain", hub.bank.url, "--key-file", str(key_file)]
    done = run("claim", *common, "--account", ACCOUNTS[1], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {str(dataset_id): owed[dataset_id]}


def test_sdk__connecting_disputing_and_opening_results__no_torch_until_a_model_is_quoted() -> None:
    script = "import sys, datahub.buyer.sdk; assert not {'torch', 'opacus'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
