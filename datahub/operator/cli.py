"""The operator's commands. Parses and prints only; datahub/cli.py maps errors to exit codes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from datahub.errors import ConfigError
from datatokens.terminal import Terminal

hub = typer.Typer(help="The operator's hub.", no_args_is_help=True)
console = Terminal()
Folder = Annotated[Path, typer.Argument(help="The hub's folder.")]
ChainUrl = Annotated[
    str, typer.Option("--chain", help="URL of your own chain connection (JSON-RPC).")
]


@hub.callback()
def _private() -> None:
    os.umask(0o077)  # whatever is written in a hub's folder is its user's alone


@hub.command("init")
def hub_init(
    folder: Folder,
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
    folder: Folder,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log one JSON object a line.")
    ] = False,
) -> None:
    """Serve the pages and the API, and drive jobs. Stop and start it whenever you like."""
    from datahub.config import read
    from datahub.operator.serving import serve

    serve(read(folder), host, port, log_json)


@hub.command("superlink")
def hub_superlink(
    folder: Folder,
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
