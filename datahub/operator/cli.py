"""The operator's commands. Parses and prints only; datahub/cli.py maps errors to exit codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from datahub.errors import ConfigError
from datahub.operator.service import COMPOSE, SYSTEMD, compose, units
from datatokens.terminal import Terminal
from fl_client.office.backup_cli import Json, PassphraseFile, passphrase_of
from fl_client.office.brief import utc

if TYPE_CHECKING:
    from datahub.config import HubConfig

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


@hub.command("backup")
def hub_backup(
    folder: Folder,
    file: Annotated[Path, typer.Argument(help="The backup; must not exist yet.")],
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Write everything the hub keeps into one file, encrypted to a passphrase; the hub may run. A
    PostgreSQL database is not in it: what to run for it is printed.
    """
    from datahub.config import read
    from datahub.operator import backup

    config = read(folder)
    made = backup.back_up(config, file, passphrase_of(passphrase_file, twice=True))
    more = backup.how_to_copy(config)
    if as_json:
        typer.echo(json.dumps({"file": str(file), **asdict(made), "more": more}))
        return
    console.print(
        f"{made.files} files of {folder}, {made.size} bytes, are in {file}; without the passphrase "
        "nobody opens it, you included",
        highlight=False,
        soft_wrap=True,
    )
    console.print(more, end="", highlight=False, soft_wrap=True)


@hub.command("restore")
def hub_restore(
    file: Annotated[Path, typer.Argument(help="The backup.")],
    folder: Annotated[Path, typer.Argument(help="Where to; must be empty, or not exist yet.")],
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Make a hub's folder of a backup. What has happened since, the hub reads from the chain."""
    from datahub.config import read
    from datahub.operator import backup

    made = backup.restore(file, folder, passphrase_of(passphrase_file, twice=False))
    more = backup.how_to_copy(read(folder))
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **asdict(made), "more": more}))
        return
    console.print(
        f"{folder} is the hub as it was on {utc(made.at)}, {made.files} files; make sure that the "
        f"old one runs nowhere, then: datahub hub superlink {folder}; datahub hub start {folder}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(more, end="", highlight=False, soft_wrap=True)


class Kind(StrEnum):
    """As what a hub can run."""

    SYSTEMD = SYSTEMD
    COMPOSE = COMPOSE


@hub.command("service")
def hub_service(
    folder: Folder,
    kind: Annotated[Kind, typer.Option(help="systemd units, or a Compose file.")] = Kind.SYSTEMD,
    out: Annotated[
        Path | None, typer.Option(help="Write the files into this folder instead of printing them.")
    ] = None,
) -> None:
    """Print what runs hub and SuperLink as services: two systemd units, or a Compose file with
    PostgreSQL and nginx.
    """
    from datahub.config import read
    from fl_client.node.job_folder import write_whole

    config = read(folder)
    files = _units(config) if kind is Kind.SYSTEMD else _compose(config)
    if out is None:
        for name, text in files.items():
            typer.echo(f"# ---- {name}\n{text}", nl=False)
        return
    if not out.is_dir():
        raise ConfigError(f"out={out} must be a folder that is there")
    for name, text in files.items():
        write_whole(out / name, text.encode())
    console.print(f"{', '.join(files)} are in {out}; their first lines say what to do with them")


def _units(config: HubConfig) -> Mapping[str, str]:
    place = config.folder.resolve()
    program = Path(sys.executable).with_name("datahub").absolute()
    if not program.exists():
        raise ConfigError(f"{program} is not there: install datahub into the Python that runs it")
    try:
        user = place.owner()
    except KeyError:  # a number without a name
        user = ""
    return units(PurePosixPath(place), PurePosixPath(program), user, "0.0.0.0")  # noqa: S104 hospitals


def _compose(config: HubConfig) -> Mapping[str, str]:
    place = config.folder.resolve()
    owner, version = place.stat(), sys.version_info
    ids = owner.st_uid, owner.st_gid
    return compose(PurePosixPath(place), ids, config.superlink, f"{version.major}.{version.minor}")
