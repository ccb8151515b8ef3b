"""What the commands of the shell share: flags with one meaning everywhere, the two terminals, how a
network is opened. Decides nothing and loads no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.status import Status

from datahub.errors import OrderRefused
from datatokens.terminal import Terminal

if TYPE_CHECKING:
    from datahub.buyer.networks import Network
    from datahub.buyer.sdk import Market

console = Terminal()
complaints = Terminal(stderr=True)


def known_networks() -> list[str]:
    """The names of pinned networks, to complete one."""
    from datahub.buyer import networks

    return list(networks.read())


def known_jobs() -> list[str]:
    """The first digits of jobs that are kept here, newest first, to complete one."""
    from datahub.buyer import job_store

    return [one.id[:12] for one in reversed(job_store.kept_jobs())]


HubUrl = Annotated[str, typer.Option("--hub", help="URL of the hub.")]
AnyHub = Annotated[
    str, typer.Option("--hub", help="URL of the hub; default that of the pinned network.")
]
NetworkName = Annotated[
    str,
    typer.Option(
        "--network",
        help="A pinned network; default the only one.",
        autocompletion=known_networks,
    ),
]
KeyFile = Annotated[Path, typer.Option(help="File with your wallet's private key.")]
JobId = Annotated[
    str, typer.Argument(help="Job id, or its first digits.", autocompletion=known_jobs)
]
DatasetId = Annotated[int, typer.Argument(help="The dataset's id.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", help="Pay without asking.")]
Out = Annotated[Path, typer.Option(help="Folder for the model and the report.")]


def pinned(name: str) -> Network:
    """The network of that name, or the only one. Raises ConfigError."""
    from datahub.buyer import networks

    return networks.by_name(name)


def hub_of(url: str, network: str) -> str:
    """The hub that a command looks at: the one given, or the pinned network's. Raises
    ConfigError.
    """
    return url or pinned(network).hub


def key_in(file: Path) -> str:
    """The private key in `file`. Raises OrderRefused for a file that is not there or is no text."""
    try:
        return file.read_text().strip()
    except FileNotFoundError as error:
        raise OrderRefused(
            f"--key-file {file} does not exist; name the file that holds your wallet's private key"
        ) from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise OrderRefused(f"--key-file {file} must be a text file with a private key") from error


def market_of(name: str, key_file: Path) -> Market:
    """The pinned network, opened by the wallet's key. Raises ConfigError, BankError."""
    from datahub.buyer.sdk import Market

    network = pinned(name)
    return Market(network.hub, chain=network.chain, key=key_in(key_file), network=network)


def busy(what: str) -> Status:
    """Says on a terminal that something takes its time, while it does."""
    return complaints.status(f"{what} ...")


def many(number: int, what: str) -> str:
    """'1 round', '2 rounds'."""
    return f"{number} {what}{'' if number == 1 else 's'}"
