"""Commands that only look or claim start fast: they talk to a real hub and load no torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import datahub as datahub_room
from datahub.buyer import networks
from datahub.cli import __doc__ as cli_doc
from datahub.cli import app
from datahub.errors import HubError, NotSettled, Refunded
from datahub.market import claims
from datahub.shell.moved import MOVED
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
    done = run("data", "list", "--hub", hub_url, "--json")
    assert done.returncode == 0, done.stderr
    assert [row["manifest"]["persons"] for row in json.loads(done.stdout)[:3]] == [100, 200, 300]


def test_network_add_and_synthetic__as_json__say_what_was_written(
    hub_url: str, hub: HubWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAHUB_HOME", str(tmp_path / "home"))
    done = run("network", "add", "it", "--hub", hub_url, "--chain", hub.bank.url, "--yes", "--json")
    assert json.loads(done.stdout)["market"] == hub.bank.deployment.market, done.stderr
    out = str(tmp_path / "t.csv")
    done = run("data", "synthetic", "1", "--hub", hub_url, "--out", out, "--records", "3", "--json")
    assert json.loads(done.stdout) == {"dataset_id": 1, "file": out, "records": 3}, done.stderr


# what serves until it is stopped, what an operator does once, what prints a file as it is
WITHOUT_JSON = """
node start|node page|node service|hub init|hub start|hub superlink|hub service|demo
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
    done = run("job", "show", row.job_id, "--hub", hub_url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "funded, 0 of 2 rounds"


def test_claim__a_contributors_share__no_torch(hub: HubWorld, pinned: Path) -> None:
    dataset_id = earning(hub)
    owed = {c.dataset_id: c.claimable_units for c in claims.claims_of(hub.desk, ACCOUNTS[1])}
    key_file = hub.desk.config.folder / "anybody.key"
    key_file.write_text(accounts()[7][1])
    assert pinned.exists()
    done = run("claim", "all", "--key-file", str(key_file), "--account", ACCOUNTS[1], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {str(dataset_id): owed[dataset_id]}


def test_sdk__connecting_disputing_and_opening_results__no_torch_until_a_model_is_quoted() -> None:
    script = "import sys, datahub.buyer.sdk; assert not {'torch', 'opacus'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("old", "new"), [*MOVED.items(), ("job 12ab", "job show")], ids=str)
def test_an_old_name__is_answered_with_the_new_one_in_one_sentence(old: str, new: str) -> None:
    ended = CliRunner(env={"COLUMNS": "200"}).invoke(app, old.split())
    assert ended.exit_code == 2 and ended.stdout == ""
    typed = old.split()[0]
    (said,) = ended.stderr.splitlines()
    assert said == f"moved: `datahub {typed}` is `datahub {new}` now (datahub {new} --help)"
    group, command = new.split()
    assert command in get_command(app).commands[group].commands  # type: ignore[attr-defined]


def test_an_old_claim__with_its_flags__is_answered_too() -> None:
    ended = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["claim", "--key-file", "wallet.key"])
    assert ended.exit_code == 2 and "is `datahub claim all` now" in ended.stderr
    ended = CliRunner().invoke(app, ["claim", "--help"])
    assert ended.exit_code == 0 and "moved" not in ended.output


def test_no_text_of_the_product__names_an_old_command() -> None:
    """Sentences of every room, pages, guides and the README."""
    root = Path(datahub_room.__file__).parent.parent
    texts = [root / "README.md", root / "Makefile"]
    for room in ("datatokens", "fl_client", "fl_server", "datahub", "tests"):
        for kind in ("py", "html", "js", "md"):
            found = (root / room).rglob(f"*.{kind}")
            texts += [path for path in found if "node_modules" not in path.parts]
    old = re.compile(rf"(`|<code>|: |with |DATAHUB_HOME=\S+ |^)datahub ({'|'.join(MOVED)})\b", re.M)
    where = {
        f"{path.relative_to(root)}: {one.group()}"
        for path in texts
        for one in old.finditer(path.read_text())
    }
    assert not where


# the words typed so far -> what completes the last
COMPLETIONS = {
    "datahub ": {"order", "job", "data", "model", "claim", "network", "node", "owner", "hub"},
    "datahub jo": {"job"},
    "datahub job re": {"resume", "result", "refund", "repeat"},
    "datahub order new --dispute-": {"--dispute-arbiter", "--dispute-bond-units"},
    "datahub job list --network h": {"here"},
}


@pytest.mark.parametrize("typed", COMPLETIONS)
def test_completion_in_a_shell__of_a_group_a_command_a_flag_and_a_network(
    pinned: Path, typed: str
) -> None:
    words = typed.split()
    environment = {
        **os.environ,
        "_DATAHUB_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) if typed.endswith(" ") else len(words) - 1),
    }
    command = [sys.executable, "-m", "datahub.cli"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert COMPLETIONS[typed] <= set(done.stdout.split()), done.stdout + done.stderr


def test_completion__can_be_installed() -> None:
    # typer looks for the shell among its parents, and a test may have none
    command = ["bash", "-c", f'"{sys.executable}" -m datahub.cli --show-completion; exit $?']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "_DATAHUB_COMPLETE=complete_bash" in done.stdout, done.stderr


def test_exit_codes__are_those_of_the_table_in_the_readme(
    hub: HubWorld, pinned: Path, tmp_path: Path
) -> None:
    """0 to 3 as a shell sees them; 4 is in test_watching.py."""
    row, _ = hub.job()
    for code, words in {
        0: ["job", "show", row.job_id],
        1: ["job", "show", "00" * 32],
        2: ["job", "show"],
        3: ["job", "watch", row.job_id, "--for-s", "0"],
    }.items():
        done = subprocess.run(
            [sys.executable, "-m", "datahub.cli", *words], capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert [HubError.exit_code, NotSettled.exit_code, Refunded.exit_code] == [1, 3, 4]
    readme = (Path(datahub_room.__file__).parent.parent / "README.md").read_text()
    table = re.findall(r"^\| (\d) \| (.+) \|$", readme.split("Exit codes")[1], re.M)
    assert [number for number, _ in table[:5]] == list("01234")
    assert cli_doc is not None
    for number, meaning in table[:5]:
        assert re.search(rf"^ +{number} +{re.escape(meaning)}$", cli_doc, re.M), meaning


def test_claim_list__of_an_account__what_waits_and_what_was_taken(
    hub: HubWorld, pinned: Path
) -> None:
    dataset_id = earning(hub)
    done = run("claim", "list", "--account", ACCOUNTS[1], "--json")
    found = {row["dataset_id"]: row for row in json.loads(done.stdout)}
    assert found[dataset_id]["claimable_units"] > 0 and found[dataset_id]["claimed_units"] == 0
    done = run("claim", "list", "--account", ACCOUNTS[1])
    assert "base units)" in done.stdout and "datahub claim all" in done.stdout
    (key := hub.desk.config.folder / "nobody.key").write_text(accounts()[7][1])
    done = run("claim", "list", "--key-file", str(key))
    assert "is a contributor of no dataset of this hub" in " ".join(done.stdout.split())
