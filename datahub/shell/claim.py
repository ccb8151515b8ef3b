"""`datahub claim ...`: what a contributor is owed, and what waits in the market for anybody. The
contract checks every proof; nothing is decided here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from datahub.errors import OrderRefused
from datahub.shell.options import Json, KeyFile, NetworkName, busy, console, key_in, pinned
from datatokens.money import amount

claim = typer.Typer(
    help="What you are owed: a contributor's share, the hub's fees, change.", no_args_is_help=True
)
Account = Annotated[str, typer.Option(help="Whose share; default the key's own address.")]


@claim.command("list")
def list_claims(
    key_file: Annotated[
        Path | None, typer.Option(help="File with your wallet's private key, or give --account.")
    ] = None,
    network: NetworkName = "",
    account: Account = "",
    as_json: Json = False,
) -> None:
    """What a contributor can claim now from each dataset, and what was claimed before."""
    from datahub.buyer.hub_client import Hub
    from datatokens.terms import address_of_key

    if not account and key_file is None:
        raise OrderRefused("name --account, or --key-file for that key's own address")
    owed = account or address_of_key(key_in(key_file or Path()))
    rows = Hub(pinned(network).hub).get(f"/api/v1/claims/{owed}")
    shown = ("dataset_id", "epoch", "weight", "claimable_units", "claimed_units")
    if as_json:
        typer.echo(json.dumps([{name: row[name] for name in shown} for row in rows]))
        return
    if not rows:
        console.print(f"{owed} is a contributor of no dataset of this hub")
        return
    table = Table("dataset", "list", "weight", "to claim", "claimed before", box=None)
    for row in rows:
        units = amount(row["claimable_units"]), amount(row["claimed_units"])
        table.add_row(str(row["dataset_id"]), str(row["epoch"]), str(row["weight"]), *units)
    console.print(table)
    console.print("datahub claim all --key-file KEY takes it")


@claim.command("all")
def claim_all(
    key_file: KeyFile, network: NetworkName = "", account: Account = "", as_json: Json = False
) -> None:
    """Claim a contributor's share of every dataset; the money goes to the contributor, whoever
    sends it.
    """
    from datahub.buyer import contributor

    where = pinned(network)
    with busy("the claim is sent, and its block waited for"):
        paid = contributor.claim_all(where, key_in(key_file), account)
    if as_json:
        typer.echo(json.dumps({str(dataset_id): units for dataset_id, units in paid.items()}))
    elif not paid:
        console.print("nothing to claim now")
    else:
        for dataset_id, units in paid.items():
            console.print(f"dataset {dataset_id}: {amount(units)}")


@claim.command()
def credit(
    key_file: KeyFile,
    network: NetworkName = "",
    to: Annotated[
        str, typer.Option(help="Where the money goes; default the key's own address.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Take out what waits as credit: the hub's fees, or change whose transfer failed."""
    from datatokens import deploy
    from datatokens.bindings.escrow import Escrow
    from datatokens.chain.connection import connect

    where = pinned(network)
    chain = connect(where.chain, key_in(key_file))
    deploy.check(chain, where.deployment)
    escrow = Escrow(chain, where.deployment.market)
    units = escrow.credit_units(str(chain.address))
    escrow.withdraw_credit(to or str(chain.address))
    if as_json:
        typer.echo(json.dumps({"to": to or str(chain.address), "units": units}))
        return
    console.print(f"{amount(units)} went to {to or chain.address}")
