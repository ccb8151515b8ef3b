"""Start Flower's SuperLink (a private module of Flower's, patched) with the doors that a
marketplace needs. Knows nothing of jobs.

Stock Flower serves hospitals and its operator on one port, and whoever reaches the control routes
can start a run, which executes the code in a bundle on the operator's machine. Here only the fleet
routes (authenticated by the registered SuperNode keys) are open to the network; control routes need
the operator's token, and every other route answers to this machine only.

    python -m fl_server.superlink --folder STATE --port 9092 [--host 0.0.0.0] [--name
    superlink.example.org]
"""

from __future__ import annotations

import argparse
import hmac
import ipaddress
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from fl_client.node.config import write_private
from fl_server.certificates import write_certificates

TOKEN_HEADER = "x-datahub-operator"  # noqa: S105 the header's name, not a secret
OPEN_PATHS = ("/v1/fleet/", "/health")
CONTROL_PATH = "/v1/control/"

Scope = MutableMapping[str, Any]


class OperatorGate:
    """ASGI middleware: fleet routes for all, control routes with the token, the rest from loopback
    only.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], token: str):
        self.app = app
        self.token = token.encode()

    def allows(self, path: str, headers: dict[bytes, bytes], client: str) -> bool:
        if path.startswith(OPEN_PATHS):
            return True
        try:
            if not ipaddress.ip_address(client).is_loopback:
                return False
        except ValueError:
            return False
        given = headers.get(TOKEN_HEADER.encode(), b"")
        return not path.startswith(CONTROL_PATH) or hmac.compare_digest(given, self.token)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            client = (scope.get("client") or ("", 0))[0]
            if not self.allows(scope["path"], dict(scope["headers"]), client):
                await send({"type": "http.response.start", "status": 403, "headers": []})
                await send({"type": "http.response.body", "body": b"operator only"})
                return
        await self.app(scope, receive, send)


def operator_token(folder: Path) -> str:
    """The token of this SuperLink's operator, made on first use, kept in `folder`/operator.token
    (0600).
    """
    path = folder / "operator.token"
    if not path.exists():
        write_private(path, secrets.token_hex(32).encode())
    return path.read_text()


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
    folder: Path = arguments.folder.resolve()
    write_certificates(folder, ("localhost", "127.0.0.1", *arguments.name))
    token = operator_token(folder)
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
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    stock = extensions.get_middleware
    extensions.get_middleware = lambda: [Middleware(OperatorGate, token=token), *stock()]
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
