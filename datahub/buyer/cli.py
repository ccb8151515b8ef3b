"""The commands of a buyer and of a contributor: pin a network, order, follow, finish, claim.

Each command that pays or signs works on a pinned network; a job goes on, or its money comes back,
from the buyer's own disk or from the wallet's key and the chain alone. Decides nothing.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from datahub.errors import HubError, OrderRefused
from datatokens.errors import BankError
from datatokens.terminal import Terminal, visible
from datatokens.terms import USUAL_DEADLINE_S
from datatokens.wire import parse
from fl_client.errors import NodeError
from fl_server.errors import TheatreError

if TYPE_CHECKING:
    from datahub.buyer.jobs import Job
    from datahub.buyer.networks import Network
    from datahub.buyer.results import Result
from datahub.buyer.sdk import Market, Quote

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
DatasetIds = Annotated[list[int], typer.Option(help="Dataset id; repeat for each.")]
Delta = Annotated[float | None, typer.Option(help="Delta; default min(1e-5, 1/(10 patients)).")]
RewardUnits = Annotated[int, typer.Option(help="Reward pool, base units, split by patients.")]
MaxFeeUnits = Annotated[
    int | None, typer.Option(help="The most that the hub may take, base units.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Pay without asking.")]
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
    as_json: Json = False,
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
    if as_json:
        typer.echo(json.dumps({"name": name, "file": str(file), **vars(found)}))
        return
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

    rows = Hub(hub_url).rows("/api/datasets", 1000)
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table(
        "id",
        "name",
        "hospital",
        "patients (noised)",
        "price",
        "lifetime epsilon",
        "schema",
        "node",
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
            str(row["schema_hash"] or "")[:12],
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
    from fl_client.data import words
    from fl_client.data.manifests import Manifest

    manifest = Manifest.from_dict(row["manifest"])
    schema, lacking = manifest.schema, ""
    if manifest.left_out is not None:
        lacking = f"; about {manifest.left_out} more (noised) lack a value that it needs"
    console.print(f"{manifest.name}\n{manifest.hospital}: {manifest.description}", soft_wrap=True)
    console.print(
        f"about {manifest.persons} {manifest.unit}s (noised), never fewer than "
        f"{manifest.minimum_persons}{lacking}; {money(row['price_units'])} a job; lifetime epsilon "
        f"{manifest.lifetime_epsilon:g} at delta {manifest.delta:g} for each {manifest.unit}",
        soft_wrap=True,
        highlight=False,
    )
    if (privacy := row["privacy"]) is not None:
        console.print(
            f"spent: epsilon {privacy['epsilon_spent']:.3f}, as its node has attested for "
            f"{privacy['jobs_attested']} jobs",
            highlight=False,
        )
    if row["offer"]:
        console.print(
            f"left: at most epsilon {row['offer']['epsilon_left']:.3g} for one more job, as its "
            "node says",
            highlight=False,
        )
    console.print(
        f"to be learned: {schema.target.name}, {schema.target.words}",
        highlight=False,
        soft_wrap=True,
    )
    if schema.picture is not None:
        console.print(f"pictures: model inputs of shape {schema.picture.shape}", highlight=False)
        return
    table = Table("column", "values", "unit", "as inputs", "if missing")
    for one in map(words.column, schema.features):
        levels = f": {', '.join(one.levels)}" * bool(one.levels)
        table.add_row(one.name, one.kind + levels, one.unit, one.inputs, one.missing)
    console.print(table)
    console.print(f"{schema.width} inputs; schema {schema.hash}", highlight=False, soft_wrap=True)


@buyer_commands.command()
def synthetic(
    dataset_id: Annotated[int, typer.Argument(help="The dataset's id.")],
    hub_url: HubUrl,
    out: Annotated[Path, typer.Option(help="CSV file to write.")],
    records: Annotated[int, typer.Option(help="How many.")] = 500,
    as_json: Json = False,
) -> None:
    """Made-up records in a dataset's format, from its schema alone, to try a model on at home."""
    import csv

    from datahub.synthetic import made_up
    from fl_client.data.manifests import Manifest

    manifest = Manifest.from_dict(_listed(hub_url, dataset_id)["manifest"])
    rows = list(made_up(manifest.schema, records))
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    if as_json:
        typer.echo(json.dumps({"dataset_id": dataset_id, "file": str(out), "records": records}))
        return
    console.print(
        f"{records} made-up records in {out}: nothing in them is a patient's", soft_wrap=True
    )


def _listed(hub_url: str, dataset_id: int) -> dict[str, Any]:
    from datahub.buyer.hub_client import Hub

    row: dict[str, Any] = Hub(hub_url).get(f"/api/datasets/{dataset_id}")
    if row["manifest"] is None:
        raise HubError(f"dataset {dataset_id}: its hospital has not sent the manifest to {hub_url}")
    return row


@buyer_commands.command()
def buy(
    key_file: KeyFile,
    dataset: DatasetIds,
    epsilon: Annotated[
        float, typer.Option(help="Most that the job may cost a patient of each hospital.")
    ],
    purpose: Annotated[str, typer.Option(help="What the model is for.")],
    network: NetworkName = "",
    out: Out = Path("result"),
    delta: Delta = None,
    model: Annotated[str, typer.Option(help="A built-in model.")] = "logistic_regression",
    rounds: Annotated[
        int | None, typer.Option(help="Rounds; default 20 to 60, by patients and epsilon.")
    ] = None,
    reward_units: RewardUnits = 0,
    deadline_s: Annotated[
        int,
        typer.Option(
            help="Seconds until the money comes back if nothing was settled: 172800 are two days."
        ),
    ] = USUAL_DEADLINE_S,
    answer_s: Annotated[
        int | None,
        typer.Option(
            help="Seconds that people at hospitals have for a yes or no; three quarters of "
            "--deadline-s if left out. Then the job goes on with those who have said yes."
        ),
    ] = None,
    purpose_code: Annotated[
        list[str] | None,
        typer.Option(
            help="What it is for as a code of the Data Use Ontology, like DUO:0000006, for "
            "hospitals that compare them; may be given several times."
        ),
    ] = None,
    max_fee_units: MaxFeeUnits = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Order one training job, wait, and save the model."""
    market = _market(network, key_file)
    quote = market.quote(
        dataset,
        epsilon=epsilon,
        delta=delta,
        purpose=purpose,
        model=model,
        rounds=rounds,
        reward_units=reward_units,
        deadline_s=deadline_s,
        max_fee_units=max_fee_units,
        purpose_codes=purpose_code or (),
        answer_s=answer_s,
    )
    _pay(quote, yes, out, as_json)


def _pay(quote: Quote, yes: bool, out: Path, as_json: bool) -> None:
    for line in described(quote):
        complaints.print(line)
    if not yes:
        typer.confirm("Pay?", abort=True, err=True)
    job = quote.keep()
    complaints.print(
        f"job {job.id} is written down; whatever happens from here on: datahub resume {job.id[:12]}"
    )
    _finish(job, out, as_json)


@buyer_commands.command()
def ask(
    question: Annotated[
        str,
        typer.Argument(
            help='"count by sex, age at 40 60", "histogram of chol from 100 to 400", "mean of chol '
            'from 100 to 400 by sex", "quantiles of chol", "survival by sex": names as the schema '
            "has them (datahub dataset ID)."
        ),
    ],
    key_file: KeyFile,
    dataset: DatasetIds,
    epsilon: Annotated[
        float, typer.Option(help="Most that the answer may cost a patient of each hospital.")
    ],
    purpose: Annotated[str, typer.Option(help="What the figures are for.")],
    network: NetworkName = "",
    out: Out = Path("result"),
    delta: Delta = None,
    reward_units: RewardUnits = 0,
    max_fee_units: MaxFeeUnits = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Ask many hospitals for private figures: count, histogram, mean, quantiles, survival."""
    market = _market(network, key_file)
    quote = market.ask(
        dataset,
        question,
        epsilon=epsilon,
        delta=delta,
        purpose=purpose,
        reward_units=reward_units,
        max_fee_units=max_fee_units,
    )
    _pay(quote, yes, out, as_json)


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def described(quote: Quote) -> list[str]:
    """What a person should read before paying."""
    from datahub.money import money

    terms = quote.terms
    lines = [
        f"{money(quote.amount_units)} in all: datasets "
        f"{money(sum(d.price_units for d in terms.datasets))}, compute up to "
        f"{money(sum(d.compute_cap_units for d in terms.datasets))}, reward "
        f"{money(terms.reward_units)}, the hub's fee {money(terms.fee_units)}",
        f"{_many(quote.spec.rounds, 'round')} over {_many(len(terms.datasets), 'hospital')}, "
        f"{terms.quorum} of which must finish; epsilon {quote.epsilon:.3f} at delta "
        f"{quote.spec.plan.delta:g} for each patient",
    ]
    if quote.question:
        noise = quote.spec.plan.noise_multiplier * quote.spec.plan.clip_norm
        wide = 1.96 * noise * math.sqrt(len(terms.datasets))
        lines.append(f"the count of every cell will be known to about ± {wide:.1f} patients")
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
    rows = _market(network, key_file).jobs()
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

    job = _market(network, key_file).job(job_id)
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
    job = _market(network, key_file).job(job_id)
    _save(job, job.result(), out, as_json)


@buyer_commands.command()
def predict(
    folder: Annotated[Path, typer.Argument(help="A saved result (datahub buy --out).")],
    table: Annotated[
        Path,
        typer.Argument(
            help="CSV, Parquet, Excel or JSON lines, with the model's original columns by name, as "
            "they were measured; others are not looked at."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="CSV file to write; default the terminal.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What a saved model says of each record of a table: chances, or numbers in their own unit."""
    import csv
    import io
    import warnings

    from datahub.buyer.frames import Doubt
    from datahub.buyer.results import Result

    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", Doubt)
        answers = Result.load(folder).predict(table)
    for doubt in doubts:
        complaints.print(str(doubt.message), style="yellow", soft_wrap=True)
    rows = list(zip(*(values.tolist() for values in answers.values()), strict=True))
    if out is not None or not as_json:
        written = io.StringIO(newline="")
        lines = csv.writer(written, lineterminator="\n")
        lines.writerow(map(visible, answers))
        lines.writerows([f"{x:.6g}" if math.isfinite(x) else "" for x in row] for row in rows)
        if out is None:
            for line in written.getvalue().splitlines():
                typer.echo(visible(line))
            return
        out.write_text(written.getvalue(), encoding="utf-8")
    if as_json:
        said: dict[str, Any] = {"records": len(rows)}
        if out is None:
            said["answers"] = {
                name: [x if math.isfinite(x) else None for x in values.tolist()]
                for name, values in answers.items()
            }
        typer.echo(json.dumps(said | ({"file": str(out)} if out else {})))
        return
    console.print(f"{len(rows)} records, {', '.join(answers)}: {out}", soft_wrap=True)


@buyer_commands.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A saved result, from whomever it came.")],
    network: NetworkName = "",
    as_json: Json = False,
) -> None:
    """Whether a saved model is the one that hospitals signed for on the chain. Needs no key and no
    hub: files and the chain decide.
    """
    from datahub.buyer.results import Result
    from datatokens import deploy
    from datatokens.bindings.escrow import Escrow
    from datatokens.chain.connection import connect
    from datatokens.terms import JobTerms
    from fl_client.model.weights import model_hash
    from fl_client.protocol import sha256_hex

    kept, where = Result.load(folder), _network(network)
    terms = JobTerms.from_json(kept.terms)
    chain = connect(where.chain)
    deploy.check(chain, where.deployment)
    if (terms.chain_id, terms.market) != (chain.chain_id, where.deployment.market):
        raise OrderRefused(
            f"{folder} is of market {terms.market} on chain {terms.chain_id}, and {where.name} is "
            f"market {where.deployment.market} on chain {chain.chain_id}: name another --network"
        )
    settled = Escrow(chain, terms.market).settlement(terms.job_id)
    if settled is None:
        raise OrderRefused(f"job {terms.job_id.hex()[:12]} is not settled on the chain")
    said, report = settled.attestation, parse(kept.report)
    for what, signed, found in (
        ("model", said.model_hash.hex(), model_hash(kept.arrays).hex()),
        ("report", said.report_hash.hex(), sha256_hex(kept.report)),
    ):
        if signed != found:
            raise OrderRefused(
                f"{folder}: the {what} is not the one that was signed for: its hash is "
                f"{found[:12]}, hospitals signed {signed[:12]}"
            )
    worked = [one for one in report["hospitals"] if one["worked"]]
    facts = {
        "job_id": terms.job_id.hex(),
        "model_hash": said.model_hash.hex(),
        "datasets": [one["dataset_id"] for one in worked],
        "epsilon": max(one["epsilon_job"] for one in worked),
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    console.print(
        f"the model in {folder} is the one that {_many(len(worked), 'hospital')} signed for in job "
        f"{facts['job_id'][:12]}: SHA-256 {facts['model_hash']}; it cost each patient at most "
        f"epsilon {facts['epsilon']:.3f}",
        soft_wrap=True,
    )


@buyer_commands.command()
def refund(
    job_id: JobId, key_file: KeyFile, network: NetworkName = "", as_json: Json = False
) -> None:
    """Take the money of a job back after its deadline, with its folder or with nothing but the
    wallet's key and the chain.
    """
    from datatokens.bindings.escrow import Status

    job = _market(network, key_file).job(job_id)
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
def dispute(
    job_id: JobId, key_file: KeyFile, network: NetworkName = "", as_json: Json = False
) -> None:
    """The buyer or a node of a job with an arbiter: ask it to look at the attested result. Costs
    the bond in the terms.
    """
    from datahub.buyer.jobs import Job

    market = _market(network, key_file)
    # a node disputes too, and it has paid no job: its whole id is needed
    job = Job(market, job_id) if len(job_id) == 64 else market.job(job_id)
    job.dispute()
    terms = job.terms
    bond = terms.dispute.bond_units if terms.dispute else 0
    if as_json:
        typer.echo(json.dumps({"job_id": job.id, "state": "disputed", "bond_units": bond}))
        return
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
    as_json: Json = False,
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
    if as_json:
        typer.echo(json.dumps({"to": to or str(chain.address), "units": units}))
        return
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


def _market(name: str, key_file: Path) -> Market:
    from datahub.buyer.sdk import Market

    pinned = _network(name)
    key = key_file.read_text().strip()
    return Market(pinned.hub, chain=pinned.chain, key=key, network=pinned)


def _finish(job: Job, out: Path, as_json: bool) -> None:
    """Everything that is left of a job. A failure says how to go on."""
    from datahub.buyer.waiting import follow
    from datatokens.bindings.escrow import Status

    try:
        job.pay()
        status = job.on_chain
        if status is Status.FUNDED and job.market.chain.now() > job.deadline:
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
        console.print(f"job {job.id[:12]} is refunded: every unit is back in {job.market.address}")


def _save(job: Job, result: Result, out: Path, as_json: bool) -> None:
    from datahub.buyer.waiting import evaluation_line
    from fl_client.node.job_folder import write_whole

    files = result.save(out)
    answer = job.answer() if job.question else None
    if answer:
        write_whole(out / "answer.json", json.dumps(answer).encode())
        files.append("answer.json")
    if as_json:
        said = {"job_id": job.id, "state": "settled", "folder": str(out)}
        typer.echo(json.dumps(said | ({"answer": answer} if answer else {})))
    elif answer:
        from datahub.buyer.answers import table

        console.print(table(answer))
        console.print(f"settled; {', '.join(files)} are in {out}")
    else:
        console.print(evaluation_line(parse(result.report)["evaluation"]))
        console.print(f"settled; {', '.join(files)} are in {out}")
