"""A marketplace on one machine, with real parts as separate processes: chain, hub, SuperLink,
nodes.

Everything listens on loopback, on ports that were free, and only what was started here is ever
stopped. Knows nothing of what is bought on it (walk.py, and the tests).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from datahub import config
from datahub.buyer.networks import Network
from datahub.errors import HubError
from datatokens.bindings.registry import Token
from datatokens.chain.connection import Chain, connect
from datatokens.chain.rpc_server import accounts
from datatokens.deploy import Deployment, deploy
from datatokens.errors import ChainUnreachable
from fl_client.node.config import write_private
from fl_server.certificates import write_certificates
from fl_server.superlink import operator_token

TUSD = 10**6
BUYER_FUNDS = 1000
FEE_BPS = 250
OPERATOR, FIRST_HOSPITAL, BUYER, FIRST_CONTRIBUTOR = 0, 1, 5, 6  # of the embedded chain's accounts


class Processes:
    """Processes that were started here; only these are ever stopped."""

    def __init__(self, logs: Path):
        self.logs = logs
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str) -> None:
        """Start `python -m ...` with its output in logs/NAME.log."""
        self.logs.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "FLWR_TELEMETRY_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        with (self.logs / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
            )

    def check(self) -> None:
        """Raises HubError if one has ended, with the last line that it wrote."""
        for name, process in self.running.items():
            if process.poll() is not None:
                lines = (self.logs / f"{name}.log").read_text().strip().splitlines()
                raise HubError(
                    f"{name} ended unexpectedly: {lines[-1] if lines else 'no output'} (see "
                    f"{self.logs})"
                )

    def stop(self) -> None:
        """Stop all, last started first."""
        for process in reversed(self.running.values()):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self.running.values()):
            try:
                process.wait(timeout=8)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody uses now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(
    what: str, ready: Callable[[], object], processes: Processes, timeout_s: float = 300
) -> None:
    """Until `ready()` is true; raises HubError when a process has died or the time is over."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        processes.check()
        try:
            if ready():
                return
        except (httpx.HTTPError, ChainUnreachable, HubError):
            pass  # not up yet: asked again until the time is over
        time.sleep(0.1)
    raise HubError(f"{what} is not ready after {timeout_s:.0f} s; see {processes.logs}")


class Stack:
    """A running marketplace on loopback: chain, hub, SuperLink, and the nodes that join."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.processes = Processes(folder / "logs")
        chain_port, hub_port, superlink_port = free_ports(3)
        self.chain_url = f"http://127.0.0.1:{chain_port}"
        self.hub_url = f"http://127.0.0.1:{hub_port}"
        self.superlink = f"127.0.0.1:{superlink_port}"
        self.accounts = accounts()
        self.deployment: Deployment

    def chain(self, account: int) -> Chain:
        """A chain connection with the key of one of the embedded chain's accounts."""
        return connect(self.chain_url, self.accounts[account][1])

    def start(self) -> None:
        """Chain, contracts, hub and SuperLink."""
        state = str(self.folder / "chain.sqlite")
        self.processes.start(
            "chain",
            "datatokens.chain.rpc_server",
            "--port",
            self.chain_url.rsplit(":", 1)[1],
            "--state",
            state,
        )
        wait_for("the chain", lambda: connect(self.chain_url), self.processes)
        superlink_folder = self.folder / "hub" / "superlink"
        write_certificates(superlink_folder)
        operator_token(superlink_folder)
        self.start_superlink()
        operator = self.chain(OPERATOR)
        made = self.deployment = deploy(operator)
        Token(operator, made.payment_token).mint(self.accounts[BUYER][0], BUYER_FUNDS * TUSD)
        write_private(
            self.folder / "hub" / "keys" / "operator.key", self.accounts[OPERATOR][1].encode()
        )
        config.write(
            self.folder / "hub",
            chain=self.chain_url,
            chain_id=made.chain_id,
            registry=made.registry,
            market=made.market,
            payment_token=made.payment_token,
            superlink=self.superlink,
            superlink_folder=str(superlink_folder),
            database=f"sqlite:///{self.folder / 'hub' / 'hub.sqlite'}",
            fee_bps=FEE_BPS,
        )
        self.start_hub()

    def start_superlink(self) -> None:
        """Start (or start again) the SuperLink's process."""
        folder, port = self.folder / "hub" / "superlink", self.superlink.rsplit(":", 1)[1]
        self.processes.start(
            "superlink", "fl_server.superlink", "--folder", str(folder), "--port", port
        )

    def start_hub(self) -> None:
        """Start (or start again) the hub process."""
        port = self.hub_url.rsplit(":", 1)[1]
        self.processes.start(
            "hub", "datahub.cli", "hub", "start", str(self.folder / "hub"), "--port", port
        )
        health = f"{self.hub_url}/healthz"
        wait_for("the hub", lambda: httpx.get(health, timeout=2).status_code == 200, self.processes)

    @property
    def pinned(self) -> Network:
        """The network as somebody knows it who has compared the contracts on another way."""
        return Network("demo", self.hub_url, self.chain_url, FEE_BPS, self.deployment)

    @property
    def network(self) -> dict[str, Any]:
        """What the hub says of the network."""
        answer: dict[str, Any] = httpx.get(f"{self.hub_url}/api/v1/network", timeout=10).json()
        return answer

    def start_node(self, folder: Path) -> None:
        """Start a node's process."""
        self.processes.start(f"node-{folder.name}", "datahub.cli", "node", "start", str(folder))

    def online(self, count: int) -> bool:
        """Whether `count` datasets have their node connected."""
        rows = httpx.get(f"{self.hub_url}/api/v1/datasets", timeout=10).json()
        return sum(bool(row["online"]) for row in rows) >= count
