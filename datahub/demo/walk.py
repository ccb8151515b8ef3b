"""The whole walk on one machine, with real parts as separate processes: what `make demo` runs.

chain -> hub -> SuperLink -> four nodes; list, order, train, settle, claim; then an order that one
hospital refuses. Everything listens on loopback. Knows no shortcut: every persona uses the same
doors as in production.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from datahub import config
from datahub.buyer.contributor import claim_all
from datahub.buyer.sdk import Buyer, Job
from datahub.buyer.waiting import evaluation_line, follow
from datahub.demo import charts
from datahub.demo import data as demo_data
from datahub.errors import HubError
from datahub.money import money
from datatokens.bindings.registry import Token
from datatokens.bindings.revenue import Revenue
from datatokens.chain.connection import Chain, connect
from datatokens.chain.rpc_server import accounts
from datatokens.deploy import deploy
from datatokens.errors import ChainUnreachable
from fl_client.data.tables import load
from fl_client.model.graph import load_model, predict, with_parameters
from fl_client.model.weights import to_safetensors
from fl_client.node import config as node_config
from fl_client.node.listing import Listing, list_dataset
from fl_client.privacy.ledger import Ledger
from fl_server.certificates import write_certificates
from fl_server.results import Result
from fl_server.superlink import operator_token

TUSD = 10**6
EPSILON, ROUNDS = 4.0, 10
SECOND_EPSILON, SECOND_ROUNDS = 3.0, 3
LIFETIME_EPSILON, SMALL_LIFETIME_EPSILON = (
    12.0,
    5.0,
)  # the last hospital cannot afford the second job
PRICES = (40, 30, 20, 10)
REWARD = 50
CONTRIBUTORS = 1000
BUYER_FUNDS = 1000
PURPOSE = "research: diagnosis support"
OPERATOR, FIRST_HOSPITAL, BUYER, FIRST_CONTRIBUTOR = 0, 1, 5, 6  # of the embedded chain's accounts

console = Console(highlight=False)


@dataclass(frozen=True)
class Hospital:
    """A hospital of the demo: its site, folder, dataset id."""

    name: str
    folder: Path
    dataset_id: int


class Processes:
    """The demo's own processes; only these are ever stopped."""

    def __init__(self, logs: Path):
        self.logs = logs
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str) -> None:
        """Start `python -m ...` with its output in logs/NAME.log."""
        self.logs.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "FLWR_TELEMETRY_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        with (self.logs / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
            )

    def check(self) -> None:
        """Raises HubError if one has ended, with the last line that it wrote."""
        for name, process in self.running.items():
            if process.poll() is not None:
                lines = (self.logs / f"{name}.log").read_text().strip().splitlines()
                raise HubError(
                    f"{name} ended unexpectedly: {lines[-1] if lines else 'no output'} (see "
                    f"{self.logs})"
                )

    def stop(self) -> None:
        """Stop all, last started first."""
        for process in reversed(self.running.values()):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self.running.values()):
            try:
                process.wait(timeout=8)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody uses now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(what: str, ready: Any, processes: Processes, timeout_s: float = 90) -> None:
    """Until `ready()` is true; raises HubError when a process has died or the time is over."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        processes.check()
        try:
            if ready():
                return
        except (httpx.HTTPError, ChainUnreachable, HubError):
            pass  # not up yet: asked again until the time is over
        time.sleep(0.1)
    raise HubError(f"{what} is not ready after {timeout_s:.0f} s; see {processes.logs}")


@contextlib.contextmanager
def stage(text: str, seconds: dict[str, float], key: str) -> Iterator[None]:
    """Say what is going on, time it, say how long it took."""
    started = time.monotonic()
    with console.status(f"{text} ..."):
        yield
    seconds[key] = time.monotonic() - started
    console.print(f"[green]✓[/] {text} [dim]({seconds[key]:.1f} s)[/]")


class Stack:
    """A running marketplace on loopback: chain, hub, SuperLink, and the nodes that join. Tests use
    it too.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.processes = Processes(folder / "logs")
        chain_port, hub_port, superlink_port = free_ports(3)
        self.chain_url = f"http://127.0.0.1:{chain_port}"
        self.hub_url = f"http://127.0.0.1:{hub_port}"
        self.superlink = f"127.0.0.1:{superlink_port}"
        self.accounts = accounts()

    def chain(self, account: int) -> Chain:
        """A chain connection with the key of one of the embedded chain's accounts."""
        return connect(self.chain_url, self.accounts[account][1])

    def start(self) -> None:
        """Chain, contracts, hub and SuperLink."""
        state = str(self.folder / "chain.sqlite")
        self.processes.start(
            "chain",
            "datatokens.chain.rpc_server",
            "--port",
            self.chain_url.rsplit(":", 1)[1],
            "--state",
            state,
        )
        wait_for("the chain", lambda: connect(self.chain_url), self.processes)
        superlink_folder = self.folder / "hub" / "superlink"
        write_certificates(superlink_folder)
        operator_token(superlink_folder)
        port = self.superlink.rsplit(":", 1)[1]
        self.processes.start(
            "superlink", "fl_server.superlink", "--folder", str(superlink_folder), "--port", port
        )
        operator = self.chain(OPERATOR)
        made = deploy(operator)
        Token(operator, made.payment_token).mint(self.accounts[BUYER][0], BUYER_FUNDS * TUSD)
        node_config.write_private(
            self.folder / "hub" / "keys" / "operator.key", self.accounts[OPERATOR][1].encode()
        )
        config.write(
            self.folder / "hub",
            chain=self.chain_url,
            chain_id=made.chain_id,
            registry=made.registry,
            market=made.market,
            payment_token=made.payment_token,
            superlink=self.superlink,
            superlink_folder=str(superlink_folder),
            database=f"sqlite:///{self.folder / 'hub' / 'hub.sqlite'}",
            fee_bps=250,
        )
        self.start_hub()

    def start_hub(self) -> None:
        """Start (or start again) the hub process."""
        port = self.hub_url.rsplit(":", 1)[1]
        self.processes.start(
            "hub", "datahub.cli", "hub", "start", str(self.folder / "hub"), "--port", port
        )
        health = f"{self.hub_url}/health"
        wait_for("the hub", lambda: httpx.get(health, timeout=2).status_code == 200, self.processes)

    @property
    def network(self) -> dict[str, Any]:
        """What the hub says of the network."""
        answer: dict[str, Any] = httpx.get(f"{self.hub_url}/api/network", timeout=10).json()
        return answer

    def start_node(self, folder: Path) -> None:
        """Start a node's process."""
        self.processes.start(f"node-{folder.name}", "datahub.cli", "node", "start", str(folder))

    def online(self, count: int) -> bool:
        """Whether `count` datasets have their node connected."""
        rows = httpx.get(f"{self.hub_url}/api/datasets", timeout=10).json()
        return sum(bool(row["online"]) for row in rows) >= count


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


LIFETIMES = (LIFETIME_EPSILON, LIFETIME_EPSILON, LIFETIME_EPSILON, SMALL_LIFETIME_EPSILON)


def join(
    stack: Stack,
    data: demo_data.DemoData,
    index: int,
    network: dict[str, Any],
    lifetimes: Sequence[float] = LIFETIMES,
) -> Hospital:
    """One hospital: make its node, list its dataset, post its contributors, start its process."""
    site = data.sites[index]
    folder = stack.folder / "nodes" / site.key
    made = node_config.create(
        folder, name=site.hospital, hub=stack.hub_url, chain=stack.chain_url, network=network
    )
    listing = Listing(
        name=f"{data.title}: {site.hospital}",
        description=data.origin,
        price_units=PRICES[index] * TUSD,
        contributor_bps=6000,
        lifetime_epsilon=lifetimes[index],
        delta=data.delta,
        patient_column=demo_data.PATIENT,
    )
    owner = stack.accounts[FIRST_HOSPITAL + index][1]
    entry = list_dataset(
        made, owner, site.table, data.schema, listing, contributor_list(stack, index)
    )
    stack.start_node(folder)
    return Hospital(site.hospital, folder, entry.dataset_id)


def summary_of(
    stack: Stack,
    job: Job,
    status: Mapping[str, Any],
    hospitals: Sequence[Hospital],
    before: int,
    paid_at: float,
) -> dict[str, Any]:
    """A job in the form of summary.json; `before` is the buyer's balance before paying."""
    buyer = stack.accounts[BUYER][0]
    after = Token(job.buyer.chain, stack.network["payment_token"]).balance_units(buyer)
    names = {h.dataset_id: h.name for h in hospitals}
    settled = status["state"] == "settled"
    report = (
        httpx.get(f"{stack.hub_url}/api/jobs/{job.id}/report", timeout=10).json()
        if settled
        else None
    )
    lines = report["hospitals"] if report else []
    at = {line["event"]: line["at"] for line in status["events"]}
    rounds = status["rounds"]
    seconds: dict[str, float] = {"funded_to_end": time.time() - paid_at}
    if settled:
        seconds |= {
            "funded_to_settled": seconds.pop("funded_to_end"),
            "run_start": at["started"] - paid_at,
            "admission": at["admission"] - at["started"],
            "rounds": sum(r["seconds"] for r in rounds),
            "round_median": statistics.median(r["seconds"] for r in rounds),
            "attestation": at["attestation"] - at["attesting"],
        }
    return {
        "job_id": job.id,
        "state": status["state"],
        "reason": status["reason"],
        "price_units": job.terms.amount_units,
        "paid": {
            names[line["dataset_id"]]: line["price_units"]
            + line["reward_units"]
            + line["compute_units"]
            for line in lines
        },
        "fee_units": job.terms.fee_units if settled else 0,
        "refund_units": after - (before - job.terms.amount_units),
        "epsilon": {names[line["dataset_id"]]: line["epsilon_job"] for line in lines},
        "epsilon_lifetime": {names[line["dataset_id"]]: line["epsilon_lifetime"] for line in lines},
        "delta": status["delta"],
        "rounds": len(rounds),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def test_auc(result: Result, data: demo_data.DemoData) -> float:
    """Pooled AUC of a result on the buyer's test table."""
    test = load(data.test, data.schema)
    model = with_parameters(load_model(result.graph, to_safetensors(result.arrays)), result.arrays)
    return float(roc_auc_score(test.targets, np.ravel(predict(model, test.features))))


def run(name: str, data_dir: Path | None, out: Path, keep: bool) -> None:
    """The demo. Raises HubError (and the other rooms' errors) with a sentence; always stops what it
    started.
    """
    state = out.parent / "demo-state"
    for folder in (state, out):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    data = demo_data.prepare(name, data_dir, state / "tables")
    console.print(f"[bold]{data.title}[/]: {data.origin}.")
    stack = Stack(state.resolve())
    seconds: dict[str, float] = {}
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # stopped from outside: still stop what was started
    try:
        with stage("chain, contracts, hub and SuperLink are up", seconds, "start"):
            stack.start()
        with stage(
            f"four hospitals have listed their datasets, {CONTRIBUTORS} contributors each",
            seconds,
            "list",
        ):
            network = stack.network
            with ThreadPoolExecutor(4) as pool:
                hospitals = list(pool.map(lambda i: join(stack, data, i, network), range(4)))
        with stage("four nodes are connected (TLS, authenticated, no open port)", seconds, "nodes"):
            wait_for("every node", lambda: stack.online(4), stack.processes)
        _walk(stack, data, hospitals, out, seconds)
        if keep:
            console.print(
                f"[bold]Everything keeps running; look at {stack.hub_url} and press Ctrl-C to "
                "end.[/]"
            )
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    finally:
        stack.processes.stop()


def _walk(
    stack: Stack,
    data: demo_data.DemoData,
    hospitals: list[Hospital],
    out: Path,
    seconds: dict[str, float],
) -> None:
    buyer = Buyer(stack.hub_url, chain=stack.chain_url, key=stack.accounts[BUYER][1])
    names = {h.dataset_id: h.name for h in hospitals}
    wallet = Token(buyer.chain, stack.network["payment_token"])
    console.print(
        f"\n[bold]Job 1[/]: a buyer with {money(wallet.balance_units(buyer.address))} orders a "
        "diagnosis model."
    )
    before = wallet.balance_units(buyer.address)
    ids = [h.dataset_id for h in hospitals]
    quote = buyer.quote(
        ids,
        epsilon=EPSILON,
        delta=data.delta,
        purpose=PURPOSE,
        rounds=ROUNDS,
        reward_units=REWARD * TUSD,
    )
    console.print(
        f"quote: {money(quote.amount_units)} for {ROUNDS} rounds, at most epsilon "
        f"{quote.epsilon:.3f} per patient at "
        f"delta {data.delta:g} (checked by the buyer before paying)"
    )
    job = buyer.pay(quote)
    paid_at = time.time()
    console.print(f"paid into escrow: job {job.id[:12]}, watch it at {stack.hub_url}/jobs/{job.id}")
    status = follow(job, console, names)
    if status["state"] != "settled":
        raise HubError(f"job 1 ended as {status['state']}: {status['reason']}")
    first = summary_of(stack, job, status, hospitals, before, paid_at)
    result = job.result()
    first["auc"] = test_auc(result, data)
    first["auc_without_dp"] = demo_data.auc_without_dp(data)
    took = first["seconds"]
    console.print(
        f"[green]settled[/] {took['funded_to_settled']:.1f} s after payment: run started "
        f"{took['run_start']:.1f}, "
        f"admission {took['admission']:.1f}, rounds {took['rounds']:.1f} (median "
        f"{took['round_median']:.2f} each), "
        f"attestation {took['attestation']:.1f}"
    )
    console.print(
        "the model opens with the buyer's key only, and is the one attested on-chain: AUC "
        f"{first['auc']:.3f} on "
        f"patients nobody trained on; pooled without privacy {first['auc_without_dp']:.3f}"
    )
    console.print(
        "measured by the hospitals on their own patients: "
        + evaluation_line(json.loads(result.report)["evaluation"])
    )
    claims = _claim(stack)
    _money_table(stack, first, claims, hospitals)
    second = _second_job(stack, buyer, hospitals, data, names, wallet)
    _write(out, data, stack, [first, second], claims, hospitals, status, result, job, seconds)


def _claim(stack: Stack) -> list[dict[str, Any]]:
    def one(i: int) -> dict[str, Any]:
        account, key = stack.accounts[FIRST_CONTRIBUTOR + i]
        paid = claim_all(stack.hub_url, stack.chain_url, key)
        return {
            "account": account,
            "units": sum(paid.values()),
            "per_dataset": {str(k): v for k, v in paid.items()},
        }

    with ThreadPoolExecutor(3) as pool:
        claims = list(pool.map(one, range(3)))
    for claim in claims:
        console.print(
            f"contributor {claim['account'][:10]}… claimed {money(claim['units'])} from "
            f"{len(claim['per_dataset'])} datasets"
        )
    return claims


def _plain(units: int) -> str:
    return money(units).removesuffix(" tUSD")


def _money_table(
    stack: Stack, first: dict[str, Any], claims: list[dict[str, Any]], hospitals: list[Hospital]
) -> None:
    """Who got what, read from the chain; the sums must agree to the last unit."""
    revenue = Revenue(stack.chain(BUYER), stack.network["market"])
    table = Table(title="Who got what (job 1, in tUSD)")
    for column in ("hospital", "paid", "own part", "contributors", "claimed", "epsilon"):
        table.add_column(column, justify="left" if column == "hospital" else "right")
    parts = {}
    for h in hospitals:
        pool, epoch = revenue.pool(h.dataset_id), revenue.epoch(h.dataset_id, 1)
        parts[h.name] = (pool.hospital_units, epoch.credited_units)
        claimed = sum(c["per_dataset"].get(str(h.dataset_id), 0) for c in claims)
        if (
            claimed != epoch.claimed_units
            or pool.hospital_units + epoch.credited_units != first["paid"][h.name]
        ):
            raise HubError(f"the chain's figures for {h.name} do not add up")
        row = (first["paid"][h.name], pool.hospital_units, epoch.credited_units, claimed)
        table.add_row(h.name, *(_plain(units) for units in row), f"{first['epsilon'][h.name]:.3f}")
    paid = sum(first["paid"].values())
    if paid + first["fee_units"] + first["refund_units"] != first["price_units"]:
        raise HubError("what was paid, the fee and the change do not sum to the price")
    claimed = sum(c["units"] for c in claims)
    sums = (paid, sum(p[0] for p in parts.values()), sum(p[1] for p in parts.values()), claimed)
    table.add_section()
    table.add_row("sum", *(_plain(units) for units in sums), "")
    console.print(table)
    console.print(
        f"escrowed {money(first['price_units'])} = paid {money(paid)} + hub's fee "
        f"{money(first['fee_units'])} "
        f"+ change {money(first['refund_units'])}"
    )
    first["parts"] = {
        name: {"hospital_units": a, "contributor_units": b} for name, (a, b) in parts.items()
    }


def _second_job(
    stack: Stack,
    buyer: Buyer,
    hospitals: list[Hospital],
    data: demo_data.DemoData,
    names: dict[int, str],
    wallet: Token,
) -> dict[str, Any]:
    console.print(
        f"\n[bold]Job 2[/]: the buyer asks for epsilon {SECOND_EPSILON:g} more; "
        f"{hospitals[-1].name} has a lifetime "
        f"budget of {SMALL_LIFETIME_EPSILON:g}."
    )
    before = wallet.balance_units(buyer.address)
    ids = [h.dataset_id for h in hospitals]
    job = buyer.order(
        ids, epsilon=SECOND_EPSILON, delta=data.delta, purpose=PURPOSE, rounds=SECOND_ROUNDS
    )
    paid_at = time.time()
    console.print(f"paid {money(job.terms.amount_units)} into escrow")
    status = follow(job, console, names)
    second = summary_of(stack, job, status, hospitals, before, paid_at)
    after = wallet.balance_units(buyer.address)
    if status["state"] != "refunded" or after != before:
        raise HubError(f"job 2 ended as {status['state']}, the buyer has {after} of {before} units")
    console.print(
        "[yellow]refunded[/] on the hospital's signed refusal, "
        f"{second['seconds']['funded_to_end']:.1f} s after payment: "
        f"the buyer has {money(after)} again, every unit"
    )
    return second


def _write(
    out: Path,
    data: demo_data.DemoData,
    stack: Stack,
    jobs: list[dict[str, Any]],
    claims: list[dict[str, Any]],
    hospitals: list[Hospital],
    status: Mapping[str, Any],
    result: Result,
    job: Job,
    seconds: dict[str, float],
) -> None:
    (out / "model.safetensors").write_bytes(to_safetensors(result.arrays))
    (out / "graph.json").write_bytes(result.graph)
    (out / "report.json").write_bytes(result.report)
    (out / "terms.json").write_bytes(job.terms.to_json())
    charts.learning_curve(status["rounds"], out / "learning_curve.png")
    meter = {}
    for h in hospitals:
        ledger = Ledger(h.folder / "ledger.sqlite")
        (entry,) = node_config.read(h.folder).datasets
        meter[h.name] = (
            ledger.epsilon_spent(entry.patient_set),
            ledger.budget(entry.patient_set)[0],
        )
    charts.epsilon_meter(meter, data.delta, out / "epsilon_meter.png")
    parts = jobs[0]["parts"]
    in_tokens = {
        n: (p["hospital_units"] / TUSD, p["contributor_units"] / TUSD) for n, p in parts.items()
    }
    charts.payouts(in_tokens, out / "payouts.png")
    summary = {
        "data": data.title,
        "origin": data.origin,
        "jobs": jobs,
        "claims": claims,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(
        f"\n{out}/ holds model.safetensors, graph.json, report.json, terms.json, summary.json and "
        "three charts "
        "(learning_curve.png, epsilon_meter.png, payouts.png)."
    )
