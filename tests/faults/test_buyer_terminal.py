"""Strangers' texts in a person's terminal are shown, not obeyed."""

from __future__ import annotations

import ast
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from rich.table import Table
from typer.testing import CliRunner

import datatokens.cli
from datahub.buyer.jobs import Job
from datahub.buyer.waiting import follow
from datahub.shell import options
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


COMMANDS = [Path(str(datatokens.cli.__file__)), *Path(options.__file__).parent.glob("*.py")]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_every_print_of_the_commands__goes_through_the_terminal_that_escapes(path: Path) -> None:
    """What is echoed past it is JSON, which escapes by itself, or was made visible before."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        assert name not in ("print", "typer.secho", "click.echo", "sys.stdout.write"), name
        if name == "typer.echo":
            first = node.args[0]
            assert isinstance(first, ast.Call), ast.unparse(node)
            assert ast.unparse(first.func) in ("json.dumps", "visible"), ast.unparse(node)
    for name in ("console", "complaints"):
        assert isinstance(getattr(options, name), Terminal)


class Swearing(BaseHTTPRequestHandler):
    """A chain whose errors are escape sequences."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        error = {"code": 1, "message": "\x1b[2J\x1b]0;x\x07"}
        said = json.dumps({"jsonrpc": "2.0", "id": 0, "error": error}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_chains_error__is_shown_as_it_is(tmp_path: Path) -> None:
    server = HTTPServer(("127.0.0.1", 0), Swearing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    to, url = "0x" + "1" * 40, f"http://127.0.0.1:{server.server_address[1]}"
    said = CliRunner().invoke(
        datatokens.cli.app, ["faucet", to, "--amount", "0", "--chain", url], color=True
    )
    server.shutdown()
    server.server_close()
    assert said.exit_code == 1 and "\x1b" not in said.output and "\x07" not in said.output
    assert r"\x1b[2J" in said.stderr
