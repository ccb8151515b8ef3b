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

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from datahub.errors import HubError, NotSettled, Refunded
from datahub.operator.cli import hub
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
app.add_typer(node, name="node")
app.add_typer(owner, name="owner")
app.add_typer(chain_commands, name="chain")
app.add_typer(hub, name="hub")
groups.add_to(app)
complaints = Terminal(stderr=True)


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
