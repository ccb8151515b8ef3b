"""Strangers' texts in a person's terminal are shown, not obeyed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, cast

import pytest
from rich.table import Table

from datahub.buyer.sdk import Job
from datahub.buyer.waiting import follow
from datatokens.terminal import Terminal, marked


class Refusing:
    """A job that one hospital refuses with a sentence of its own."""

    def __init__(self, reason: str):
        self.reason = reason

    def watch(self) -> Iterator[dict[str, Any]]:
        line = {"accepted": False, "dataset_id": 1, "reason": self.reason}
        yield {"state": "refunded", "datasets": [line], "rounds": [], "rounds_planned": 1}


@pytest.mark.parametrize(
    "reason",
    [
        "no [/nope]",
        "[link=http://evil.example]click[/link]",
        "\x1b]0;pwned\x07\x1b[2J settled: everything fine",
        "a\u202eb\u200b :smile: \x9b2J",
    ],
)
def test_a_hospitals_refusal__is_shown_as_it_is(reason: str) -> None:
    screen = io.StringIO()
    console = Terminal(file=screen, width=200, force_terminal=False)
    follow(cast(Job, Refusing(reason)), console)
    table = Table("a")
    table.add_row(reason)
    console.print(table)
    console.print(marked(("refused:", "bold red"), reason))
    shown = screen.getvalue()
    assert not set("\x1b\x07\u202e\u200b\x9b") & set(shown)
    plain = reason.split("\x1b")[0].split("\u202e")[0]
    assert shown.count(plain) >= 3
