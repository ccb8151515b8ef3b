"""Start Flower's SuperLink with the doors that a marketplace needs and without what polls. Knows
nothing of jobs.

Stock Flower serves hospitals and its operator on one port, and whoever reaches the control routes
can start a run, which executes the code in a bundle on the operator's machine; a process polls for
runs and starts another for each; nodes and runs poll for messages, which travel in objects of
their own through a database. Here gate.py stands before every route, runs are threads of this
process (runner.py), messages wait in memory (mailbox.py) for a node's next turn (turns.py), and the
linkstate is Flower's own in memory, with the registrations kept in a file. `run` replaces, in
Flower's private modules: the middleware of the application (our gate before it), the hook after a
run was stored (nothing, in stock), the lifespan's start, and arguments of `uvicorn.run`.

    python -m fl_server.superlink --folder STATE --port 9092 [--host 0.0.0.0] [--name
    superlink.example.org]
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import resource
import secrets
import sys
import threading
from pathlib import Path
from typing import Any

from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.constant import NodeStatus

from fl_client.node.config import write_private
from fl_client.node.job_folder import write_whole
from fl_server.certificates import write_certificates
from fl_server.errors import SuperLinkError


def operator_token(folder: Path) -> str:
    """The token of this SuperLink's operator, made on first use, kept in `folder`/operator.token
    (0600).
    """
    path = folder / "operator.token"
    if path.exists() and not path.read_text():  # a full disk has left it so
        path.unlink()
    if not path.exists():
        write_private(path, secrets.token_hex(32).encode())
    return path.read_text()


class Registrations:
    """Which SuperNodes are registered: in Flower's linkstate, which is in memory, and in a file
    that is written when it changes. Nothing else of that state has to survive a restart.
    """

    def __init__(self, path: Path):
        """Read the file. Raises SuperLinkError for one that is not understood."""
        self.path, self._lock = path, threading.Lock()
        try:
            kept = json.loads(path.read_bytes()) if path.exists() else []
            self._nodes = [NodeInfo.FromString(bytes.fromhex(raw)) for raw in kept]
        except Exception as error:  # protobuf's and json's own, of many kinds
            raise SuperLinkError(
                f"{path} cannot be read ({error}): put back a copy, or move it away and restart "
                "every node, which then registers again"
            ) from error

    def fill(self, state: Any) -> None:
        """Register in `state` what was kept, and keep what is registered there from now on."""
        self._state, self._create, self._delete = state, state.create_node, state.delete_node
        state.create_node, state.delete_node = self.create_node, self.delete_node
        self._activate, state.activate_node = state.activate_node, self.activate_node
        for node in self._nodes:
            node.status = NodeStatus.REGISTERED  # until its first turn
            state.nodes[node.node_id] = node
            state.node_public_key_to_node_id[node.public_key] = node.node_id
            state.owner_to_node_ids.setdefault(node.owner_aid, set()).add(node.node_id)

    def create_node(self, *given: Any, **named: Any) -> int:
        """As Flower's, and kept; one that cannot be kept is not registered."""
        with self._lock:
            node_id = int(self._create(*given, **named))
            try:
                self._keep()
            except OSError:  # or whoever asks again would be told that all is well
                with self._state.lock:
                    node = self._state.nodes.pop(node_id)
                    del self._state.node_public_key_to_node_id[node.public_key]
                    self._state.owner_to_node_ids[node.owner_aid].discard(node_id)
                raise
        return node_id

    def delete_node(self, *given: Any, **named: Any) -> None:
        """As Flower's, and not kept."""
        with self._lock:
            self._delete(*given, **named)
            self._keep()

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        """As Flower's, but at once for a node that was killed: stock counts its session as alive
        for a minute, and refuses. Who asks has signed with the node's key; of two processes with
        one key the newer has the turn (turns.py).
        """
        self._state.deactivate_node(node_id)
        return bool(self._activate(node_id, heartbeat_interval))

    def _keep(self) -> None:
        with self._state.lock:
            nodes = [n for n in self._state.nodes.values() if n.status != NodeStatus.UNREGISTERED]
            kept = [node.SerializeToString().hex() for node in nodes]
        write_whole(self.path, json.dumps(kept).encode())


def main() -> None:
    """Make certificates and token on first use, then run the SuperLink in this process until it is
    stopped.
    """
    parser = argparse.ArgumentParser(description="Run the SuperLink behind the operator's gate")
    parser.add_argument(
        "--folder", type=Path, required=True, help="state: certificates, token, nodes, jobs"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--name", action="append", default=[], help="a further host name for the certificate"
    )
    arguments = parser.parse_args()
    # every connection is a file, and a stranger may open many
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.umask(0o077)  # the jobs' folder holds hospitals' updates
    folder: Path = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
    except BlockingIOError:
        sys.exit(f"another SuperLink runs on {folder}")
    write_certificates(folder, ("localhost", "127.0.0.1", *arguments.name))
    token = operator_token(folder)
    folder.chmod(0o700)  # of an older version
    (folder / "jobs").mkdir(exist_ok=True)
    os.environ.update(
        FLWR_TELEMETRY_ENABLED="0",
        FLWR_DISABLE_UPDATE_CHECK="1",
        FLWR_HOME=str(folder / "flwr"),
        DATAHUB_JOBS=str(folder / "jobs"),  # read by fl_server.app
    )
    sys.argv = ["flower-superlink", "--host", arguments.host, "--port", str(arguments.port)]
    sys.argv += ["--ssl-ca-certfile", str(folder / "ca.crt")]
    sys.argv += ["--ssl-certfile", str(folder / "server.pem")]
    sys.argv += ["--ssl-keyfile", str(folder / "server.key"), "--enable-supernode-auth"]
    # no process that starts ServerApps: runner.py does it here
    sys.argv += ["--isolation", "process", "--disable-runtime-dependency-installation"]
    try:
        run(folder, token)
    except SuperLinkError as error:
        sys.exit(str(error))


def run(folder: Path, token: str) -> None:
    """Flower's own SuperLink, with what stands in this room in place of its parts. Raises
    SuperLinkError.
    """
    from flwr.superlink import extensions
    from flwr.superlink.cli import flower_superlink  # the function, which hides its module
    from starlette.middleware import Middleware

    from fl_server.app import app
    from fl_server.connections import Connection
    from fl_server.gate import OperatorGate
    from fl_server.mailbox import Mailbox
    from fl_server.runner import Runner
    from fl_server.turns import Turns

    flower: Any = sys.modules["flwr.superlink.cli.flower_superlink"]
    stock_middleware, stock_run = extensions.get_middleware, flower.uvicorn.run
    mailbox, made = Mailbox(), {}
    registrations = Registrations(folder / "nodes.json")

    class Lifespan(flower.SuperLinkLifespan):  # type: ignore[misc]
        """Flower's, with our runner once the state is there."""

        def startup(self) -> None:
            state = self.state_factory.state()
            made["state"] = state
            registrations.fill(state)
            made["runner"] = Runner(state, mailbox, app)
            super().startup()

    turns = Turns(mailbox, lambda: made["state"])
    extensions.get_middleware = lambda: [
        Middleware(OperatorGate, token=token, turns=turns),
        *stock_middleware(),
    ]
    extensions.notify_run_started = lambda started, _source: made["runner"].start(started)
    flower.SuperLinkLifespan = Lifespan
    changed = {
        "access_log": False,
        "http": Connection,
        "ws": "none",
        "proxy_headers": False,
        "server_header": False,
        "timeout_graceful_shutdown": 1,
        "timeout_keep_alive": 120,  # a node that trains for a while comes back on its connection
    }
    flower.uvicorn.run = lambda **given: stock_run(**(given | changed))
    flower_superlink()


if __name__ == "__main__":
    main()
