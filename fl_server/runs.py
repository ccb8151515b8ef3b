"""Start, watch and stop Flower runs, and register SuperNodes, through the SuperLink's control API.

Built on Flower's private modules, as are superlink.py and a patch in exchange.py; tests pin
Flower's version and hold the list of such files. Knows nothing of what a run does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fl_client.node.bundle import build_bundle, bundle_hash
from fl_server.errors import SuperLinkError
from fl_server.gate import TOKEN_HEADER

T = TypeVar("T")
MOST_RUNS = 1_000_000  # Flower lists 20 unless it is told otherwise


@dataclass(frozen=True)
class RunStatus:
    """`state`: starting, running or finished; `outcome`: '' until finished, then completed, failed
    or stopped.
    """

    state: str
    outcome: str
    details: str


class RunUnknown(SuperLinkError):
    """The SuperLink has been restarted since that run."""


class _OperatorToken:
    def __init__(self, token: str):
        self.token = token

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        context.request.headers[TOKEN_HEADER] = self.token
        return call_next(context)


class SuperLink:
    """The operator's connection to one SuperLink (TLS, `ca_file` in PEM, the operator's token)."""

    def __init__(self, address: str, ca_file: Path, token: str):
        self.address = address
        self._client = ControlHttpClient.from_server_address(
            server_address=address,
            insecure=False,
            root_certificates=ca_file.read_bytes(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="flwr CLI"),
                _OperatorToken(token),
            ],
        )

    def _ask(self, call: Callable[[Any], T], request: Any) -> T:
        try:
            return call(request)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND:
                raise RunUnknown(f"the SuperLink at {self.address} knows no such run") from error
            raise SuperLinkError(
                f"the SuperLink at {self.address} answered {error.response.status_code}: "
                f"{error.response.text[:200]}"
            ) from error
        except httpx.HTTPError as error:
            raise SuperLinkError(
                f"the SuperLink at {self.address} does not answer: {error}"
            ) from error

    def start_run(self, job_id: str) -> int:
        """Start the run of job `job_id` (hex); answers at once with the run id."""
        fab = Fab(hash_str=bundle_hash(), content=build_bundle())
        config = user_config_to_proto({"job-id": job_id})
        return int(
            self._ask(
                self._client.StartRun, StartRunRequest(fab=fab, override_config=config)
            ).run_id
        )

    def run_status(self, run_id: int) -> RunStatus:
        """Where the run stands; one that a restarted SuperLink does not know has ended."""
        try:
            runs = self._ask(self._client.ListRuns, ListRunsRequest(run_id=run_id)).run_dict
        except RunUnknown:
            return RunStatus("finished", "failed", "the SuperLink was restarted meanwhile")
        status = runs[run_id].status
        return RunStatus(status.status, status.sub_status, status.details)

    def open_runs(self, job_id: str) -> list[int]:
        """Ids of a job's runs that have not ended, oldest first (a hub that crashed right after
        starting one asks here; how many there were before, a restarted SuperLink does not know).
        """
        runs = self._ask(self._client.ListRuns, ListRunsRequest(limit=MOST_RUNS)).run_dict
        found = [
            run
            for run in runs.values()
            if run.override_config["job-id"].string == job_id and run.status.status != "finished"
        ]
        return [r.run_id for r in sorted(found, key=lambda r: r.pending_at)]

    def stop_run(self, run_id: int) -> None:
        """Stop a run."""
        self._ask(self._client.StopRun, StopRunRequest(run_id=run_id))

    def register_node(self, public_key_pem: bytes, name: str) -> int:
        """Register a SuperNode's public key (PEM SubjectPublicKeyInfo, NIST curve); its node id,
        also if known.
        """
        known = self._node_id(public_key_pem)
        if known is not None:
            return known
        request = RegisterNodeRequest(public_key=public_key_pem, name=name)
        return int(self._ask(self._client.RegisterNode, request).node_id)

    def _node_id(self, public_key_pem: bytes) -> int | None:
        for node in self._ask(self._client.ListNodes, ListNodesRequest()).nodes_info:
            if node.public_key == public_key_pem:
                return int(node.node_id)
        return None

    def online_nodes(self) -> set[int]:
        """Ids of the registered SuperNodes that are connected now."""
        nodes = self._ask(self._client.ListNodes, ListNodesRequest()).nodes_info
        return {node.node_id for node in nodes if node.status == "online"}
