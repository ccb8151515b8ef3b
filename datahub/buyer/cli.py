"""The commands of a buyer and of a contributor: pin a network, order, follow, finish, claim.

Each command that pays or signs works on a pinned network; a job goes on, or its money comes back,
from the buyer's own disk or from the wallet's key and the chain alone. Decides nothing.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from datahub.errors import HubError, OrderRefused
from datatokens.errors import BankError
from datatokens.terminal import Terminal
from datatokens.wire import parse
from fl_client.errors import NodeError
from fl_server.errors import TheatreError

if TYPE_CHECKING:
    from datahub.buyer.networks import Network
    from datahub.buyer.sdk import Buyer, Job, Quote
    from fl_server.results import Result

buyer_commands = typer.Typer()
network_commands = typer.Typer(
    help="The contracts that you pay into, written down once.", no_args_is_help=True
)
buyer_commands.add_typer(network_commands, name="network")
console = Terminal()
complaints = Terminal(stderr=True)

HubUrl = Annotated[str, typer.Option("--hub", help="URL of the hub.")]
NetworkName = Annotated[
    str, typer.Option("--network", help="A pinned network; default the only one.")
]
KeyFile = Annotated[Path, typer.Option(help="File with your wallet's private key.")]
JobId = Annotated[str, typer.Argument(help="Job id, or its first digits.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Out = Annotated[Path, typer.Option(help="Folder for the model and the report.")]
MUCH = 0.9  # an interval this wide says nothing


@network_commands.command("add")
def network_add(
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
) -> None:
    """Check the contracts over your own chain connection and pin them: from then on no hub can name
    others.
    """
    from datahub.buyer import networks
    from datahub.buyer.hub_client import Hub
    from datatokens import deploy
    from datatokens.chain.connection import connect

    said = Hub(hub).get("/api/network")
    connection = connect(chain)
    found = deploy.verify(
        connection, registry or said.get("registry"), market or said.get("market")
    )
    for field, given in (("payment_token", payment_token), ("fee_recipient", fee_recipient)):
        if given and given.lower() != getattr(found, field).lower():
            raise OrderRefused(f"{field}: the market has {getattr(found, field)}, not {given}")
    fee = said.get("fee_bps") if fee_bps is None else fee_bps
    if type(fee) is not int or not 0 <= fee <= networks.MOST_FEE_BPS:
        raise OrderRefused(f"fee_bps={fee!r:.40} must be from 0 to {networks.MOST_FEE_BPS}")
    table = Table("", "compare each with what the operator gave you on another way", box=None)
    for field, value in vars(found).items():
        table.add_row(field, str(value))
    table.add_row("the hub's fee, at most", f"{fee / 100:g} %")
    complaints.print(table)
    if not (yes or (registry and market)):
        typer.confirm("Are these the contracts that you mean to pay into?", abort=True, err=True)
    file = networks.pin(networks.Network(name, hub.rstrip("/"), chain, fee, found))
    console.print(
        f"{name} is pinned in {file}: code and constructor values are those of this "
        "version of datahub"
    )


@network_commands.command("list")
def network_list(as_json: Json = False) -> None:
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


@buyer_commands.command()
def datasets(hub_url: HubUrl, as_json: Json = False) -> None:
    """The catalogue."""
    from datahub.buyer.hub_client import Hub
    from datahub.money import money

    rows = Hub(hub_url).get("/api/datasets")
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table(
        "id", "name", "hospital", "patients (noised)", "price", "lifetime epsilon", "node"
    )
    for row in rows:
        manifest = row["manifest"] or {}
        table.add_row(
            str(row["dataset_id"]),
            manifest.get("name", "(manifest not sent yet)"),
            manifest.get("hospital", ""),
            str(manifest.get("persons", "")),
            money(row["price_units"]),
            f"{manifest.get('lifetime_epsilon', '')}",
            "online" if row["online"] else "offline",
        )
    console.print(table)


@buyer_commands.command()
def dataset(
    dataset_id: Annotated[int, typer.Argument(help="The dataset's id.")],
    hub_url: HubUrl,
    as_json: Json = False,
) -> None:
    """One dataset: what its columns mean, whom privacy protects, what of it is left."""
    row = _listed(hub_url, dataset_id)
    if as_json:
        typer.echo(json.dumps(row))
        return
    from datahub.money import money
    from fl_client.data.manifests import Manifest

    manifest = Manifest.from_dict(row["manifest"])
    schema = manifest.schema
    console.print(f"{manifest.name}\n{manifest.hospital}: {manifest.description}", soft_wrap=True)
    console.print(
        f"about {manifest.persons} {manifest.unit}s (noised), never fewer than "
        f"{manifest.minimum_persons}; {money(row['price_units'])} a job; lifetime epsilon "
        f"{manifest.lifetime_epsilon:g} at delta {manifest.delta:g} for each {manifest.unit}",
        soft_wrap=True,
        highlight=False,
    )
    above = schema.target.positive_above
    outcome = "yes or no" if above is None else f"1 where it is above {above:g}, else 0"
    console.print(f"to be learned: {schema.target.name}, {outcome}", highlight=False)
    if schema.picture is not None:
        console.print(f"pictures: model inputs of shape {schema.picture.shape}", highlight=False)
        return
    table = Table("column", "unit", "a model's inputs", "scaled", "missing")
    for feature in schema.features:
        missing = feature.missing if not feature.stands else f"counts as {feature.missing}"
        scaled = f"(x - {feature.centre:g}) / {feature.scale:g}"
        levels = feature.labels if feature.kind != "number" else ()
        table.add_row(
            feature.name, feature.unit, ", ".join(levels) or "the number", scaled, str(missing)
        )
    console.print(table)
    console.print(f"{schema.width} inputs; schema {schema.hash}", highlight=False, soft_wrap=True)


@buyer_commands.command()
def synthetic(
    dataset_id: Annotated[int, typer.Argument(help="The dataset's id.")],
    hub_url: HubUrl,
    out: Annotated[Path, typer.Option(help="CSV file to write.")],
    records: Annotated[int, typer.Option(help="How many.")] = 500,
) -> None:
    """Made-up records in a dataset's format, from its schema alone, to try a model on at home."""
    import csv

    from datahub.buyer.synthetic import made_up
    from fl_client.data.manifests import Manifest

    manifest = Manifest.from_dict(_listed(hub_url, dataset_id)["manifest"])
    rows = list(made_up(manifest.schema, records))
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    console.print(
        f"{records} made-up records in {out}: nothing in them is a patient's", soft_wrap=True
    )


def _listed(hub_url: str, dataset_id: int) -> dict[str, Any]:
    from datahub.buyer.hub_client import Hub

    for row in Hub(hub_url).get("/api/datasets"):
        if row["dataset_id"] == dataset_id and row["manifest"]:
            return dict(row)
    raise HubError(f"dataset_id={dataset_id} is not offered by {hub_url}; see datahub datasets")


@buyer_commands.command()
def buy(
    key_file: KeyFile,
    dataset: Annotated[list[int], typer.Option(help="Dataset id; repeat for each.")],
    epsilon: Annotated[
        float, typer.Option(help="Most that the job may cost a patient of each hospital.")
    ],
    purpose: Annotated[str, typer.Option(help="What the model is for.")],
    network: NetworkName = "",
    out: Out = Path("result"),
    delta: Annotated[
        float | None, typer.Option(help="Delta; default min(1e-5, 1/(10 patients)).")
    ] = None,
    model: Annotated[str, typer.Option(help="A built-in model.")] = "logistic_regression",
    rounds: Annotated[
        int | None, typer.Option(help="Rounds; default 20 to 60, by patients and epsilon.")
    ] = None,
    reward_units: Annotated[
        int, typer.Option(help="Reward pool, base units, split by patients.")
    ] = 0,
    deadline_s: Annotated[
        int, typer.Option(help="Seconds until the money comes back if nothing was settled.")
    ] = 3600,
    max_fee_units: Annotated[
        int | None, typer.Option(help="The most that the hub may take, base units.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Pay without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Order one training job, wait, and save the model."""
    buyer = _buyer(network, key_file)
    quote = buyer.quote(
        dataset,
        epsilon=epsilon,
        delta=delta,
        purpose=purpose,
        model=model,
        rounds=rounds,
        reward_units=reward_units,
        deadline_s=deadline_s,
        max_fee_units=max_fee_units,
    )
    for line in described(quote):
        complaints.print(line)
    if not yes:
        typer.confirm("Pay?", abort=True, err=True)
    job = buyer.keep(quote)
    complaints.print(
        f"job {job.id} is written down; whatever happens from here on: datahub resume {job.id[:12]}"
    )
    _finish(job, out, as_json)


def described(quote: Quote) -> list[str]:
    """What a person should read before paying."""
    from datahub.money import money

    terms = quote.terms
    lines = [
        f"{money(quote.amount_units)} in all: datasets "
        f"{money(sum(d.price_units for d in terms.datasets))}, compute up to "
        f"{money(sum(d.compute_cap_units for d in terms.datasets))}, reward "
        f"{money(terms.reward_units)}, the hub's fee {money(terms.fee_units)}",
        f"{quote.spec.rounds} rounds over {len(terms.datasets)} hospitals, "
        f"{terms.quorum} of which must finish; epsilon {quote.epsilon:.3f} at delta "
        f"{quote.spec.plan.delta:g} for each patient",
    ]
    for name, wide in quote.interval95.items():
        lines.append(
            f"with so few patients or so little epsilon the report's {name} will be more noise "
            "than signal"
            if wide > MUCH
            else f"the report's {name} will be known to about ± {wide / 2:.3f}"
        )
    return lines


@buyer_commands.command()
def jobs(key_file: KeyFile, network: NetworkName = "", as_json: Json = False) -> None:
    """Your jobs: those on this disk, and those that your wallet has paid according to the chain."""
    rows = _buyer(network, key_file).jobs()
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table("job", "on the chain", "deadline (UTC)", "next")
    for row in rows:
        until = time.strftime("%Y-%m-%d %H:%M", time.gmtime(row["deadline"]))
        table.add_row(row["job_id"][:12], row["state"], until, row["next"])
    console.print(table)


@buyer_commands.command()
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

    job = _buyer(network, key_file).job(job_id)
    if job.on_chain is Status.NONE and not yes:
        typer.confirm("It was never paid: nothing was taken. Pay now?", abort=True, err=True)
    _finish(job, out, as_json)


@buyer_commands.command()
def result(
    job_id: JobId,
    key_file: KeyFile,
    network: NetworkName = "",
    out: Out = Path("result"),
    as_json: Json = False,
) -> None:
    """Save the model and the report of a settled job, again and again."""
    job = _buyer(network, key_file).job(job_id)
    _save(job, job.result(), out, as_json)


@buyer_commands.command()
def refund(
    job_id: JobId, key_file: KeyFile, network: NetworkName = "", as_json: Json = False
) -> None:
    """Take the money of a job back after its deadline, with its folder or with nothing but the
    wallet's key and the chain.
    """
    from datatokens.bindings.escrow import Status

    job = _buyer(network, key_file).job(job_id)
    if job.on_chain is not Status.REFUNDED:  # else it was taken back before: saying so is enough
        job.refund()
    _refunded(job, as_json)


@buyer_commands.command()
def job(
    hub_url: HubUrl, job_id: Annotated[str, typer.Argument(help="Job id.")], as_json: Json = False
) -> None:
    """Where a job stands, as its hub sees it."""
    from datahub.buyer.hub_client import Hub

    status = Hub(hub_url).get(f"/api/jobs/{job_id}")
    if as_json:
        typer.echo(json.dumps(status))
    else:
        done = f"{len(status['rounds'])} of {status['rounds_planned']} rounds"
        console.print(
            f"{status['state']}, {done}{': ' + status['reason'] if status['reason'] else ''}"
        )


@buyer_commands.command()
def dispute(job_id: JobId, key_file: KeyFile, network: NetworkName = "") -> None:
    """The buyer or a node of a job with an arbiter: ask it to look at the attested result. Costs
    the bond in the terms.
    """
    from datahub.buyer.sdk import Job

    buyer = _buyer(network, key_file)
    # a node disputes too, and it has paid no job: its whole id is needed
    job = Job(buyer, job_id) if len(job_id) == 64 else buyer.job(job_id)
    job.dispute()
    terms = job.terms
    bond = terms.dispute.bond_units if terms.dispute else 0
    console.print(
        f"job {job.id[:12]} is disputed; the bond of {bond} base units is in escrow until the "
        "arbiter rules"
    )


@buyer_commands.command()
def withdraw(
    key_file: KeyFile,
    network: NetworkName = "",
    to: Annotated[
        str, typer.Option(help="Where the money goes; default the key's own address.")
    ] = "",
) -> None:
    """Take out what waits as credit: the hub's fees, or change whose transfer failed."""
    from datahub.money import money
    from datatokens import deploy
    from datatokens.bindings.escrow import Escrow
    from datatokens.chain.connection import connect

    pinned = _network(network)
    chain = connect(pinned.chain, key_file.read_text().strip())
    deploy.check(chain, pinned.deployment)
    escrow = Escrow(chain, pinned.deployment.market)
    units = escrow.credit_units(str(chain.address))
    escrow.withdraw_credit(to or str(chain.address))
    console.print(f"{money(units)} went to {to or chain.address}")


@buyer_commands.command()
def claim(
    key_file: KeyFile,
    network: NetworkName = "",
    account: Annotated[str, typer.Option(help="Whose share; default the key's own address.")] = "",
    as_json: Json = False,
) -> None:
    """Claim a contributor's share of every dataset; the money goes to the contributor, whoever
    sends it.
    """
    from datahub.buyer.contributor import claim_all
    from datahub.money import money

    paid = claim_all(_network(network), key_file.read_text().strip(), account)
    if as_json:
        typer.echo(json.dumps({str(dataset_id): units for dataset_id, units in paid.items()}))
    elif not paid:
        console.print("nothing to claim now")
    else:
        for dataset_id, units in paid.items():
            console.print(f"dataset {dataset_id}: {money(units)}")


def _network(name: str) -> Network:
    from datahub.buyer import networks

    return networks.by_name(name)


def _buyer(name: str, key_file: Path) -> Buyer:
    from datahub.buyer.sdk import Buyer

    pinned = _network(name)
    key = key_file.read_text().strip()
    return Buyer(pinned.hub, chain=pinned.chain, key=key, network=pinned)


def _finish(job: Job, out: Path, as_json: bool) -> None:
    """Everything that is left of a job. A failure says how to go on."""
    from datahub.buyer.waiting import follow
    from datatokens.bindings.escrow import Status

    try:
        job.pay()
        status = job.on_chain
        if status is Status.FUNDED and job.buyer.chain.now() > job.deadline:
            job.refund()
            return _refunded(job, as_json)
        if status is Status.REFUNDED:
            return _refunded(job, as_json)
        if status is not Status.SETTLED:
            job.hand_over()
            if (said := follow(job, complaints))["state"] == "refunded":
                raise HubError(f"job {job.id[:12]} was refunded: {said['reason']}")
        return _save(job, job.result(), out, as_json)
    except (HubError, BankError, NodeError, TheatreError) as error:
        if job.on_chain in (Status.NONE, Status.REFUNDED):
            raise  # no money of it is anywhere but in the wallet
        raise HubError(f"{error}; go on with: datahub resume {job.id[:12]}") from error


def _refunded(job: Job, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"job_id": job.id, "state": "refunded", "folder": None}))
    else:
        console.print(f"job {job.id[:12]} is refunded: every unit is back in {job.buyer.address}")


def _save(job: Job, result: Result, out: Path, as_json: bool) -> None:
    from datahub.buyer.waiting import evaluation_line
    from fl_client.model.weights import to_safetensors
    from fl_client.node.job_folder import write_whole

    files: dict[str, Any] = {
        "model.safetensors": to_safetensors(result.arrays),
        "graph.json": result.graph,
        "report.json": result.report,
    }
    for name, content in files.items():
        write_whole(out / name, content)
    if as_json:
        typer.echo(json.dumps({"job_id": job.id, "state": "settled", "folder": str(out)}))
    else:
        console.print(evaluation_line(parse(result.report)["evaluation"]))
        console.print(f"settled; {', '.join(files)} are in {out}")
