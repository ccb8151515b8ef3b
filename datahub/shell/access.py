"""`datahub data tiers|buy-access|take-access|give|use-access`: datatokens from a buyer's wallet.

What a dataset's owner sets is `datahub owner ...`; what a datatoken costs and who may have one is
the contracts' business. Parses and prints.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from datahub.shell.data import data
from datahub.shell.options import (
    DatasetId,
    Json,
    KeyFile,
    NetworkName,
    Yes,
    busy,
    complaints,
    console,
    many,
    market_of,
)
from datatokens.money import amount

if TYPE_CHECKING:
    from datahub.buyer.access import Tier

TierId = Annotated[int, typer.Option("--tier", help="The tier's id; 0 is a voucher for one job.")]
Count = Annotated[int, typer.Option(help="How many datatokens.")]
HOUR_S = 3600


@data.command()
def tiers(
    dataset_id: DatasetId, key_file: KeyFile, network: NetworkName = "", as_json: Json = False
) -> None:
    """What can be bought of a dataset besides single jobs, and what you hold of it."""
    found = market_of(network, key_file).tiers(dataset_id)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found]))
        return
    table = Table("tier", "one datatoken is", "price, fees included", "left", "you hold", "")
    for one in found:
        table.add_row(
            str(one.id),
            "one job" if one.access_s == 0 else f"{one.access_s / HOUR_S:g} hours of access",
            "not sold" if one.price_units is None else amount(one.price_units),
            "no limit" if one.left is None else str(one.left),
            str(one.held),
            _notes(one),
        )
    console.print(table)


def _notes(tier: Tier) -> str:
    notes = ["closed"] * tier.closed + ["given away, within limits"] * tier.free
    if tier.open_until > time.time():
        notes.append(f"open until {_moment(tier.open_until)}")
    return ", ".join(notes)


def _moment(at: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))


@data.command("buy-access")
def buy_access(
    dataset_id: DatasetId,
    key_file: KeyFile,
    tier: TierId = 0,
    count: Count = 1,
    network: NetworkName = "",
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Buy datatokens of a tier: vouchers for jobs, or hours of access."""
    market = market_of(network, key_file)
    price = market.access_price(dataset_id, tier, count)
    what = f"{many(count, 'datatoken')} of tier {tier} of dataset {dataset_id}"
    complaints.print(f"{what}: {amount(price)}, fees included")
    if not yes:
        typer.confirm("Pay?", abort=True, err=True)
    with busy("the payment is sent, and its block waited for"):
        paid = market.buy_access(dataset_id, tier, count, max_units=price)
    if as_json:
        said = {"dataset_id": dataset_id, "tier": tier, "count": count, "paid_units": paid}
        typer.echo(json.dumps(said))
        return
    console.print(f"{what}: bought for {amount(paid)}", soft_wrap=True)


@data.command("take-access")
def take_access(
    dataset_id: DatasetId,
    key_file: KeyFile,
    tier: TierId = 0,
    count: Count = 1,
    network: NetworkName = "",
    as_json: Json = False,
) -> None:
    """Take datatokens that a dataset's owner gives away, within the owner's limits."""
    market_of(network, key_file).take_access(dataset_id, tier, count)
    if as_json:
        typer.echo(json.dumps({"dataset_id": dataset_id, "tier": tier, "count": count}))
        return
    console.print(f"{many(count, 'datatoken')} of tier {tier} of dataset {dataset_id}: taken")


@data.command()
def give(
    dataset_id: DatasetId,
    to: Annotated[str, typer.Argument(help="Address of whom they are given to.")],
    count: Annotated[int, typer.Argument(help="How many datatokens.")],
    key_file: KeyFile,
    tier: TierId = 0,
    network: NetworkName = "",
    as_json: Json = False,
) -> None:
    """Give datatokens that you hold to another account."""
    market_of(network, key_file).give_access(dataset_id, to, count, tier)
    if as_json:
        said = {"dataset_id": dataset_id, "tier": tier, "count": count, "to": to}
        typer.echo(json.dumps(said))
        return
    console.print(
        f"{many(count, 'datatoken')} of tier {tier} of dataset {dataset_id} went to {to}",
        soft_wrap=True,
    )


@data.command("use-access")
def use_access(
    dataset_id: DatasetId,
    key_file: KeyFile,
    tier: TierId,
    network: NetworkName = "",
    as_json: Json = False,
) -> None:
    """Use up one datatoken of a tier with hours: access begins, or goes on for so much longer. A
    voucher for a job is used by `datahub order new --voucher ID`; jobs while access is open are
    ordered with `--tier ID=TIER`.
    """
    until = market_of(network, key_file).use_access(dataset_id, tier)
    if as_json:
        said = {"dataset_id": dataset_id, "tier": tier, "open_until": until}
        typer.echo(json.dumps(said))
        return
    console.print(f"dataset {dataset_id}, tier {tier}: open until {_moment(until)}")
