"""The commands about the machine that a node runs on. Parses and prints only; added to
`datahub node` by cli.py.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer
from rich.table import Table

from datatokens.terminal import Terminal
from fl_client.errors import ConfigError
from fl_client.node import config as node_config
from fl_client.node.config import NodeConfig
from fl_client.node.job_folder import write_whole
from fl_client.office.preflight import FAILED, Check
from fl_client.office.preflight import preflight as try_all
from fl_client.office.service import OCI, SYSTEMD, image, unit
from fl_client.worker.walls import SPARE_PROCESSES, WALLS
from fl_client.worker.workers import KEPT, tried

console = Terminal()
Folder = Annotated[Path, typer.Argument(help="The node's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Kind(StrEnum):
    """As what a node can run."""

    SYSTEMD = SYSTEMD
    OCI = OCI


def walls(folder: Folder, as_json: Json = False) -> None:
    """Try to get through every wall around a job, from inside: a worker is started as for a job and
    tries the node's key, this process, the network, memory, disk and processes. Exit status 1 if
    one does not hold.
    """
    secret = folder / "keys" / "node.key"
    if not secret.exists():
        raise ConfigError(f"{folder} holds no node.toml; make one with: datahub node init {folder}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        missing, through = tried(secret.resolve(), server.getsockname()[1], os.getpid())
    if as_json:
        lines = {
            wall: {"holds": not got, "through": got, "missing": missing.get(wall, "")}
            for wall, got in through.items()
        }
        typer.echo(json.dumps(lines))
    else:
        table = Table("wall", "around a job", "tried from inside", box=None)
        for wall, what in WALLS.items():
            found = f"NO: {through[wall]}" if through[wall] else "holds"
            table.add_row(wall, what, f"{found} ({missing[wall]})" if wall in missing else found)
        console.print(table)
    if any(through.values()):
        raise typer.Exit(1)


def preflight(folder: Folder, as_json: Json = False) -> None:
    """Try what a node needs of this machine: clock, disk, memory, GPU, Python, the way out to the
    hub, the SuperLink and the chain, walls. Exit status 1 if something failed.
    """
    checks = checks_of(node_config.read(folder))
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in checks]))
    else:
        print_checks(checks)
    if any(one.result == FAILED for one in checks):
        raise typer.Exit(1)


def checks_of(config: NodeConfig) -> list[Check]:
    """Every check, after a word for whoever waits."""
    Terminal(stderr=True).print("trying this machine (some seconds)")
    return try_all(config)


def print_checks(checks: Sequence[Check]) -> None:
    """What was tried, for people."""
    table = Table("tried", "", "found", "what to do", box=None)
    for one in checks:
        result = one.result.upper() if one.result == FAILED else one.result
        table.add_row(one.name, result, one.found, one.do)
    console.print(table)


def service(
    folder: Folder,
    kind: Annotated[Kind, typer.Option(help="A systemd unit, or an image file.")] = Kind.SYSTEMD,
    out: Annotated[Path | None, typer.Option(help="Write it there instead of printing it.")] = None,
) -> None:
    """Print a systemd unit for the node, or an image file (Containerfile) for containers."""
    config = node_config.read(folder)
    text = _unit(config) if kind is Kind.SYSTEMD else _image(config)
    if out is None:
        typer.echo(text, nl=False)
        return
    if not out.parent.is_dir() or out.is_dir():
        raise ConfigError(f"out={out} must be a file in a folder that is there")
    try:
        write_whole(out, text.encode())
    except OSError as error:
        raise ConfigError(f"out={out} cannot be written: {error}") from error
    console.print(f"{out} is written; its first lines say what to do with it", soft_wrap=True)


def _unit(config: NodeConfig) -> str:
    folder = config.folder.resolve()
    tasks = 256 + KEPT * ((os.cpu_count() or 1) + SPARE_PROCESSES)
    try:
        user = folder.owner()
    except KeyError:  # a number without a name
        user = ""
    return unit(PurePosixPath(folder), PurePosixPath(_program()), user, tasks)


def _program() -> Path:
    """The command that this Python's environment has."""
    there = Path(sys.executable).with_name("datahub")
    if not there.exists():
        raise ConfigError(f"{there} is not there: install datahub into the Python that runs it")
    for one in (there.absolute(), Path(sys.base_prefix)):
        if one.is_relative_to("/root"):
            Terminal(stderr=True).print(
                f"{one} is root's alone: the service's user cannot run it; install Python and "
                "datahub elsewhere, in /opt for example",
                soft_wrap=True,
            )
    return there.absolute()


def _image(config: NodeConfig) -> str:
    tables = [one.source.file.resolve().parent for one in config.datasets if one.source.file]
    owner = config.folder.stat()
    return image(
        PurePosixPath(config.folder.resolve()),
        [PurePosixPath(one) for one in tables],
        (owner.st_uid, owner.st_gid),
        f"{sys.version_info.major}.{sys.version_info.minor}",
    )
