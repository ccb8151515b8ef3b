"""Where commands went that once had another name: a typed old name is answered with the new one.
They are no aliases: nothing runs.
"""

from __future__ import annotations

import re
from typing import NoReturn

import click
import typer
from typer.core import TyperGroup

from datahub.shell.options import complaints
from datatokens.terminal import marked

WRONG_WORDS = 2
# what was typed -> what is typed now
MOVED = {
    "buy": "order new",
    "ask": "order ask",
    "jobs": "job list",
    "resume": "job resume",
    "result": "job result",
    "refund": "job refund",
    "dispute": "job dispute",
    "withdraw": "claim credit",
    "predict": "model predict",
    "verify": "model verify",
    "datasets": "data list",
    "dataset": "data show",
    "synthetic": "data synthetic",
}
# groups whose name was a command: what followed it -> what is typed now
BEGAN = {
    "job": (re.compile(r"(0x)?[0-9a-f]{2,64}|--hub|--json"), "job show"),
    "claim": (re.compile(r"--.*"), "claim all"),
}


class Commands(TyperGroup):
    """A group that knows the old names of its commands."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click, which finds the command; exit code 2 with a sentence for an old name."""
        if args and args[0] in MOVED and self.get_command(ctx, args[0]) is None:
            _say(args[0], MOVED[args[0]])
        return super().resolve_command(ctx, args)


class Renamed(TyperGroup):
    """A group whose name was a command of its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click; exit code 2 with a sentence for what the old command was followed by."""
        name = str(ctx.info_name)
        old, now = BEGAN[name]
        if args and args[0] not in ("--help", *self.commands) and old.fullmatch(args[0]):
            _say(name, now)
        return super().parse_args(ctx, args)


def _say(old: str, now: str) -> NoReturn:
    sentence = f" `datahub {old}` is `datahub {now}` now (datahub {now} --help)"
    complaints.print(marked(("moved:", "bold red"), sentence), soft_wrap=True)
    raise typer.Exit(WRONG_WORDS)
