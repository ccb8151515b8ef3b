"""`datahub job ...`: what becomes of an order: look, go on, save, compare, take the money back.

What a job is follows from the chain and the buyer's own disk (datahub/buyer/jobs.py); show, watch
and compare print the hub's view of it. Decides nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from datahub.errors import OrderRefused, Refunded
from datahub.shell.options import (
    AnyHub,
    JobId,
    Json,
    KeyFile,
    NetworkName,
    Out,
    Yes,
    busy,
    complaints,
    console,
    hub_of,
    known_jobs,
    market_of,
)
from datahub.shell.paying import confirm_and_finish, finish, save
from datatokens.money import amount

job = typer.Typer(help="Jobs: look, go on, compare, take the money back.", no_args_is_help=True)


@job.command("list")
def list_jobs(key_file: KeyFile, network: NetworkName = "", as_json: Json = False) -> None:
    """Your jobs: those on this disk, and those that your wallet has paid according to the chain."""
    rows = market_of(network, key_file).jobs()
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table("job", "on the chain", "deadline (UTC)", "next")
    for row in rows:
        until = time.strftime("%Y-%m-%d %H:%M", time.gmtime(row["deadline"]))
        table.add_row(row["job_id"][:12], row["state"], until, row["next"])
    console.print(table)


@job.command()
def show(job_id: JobId, hub: AnyHub = "", network: NetworkName = "", as_json: Json = False) -> None:
    """Where a job stands, as its hub sees it."""
    from datahub.buyer.hub_client import Hub
    from datahub.shell import watching

    desk = Hub(hub_of(hub, network))
    status = watching.status(desk, watching.whole_id(desk, job_id))
    if as_json:
        typer.echo(json.dumps(status))
        return
    for line in _described(status):
        console.print(line, soft_wrap=True)


def _described(status: Mapping[str, Any]) -> list[str]:
    reason = f": {status['reason']}" if status["reason"] else ""
    until = time.strftime("%Y-%m-%d %H:%M", time.gmtime(status["deadline"]))
    lines = [
        f"{status['state']}, {len(status['rounds'])} of {status['rounds_planned']} rounds{reason}",
        f"{amount(status['amount_units'])} escrowed for {status['purpose']}; deadline {until} UTC",
    ]
    if (settled := status["settlement"]) is not None:
        back = amount(settled["change_units"])
        lines.append(f"{amount(settled['paid_units'])} went to hospitals, {back} came back")
    return lines


@job.command()
def watch(
    job_id: JobId,
    hub: AnyHub = "",
    network: NetworkName = "",
    for_s: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds to watch at most; default until the job has ended."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Follow a job until it ends: states, rounds, losses with their noise, who is waited for and
    why. Leave with Ctrl-C and come back: the job goes on. With --json a line for each change.
    """
    from datahub.buyer import changes
    from datahub.buyer.hub_client import Hub
    from datahub.shell import watching

    desk = Hub(hub_of(hub, network))
    whole = watching.whole_id(desk, job_id)
    before: dict[str, Any] = {}
    for status in watching.statuses(desk, whole, for_s, complaints.print):
        for change in changes.new(before, status):
            if as_json:
                typer.echo(json.dumps({"job_id": whole, **change}))
            else:
                console.print(changes.line(change, {}), soft_wrap=True)
        before = status
    if before["state"] == "refunded":
        raise Refunded(f"job {whole[:12]} was refunded, as its hub says: {before['reason']}")


@job.command()
def resume(
    job_id: JobId,
    key_file: KeyFile,
    network: NetworkName = "",
    out: Out = Path("result"),
    yes: Annotated[
        bool, typer.Option("--yes", help="Pay without asking, if it was not paid.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Finish a job from wherever it stopped: pay, hand over, wait, save the model; or take the
    money back after its deadline.
    """
    from datatokens.bindings.escrow import Status

    found = market_of(network, key_file).job(job_id)
    if found.on_chain is Status.NONE and not yes:
        typer.confirm("It was never paid: nothing was taken. Pay now?", abort=True, err=True)
    finish(found, out, as_json)


@job.command()
def result(
    job_id: JobId,
    key_file: KeyFile,
    network: NetworkName = "",
    out: Out = Path("result"),
    as_json: Json = False,
) -> None:
    """Save the model and the report of a settled job, again and again."""
    with busy("the result is fetched, and compared with what was signed"):
        found = market_of(network, key_file).job(job_id)
        opened = found.result()
    save(found, opened, out, as_json)


@job.command()
def repeat(
    job_id: JobId,
    key_file: KeyFile,
    network: NetworkName = "",
    out: Out = Path("result"),
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Order once more what a job was ordered with: same datasets, settings and model, today's
    prices. Shown and confirmed as a new order is.
    """
    with busy("the quote is asked for, and worked out again from the chain"):
        quote = market_of(network, key_file).repeat(job_id)
    confirm_and_finish(quote, yes, out, as_json)


@job.command()
def compare(
    job_ids: Annotated[
        list[str],
        typer.Argument(
            help="Job ids, or their first digits; two or more.", autocompletion=known_jobs
        ),
    ],
    hub: AnyHub = "",
    network: NetworkName = "",
    as_json: Json = False,
) -> None:
    """Jobs side by side: datasets, epsilon, rounds, loss, accuracy and AUC, cost, seconds."""
    from datahub import comparison
    from datahub.buyer.hub_client import Hub
    from datahub.shell import watching

    if len(job_ids) < 2:
        raise OrderRefused("compare: name two jobs or more")
    desk = Hub(hub_of(hub, network))
    found = [comparison.facts(watching.status(desk, watching.whole_id(desk, j))) for j in job_ids]
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table("", *(one["job_id"][:12] for one in found))
    for name, words in comparison.rows(found):
        table.add_row(name, *words)
    console.print(table)


@job.command()
def refund(
    job_id: JobId, key_file: KeyFile, network: NetworkName = "", as_json: Json = False
) -> None:
    """Take the money of a job back after its deadline, with its folder or with nothing but the
    wallet's key and the chain.
    """
    from datatokens.bindings.escrow import Status

    found = market_of(network, key_file).job(job_id)
    if found.on_chain is not Status.REFUNDED:  # else it was taken back before: saying so is enough
        found.refund()
    if as_json:
        typer.echo(json.dumps({"job_id": found.id, "state": "refunded", "folder": None}))
        return
    console.print(
        f"job {found.id[:12]} is refunded: every unit is back in {found.market.address}",
        soft_wrap=True,
    )


@job.command()
def dispute(
    job_id: JobId, key_file: KeyFile, network: NetworkName = "", as_json: Json = False
) -> None:
    """The buyer or a node of a job with an arbiter: ask it to look at the attested result. Costs
    the bond in the terms.
    """
    from datahub.buyer.jobs import Job

    market = market_of(network, key_file)
    # a node disputes too, and it has paid no job: its whole id is needed
    found = Job(market, job_id) if len(job_id) == 64 else market.job(job_id)
    found.dispute()
    terms = found.terms
    bond = terms.dispute.bond_units if terms.dispute else 0
    if as_json:
        typer.echo(json.dumps({"job_id": found.id, "state": "disputed", "bond_units": bond}))
        return
    console.print(
        f"job {found.id[:12]} is disputed; the bond of {amount(bond)} is in escrow until the "
        "arbiter rules",
        soft_wrap=True,
    )
