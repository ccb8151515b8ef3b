"""`datahub order ...`: a model or figures, quoted, shown and paid. What is quoted is checked by the
SDK before it is shown; nothing is decided here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from datahub.shell.options import Json, KeyFile, NetworkName, Out, Yes, busy, console, market_of
from datahub.shell.paying import as_document, confirm_and_finish, described
from datahub.shell.settings import Asked, Training, as_flags

QUOTING = "the quote is asked for, and worked out again from the chain"
order = typer.Typer(help="Order a model or private figures.", no_args_is_help=True)


@order.command()
@as_flags
def new(
    key_file: KeyFile,
    training: Training,
    network: NetworkName = "",
    out: Out = Path("result"),
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Order one training job, wait, and save the model. Leave it when you like: `datahub job
    resume` goes on.
    """
    with busy(QUOTING):
        quote = market_of(network, key_file).quote(training.dataset, **training.settings())
    confirm_and_finish(quote, yes, out, as_json)


@order.command("quote")
@as_flags
def ask_price(
    key_file: KeyFile, training: Training, network: NetworkName = "", as_json: Json = False
) -> None:
    """What a training job would cost in money and epsilon, checked as `order new` does; pays and
    keeps nothing.
    """
    with busy(QUOTING):
        quote = market_of(network, key_file).quote(training.dataset, **training.settings())
    if as_json:
        typer.echo(json.dumps(as_document(quote)))
        return
    for line in described(quote):
        console.print(line, soft_wrap=True)


@order.command()
@as_flags
def ask(
    question: Annotated[
        str,
        typer.Argument(
            help='"count by sex, age at 40 60", "histogram of chol from 100 to 400", "mean of chol '
            'from 100 to 400 by sex", "quantiles of chol", "survival by sex": names as the schema '
            "has them (datahub data show ID)."
        ),
    ],
    key_file: KeyFile,
    asked: Asked,
    network: NetworkName = "",
    out: Out = Path("result"),
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Ask many hospitals for private figures: count, histogram, mean, quantiles, survival."""
    with busy(QUOTING):
        quote = market_of(network, key_file).ask(asked.dataset, question, **asked.settings())
    confirm_and_finish(quote, yes, out, as_json)
