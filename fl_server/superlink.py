"""Start Flower's SuperLink (a private module of Flower's, patched) with the doors that a
marketplace needs. Knows nothing of jobs.

Stock Flower serves hospitals and its operator on one port, and whoever reaches the control routes
can start a run, which executes the code in a bundle on the operator's machine. Here gate.py stands
before every route, and tasks are given to our own SuperExec (superexec.py) alone, which knows a
secret.

    python -m fl_server.superlink --folder STATE --port 9092 [--host 0.0.0.0] [--name
    superlink.example.org]
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from starlette.exceptions import HTTPException

from fl_client.node.config import write_private
from fl_server.certificates import write_certificates
from fl_server.gate import OperatorGate

log = logging.getLogger("datahub.superlink")
T = TypeVar("T")


def operator_token(folder: Path) -> str:
    """The token of this SuperLink's operator, made on first use, kept in `folder`/operator.token
    (0600).
    """
    return _secret(folder / "operator.token").read_text()


def _secret(path: Path) -> Path:
    """A file with 64 random hexadecimal digits, made on first use, for this user alone."""
    if not path.exists():
        write_private(path, secrets.token_hex(32).encode())
    return path


def own_replies(stock: Callable[..., T]) -> Callable[..., T]:
    """Flower's handler of nodes' replies, for those alone that the node that sends them has made:
    stock Flower authenticates the sender and then believes the name in the message, so that one
    hospital could answer for another.
    """

    def push_messages(request: Any, state: Any) -> T:
        sender = request.node.node_id
        if any(one.metadata.src_node_id != sender for one in request.messages_list):
            log.warning("node %d has tried to answer in another node's name", sender)
            raise HTTPException(403, "a node answers for itself alone")
        return stock(request=request, state=state)

    return push_messages


def main() -> None:
    """Make certificates and token on first use, then run the SuperLink in this process until it is
    stopped.
    """
    parser = argparse.ArgumentParser(description="Run the SuperLink behind the operator's gate")
    parser.add_argument(
        "--folder", type=Path, required=True, help="state: certificates, token, database, jobs"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--name", action="append", default=[], help="a further host name for the certificate"
    )
    arguments = parser.parse_args()
    os.umask(0o077)  # the database holds tasks' tokens, the jobs' folder hospitals' updates
    folder: Path = arguments.folder.resolve()
    write_certificates(folder, ("localhost", "127.0.0.1", *arguments.name))
    token = operator_token(folder)
    folder.chmod(0o700)  # of an older version
    secret = _secret(folder / "superexec.secret")
    (folder / "jobs").mkdir(exist_ok=True)
    os.environ.update(
        FLWR_TELEMETRY_ENABLED="0",
        FLWR_DISABLE_UPDATE_CHECK="1",
        FLWR_HOME=str(folder / "flwr"),
        FLWR_SUPEREXEC_TASK_POLL_INTERVAL="0.05",
        # Flower starts its helpers by name, and an environment need not be activated to be used
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        # read by fl_server.app, which the SuperLink starts as a child
        DATAHUB_JOBS=str(folder / "jobs"),
    )
    from flwr.superlink import extensions
    from flwr.superlink.cli import flower_superlink  # the function, which hides its module
    from flwr.superlink.servicer.fleet import fleet_handlers as handlers
    from starlette.middleware import Middleware

    flower: Any = sys.modules["flwr.superlink.cli.flower_superlink"]
    stock_middleware, stock_config = (
        extensions.get_middleware,
        flower._parse_superlink_lifespan_config,
    )
    stock_command, stock_run = flower._get_superexec_command, flower.uvicorn.run
    extensions.get_middleware = lambda: [Middleware(OperatorGate, token=token), *stock_middleware()]
    # Flower asks for the secret only of a SuperExec that it has not started itself
    flower._parse_superlink_lifespan_config = lambda: replace(
        stock_config(), superexec_auth_secret=secret.read_bytes()
    )
    flower._get_superexec_command = lambda **given: [
        *(sys.executable, "-m", "fl_server.superexec"),
        *stock_command(**given)[1:],
        *("--superexec-auth-secret-file", str(secret)),
    ]
    flower.uvicorn.run = partial(
        stock_run, proxy_headers=False, timeout_graceful_shutdown=1, server_header=False
    )
    handlers.push_messages = own_replies(handlers.push_messages)
    sys.argv = ["flower-superlink", "--host", arguments.host, "--port", str(arguments.port)]
    sys.argv += [
        "--ssl-ca-certfile",
        str(folder / "ca.crt"),
        "--ssl-certfile",
        str(folder / "server.pem"),
    ]
    sys.argv += ["--ssl-keyfile", str(folder / "server.key"), "--enable-supernode-auth"]
    sys.argv += [
        "--disable-runtime-dependency-installation",
        "--database",
        str(folder / "superlink.db"),
    ]
    flower_superlink()


if __name__ == "__main__":
    main()
