"""The hospital's own machine: nobody else reads its folder, a wrong clock and an empty purse are
named at once, and it stops when it is told to.
"""

import http.server
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from eth_account import Account
from flwr.clientapp import ClientApp
from typer.testing import CliRunner

from datatokens.bindings.registry import Registry
from datatokens.chain.connection import connect
from datatokens.errors import NodeRefused
from fl_client.node import config, rounds, supernode
from fl_client.node.admission import admit
from fl_client.node.skew import clock_problem, sentence
from fl_client.office import cli
from fl_client.privacy.ledger import Ledger
from fl_client.protocol import Refused
from fl_server.certificates import write_certificates
from tests.clinic import GRAPH, WEIGHTS, Clinic, trained


def open_to_others(folder: Path) -> list[str]:
    """What in a folder, itself included, somebody else could read, write or enter."""
    return [str(path) for path in (folder, *folder.rglob("*")) if path.lstat().st_mode & 0o077]


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("usual_umask")
def test_node_folder_after_a_job__nobody_else_can_read_anything(
    clinic: Clinic, tmp_path: Path
) -> None:
    terms, _, arrays, _ = trained(clinic)
    rounds.evaluate(clinic.room(), terms.job_id.hex(), arrays)
    kept = {path.name for path in clinic.folder.rglob("*")}
    assert {"ledger.sqlite", "ledger.counter", "weights.safetensors", "patients.key"} <= kept
    # the fixture makes the folder before the test has set the umask: as by an older version
    config.tighten(clinic.folder)
    assert open_to_others(clinic.folder) == []


@pytest.mark.usefixtures("usual_umask")
def test_new_node_and_its_ledger__are_private_without_any_umask(tmp_path: Path) -> None:
    network = {
        "chain_id": 1,
        "superlink": "127.0.0.1:1",
        "ca_certificate": "",
        **dict.fromkeys(("registry", "market", "payment_token"), "0x" + "1" * 40),
    }
    folder = tmp_path / "a" / "node"
    config.create(folder, name="N", hub="http://h", chain="http://c", network=network)
    ledger = Ledger(folder / "ledger.sqlite")
    ledger.open_dataset("t", 3.0, 1e-5)
    with ledger.file.snapshot():
        assert open_to_others(folder) == []
    assert open_to_others(tmp_path / "a") == []


def test_older_folder__is_tightened_at_the_start(clinic: Clinic) -> None:
    clinic.folder.chmod(0o755)
    (clinic.folder / "node.toml").chmod(0o644)
    (clinic.folder / "keys").chmod(0o775)
    config.tighten(clinic.folder)
    assert open_to_others(clinic.folder) == []
    assert (clinic.folder / "node.toml").read_text()


def test_every_command_of_a_node__runs_with_a_umask_of_077(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        CliRunner().invoke(cli.node, ["status", str(tmp_path)])
        assert os.umask(0o022) == 0o077
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        (-312.0, "this machine's clock is 312 s behind the SuperLink's; set it (NTP)"),
        (7.4, "this machine's clock is 7 s ahead of the SuperLink's; set it (NTP)"),
        (2.0, None),
    ],
)
def test_wrong_clock__is_a_sentence_with_its_error(ahead: float, said: str | None) -> None:
    assert sentence(ahead, "the SuperLink's") == said


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[tuple[str, list[float]]]:
    """An HTTPS server whose clock is ahead by what is in the list."""
    ahead = [0.0]

    class Answering(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(404)
            self.send_header("Date", formatdate(time.time() + ahead[0], usegmt=True))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    certificate, key = certificate_in(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with http.server.HTTPServer(("127.0.0.1", 0), Answering) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", ahead
        server.shutdown()


def certificate_in(folder: Path) -> tuple[Path, Path]:
    write_certificates(folder, ("127.0.0.1",))
    return folder / "server.pem", folder / "server.key"


def test_superlink_with_another_time__names_the_machines_clock(
    superlink: tuple[str, list[float]],
) -> None:
    address, ahead = superlink
    assert clock_problem(address) is None
    ahead[0] = 312.0
    found = clock_problem(address)
    assert found is not None and found.endswith("s behind the SuperLink's; set it (NTP)")
    assert 309 <= int(found.split(" is ")[1].split()[0]) <= 314


def test_nobody_answers__the_chains_newest_block_is_the_hint() -> None:
    closed = "127.0.0.1:1"
    assert clock_problem(closed) is None
    assert clock_problem(closed, int(time.time()) - 9999) is None, "an idle chain says nothing"
    found = clock_problem(closed, int(time.time()) + 400)
    assert found is not None and "behind the chain's newest block" in found


def test_key_without_gas_money__is_told_its_address_and_what_is_short(clinic: Clinic) -> None:
    poor = Account.create()
    chain = connect(clinic.url, poor.key.hex())
    with pytest.raises(NodeRefused) as refused:
        Registry(chain, clinic.made.registry).list_dataset(
            str(poor.address), 1, 0, b"\0" * 32, "u", "T"
        )
    said = str(refused.value)
    assert str(poor.address) in said and "has 0 of the chain's coin" in said
    assert "more are needed" in said and "send some to that address" in said


def test_terms_of_100000_brackets__one_sentence_and_the_process_lives(clinic: Clinic) -> None:
    """In a process of its own: an overrun C stack would end it, not raise."""
    program = (
        "import sys; import fl_client.node.handlers\n"
        "from datatokens.terms import JobTerms, parse_canonical_json\n"
        "from datatokens.errors import TermsError\n"
        "sys.setrecursionlimit(100_000)\n"
        "for raw in (b'[' * 100_000 + b']' * 100_000, b'[' * 32_000 + b']' * 32_000,\n"
        "            b'{\"a\":' * 100_000):\n"
        "    for parse in (JobTerms.from_json, parse_canonical_json):\n"
        "        try: parse(raw)\n"
        "        except TermsError as error: print(len(str(error)) < 300)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-300:]
    assert done.stdout.split() == ["True"] * 6
    answer = admit(clinic.room(), b"[" * 60_000, GRAPH, WEIGHTS)
    assert isinstance(answer, Refused) and answer.signature == b""
    assert answer.reason.startswith("terms: ") and len(answer.reason) < 300
    assert not (clinic.folder / "jobs").exists(), "nothing is kept of it"


def test_node_is_told_to_stop_in_the_middle_of_something_long__ends_within_two_seconds() -> None:
    """A call that does not come back, as a compiler's: the process ends all the same."""
    program = (
        "import signal, threading, time\n"
        "from fl_client.node import supernode\n"
        "stop = threading.Event()\n"
        "signal.signal(signal.SIGTERM, lambda *_: supernode.stop_soon(stop))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.05)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_superlink_refuses_a_node_with_a_wrong_clock__the_log_names_it_at_once(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop = threading.Event()

    def refused(*_: object) -> None:
        stop.set()
        raise supernode.NoSession("exit code 300")

    monkeypatch.setattr(supernode, "_serve_session", refused)
    monkeypatch.setattr(supernode, "clock_problem", lambda _: sentence(-312.0, "the SuperLink's"))
    node = clinic.room().config
    supernode.serve(
        ClientApp(),
        superlink="127.0.0.1:1",
        ca_file=node.ca_file,
        key=node.supernode_key,
        stop=stop,
        on_connected=lambda _: None,
    )
    said = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert said == ["this machine's clock is 312 s behind the SuperLink's; set it (NTP)"]
