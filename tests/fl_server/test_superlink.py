"""The gate before the SuperLink: hospitals reach the fleet routes, everything else is the
operator's.
"""

import contextlib
import functools
import importlib
import inspect
import ssl
import sys
from pathlib import Path

import pytest
from cryptography import x509

from fl_server.certificates import write_certificates
from fl_server.gate import TOKEN_HEADER, OperatorGate
from fl_server.superlink import Registrations, operator_token

GATE = OperatorGate(None, "secret")  # type: ignore[arg-type]
TOKEN = {TOKEN_HEADER.encode(): b"secret"}


@pytest.mark.parametrize(
    ("path", "headers", "client", "status"),
    [
        ("/v1/fleet/turn", {}, "203.0.113.9", None),
        ("/v1/fleet/activate-node", {}, "203.0.113.9", None),
        ("/health", {}, "203.0.113.9", None),
        ("/v1/control/start-run", TOKEN, "127.0.0.1", None),
        ("/v1/control/start-run", {}, "127.0.0.1", 403),
        ("/v1/control/start-run", {TOKEN_HEADER.encode(): b"wrong"}, "127.0.0.1", 403),
        ("/v1/control/start-run", TOKEN, "203.0.113.9", 403),
        ("/v1/control/start-run", TOKEN | {b"x-forwarded-for": b"203.0.113.9"}, "127.0.0.1", 403),
        ("/v1/control/list-runs", TOKEN | {b"forwarded": b"for=203.0.113.9"}, "127.0.0.1", 403),
        ("/v1/control/list-runs", TOKEN | {b"x-real-ip": b"203.0.113.9"}, "::1", 403),
        ("/v1/control/start-run", TOKEN, "", 403),
        ("/v1/runtime/acquire-task", TOKEN, "127.0.0.1", 404),
        ("/v1/fleet/push-messages", {}, "127.0.0.1", 404),
        ("/v1/fleet/register-node", {}, "203.0.113.9", 404),
        ("/docs", {}, "127.0.0.1", 404),
        ("/openapi.json", TOKEN, "127.0.0.1", 404),
        ("/v1/fleet", {}, "203.0.113.9", 404),
    ],
)
def test_gate__path_token_and_client__decide(
    path: str, headers: dict[bytes, bytes], client: str, status: int | None
) -> None:
    assert GATE.refusal(path, headers, client) == status


def test_operator_token__made_once_and_private(tmp_path: Path) -> None:
    token = operator_token(tmp_path)
    assert operator_token(tmp_path) == token and len(token) == 64
    assert (tmp_path / "operator.token").stat().st_mode & 0o077 == 0


def test_certificates__made_once__chain_and_names_are_right(tmp_path: Path) -> None:
    write_certificates(tmp_path, ("localhost", "127.0.0.1", "superlink.example.org"))
    ca = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    server.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"localhost", "superlink.example.org"}
    assert (tmp_path / "server.key").stat().st_mode & 0o077 == 0
    before = (tmp_path / "server.pem").read_bytes()
    write_certificates(tmp_path)
    assert (tmp_path / "server.pem").read_bytes() == before


def test_certificates__as_strictly_as_the_newest_python_looks__are_taken(tmp_path: Path) -> None:
    write_certificates(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    client = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN  # 3.13's default
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(back, there, server_hostname="localhost")
    theirs = server.wrap_bio(there, back, server_side=True)
    for side in (ours, theirs) * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    ours.do_handshake()
    assert ours.getpeercert()


# What fl_server/superlink.py and runner.py replace or lean on in Flower's private modules, with the
# line that it is about: another version that says it otherwise must be looked at.
LEANS_ON = [
    ("flwr.superlink.main", "_get_middleware", "*extensions.get_middleware(),"),
    (
        "flwr.superlink.cli.flower_superlink",
        "_run_superlink_http_api",
        "fastapi_app = create_app(lifespan_config, SuperLinkLifespan)",
    ),
    ("flwr.superlink.cli.flower_superlink", "_run_superlink_http_api", "uvicorn.run("),
    (
        "flwr.superlink.cli.flower_superlink",
        "SuperLinkLifespan.startup",
        "self.state_factory.state()",
    ),
    (
        "flwr.superlink.servicer.control.control_handlers",
        "start_run",
        "extensions.notify_run_started(run, source)",
    ),
    ("flwr.superlink.servicer.control.control_handlers", "register_node", "state.create_node("),
    (
        "flwr.server.superlink.linkstate.in_memory_linkstate",
        "InMemoryLinkState.create_node",
        "self.node_public_key_to_node_id[public_key] = node_id",
    ),
    (
        "flwr.server.superlink.linkstate.in_memory_linkstate",
        "InMemoryLinkState.create_node",
        "self.owner_to_node_ids.setdefault(owner_aid, set()).add(node_id)",
    ),
    (
        "flwr.server.superlink.linkstate.in_memory_linkstate",
        "InMemoryLinkState.acknowledge_node_heartbeat",
        "node.status = NodeStatus.ONLINE",
    ),
    (
        "flwr.server.superlink.linkstate.in_memory_linkstate",
        "InMemoryLinkState.activate_node",
        "if node.status in (NodeStatus.REGISTERED, NodeStatus.OFFLINE):",
    ),
    (
        "flwr.server.superlink.linkstate.in_memory_linkstate",
        "InMemoryLinkState.deactivate_node",
        "if node.status == NodeStatus.ONLINE:",
    ),
    (
        "flwr.supercore.corestate.in_memory_corestate",
        "InMemoryCoreState.claim_task",
        "if task.status.status != Status.PENDING:",
    ),
    (
        "flwr.supercore.corestate.in_memory_corestate",
        "InMemoryCoreState.activate_task",
        "task.status.status != Status.STARTING",
    ),
    (
        "flwr.supercore.corestate.in_memory_corestate",
        "InMemoryCoreState.activate_task",
        "if record is not None:",
    ),
    (
        "flwr.supercore.corestate.in_memory_corestate",
        "InMemoryCoreState.finish_task",
        "if (record := self.task_token_store.pop(task_id, None)) is not None:",
    ),
    ("flwr.app.message.message", "Message", "run_id=TaskIdentity.run_id,"),
]


@pytest.mark.parametrize(("module", "name", "line"), LEANS_ON)
def test_flowers_inside__is_what_we_lean_on(module: str, name: str, line: str) -> None:
    importlib.import_module(module)
    found = functools.reduce(getattr, name.split("."), sys.modules[module])
    assert line in inspect.getsource(found)


def test_activate__of_a_node_that_was_killed__is_let_in_at_once(tmp_path: Path) -> None:
    from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
    from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
    from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager

    state = InMemoryLinkState(NoOpFederationManager(), InMemoryObjectStore())
    Registrations(tmp_path / "nodes.json").fill(state)
    node_id = state.create_node("owner", "owner", b"key", 30.0)
    assert [state.activate_node(node_id, 30.0) for _ in range(3)] == [True] * 3
    assert [n.status for n in state.get_node_info(node_ids=[node_id])] == ["online"]
    assert not state.activate_node(node_id + 1, 30.0)
