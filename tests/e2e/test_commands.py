"""Every persona's commands, as a person types them, on the running marketplace."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from datahub import cli
from datahub.demo import data as demo_data
from datahub.demo.stack import wait_for
from fl_client.node import config as node_config
from tests.clinic import FOR_EVERYBODY
from tests.e2e.conftest import Marketplace

pytestmark = pytest.mark.e2e

NOWHERE = "http://127.0.0.1:9"


def datahub(*arguments: str | Path, fails: bool = False) -> str:
    """`datahub ...` by its entry point; its standard output, or its complaint where it should fail.
    In this process: fifty new ones would spend a minute on imports (test_ask.py starts one).
    """
    out, complaint = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(out),
        redirect_stderr(complaint),
    ):
        patch.setattr(sys, "argv", ["datahub", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.StringIO())
        try:
            cli.main()
            code: object = 0
        except SystemExit as ended:
            code = ended.code
    said, complained = out.getvalue(), complaint.getvalue()
    assert (code not in (0, None)) is fails, said + complained
    return " ".join((complained if fails else said).split())


def started(*arguments: str | Path, fails: bool = False) -> str:
    """The same in a process of its own: what starts a node sets how the processor rounds."""
    done = subprocess.run(
        [sys.executable, "-m", "datahub.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    return " ".join((done.stderr if fails else done.stdout).split())


def test_commands__a_fifth_hospital_joins_sells_and_a_contributor_claims(
    marketplace: Marketplace, tmp_path: Path
) -> None:
    m, stack = marketplace, marketplace.stack
    where = ["--hub", stack.hub_url, "--chain", stack.chain_url]
    node = tmp_path / "fifth"
    assert "code is that of this version" in datahub(
        "node", "init", node, "--name", "Fifth", *where
    )
    assert "holds a node already" in datahub(
        "node", "init", node, "--name", "Fifth", *where, fails=True
    )

    # its people let everybody in, so that nobody has to be asked
    with (node / "node.toml").open("a") as toml:
        toml.write(FOR_EVERYBODY)
    table = tmp_path / "table.csv"
    table.write_text(m.data.sites[0].table.read_text())
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(m.data.schema.as_dict()))
    contributors = tmp_path / "contributors.csv"
    account, key = stack.accounts[10]
    contributors.write_text(f"account,weight\n{account},3\n0x{'9' * 40},1\n")
    owner = tmp_path / "owner.key"
    owner.write_text(stack.accounts[11][1])
    add = [
        "node",
        "add-dataset",
        node,
        "--file",
        table,
        "--schema",
        schema,
        "--name",
        "Fifth's table",
        "--price-units",
        "4000000",
        "--contributors",
        contributors,
        "--owner-key-file",
        owner,
        "--patient-column",
        demo_data.PATIENT,
        "--records-per-patient",
        "1",
    ]
    tiny = tmp_path / "tiny.csv"
    tiny.write_text("\n".join(table.read_text().splitlines()[:8]))
    assert "persons=7 is under the floor of 10" in datahub(
        *[tiny if a == table else a for a in add], fails=True
    )
    assert "is listed with about" in datahub(*add)
    (entry,) = node_config.read(node).datasets

    backup = tmp_path / "backup.sqlite"
    with contextlib.closing(sqlite3.connect(node / "ledger.sqlite")) as db:
        db.execute("VACUUM INTO ?", (str(backup),))
    stack.start_node(node)

    def online() -> bool:
        rows = json.loads(datahub("data", "list", "--hub", stack.hub_url, "--json"))
        return bool(next(r for r in rows if r["dataset_id"] == entry.dataset_id)["online"])

    wait_for("the fifth node", online, stack.processes)

    wallet = tmp_path / "buyer.key"
    wallet.write_text(stack.accounts[5][1])
    out = tmp_path / "result"
    bought = datahub(
        "order",
        "new",
        "--key-file",
        wallet,
        "--dataset",
        str(entry.dataset_id),
        "--epsilon",
        "1",
        "--purpose",
        "research",
        "--rounds",
        "2",
        "--out",
        out,
        "--yes",
        "--json",
    )
    job = json.loads(bought)["job_id"]
    assert json.loads(bought)["state"] == "settled"
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors",
        "graph.json",
        "report.json",
        "terms.json",
        "schema.json",
        "README.md",
    }
    said = json.loads(datahub("model", "predict", out, table, "--json"))
    assert said["records"] == len(table.read_text().splitlines()) - 1
    assert list(said["answers"]) == ["malignant"]
    assert all(0 <= chance <= 1 for chance in said["answers"]["malignant"])
    again = tmp_path / "again"
    assert "settled; model" in datahub(
        "job", "result", job[:12], "--key-file", wallet, "--out", again
    )
    assert (again / "report.json").read_bytes() == (out / "report.json").read_bytes()
    passport = json.loads(datahub("model", "verify", again, "--json"))
    assert passport["job_id"] == job and passport["datasets"] == [entry.dataset_id]
    assert "is the one that 1 hospital signed for" in datahub("model", "verify", again)
    said = json.loads((again / "report.json").read_bytes())
    first = said["rounds"][0]
    forged = tmp_path / "forged"
    shutil.copytree(again, forged)
    text = (forged / "report.json").read_text().replace(f"{first['loss']}", "0.01", 1)
    (forged / "report.json").write_text(text)
    assert "the report is not the one that was signed for" in datahub(
        "model", "verify", forged, fails=True
    )
    mine = json.loads(datahub("job", "list", "--key-file", wallet, "--json"))
    assert next(r for r in mine if r["job_id"] == job)["state"] == "settled"
    assert "there is nothing to take back" in datahub(
        "job", "refund", job, "--key-file", wallet, fails=True
    )
    assert "settled, 2 of 2 rounds" in datahub("job", "show", job, "--hub", stack.hub_url)
    for hospital in m.hospitals:  # a run leaves no trace at hospitals that are not in its terms
        assert not (hospital.folder / "jobs" / job).exists()

    whole: dict[str, Any] = {}

    def walls() -> bool:
        whole.update(json.loads(datahub("node", "status", node, "--json")))
        return bool(whole["running"]) and whole["contacts"]["walls"] is not None

    wait_for("the walls that a job has needed, in the node's file", walls, stack.processes)
    assert all(whole["at"] - at < 600 for at in whole["contacts"]["spoke"].values())
    assert whole["datasets"][0]["earned"]["hospital_units"] == 2_000_000
    status = whole["datasets"]
    assert 0.9 < status[0]["epsilon_spent"] < 2.5 and status[0]["jobs"][0]["rounds_answered"] == 2
    shown = json.loads(datahub("owner", "show", node, str(entry.dataset_id), "--json"))
    assert (shown["state"], shown["hospital_units"], shown["stated_epsilon"]) == (
        "active",
        2_000_000,
        8.0,
    )
    as_owner = (node, str(entry.dataset_id))
    signed = ("--owner-key-file", owner)
    assert "2.00 tUSD (2000000 base units) went to" in datahub(
        "owner", "withdraw", *as_owner, *signed
    )
    assert "has nothing to withdraw" in datahub("owner", "withdraw", *as_owner, *signed, fails=True)
    assert "is paused" in datahub("owner", "state", *as_owner, "paused", *signed)
    assert "must be one of active, paused, retired" in datahub(
        "owner", "state", *as_owner, "gone", *signed, fails=True
    )
    assert "is active" in datahub("owner", "state", *as_owner, "active", *signed)
    assert "costs 5.00 tUSD (5000000 base units)" in datahub(
        "owner", "price", *as_owner, "0", "5000000", *signed
    )
    assert "has tier 1" in datahub(
        "owner", "add-tier", *as_owner, "--symbol", "DAY", "--hours", "24", *signed
    )
    limits = ("--per-account", "1", "--in-all", "10")
    assert "is on" in datahub("owner", "dispenser", *as_owner, "1", *limits, *signed)
    given = datahub("owner", "give", *as_owner, "0", stack.accounts[5][0], "2", *signed)
    assert "2 datatokens of tier 0" in given
    held = datahub("data", "tiers", str(entry.dataset_id), "--key-file", wallet, "--json")
    assert [tier["held"] for tier in json.loads(held)] == [2, 0]
    assert "is closed" in datahub("owner", "close-tier", *as_owner, "1", *signed)
    assert "is manager of" in datahub("owner", "role", *as_owner, account, "manager", *signed)
    assert "1 accounts are denied" in datahub(
        "owner", "buyers", *as_owner, "denied", account, *signed
    )
    assert "no contributor list that waits" in datahub(
        "owner", "activate", *as_owner, "--key-file", owner, fails=True
    )
    assert "tier 1" not in datahub("owner", "show", *as_owner) or "closed" in datahub(
        "owner", "show", *as_owner
    )
    assert "offers: 2 cores" in datahub("node", "offer", node, "--hardware", "2 cores", *signed)
    about = f"/api/v1/hospitals/{shown['node']}"
    wait_for(
        "the index", lambda: m.buyer.hub.get(about)["description"] == "2 cores", stack.processes
    )
    assert m.buyer.hub.get(about)["datasets"][0]["settled"] == 1

    stack.deployment.save(tmp_path / "deployment.json")
    rows = json.loads(
        datahub(
            "chain", "privacy", tmp_path / "deployment.json", "--chain", stack.chain_url, "--json"
        )
    )
    mine = next(row for row in rows if row["dataset_id"] == entry.dataset_id)
    assert mine["jobs"] == 1 and mine["epsilon"] == pytest.approx(
        status[0]["epsilon_spent"], abs=1e-5
    )
    assert mine["stated_epsilon"] == 8.0 and not mine["overspent"]
    assert "OVERSPENT" not in datahub(
        "chain", "privacy", tmp_path / "deployment.json", "--chain", stack.chain_url
    )

    # a row more is the next version of the same dataset, whose patients keep what they have spent
    fresh = tmp_path / "fresh.csv"
    head, first, *rest = table.read_text().splitlines()
    fresh.write_text("\n".join([head, first, *rest, first.rsplit(",", 1)[0] + ",new"]))
    table.unlink()
    assert "is not there; if it was moved" in datahub("node", "status", node)
    replaced = json.loads(
        datahub("node", "replace-dataset", *as_owner, "--file", fresh, *signed, "--json")
    )
    assert replaced["manifest_version"] == 2 and replaced["persons"] > 0
    shown_now = m.buyer.hub.get("/api/v1/datasets")
    assert next(r for r in shown_now if r["dataset_id"] == entry.dataset_id)["manifest"]["persons"]
    after = json.loads(datahub("node", "status", node, "--json"))["datasets"][0]
    assert after["not_served"] == "" and after["epsilon_spent"] > status[0]["epsilon_spent"]
    assert "takes no part any more" in datahub("node", "withdraw-patient", node, "new")
    assert "nobody with this identifier" in datahub(
        "node", "withdraw-patient", node, "nobody", fails=True
    )

    assert "kept for its jobs" in datahub("node", "rotate-key", node, *signed)
    renewed = node_config.read(node)
    assert renewed.node_address != shown["node"] and shown["node"] in renewed.node_keys
    assert datahub("owner", "show", *as_owner).count(renewed.node_address) == 1

    wallet.write_text(key)
    paid = json.loads(datahub("claim", "all", "--key-file", wallet, "--json"))
    assert paid == {str(entry.dataset_id): 4_000_000 * 5000 // 10_000 * 3 // 4}
    assert "nothing to claim now" in datahub("claim", "all", "--key-file", wallet)
    # an older ledger changes nothing until the difference is charged
    spent = json.loads(datahub("node", "status", node, "--json"))["datasets"][0]["epsilon_spent"]
    for path in node.glob("ledger.sqlite*"):
        path.unlink()
    (node / "ledger.sqlite").write_bytes(backup.read_bytes())
    assert "datahub node reconcile FOLDER" in datahub(
        "node", "withdraw-patient", node, "new", fails=True
    )
    charged = json.loads(datahub("node", "reconcile", node, "--json"))
    assert [f"job {job[:12]} as a whole" in one["what"] for one in charged].count(True) == 1
    assert (
        json.loads(datahub("node", "status", node, "--json"))["datasets"][0]["epsilon_spent"]
        >= spent - 1e-9
    )
    assert "nothing was lacking" in datahub("node", "reconcile", node)
    assert "is retired and no longer served" in datahub(
        "node", "remove-dataset", *as_owner, *signed
    )
    assert json.loads(datahub("node", "status", node, "--json"))["datasets"] == []


def test_commands__an_operator_makes_a_hub_of_their_own(
    marketplace: Marketplace, tmp_path: Path
) -> None:
    key = tmp_path / "operator.key"
    key.write_text(marketplace.stack.accounts[12][1])
    folder = tmp_path / "hub"
    said = datahub("hub", "init", folder, "--chain", marketplace.stack.chain_url, "--key-file", key)
    assert "registry 0x" in said and "market 0x" in said
    assert (folder / "superlink" / "operator.token").stat().st_mode & 0o077 == 0
    pinned = ("network", "add", "mine", "--hub", marketplace.stack.hub_url)
    assert "is pinned already, to market" in datahub(
        *pinned, "--chain", marketplace.stack.chain_url, "--yes", fails=True
    )
    assert (
        json.loads(
            datahub(
                "chain",
                "privacy",
                folder / "deployment.json",
                "--chain",
                marketplace.stack.chain_url,
                "--json",
            )
        )
        == []
    )
    assert "holds no hub.toml" in datahub("hub", "start", tmp_path / "nothing", fails=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["node", "start", "nowhere"], "holds no node.toml"),
        (["job", "show", "ab", "--hub", NOWHERE], "does not answer"),
        (
            ["claim", "all", "--network", "nobody", "--key-file", "missing"],
            "network 'nobody' is not pinned",
        ),
        (["demo", "--data", "iris"], "DATA=iris must be one of"),
    ],
)
def test_commands__mistakes__are_one_sentence(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    assert said in started(
        *arguments, *(["--out", tmp_path / "o"] if arguments[0] == "demo" else []), fails=True
    )
