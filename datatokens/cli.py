"""The bank's commands: run the embedded chain, give test money on it, deploy the contracts, look at
and check a deployment, read the public ledger. Parses and prints only.
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
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_URL = "http://127.0.0.1:8545"


@app.command()
def start(
    port: Annotated[int, typer.Option(help="Port on loopback.")] = 8545,
    state: Annotated[Path, typer.Option(help="SQLite file that keeps the chain.")] = Path(
        "chain.sqlite"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the accounts as JSON.")] = False,
) -> None:
    """Run the embedded chain (loopback only, public test keys) until it is stopped; its funded
    accounts are printed first.
    """
    from datatokens.chain.devchain import FUNDS_WEI, MNEMONIC, accounts

    if as_json:
        rows = [{"address": who, "key": key, "wei": FUNDS_WEI} for who, key in accounts()]
        typer.echo(json.dumps({"mnemonic": MNEMONIC, "accounts": rows}))
    else:
        _say(
            f"Test accounts, each with {FUNDS_WEI // 10**18} coins on a new chain. Their keys are "
            f"public (every developer's mnemonic, {MNEMONIC!r}): never send anything real there."
        )
        _say("\n".join(f"{who}  key {key}" for who, key in accounts()))
    sys.stdout.flush()  # what replaces us does not know our buffer
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
    as_json: Json = False,
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
    if as_json:
        typer.echo(json.dumps({**vars(made), "file": str(out)}))
        return
    _say(
        f"registry {made.registry}, market {made.market}, payment token {made.payment_token}: "
        f"written to {out}"
    )


@app.command()
def faucet(
    to: Annotated[str, typer.Argument(metavar="ADDRESS", help="Who gets the test money.")],
    amount: Annotated[
        int, typer.Option(min=0, max=10**9, help="Whole test dollars (tUSD) to mint.")
    ] = 1000,
    gas: Annotated[int, typer.Option(min=0, max=1000, help="Whole coins to pay gas with.")] = 1,
    deployment: Annotated[
        Path, typer.Option(help="File that `deploy` or `hub init` wrote; it names the test token.")
    ] = Path("deployment.json"),
    key_file: Annotated[
        Path | None,
        typer.Option(help="The test token's deployer, if that is no public test account."),
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Give an address test money on the embedded chain: coins for gas, and freshly minted test
    dollars.
    """
    from dataclasses import asdict

    from datatokens.deploy import Deployment
    from datatokens.errors import BankError
    from datatokens.faucet import UNITS, WEI, give
    from datatokens.money import amount as both

    try:
        key = key_file.read_text().strip() if key_file else ""
        if amount and not deployment.exists():
            _fail(
                f"{deployment} is not there: name the hub's deployment.json with --deployment, or "
                "give gas money alone with --amount 0"
            )
        made = Deployment.load(deployment) if amount else None
        purse = give(url, to, wei=gas * WEI, made=made, units=amount * UNITS, key=key)
    except (BankError, OSError) as error:
        _fail(str(error))
    if as_json:
        typer.echo(json.dumps(asdict(purse)))
    else:
        money = "" if purse.units is None else f"{both(purse.units)} and "
        _say(f"{purse.address} has {money}{purse.wei / WEI:g} coins for gas now")


@app.command("verify")
def verify_code(
    deployment: Annotated[Path, typer.Argument(help="File that `deploy` wrote.")] = Path(
        "deployment.json"
    ),
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Compare the deployed code with this version, byte for byte. Exit status 1 if it does not
    match.
    """
    from datatokens.errors import BankError

    try:
        made = _verified(deployment, url)[1]
    except BankError as error:
        _fail(str(error))
    if as_json:
        typer.echo(json.dumps({**vars(made), "same_code": True}))
        return
    _say(f"registry {made.registry} and market {made.market} carry the code of this version")


@app.command()
def status(
    deployment: Annotated[Path, typer.Argument(help="File that `deploy` wrote.")] = Path(
        "deployment.json"
    ),
    url: Url = DEFAULT_URL,
    as_json: Json = False,
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
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        _say("\n".join(f"{name}: {value}" for name, value in facts.items()))


@app.command()
def privacy(
    deployment: Annotated[Path, typer.Argument(help="File that `deploy` wrote.")] = Path(
        "deployment.json"
    ),
    url: Url = DEFAULT_URL,
    as_json: Json = False,
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
                _say(f"dataset {line.dataset_id}: {line.misfit}")
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


def _say(text: str, err: bool = False) -> None:
    """Print lines as they are, wherever a line or an address would be broken otherwise; what a
    stranger's node has put into them is shown and not obeyed.
    """
    from datatokens.terminal import visible

    typer.echo(visible(text), err=err)


def _fail(sentence: str) -> NoReturn:
    _say(sentence, err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
