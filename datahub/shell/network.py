"""`datahub network ...`: the contracts that a person pays into, checked and written down once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from datahub.errors import OrderRefused
from datahub.shell.options import HubUrl, Json, complaints, console

if TYPE_CHECKING:
    from datatokens.deploy import Deployment

network = typer.Typer(
    help="The contracts that you pay into, written down once.", no_args_is_help=True
)


@network.command()
def add(
    name: Annotated[str, typer.Argument(help="What you call it.")],
    hub: HubUrl,
    chain: Annotated[str, typer.Option(help="URL of your own chain connection (JSON-RPC).")],
    registry: Annotated[str, typer.Option(help="As in your contract.")] = "",
    market: Annotated[str, typer.Option(help="As in your contract.")] = "",
    payment_token: Annotated[str, typer.Option(help="As in your contract.")] = "",
    fee_recipient: Annotated[str, typer.Option(help="As in your contract.")] = "",
    fee_bps: Annotated[
        int | None, typer.Option(help="The most that the hub may take, of 10000.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="The addresses were compared.")] = False,
    as_json: Json = False,
) -> None:
    """Check the contracts over your own chain connection and pin them: from then on no hub can name
    others.
    """
    from datahub.buyer import networks
    from datahub.buyer.hub_client import Hub
    from datatokens import deploy
    from datatokens.chain.connection import connect

    said = Hub(hub).get("/api/v1/network")
    connection = connect(chain)
    found = deploy.verify(
        connection, registry or said.get("registry"), market or said.get("market")
    )
    for field, given in (("payment_token", payment_token), ("fee_recipient", fee_recipient)):
        if given and given.lower() != getattr(found, field).lower():
            raise OrderRefused(f"{field}: the market has {getattr(found, field)}, not {given}")
    fee = _fee(said.get("fee_bps") if fee_bps is None else fee_bps)
    _show(found, fee)
    if not (yes or (registry and market)):
        typer.confirm("Are these the contracts that you mean to pay into?", abort=True, err=True)
    file = networks.pin(networks.Network(name, hub.rstrip("/"), chain, fee, found))
    if as_json:
        typer.echo(json.dumps({"name": name, "file": str(file), **vars(found)}))
        return
    console.print(
        f"{name} is pinned in {file}: code and constructor values are those of this "
        "version of datahub"
    )


def _fee(given: Any) -> int:
    from datahub.buyer.networks import MOST_FEE_BPS

    if type(given) is not int or not 0 <= given <= MOST_FEE_BPS:
        raise OrderRefused(f"fee_bps={given!r:.40} must be from 0 to {MOST_FEE_BPS}")
    return given


def _show(found: Deployment, fee: int) -> None:
    table = Table("", "compare each with what the operator gave you on another way", box=None)
    for field, value in vars(found).items():
        table.add_row(field, str(value))
    table.add_row("the hub's fee, at most", f"{fee / 100:g} %")
    complaints.print(table)


@network.command("list")
def list_networks(as_json: Json = False) -> None:
    """The pinned networks."""
    from dataclasses import asdict

    from datahub.buyer import networks

    known = networks.read()
    if as_json:
        typer.echo(json.dumps({name: asdict(one) for name, one in known.items()}))
        return
    table = Table("name", "hub", "chain", "market", "fee, at most")
    for one in known.values():
        table.add_row(
            one.name, one.hub, one.chain, one.deployment.market, f"{one.fee_bps / 100:g} %"
        )
    console.print(table)
