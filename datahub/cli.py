"""The command line: every persona's door. Maps errors to one sentence and an exit code; decides
nothing.

Exit codes:
    0  fine: what was asked for is done
    1  refused or failed, with a sentence that says why and what to do next
    2  wrong words on the command line; nothing was tried
    3  the job is still under way: what was asked for is there once it has settled
    4  the job has ended without a model, and its money is back in the buyer's wallet
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from datahub.errors import ConfigError, HubError, NotSettled, Refunded
from datahub.shell import groups
from datahub.shell.moved import Commands
from datatokens.cli import app as chain_commands
from datatokens.errors import BankError
from datatokens.terminal import Terminal, marked
from fl_client.errors import NodeError
from fl_client.office.cli import node
from fl_client.office.owner_cli import owner
from fl_server.errors import TheatreError

app = typer.Typer(
    cls=Commands,
    help="Buy one training job over many hospitals; raw data never leaves them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
hub = typer.Typer(help="The operator's hub.", no_args_is_help=True)
app.add_typer(node, name="node")
app.add_typer(owner, name="owner")
app.add_typer(chain_commands, name="chain")
app.add_typer(hub, name="hub")
groups.add_to(app)
console = Terminal()
complaints = Terminal(stderr=True)

ChainUrl = Annotated[
    str, typer.Option("--chain", help="URL of your own chain connection (JSON-RPC).")
]


@hub.callback()
def _private() -> None:
    os.umask(0o077)  # whatever is written in a hub's folder is its user's alone


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
    import resource

    import uvicorn

    from datahub.config import read
    from datahub.market.desk import open_desk
    from datahub.market.overview import complaints
    from datahub.web.api import create_app
    from fl_server.connections import Connection

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger().addHandler(complaints)
    config = read(folder)
    folder.chmod(0o700)  # of a hub that was made by an older version
    # every connection is a file, and a stranger may open many before theirs are ended
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    app_ = create_app(open_desk(config))
    logging.getLogger("datahub.hub").info("the hub of %s serves on %s:%d", folder, host, port)
    uvicorn.run(
        app_,
        host=host,
        port=port,
        http=Connection,
        log_level="warning",
        proxy_headers=False,  # no decision here depends on where a request comes from
        timeout_graceful_shutdown=1,
    )


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


HEADS = {NotSettled.exit_code: "not yet:", Refunded.exit_code: "money back:"}


def main() -> None:
    """The entry point: a user's mistake is one sentence and an exit code, never a trace."""
    try:
        app(prog_name="datahub")
    except HubError as error:
        _complain(error, error.exit_code)
    except (TheatreError, NodeError, BankError) as error:
        _complain(error)
    except FileNotFoundError as error:
        _complain(f"{error.filename} does not exist")


def _complain(what: Any, code: int = 1) -> None:
    complaints.print(marked((HEADS.get(code, "refused:"), "bold red"), f" {what}"))
    sys.exit(code)


if __name__ == "__main__":
    main()
