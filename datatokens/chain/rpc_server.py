"""The embedded chain: py-evm behind one JSON-RPC route, kept in SQLite. For one machine; it knows
nothing of contracts.

    python -m datatokens.chain.rpc_server --port 8545 --state chain.sqlite

Chain id 31337, twenty funded accounts of the well-known test mnemonic (so it listens on loopback
only). Transactions that wait are mined together, at most one block a second, because every block
must be later than its parent and block times must not run ahead of the clock: deadlines are judged
by them. A transaction on an idle chain is mined at once. `--instant` mines every transaction in its
own block and lets block time run ahead: for tests.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import logging
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from datatokens.chain.devchain import CHAIN_ID, MNEMONIC, DevChain, RpcError, accounts
from datatokens.chain.test_wallet import TestWallet
from datatokens.errors import TermsError
from datatokens.wire import parse

__all__ = ["DevChain", "accounts", "anvil_binary", "running_anvil", "running_devchain"]

MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_BATCH = 1000
START_S = 60.0
ANVIL = (
    Path(__file__).parents[1]
    / "node_modules"
    / "@foundry-rs"
    / "anvil-linux-amd64"
    / "bin"
    / "anvil"
)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wallet: TestWallet

    def do_OPTIONS(self) -> None:
        """May this page ask? Pages of this machine may."""
        self._reply(None, status=204 if self._origin else 403)

    @property
    def _origin(self) -> str | None:
        """The page that asks, where it is one of this machine; "" where no page does."""
        origin = self.headers.get("origin", "")
        if not origin:
            return ""
        host = urlsplit(origin).hostname or ""
        try:
            ours = host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            ours = False
        return origin if ours else None

    def do_POST(self) -> None:
        """One JSON-RPC request, or a batch of them."""
        if self._origin is None:
            self._refuse("pages of other machines are not answered here")
            return
        length = self.headers.get("content-length", "")
        if not re.fullmatch("[0-9]{1,9}", length) or int(length) > MAX_BODY_BYTES:
            self._refuse(f"a request needs a content-length of at most {MAX_BODY_BYTES}")
            return
        if self.headers.get_content_type() != "application/json":
            # a web page may send anything to loopback, but JSON only after a question (do_OPTIONS)
            self._refuse("a request needs the content-type application/json")
            return
        try:
            body = parse(self.rfile.read(int(length)))
        except TermsError:
            self._reply(_error(None, -32700, "the body is not JSON"))
            return
        if not isinstance(body, list):
            self._reply(self._one(body))
        elif 1 <= len(body) <= MAX_BATCH:
            self._reply([self._one(item) for item in body])
        else:
            self._reply(
                _error(None, -32600, f"a batch has 1 to {MAX_BATCH} requests, not {len(body)}")
            )

    def _one(self, item: Any) -> dict[str, Any]:
        if not isinstance(item, dict) or not isinstance(item.get("method"), str):
            return _error(None, -32600, "a request needs a method")
        params = item.get("params", [])
        if not isinstance(params, list):
            return _error(item.get("id"), -32602, "params must be a list")
        try:
            return {
                "jsonrpc": "2.0",
                "id": item.get("id"),
                "result": self.wallet.request(item["method"], params),
            }
        except RpcError as error:
            return _error(item.get("id"), error.code, str(error), error.data)

    def _refuse(self, why: str) -> None:
        self.close_connection = True  # the body is still unread
        self._reply(_error(None, -32600, why))

    def _reply(self, answer: Any, status: int = 200) -> None:
        raw = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        if origin := self._origin:
            self.send_header("access-control-allow-origin", origin)
            self.send_header("access-control-allow-headers", "content-type")
            self.send_header("vary", "origin")
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: a node asks many times a second."""


def _error(request_id: Any, code: int, message: str, data: str | None = None) -> dict[str, Any]:
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return {"jsonrpc": "2.0", "id": request_id, "error": error}


def serve(chain: DevChain, host: str, port: int) -> ThreadingHTTPServer:
    """A server for `chain` on loopback, with the ticker that mines what waits; the caller runs
    serve_forever().

    Raises ValueError for a host that is not a loopback address.
    """
    if not ipaddress.ip_address(host).is_loopback:
        raise ValueError(
            f"host={host} must be a loopback address: the funded keys of this chain are public"
        )
    server = ThreadingHTTPServer(
        (host, port), type("Handler", (_Handler,), {"wallet": TestWallet(chain)})
    )
    server.daemon_threads = True

    def tick() -> None:
        while True:
            time.sleep(0.05)
            try:
                chain.mine_if_due()
            except RpcError:
                return  # the chain has stopped itself and says so to every caller

    threading.Thread(target=tick, name="ticker", daemon=True).start()
    return server


@contextlib.contextmanager
def running_devchain(
    state: Path | None = None, port: int = 0, *, instant: bool = False
) -> Iterator[str]:
    """The embedded chain as a process of its own for the time of the block; gives its URL (port 0:
    any free one).

    Raises RuntimeError with the process's own sentence if it does not start.
    """
    command = [sys.executable, "-m", "datatokens.chain.rpc_server", "--port", str(port)]
    command += ["--state", str(state)] if state else []
    command += ["--instant"] if instant else []
    with _running(command, r"ready at (http://\S+)") as (url, _):
        yield url


def anvil_binary() -> str | None:
    """Path of anvil: the npm package beside the contracts, else the one on PATH; None if there is
    none.
    """
    return str(ANVIL) if ANVIL.exists() else shutil.which("anvil")


@contextlib.contextmanager
def running_anvil() -> Iterator[str]:
    """anvil with the same accounts and chain id, for the time of the block; gives its URL. Raises
    RuntimeError.
    """
    binary = anvil_binary()
    if binary is None:
        raise RuntimeError("anvil is not installed: `npm ci` in datatokens/, or put anvil on PATH")
    command = [
        binary,
        "--port",
        "0",
        "--chain-id",
        str(CHAIN_ID),
        "--mnemonic",
        MNEMONIC,
        "--accounts",
        "20",
    ]
    with _running(command, r"Listening on (127\.0\.0\.1:\d+)") as (address, _):
        yield f"http://{address}"


@contextlib.contextmanager
def _running(command: Sequence[str], ready: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A process, from the line in which `ready` matches until the end of the block."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: list[str] = []
    found: list[str] = []
    known = threading.Event()

    def drain() -> None:  # to the end: a full pipe would stop the process
        for line in process.stdout or ():
            if not found:
                lines.append(line)
                if match := re.search(ready, line):
                    found.append(match.group(1))
                    known.set()
        known.set()

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    try:
        known.wait(START_S)
        if not found:
            raise RuntimeError(f"{command[0]} did not start: {''.join(lines[-5:]).strip()[-500:]}")
        yield found[0], process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        reader.join(10)
        if process.stdout:
            process.stdout.close()


def main() -> None:
    """Run the chain until it is stopped."""
    parser = argparse.ArgumentParser(description="The embedded chain (loopback only)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8545)
    parser.add_argument(
        "--state", type=Path, help="SQLite file; without it everything is forgotten at the end"
    )
    parser.add_argument(
        "--instant", action="store_true", help="a block per transaction, time may run ahead (tests)"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        chain = DevChain(arguments.state, instant=arguments.instant)
        server = serve(chain, arguments.host, arguments.port)
    except sqlite3.Error as error:
        parser.exit(
            2,
            f"the chain cannot start: state={arguments.state} is not free or not a chain's file "
            f"({error})\n",
        )
    except (ValueError, OverflowError, OSError) as error:
        parser.exit(2, f"the chain cannot start: {error}\n")
    sys.stdout.write(
        f"chain {CHAIN_ID} ready at http://{arguments.host}:{server.server_address[1]}\n"
    )
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
