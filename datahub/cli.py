"""The command line: every persona's door. Maps errors to one sentence and an exit code; decides
nothing.

Exit codes: 0 fine, 1 refused or failed with a sentence, 2 wrong words on the command line.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from datahub.errors import ConfigError, HubError
from datatokens.cli import app as chain_commands
from datatokens.errors import BankError
from fl_client.errors import NodeError
from fl_client.node.cli import node
from fl_client.node.owner_cli import owner
from fl_server.errors import TheatreError

app = typer.Typer(
    help="Buy one training job over many hospitals; raw data never leaves them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
hub = typer.Typer(help="The operator's hub.", no_args_is_help=True)
app.add_typer(node, name="node")
app.add_typer(owner, name="owner")
app.add_typer(chain_commands, name="chain")
app.add_typer(hub, name="hub")
console = Console()
complaints = Console(stderr=True)

HubUrl = Annotated[str, typer.Option("--hub", help="URL of the hub.")]
ChainUrl = Annotated[
    str, typer.Option("--chain", help="URL of your own chain connection (JSON-RPC).")
]
KeyFile = Annotated[Path, typer.Option(help="File with your wallet's private key.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@hub.command("init")
def hub_init(
    folder: Annotated[Path, typer.Argument(help="The hub's folder.")],
    chain: ChainUrl,
    key_file: Annotated[
        Path, typer.Option(help="File with the operator's private key; it pays gas.")
    ],
    superlink: Annotated[
        str, typer.Option(help="host:port where hospitals reach the SuperLink.")
    ] = "127.0.0.1:9092",
    registry: Annotated[
        str, typer.Option(help="An existing registry; without it everything is deployed.")
    ] = "",
    market: Annotated[str, typer.Option(help="The market of that registry.")] = "",
    payment_token: Annotated[
        str, typer.Option(help="ERC-20 that is paid in; without it a test token.")
    ] = "",
    fee_bps: Annotated[int, typer.Option(help="The hub's fee, of 10000.")] = 250,
) -> None:
    """Make a hub: deploy the contracts (or check existing ones), certificates for the SuperLink,
    hub.toml.
    """
    from datahub import config
    from datatokens.chain.connection import connect
    from datatokens.deploy import deploy, verify
    from fl_client.node.config import write_private
    from fl_server.certificates import write_certificates
    from fl_server.superlink import operator_token

    key = key_file.read_text().strip()
    connection = connect(chain, key)
    if registry:
        made = verify(connection, registry, market)
        if payment_token and payment_token != made.payment_token:
            raise ConfigError(
                f"--payment-token={payment_token}: the market pays in {made.payment_token}"
            )
    else:
        made = deploy(connection, payment_token or None)
    superlink_folder = (folder / "superlink").resolve()
    write_certificates(superlink_folder, ("localhost", "127.0.0.1", superlink.rsplit(":", 1)[0]))
    operator_token(superlink_folder)
    write_private(folder / "keys" / "operator.key", key.encode())
    config.write(
        folder,
        chain=chain,
        chain_id=made.chain_id,
        registry=made.registry,
        market=made.market,
        payment_token=made.payment_token,
        superlink=superlink,
        superlink_folder=str(superlink_folder),
        database=f"sqlite:///{(folder / 'hub.sqlite').resolve()}",
        fee_bps=fee_bps,
    )
    made.save(folder / "deployment.json")  # what `datahub chain privacy` and `verify` read
    console.print(f"hub in {folder}: registry {made.registry}, market {made.market}")


@hub.command("start")
def hub_start(
    folder: Annotated[Path, typer.Argument(help="The hub's folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
) -> None:
    """Serve the pages and the API, and drive jobs. Stop and start it whenever you like."""
    import uvicorn

    from datahub.config import read
    from datahub.market.desk import open_desk
    from datahub.web.api import create_app

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    uvicorn.run(create_app(open_desk(read(folder))), host=host, port=port, log_level="warning")


@hub.command("superlink")
def hub_superlink(
    folder: Annotated[Path, typer.Argument(help="The hub's folder.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; hospitals must reach it.")
    ] = "127.0.0.1",
) -> None:
    """Run Flower's SuperLink behind the operator's gate, on the port named in hub.toml."""
    from datahub.config import read

    config = read(folder)
    port = config.superlink.rsplit(":", 1)[1]
    arguments = ["--folder", str(config.superlink_folder), "--host", host, "--port", port]
    os.execv(sys.executable, [sys.executable, "-m", "fl_server.superlink", *arguments])  # noqa: S606 replaces us


@app.command()
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


@app.command()
def buy(
    hub_url: HubUrl,
    chain_url: ChainUrl,
    key_file: KeyFile,
    dataset: Annotated[list[int], typer.Option(help="Dataset id; repeat for each.")],
    epsilon: Annotated[
        float, typer.Option(help="Most that the job may cost a patient of each hospital.")
    ],
    purpose: Annotated[str, typer.Option(help="What the model is for.")],
    out: Annotated[Path, typer.Option(help="Folder for the model and the report.")] = Path(
        "result"
    ),
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
    yes: Annotated[bool, typer.Option("--yes", help="Pay without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Order one training job, wait, and save the model."""
    from datahub.buyer.sdk import Buyer
    from datahub.buyer.waiting import evaluation_line, follow
    from datahub.money import money

    buyer = Buyer(hub_url, chain=chain_url, key=key_file.read_text().strip())
    quote = buyer.quote(
        dataset,
        epsilon=epsilon,
        delta=delta,
        purpose=purpose,
        model=model,
        rounds=rounds,
        reward_units=reward_units,
    )
    question = (
        f"Pay {money(quote.amount_units)} for {quote.spec.rounds} rounds at epsilon "
        f"{quote.epsilon:.3f} per hospital?"
    )
    if not yes:
        typer.confirm(question, abort=True, err=True)
    job = buyer.pay(quote)
    status = follow(job, complaints)
    if status["state"] == "refunded":
        raise HubError(f"job {job.id[:12]} was refunded: {status['reason']}")
    result = job.result()
    from fl_client.model.weights import to_safetensors

    out.mkdir(parents=True, exist_ok=True)
    (out / "model.safetensors").write_bytes(to_safetensors(result.arrays))
    (out / "graph.json").write_bytes(result.graph)
    (out / "report.json").write_bytes(result.report)
    if as_json:
        typer.echo(json.dumps({"job_id": job.id, "state": status["state"], "folder": str(out)}))
    else:
        console.print(evaluation_line(json.loads(result.report)["evaluation"]))
        console.print(f"settled; model.safetensors, graph.json and report.json are in {out}")


@app.command()
def job(
    hub_url: HubUrl, job_id: Annotated[str, typer.Argument(help="Job id.")], as_json: Json = False
) -> None:
    """Where a job stands."""
    from datahub.buyer.hub_client import Hub

    status = Hub(hub_url).get(f"/api/jobs/{job_id}")
    if as_json:
        typer.echo(json.dumps(status))
    else:
        done = f"{len(status['rounds'])} of {status['rounds_planned']} rounds"
        console.print(
            f"{status['state']}, {done}{': ' + status['reason'] if status['reason'] else ''}"
        )


@app.command()
def dispute(
    hub_url: HubUrl,
    chain_url: ChainUrl,
    key_file: KeyFile,
    job_id: Annotated[str, typer.Argument(help="Job id.")],
) -> None:
    """The buyer or a node of a job with an arbiter: ask it to look at the attested result. Costs
    the bond in the terms.
    """
    from datahub.buyer.hub_client import Hub
    from datahub.buyer.sdk import Buyer
    from datatokens.terms import JobTerms

    terms = JobTerms.from_json(Hub(hub_url).call("GET", f"/api/jobs/{job_id}/terms").content)
    Buyer(hub_url, chain=chain_url, key=key_file.read_text().strip()).job(terms).dispute()
    bond = terms.dispute.bond_units if terms.dispute else 0
    console.print(
        f"job {job_id[:12]} is disputed; the bond of {bond} base units is in escrow until the "
        "arbiter rules"
    )


@app.command()
def withdraw(
    hub_url: HubUrl,
    chain_url: ChainUrl,
    key_file: KeyFile,
    to: Annotated[
        str, typer.Option(help="Where the money goes; default the key's own address.")
    ] = "",
) -> None:
    """Take out what waits as credit: the hub's fees, or change whose transfer failed."""
    from datahub.buyer.hub_client import Hub
    from datahub.money import money
    from datatokens.bindings.escrow import Escrow
    from datatokens.chain.connection import connect

    chain = connect(chain_url, key_file.read_text().strip())
    escrow = Escrow(chain, Hub(hub_url).get("/api/network")["market"])
    units = escrow.credit_units(str(chain.address))
    escrow.withdraw_credit(to or str(chain.address))
    console.print(f"{money(units)} went to {to or chain.address}")


@app.command()
def claim(
    hub_url: HubUrl,
    chain_url: ChainUrl,
    key_file: KeyFile,
    account: Annotated[str, typer.Option(help="Whose share; default the key's own address.")] = "",
    as_json: Json = False,
) -> None:
    """Claim a contributor's share of every dataset; the money goes to the contributor, whoever
    sends it.
    """
    from datahub.buyer.contributor import claim_all
    from datahub.money import money

    paid = claim_all(hub_url, chain_url, key_file.read_text().strip(), account)
    if as_json:
        typer.echo(json.dumps({str(dataset_id): units for dataset_id, units in paid.items()}))
    elif not paid:
        console.print("nothing to claim now")
    else:
        for dataset_id, units in paid.items():
            console.print(f"dataset {dataset_id}: {money(units)}")


@app.command()
def demo(
    data: Annotated[str, typer.Option(help="breast-cancer or heart-disease.")] = "breast-cancer",
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with processed.*.data (heart-disease).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("demo-output"),
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running until Ctrl-C, to look at.")
    ] = False,
) -> None:
    """The whole walk on this machine: four hospitals, one buyer, three contributors."""
    from datahub.demo.walk import run

    run(data, data_dir, out, keep)


def main() -> None:
    """The entry point: a user's mistake is one sentence and exit code 1, never a trace."""
    try:
        app()
    except (HubError, TheatreError, NodeError, BankError) as error:
        _complain(error)
    except FileNotFoundError as error:
        _complain(f"{error.filename} does not exist")


def _complain(what: Any) -> None:
    complaints.print(f"[bold red]refused:[/] {what}", highlight=False)
    sys.exit(1)


if __name__ == "__main__":
    main()
