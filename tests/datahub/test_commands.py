"""Commands that only look or claim start fast: they talk to a real hub and load no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from datahub.buyer import networks
from datahub.cli import app
from datahub.market import claims
from datatokens.chain.rpc_server import accounts
from tests.datahub.hub_world import FEE_BPS, HubWorld
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
def pinned(hub: HubWorld, hub_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's network as the person has pinned it, in a folder of its own."""
    monkeypatch.setenv("DATAHUB_HOME", str(tmp_path / "home"))
    made = hub.bank.deployment
    return networks.pin(networks.Network("here", hub_url, hub.bank.url, FEE_BPS, made))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_datasets__the_catalogue__no_torch(hub_url: str) -> None:
    done = run("datasets", "--hub", hub_url, "--json")
    assert done.returncode == 0, done.stderr
    assert [row["manifest"]["persons"] for row in json.loads(done.stdout)[:3]] == [100, 200, 300]


def test_network_add_and_synthetic__as_json__say_what_was_written(
    hub_url: str, hub: HubWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAHUB_HOME", str(tmp_path / "home"))
    done = run("network", "add", "it", "--hub", hub_url, "--chain", hub.bank.url, "--yes", "--json")
    assert json.loads(done.stdout)["market"] == hub.bank.deployment.market, done.stderr
    out = str(tmp_path / "t.csv")
    done = run("synthetic", "1", "--hub", hub_url, "--out", out, "--records", "3", "--json")
    assert json.loads(done.stdout) == {"dataset_id": 1, "file": out, "records": 3}, done.stderr


# what serves until it is stopped, what an operator does once, what prints a file as it is, and what
# an owner sets (the exit status says whether it took, `owner show --json` what is set)
WITHOUT_JSON = """
node start|node page|node service|hub init|hub start|hub superlink|demo|chain deploy|chain verify
owner state|owner price|owner add-tier|owner close-tier|owner dispenser|owner role|owner buyers
owner activate|owner contributors|owner withdraw
"""


def test_every_command_that_a_script_would_call__has_json() -> None:
    without = set()
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None) or {"": command}
        for word, one in inner.items():
            for last, each in (getattr(one, "commands", None) or {"": one}).items():
                if not any("--json" in parameter.opts for parameter in each.params):
                    without.add(f"{name} {word} {last}".strip())
    assert without == set(WITHOUT_JSON.strip().replace("\n", "|").split("|"))


def test_job__where_it_stands__no_torch(hub: HubWorld, hub_url: str) -> None:
    row, _ = hub.job()
    done = run("job", row.job_id, "--hub", hub_url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "funded, 0 of 2 rounds"


def test_claim__a_contributors_share__no_torch(hub: HubWorld, pinned: Path) -> None:
    dataset_id = earning(hub)
    owed = {c.dataset_id: c.claimable_units for c in claims.claims_of(hub.desk, ACCOUNTS[1])}
    key_file = hub.desk.config.folder / "anybody.key"
    key_file.write_text(accounts()[7][1])
    assert pinned.exists()
    done = run("claim", "--key-file", str(key_file), "--account", ACCOUNTS[1], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {str(dataset_id): owed[dataset_id]}


def test_sdk__connecting_disputing_and_opening_results__no_torch_until_a_model_is_quoted() -> None:
    script = "import sys, datahub.buyer.sdk; assert not {'torch', 'opacus'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
