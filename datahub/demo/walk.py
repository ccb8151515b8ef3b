"""The whole walk on one machine: what `make demo` runs.

Four hospitals list and connect; order, train, settle, claim; then an order that one hospital
refuses. Knows no shortcut: every persona uses the same doors as in production. The processes under
it are stack.py's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.table import Table

from datahub.buyer import networks
from datahub.buyer.contributor import claim_all
from datahub.buyer.sdk import Market, Quote
from datahub.buyer.waiting import evaluation_line, follow
from datahub.demo import data as demo_data
from datahub.demo.hospitals import CONTRIBUTORS, SMALL_LIFETIME_EPSILON, Hospital, join
from datahub.demo.stack import (
    BUYER,
    FIRST_CONTRIBUTOR,
    TUSD,
    Stack,
    wait_for,
)
from datahub.demo.summary import summary_of, test_auc, write
from datahub.errors import HubError
from datatokens.bindings.registry import Token
from datatokens.bindings.revenue import Revenue
from datatokens.money import money
from datatokens.terminal import Terminal, marked
from datatokens.wire import parse
from fl_client.node import config as node_config
from fl_client.node import inbox
from fl_client.office.brief import brief

ASKS = 0  # the hospital where a person decides
EPSILON, ROUNDS = 4.0, 10
SECOND_EPSILON, SECOND_ROUNDS = 3.0, 3
REWARD = 50
PURPOSE = "research: diagnosis support"

console = Terminal()


@contextlib.contextmanager
def stage(text: str, seconds: dict[str, float], key: str) -> Iterator[None]:
    """Say what is going on, time it, say how long it took."""
    started = time.monotonic()
    with console.status(f"{text} ..."):
        yield
    seconds[key] = time.monotonic() - started
    console.print(marked(("✓", "green"), f" {text} ", (f"({seconds[key]:.1f} s)", "dim")))


def run(name: str, data_dir: Path | None, out: Path, keep: bool) -> None:
    """The demo. Raises HubError (and the other rooms' errors) with a sentence; always stops what it
    started.
    """
    state = out.parent / "demo-state"
    for folder in (state, out):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    data = demo_data.prepare(name, data_dir, state / "tables")
    console.print(marked((data.title, "bold"), f": {data.origin}."))
    stack = Stack(state.resolve())
    seconds: dict[str, float] = {}
    # stopped from outside: still stop what was started
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with stage("chain, contracts, hub and SuperLink are up", seconds, "start"):
            stack.start()
        os.environ["DATAHUB_HOME"] = str(state.resolve() / "buyer")  # not the person's own
        networks.pin(stack.pinned)
        with stage(
            f"four hospitals have listed their datasets, {CONTRIBUTORS} contributors each",
            seconds,
            "list",
        ):
            network = stack.network
            with ThreadPoolExecutor(4) as pool:
                hospitals = list(
                    pool.map(lambda i: join(stack, data, i, network, asks=i == ASKS), range(4))
                )
        with stage("four nodes are connected (TLS, authenticated, no open port)", seconds, "nodes"):
            wait_for("every node", lambda: stack.online(4), stack.processes)
        _walk(stack, data, hospitals, out, seconds)
        if keep:
            _keep_running(stack, hospitals)
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    finally:
        stack.processes.stop()


def _keep_running(stack: Stack, hospitals: list[Hospital]) -> None:
    """What a visitor can do now."""
    asks = hospitals[ASKS]
    facts = (
        ("order a model in the browser, with the demo wallet", f"{stack.hub_url}/order"),
        (f"say yes for {asks.name}, which asks a person", f"datahub node page {asks.folder}"),
        ("take what contributors have earned", f"{stack.hub_url}/claims"),
        ("the buyer's commands", f"DATAHUB_HOME={networks.home()} datahub job list --key-file KEY"),
        ("the chain (31337), for a wallet of your own", stack.chain_url),
        ("test account of the buyer", " ".join(stack.accounts[BUYER])),
        ("... of a contributor", " ".join(stack.accounts[FIRST_CONTRIBUTOR])),
    )
    table = Table(title="The market keeps running; Ctrl-C ends it", show_header=False, box=None)
    for what, how in facts:
        table.add_row(what, how)
    console.print(table)


def _walk(
    stack: Stack,
    data: demo_data.DemoData,
    hospitals: list[Hospital],
    out: Path,
    seconds: dict[str, float],
) -> None:
    buyer = Market(stack.hub_url, chain=stack.chain_url, key=stack.accounts[BUYER][1])
    names = {h.dataset_id: h.name for h in hospitals}
    wallet = Token(buyer.chain, stack.deployment.payment_token)
    console.print(
        marked(
            ("\nJob 1", "bold"),
            f": a buyer with {money(wallet.balance_units(buyer.address))} (test dollars) "
            "orders a model.",
        )
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
        f"{quote.epsilon:.3f} per patient at delta {data.delta:g} (checked by the buyer before "
        "paying)"
    )
    # asked for now, paid for after job 1: by then the last hospital's budget is used up
    later = buyer.quote(
        ids, epsilon=SECOND_EPSILON, delta=data.delta, purpose=PURPOSE, rounds=SECOND_ROUNDS
    )
    job = quote.order()
    paid_at = time.time()
    console.print(f"paid into escrow: job {job.id[:12]}, watch it at {stack.hub_url}/jobs/{job.id}")
    person = threading.Thread(target=_person, args=(hospitals[ASKS], job.id), daemon=True)
    person.start()
    status = follow(job, console, names)
    if status["state"] != "settled":
        raise HubError(f"job 1 ended as {status['state']}: {status['reason']}")
    first = summary_of(stack, job, status, hospitals, before, paid_at)
    result = job.result()
    first["auc"] = test_auc(result, data)
    first["auc_without_dp"] = demo_data.auc_without_dp(data)
    took = first["seconds"]
    console.print(
        f"settled {took['funded_to_settled']:.1f} s after payment: run started "
        f"{took['run_start']:.1f} s, admission {took['admission']:.1f} s, rounds "
        f"{took['rounds']:.1f} s (median {took['round_median']:.2f} s each), attestation "
        f"{took['attestation']:.2f} s"
    )
    console.print(
        "the model opens with the buyer's key only, and is the one attested on-chain: AUC "
        f"{first['auc']:.3f} on patients nobody trained on; pooled without privacy "
        f"{first['auc_without_dp']:.3f}"
    )
    console.print(
        "measured by the hospitals on their own patients: "
        + evaluation_line(parse(result.report)["evaluation"])
    )
    claims = _claim(stack)
    _money_table(stack, first, claims, hospitals)
    second = _second_job(stack, buyer, hospitals, later, names, wallet)
    write(out, data, [first, second], claims, hospitals, status, result, seconds)
    console.print(
        f"\n{out}/ holds model.safetensors, graph.json, report.json, terms.json, schema.json, "
        "summary.json, the model's card (README.md) and three charts (learning_curve.png, "
        "epsilon_meter.png, payouts.png)."
    )


def _person(hospital: Hospital, job_id: str) -> None:
    """Stands in for the person at the one hospital that asks: reads the brief, says yes."""
    config = node_config.read(hospital.folder)
    while not (held := [one for one in inbox.waiting(hospital.folder) if one.job_id == job_id]):
        time.sleep(0.1)
    facts = brief(config, held[0])
    privacy, numbers = facts["privacy"], facts["leaves"][0]["numbers"]
    console.print(
        f"  {hospital.name} is asked: a buyer for {facts['purpose']!r}; lifetime epsilon "
        f"{privacy['lifetime_before']:.2f} -> {privacy['lifetime_after']:.2f} of "
        f"{privacy['lifetime']:g} for any one patient; {numbers} noised numbers leave "
        "after each round. The demo says yes for the person, who has it in a browser by: datahub "
        f"node page {os.path.relpath(hospital.folder)}"
    )
    inbox.decide(hospital.folder, config.policy_of, job_id, "the demo", True)


def _claim(stack: Stack) -> list[dict[str, Any]]:
    def one(i: int) -> dict[str, Any]:
        account, key = stack.accounts[FIRST_CONTRIBUTOR + i]
        paid = claim_all(stack.pinned, key)
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
    revenue = Revenue(stack.chain(BUYER), stack.deployment.market)
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
        f"{money(first['fee_units'])} + change {money(first['refund_units'])}"
    )
    first["parts"] = {
        name: {"hospital_units": a, "contributor_units": b} for name, (a, b) in parts.items()
    }


def _second_job(
    stack: Stack,
    buyer: Market,
    hospitals: list[Hospital],
    quote: Quote,
    names: dict[int, str],
    wallet: Token,
) -> dict[str, Any]:
    console.print(
        f"\nJob 2: the buyer asks for epsilon {SECOND_EPSILON:g} more; "
        f"{hospitals[-1].name} has a lifetime budget of {SMALL_LIFETIME_EPSILON:g}."
    )
    before = wallet.balance_units(buyer.address)
    job = quote.order()
    paid_at = time.time()
    console.print(f"paid {money(job.terms.amount_units)} into escrow")
    status = follow(job, console, names)
    second = summary_of(stack, job, status, hospitals, before, paid_at)
    after = wallet.balance_units(buyer.address)
    if status["state"] != "refunded" or after != before:
        raise HubError(f"job 2 ended as {status['state']}, the buyer has {after} of {before} units")
    console.print(
        "refunded on the hospital's signed refusal, "
        f"{second['seconds']['funded_to_end']:.1f} s after payment: "
        f"the buyer has {money(after)} again, every unit"
    )
    return second
