"""The commands that keep a node's folder in a file and make it again. Parses and prints only; added
to `datahub node` by cli.py.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from datatokens.terminal import Terminal
from fl_client.errors import BackupError
from fl_client.office.brief import utc

console = Terminal()
Folder = Annotated[Path, typer.Argument(help="The node's folder.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the passphrase, one line; - reads it from stdin. Asked for if left out."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def back_up(
    folder: Folder,
    file: Annotated[Path, typer.Argument(help="The backup; must not exist yet.")],
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Write everything the node keeps into one file, encrypted to a passphrase; the node may run.
    Who has both has the node's keys and what jobs see of its tables.
    """
    from fl_client.node import backup

    made = backup.back_up(folder, file, passphrase_of(passphrase_file, twice=True))
    if as_json:
        typer.echo(json.dumps({"file": str(file), **asdict(made)}))
        return
    console.print(
        f"{made.files} files of {folder}, {made.size} bytes, are in {file}; without the passphrase "
        "nobody opens it, you included",
        highlight=False,
        soft_wrap=True,
    )


def restore(
    file: Annotated[Path, typer.Argument(help="The backup.")],
    folder: Annotated[Path, typer.Argument(help="Where to; must be empty, or not exist yet.")],
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Make a node's folder of a backup. It serves nothing until `datahub node reconcile` has
    charged what was spent since.
    """
    from fl_client.node import backup

    made = backup.restore(file, folder, passphrase_of(passphrase_file, twice=False))
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **asdict(made)}))
        return
    console.print(
        f"{folder} is the node as it was on {utc(made.at)}, {made.files} files; make sure that it "
        "runs nowhere else, copy what is left of a newer jobs/ over this one, then charge what was "
        f"spent since: datahub node reconcile {folder}",
        highlight=False,
        soft_wrap=True,
    )


def passphrase_of(file: Path | None, twice: bool) -> str:
    """The passphrase, read or asked for. Raises BackupError."""
    if file is None:
        typed: str = typer.prompt(
            "passphrase", hide_input=True, confirmation_prompt=twice, err=True
        )
        return typed
    try:
        said = sys.stdin.readline() if str(file) == "-" else file.read_text()
    except UnicodeDecodeError as error:
        raise BackupError(f"{file} is not text in UTF-8: it holds no passphrase") from error
    lines = said.splitlines()
    if len(lines) != 1:
        raise BackupError(f"{file} must hold the passphrase in one line; it has {len(lines)} lines")
    return lines[0]
