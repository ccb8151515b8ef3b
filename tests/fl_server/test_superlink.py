"""The gate before the SuperLink: hospitals reach the fleet routes, everything else is the
operator's.
"""

from pathlib import Path

import pytest
from cryptography import x509

from fl_server.certificates import write_certificates
from fl_server.gate import TOKEN_HEADER, OperatorGate
from fl_server.superlink import operator_token

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
