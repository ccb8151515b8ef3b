"""What a hospital's owner does with a listed dataset: price, state, tiers, helpers, buyers,
contributors, revenue.

Every command reads the node's folder for the addresses and the chain connection, and sends with the
owner's key (or, where the contract lets it, a manager's). Parses and prints only; what is allowed
is the contracts' business.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from datatokens.bindings.registry import Listing, Registry, Roles, State
from datatokens.bindings.revenue import Revenue
from datatokens.bindings.storefront import Limits, Storefront
from datatokens.chain.connection import Chain, connect
from datatokens.money import amount
from datatokens.terminal import Terminal
from fl_client.errors import ConfigError
from fl_client.node import config as node_config

owner = typer.Typer(
    help="What a hospital's owner does with a listed dataset.", no_args_is_help=True
)
console = Terminal()

Folder = Annotated[Path, typer.Argument(help="The node's folder.")]
DatasetId = Annotated[int, typer.Argument(help="The dataset's id.")]
TierId = Annotated[int, typer.Argument(help="The tier's id; 0 is one job.")]
KeyFile = Annotated[
    Path, typer.Option(help="File with the owner's (or manager's) private key; read, not copied.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HOUR_S = 3600
ONE_DATATOKEN = 10**18


def _open(folder: Path, key_file: Path | None = None) -> tuple[Chain, Registry, Revenue]:
    made = node_config.read(folder)
    chain = connect(made.chain, key_file.read_text().strip() if key_file else None)
    return chain, Registry(chain, made.registry), Revenue(chain, made.market)


def _say(sentence: str, as_json: bool, **facts: Any) -> None:
    """What was done, as a sentence or as JSON."""
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        console.print(sentence, highlight=False, soft_wrap=True)


def _one_of(name: str, value: str, allowed: type[Any]) -> Any:
    try:
        return allowed[value.upper()]
    except KeyError:
        raise ConfigError(
            f"{name}={value!r} must be one of {', '.join(each.name.lower() for each in allowed)}"
        ) from None


@owner.command()
def show(
    folder: Folder,
    dataset_id: DatasetId,
    as_json: Json = False,
) -> None:
    """State, tiers, revenue and contributor list of one dataset, from the chain."""
    _, registry, revenue = _open(folder)
    dataset, standing, pool = (
        registry.dataset(dataset_id),
        registry.standing(dataset_id),
        revenue.pool(dataset_id),
    )
    waiting = revenue.pending_contributors(dataset_id)
    tiers = [vars(registry.tier(dataset_id, tier)) for tier in range(standing.tier_count)]
    facts: dict[str, Any] = {
        "dataset_id": dataset_id,
        "owner": dataset.owner,
        "node": dataset.node,
        "state": standing.state.name.lower(),
        "allow_list_only": standing.allow_list_only,
        "manifest_version": standing.version,
        "stated_epsilon": standing.epsilon_micro / 10**6,
        "contributor_bps": dataset.contributor_bps,
        "hospital_units": pool.hospital_units,
        "withdrawn_units": revenue.withdrawn(dataset_id),
        "contributor_units": pool.contributor_units,
        "contributor_epoch": pool.epoch,
        "list_waiting_since": waiting.posted_at if waiting else None,
    }
    if as_json:
        typer.echo(json.dumps({**facts, "tiers": tiers}))
        return
    for name, value in facts.items():
        text = amount(value) if name.endswith("_units") else value
        console.print(f"{name}: {text}", highlight=False)
    table = Table(
        "tier",
        "price",
        "access (hours)",
        "minted",
        "at most",
        "",
        box=None,
        pad_edge=False,
    )
    for number, tier in enumerate(tiers):
        table.add_row(
            str(number),
            amount(tier["price_units"]) if tier["price_units"] else "not sold",
            f"{tier['order_s'] / HOUR_S:g}" if tier["order_s"] else "one job",
            f"{tier['minted'] / ONE_DATATOKEN:g}",
            f"{tier['max_supply'] / ONE_DATATOKEN:g}" if tier["max_supply"] else "no limit",
            "closed" if tier["closed"] else "",
        )
    console.print(table)


@owner.command()
def state(
    folder: Folder,
    dataset_id: DatasetId,
    value: Annotated[str, typer.Argument(help="active, paused, or retired (which is for good).")],
    owner_key_file: KeyFile,
    as_json: Json = False,
) -> None:
    """Pause, resume or retire a dataset."""
    found = _one_of("state", value, State)
    _open(folder, owner_key_file)[1].set_state(dataset_id, found)
    name = found.name.lower()
    _say(f"dataset {dataset_id} is {name}", as_json, dataset_id=dataset_id, state=name)


@owner.command()
def price(
    folder: Folder,
    dataset_id: DatasetId,
    tier_id: TierId,
    units: Annotated[int, typer.Argument(help="Base units of the payment token; 0 = not sold.")],
    owner_key_file: KeyFile,
    as_json: Json = False,
) -> None:
    """Set a tier's price."""
    _open(folder, owner_key_file)[1].set_tier_price(dataset_id, tier_id, units)
    _say(
        f"tier {tier_id} of dataset {dataset_id} costs {amount(units)}",
        as_json,
        dataset_id=dataset_id,
        tier=tier_id,
        price_units=units,
    )


@owner.command("add-tier")
def add_tier(
    folder: Folder,
    dataset_id: DatasetId,
    owner_key_file: KeyFile,
    symbol: Annotated[str, typer.Option(help="Symbol of its datatoken.")],
    price_units: Annotated[int, typer.Option(help="Base units; 0 = not sold.")] = 0,
    hours: Annotated[
        float, typer.Option(help="How long one order opens access; 0 = a one-job voucher.")
    ] = 0,
    at_most: Annotated[
        int, typer.Option(help="Most datatokens that will ever be minted; 0 = no limit.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Add a service tier with a datatoken of its own."""
    registry = _open(folder, owner_key_file)[1]
    number = registry.add_tier(
        dataset_id, symbol, price_units, round(hours * HOUR_S), at_most * ONE_DATATOKEN
    )
    said = f"dataset {dataset_id} has tier {number}: {symbol}"
    _say(said, as_json, dataset_id=dataset_id, tier=number, symbol=symbol)


@owner.command("close-tier")
def close_tier(
    folder: Folder,
    dataset_id: DatasetId,
    tier_id: TierId,
    owner_key_file: KeyFile,
    as_json: Json = False,
) -> None:
    """Mint no more of a tier; what was sold stays good."""
    _open(folder, owner_key_file)[1].close_tier(dataset_id, tier_id)
    said = f"tier {tier_id} of dataset {dataset_id} is closed"
    _say(said, as_json, dataset_id=dataset_id, tier=tier_id, closed=True)


@owner.command()
def give(
    folder: Folder,
    dataset_id: DatasetId,
    tier_id: TierId,
    to: Annotated[str, typer.Argument(help="Address of whom they are given to.")],
    count: Annotated[int, typer.Argument(min=1, help="How many datatokens.")],
    owner_key_file: KeyFile,
    as_json: Json = False,
) -> None:
    """Make datatokens of a tier for somebody, for nothing: vouchers for jobs, or hours of
    access.
    """
    _open(folder, owner_key_file)[1].mint_tier(dataset_id, tier_id, to, count * ONE_DATATOKEN)
    said = f"{count} datatokens of tier {tier_id} of dataset {dataset_id} went to {to}"
    _say(said, as_json, dataset_id=dataset_id, tier=tier_id, to=to, count=count)


@owner.command()
def dispenser(
    folder: Folder,
    dataset_id: DatasetId,
    tier_id: TierId,
    owner_key_file: KeyFile,
    per_account: Annotated[
        int, typer.Option(help="Most datatokens that one account ever gets for nothing.")
    ],
    in_all: Annotated[int, typer.Option(help="Most that all accounts together ever get.")],
    allow_listed: Annotated[
        bool, typer.Option("--allow-listed", help="Only accounts on the allow list.")
    ] = False,
    off: Annotated[bool, typer.Option("--off", help="Stop giving.")] = False,
    as_json: Json = False,
) -> None:
    """Give datatokens of a tier away, within limits."""
    chain, registry, _ = _open(folder, owner_key_file)
    limits = Limits(not off, allow_listed, per_account, per_account, in_all)
    Storefront(chain, registry.storefront()).set_limits(dataset_id, tier_id, limits)
    said = f"the dispenser of tier {tier_id} of dataset {dataset_id} is {'off' if off else 'on'}"
    _say(said, as_json, dataset_id=dataset_id, tier=tier_id, **vars(limits))


@owner.command()
def role(
    folder: Folder,
    dataset_id: DatasetId,
    account: Annotated[str, typer.Argument(help="Whom.")],
    value: Annotated[
        str,
        typer.Argument(
            help="manager (prices, tiers, lists, state), publisher (manifest), or none."
        ),
    ],
    owner_key_file: KeyFile,
    as_json: Json = False,
) -> None:
    """Let an account act for the owner; it ends when the dataset changes hands."""
    found = _one_of("role", value, Roles)
    _open(folder, owner_key_file)[1].set_roles(dataset_id, account, found)
    said = f"{account} is {value} of dataset {dataset_id}"
    _say(said, as_json, dataset_id=dataset_id, account=account, role=value)


@owner.command()
def buyers(
    folder: Folder,
    dataset_id: DatasetId,
    value: Annotated[str, typer.Argument(help="allowed, denied, or none (neither).")],
    accounts: Annotated[list[str], typer.Argument(help="Which accounts.")],
    owner_key_file: KeyFile,
    allow_list_only: Annotated[
        bool | None, typer.Option(help="Whether only allowed accounts may consume.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put accounts on the allow list or the deny list."""
    registry, found = _open(folder, owner_key_file)[1], _one_of("list", value, Listing)
    registry.set_listing(dataset_id, accounts, found)
    if allow_list_only is not None:
        registry.set_allow_list_only(dataset_id, allow_list_only)
    name = found.name.lower()
    said = f"dataset {dataset_id}: {len(accounts)} accounts are {name}"
    _say(said, as_json, dataset_id=dataset_id, accounts=accounts, listing=name)


@owner.command()
def contributors(
    folder: Folder,
    dataset_id: DatasetId,
    file: Annotated[Path, typer.Argument(help="CSV file with the header account,weight.")],
    owner_key_file: KeyFile,
    as_json: Json = False,
) -> None:
    """Post another list of contributors, as when one withdraws. It waits three days to be live."""
    from fl_client.node.listing import post_contributors, read_contributors

    key, posted = owner_key_file.read_text().strip(), read_contributors(file)
    epoch = post_contributors(node_config.read(folder), key, dataset_id, posted)
    _say(
        f"dataset {dataset_id}: a list of {len(posted)} contributors is posted as epoch {epoch}; "
        f"when its three days are over: datahub owner activate {folder} {dataset_id} ...",
        as_json,
        dataset_id=dataset_id,
        contributors=len(posted),
        epoch=epoch,
    )


@owner.command()
def activate(
    folder: Folder, dataset_id: DatasetId, key_file: KeyFile, as_json: Json = False
) -> None:
    """Make the waiting contributor list the live one, once its three days are over. By anybody."""
    epoch = _open(folder, key_file)[2].activate_contributors(dataset_id)
    said = f"dataset {dataset_id}: the contributor list of epoch {epoch} is live"
    _say(said, as_json, dataset_id=dataset_id, epoch=epoch)


@owner.command()
def withdraw(
    folder: Folder,
    dataset_id: DatasetId,
    owner_key_file: KeyFile,
    to: Annotated[
        str, typer.Option(help="Where the money goes; default the key's own address.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Take out the hospital's part of a dataset's revenue."""
    chain, _, revenue = _open(folder, owner_key_file)
    units = revenue.withdraw_hospital(dataset_id, to or str(chain.address))
    receiver = to or str(chain.address)
    said = f"{amount(units)} went to {receiver}"
    _say(said, as_json, dataset_id=dataset_id, to=receiver, units=units)
