"""The bank's commands: run the embedded chain, deploy the contracts, look at and check a
deployment, read the public ledger. Parses and prints only.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from datatokens.chain.connection import Chain
    from datatokens.deploy import Deployment

app = typer.Typer(help="The chain and the contracts on it.", no_args_is_help=True)

Url = Annotated[str, typer.Option("--chain", help="JSON-RPC URL of the chain.")]
DEFAULT_URL = "http://127.0.0.1:8545"


@app.command()
def start(
    port: Annotated[int, typer.Option(help="Port on loopback.")] = 8545,
    state: Annotated[Path, typer.Option(help="SQLite file that keeps the chain.")] = Path(
        "chain.sqlite"
    ),
) -> None:
    """Run the embedded chain (loopback only, public test keys) until it is stopped."""
    os.execv(  # noqa: S606 replaces us
        sys.executable,
        [
            sys.executable,
            "-m",
            "datatokens.chain.rpc_server",
            "--port",
            str(port),
            "--state",
            str(state),
        ],
    )


@app.command()
def deploy(
    key_file: Annotated[Path, typer.Option(help="File with the private key that pays the gas.")],
    out: Annotated[Path, typer.Option(help="File to write the addresses to.")] = Path(
        "deployment.json"
    ),
    url: Url = DEFAULT_URL,
    payment_token: Annotated[
        str, typer.Option(help="ERC-20 that is paid in; without it a test token.")
    ] = "",
    fee_recipient: Annotated[
        str, typer.Option(help="Whom the hub's fees are credited to; the key's account.")
    ] = "",
) -> None:
    """Deploy the registry and the market."""
    from datatokens import deploy as deployment
    from datatokens.chain.connection import connect
    from datatokens.errors import BankError

    try:
        chain = connect(url, key_file.read_text().strip())
        made = deployment.deploy(chain, payment_token or None, fee_recipient or None)
        made.save(out)
    except (BankError, OSError) as error:
        _fail(str(error))
    typer.echo(
        f"registry {made.registry}, market {made.market}, payment token {made.payment_token}: "
        f"written to {out}"
    )


@app.command("verify")
def verify_code(
    deployment: Annotated[Path, typer.Argument(help="File that `deploy` wrote.")] = Path(
        "deployment.json"
    ),
    url: Url = DEFAULT_URL,
) -> None:
    """Compare the deployed code with this version, byte for byte. Exit status 1 if it does not
    match.
    """
    from datatokens.errors import BankError

    try:
        made = _verified(deployment, url)[1]
    except BankError as error:
        _fail(str(error))
    typer.echo(f"registry {made.registry} and market {made.market} carry the code of this version")


@app.command()
def status(
    deployment: Annotated[Path, typer.Argument(help="File that `deploy` wrote.")] = Path(
        "deployment.json"
    ),
    url: Url = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check the deployed code against this version, and count what is there. Exit status 1 if it
    does not match.
    """
    from datatokens.bindings.registry import Registry, Token
    from datatokens.errors import BankError

    try:
        chain, made = _verified(deployment, url)
        facts = {
            "chain_id": chain.chain_id,
            "block": chain.block_number(),
            "registry": made.registry,
            "market": made.market,
            "payment_token": made.payment_token,
            "datasets": Registry(chain, made.registry).count(),
            "market_holds_units": Token(chain, made.payment_token).balance_units(made.market),
        }
    except BankError as error:
        _fail(str(error))
    typer.echo(
        json.dumps(facts)
        if as_json
        else "\n".join(f"{name}: {value}" for name, value in facts.items())
    )


@app.command()
def privacy(
    deployment: Annotated[Path, typer.Argument(help="File that `deploy` wrote.")] = Path(
        "deployment.json"
    ),
    url: Url = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What every dataset's patients have paid in epsilon, from the chain alone. Exit status 1 if
    one is overspent, or its figures cannot all be true.
    """
    from rich.table import Table

    from datatokens import public_ledger
    from datatokens.errors import BankError
    from datatokens.terminal import Terminal

    try:
        chain, made = _verified(deployment, url)
        lines = public_ledger.read(chain, made.registry, made.market)
    except BankError as error:
        _fail(str(error))
    rows = [
        {
            "dataset_id": line.dataset_id,
            "jobs": line.jobs,
            "epsilon": line.epsilon_micro / 10**6,
            "delta": line.delta_atto / 10**18,
            "stated_epsilon": line.budget_epsilon_micro / 10**6
            if line.budget_epsilon_micro
            else None,
            "stated_delta": line.budget_delta_atto / 10**18 if line.budget_delta_atto else None,
            "overspent": line.overspent,
            "accepted": line.accepted,
            "misfit": line.misfit or None,
            "job_id": line.job_id.hex() if line.job_id else None,
        }
        for line in lines
    ]
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        table = Table(
            "dataset",
            "jobs attested",
            "epsilon so far",
            "stated",
            "delta",
            "stated",
            "",
            box=None,
            pad_edge=False,
        )
        for row in rows:
            table.add_row(
                str(row["dataset_id"]),
                str(row["jobs"]),
                f"{row['epsilon']:.6f}",
                "none" if row["stated_epsilon"] is None else f"{row['stated_epsilon']:g}",
                f"{row['delta']:.3g}",
                "none" if row["stated_delta"] is None else f"{row['stated_delta']:.3g}",
                "OVERSPENT" if row["overspent"] else "DOES NOT FIT" if row["misfit"] else "",
            )
        Terminal().print(table)
        for line in lines:
            if line.misfit:
                typer.echo(f"dataset {line.dataset_id}: {line.misfit}")
    if any(line.overspent or line.misfit for line in lines):
        raise typer.Exit(1)


def _verified(file: Path, url: str) -> tuple[Chain, Deployment]:
    """The connection and the deployment in `file`, if the code there is ours. Raises BankError."""
    from datatokens.chain.connection import connect
    from datatokens.deploy import Deployment, verify
    from datatokens.errors import BankError

    chain, made = connect(url), Deployment.load(file)
    if chain.chain_id != made.chain_id:
        raise BankError(f"{url} is chain {chain.chain_id}; {file} is for chain {made.chain_id}")
    verify(chain, made.registry, made.market)
    return chain, made


def _fail(sentence: str) -> NoReturn:
    typer.echo(sentence, err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
