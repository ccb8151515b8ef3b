"""Running a node: what is tried of a machine, the service files, how a node stands, and a folder
that an older version wrote.
"""

from __future__ import annotations

import configparser
import contextlib
import http.server
import json
import re
import shutil
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from datatokens.bindings.revenue import Revenue
from datatokens.chain.connection import connect
from fl_client.errors import ConfigError
from fl_client.node import config, contacts, entries
from fl_client.node.admission import admit
from fl_client.node.config import NodeConfig
from fl_client.node.contacts import PARTIES, Contacts, Diary
from fl_client.node.publishing import Publisher
from fl_client.node.served import open_ledger
from fl_client.node.supernode import _Hand
from fl_client.office import cli, preflight, service
from fl_client.office.preflight import FAILED, OK, WARNING
from fl_client.office.state import METRICS, State, look, metrics
from fl_client.privacy.ledger import Ledger
from fl_client.protocol import Waiting
from fl_server.certificates import write_certificates
from tests.clinic import FOR_EVERYBODY, GRAPH, OTHER_BUYER, WEIGHTS, Clinic, accepted
from tests.clocks import clock

ROOT = Path(__file__).resolve().parents[2]
LEDGERS = Path(__file__).parent / "ledgers"
A_GB = 10**9
HOLDS = ({}, {"network": "", "files": ""})


def run(*words: str) -> Any:
    return CliRunner().invoke(cli.node, list(words), catch_exceptions=False)


@contextlib.contextmanager
def answering(body: bytes = b"{}", tls: Path | None = None, ahead: float = 0.0) -> Iterator[str]:
    """Somebody who answers every GET and HEAD with this body; host:port."""

    class Somebody(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_HEAD()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.send_response_only(200)
            self.send_header("Date", formatdate(time.time() + ahead, usegmt=True))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass

    with Quiet(("127.0.0.1", 0), Somebody) as server:
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls / "server.pem", tls / "server.key")
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker is started, and nobody is waited for long."""
    monkeypatch.setattr(preflight, "tried", lambda *_: HOLDS)
    monkeypatch.setattr(preflight, "PATIENCE_S", 2.0)


def network_of(node: NodeConfig) -> bytes:
    names = ("chain_id", "registry", "market", "payment_token", "superlink")
    return json.dumps({name: getattr(node, name) for name in names}).encode()


# -- preflight -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_preflight__nobody_answers__says_so_of_each_and_ends_with_1(clinic: Clinic) -> None:
    done = run("preflight", str(clinic.folder), "--json")
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert done.exit_code == 1
    assert [found[name]["result"] for name in ("hub", "superlink", "chain", "python", "walls")] == [
        FAILED,
        FAILED,
        OK,
        OK,
        OK,
    ]
    assert "have the firewall let TCP out to 127.0.0.1" in found["hub"]["do"]
    assert all(set(one) == {"name", "result", "found", "do"} for one in found.values())
    assert all(one["do"] for one in found.values() if one["result"] != OK)
    shown = run("preflight", str(clinic.folder))
    assert shown.exit_code == 1 and "FAILED" in shown.output


@pytest.mark.usefixtures("quick")
def test_preflight__all_is_well__ends_with_0_and_no_warning_ends_it_otherwise(
    clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_certificates(tmp_path / "tls", ("127.0.0.1",))
    (clinic.folder / "superlink-ca.crt").write_bytes((tmp_path / "tls" / "ca.crt").read_bytes())
    with answering(tls=tmp_path / "tls") as superlink:
        toml = clinic.folder / "node.toml"
        written = toml.read_text().replace(
            'superlink = "127.0.0.1:1"', f'superlink = "{superlink}"'
        )
        toml.write_text(written)
        with answering(network_of(config.read(clinic.folder))) as hub:
            toml.write_text(written.replace("http://127.0.0.1:1", f"http://{hub}"))
            monkeypatch.setattr(preflight, "GOOD_DISK", 10**18)
            done = run("preflight", str(clinic.folder), "--json")
    found = {one["name"]: one["result"] for one in json.loads(done.stdout)}
    assert done.exit_code == 0, done.stdout
    assert found["disk"] == WARNING
    assert {found[n] for n in ("hub", "superlink", "chain", "clock", "walls")} == {OK}


def test_init__on_a_machine_that_fails__makes_the_node_and_says_what_to_do(
    clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "tried", lambda *_: ({"disk": "no"}, {"disk": "a full disk"}))
    monkeypatch.setattr(preflight, "PATIENCE_S", 2.0)
    network = json.loads(network_of(config.read(clinic.folder))) | {"ca_certificate": ""}
    for words in ((), ("--json",)):
        folder = tmp_path / f"new{len(words)}"
        with answering(json.dumps(network).encode()) as hub:
            where = ("--name", "N", "--hub", f"http://{hub}", "--chain", clinic.url)
            done = run("init", str(folder), *where, *words)
        assert done.exit_code == 0 and config.read(folder).name == "N"
        if words:
            said = json.loads(done.stdout)
            assert said["node"] == config.read(folder).node_address
            assert {one["name"]: one["result"] for one in said["preflight"]}["walls"] == FAILED
        else:
            assert "put right what failed, then: datahub node preflight" in done.output
            assert "allow user namespaces" in " ".join(done.output.split())


def test_superlink__another_authoritys_certificate__is_named_as_an_opened_connection(
    clinic: Clinic, tmp_path: Path
) -> None:
    write_certificates(tmp_path / "ours", ("127.0.0.1",))
    write_certificates(tmp_path / "theirs", ("127.0.0.1",))
    ca = clinic.folder / "superlink-ca.crt"
    with answering(tls=tmp_path / "theirs") as there:
        node = replace(config.read(clinic.folder), superlink=there)
        assert preflight.superlink(node).found.startswith("superlink-ca.crt is no certificate")
        ca.write_bytes((tmp_path / "ours" / "ca.crt").read_bytes())
        found = preflight.superlink(node)
        assert found.result == FAILED and "leave TLS to" in found.do
        ca.write_bytes((tmp_path / "theirs" / "ca.crt").read_bytes())
        assert preflight.superlink(node).result == OK
        hub = replace(node, hub=f"https://{there}")
        assert "leave TLS to" in preflight.hub(hub).do, "no public authority has signed it"


@pytest.mark.parametrize("given", ["", "host", "host:", ":1", "host:99999", "host:x", "host:²"])
def test_superlink__is_no_address__is_a_sentence_and_no_crash(clinic: Clinic, given: str) -> None:
    node = replace(config.read(clinic.folder), superlink=given)
    assert "is not host:port" in preflight.superlink(node).found
    assert preflight.clock(node, False, True).result in (OK, FAILED)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[" * 100, "levels"),
        (b"[]", "an answer that no hub gives"),
        (b"x" * (2 << 20), "a longer answer than any hub gives"),
        (b'{"chain_id": NaN}', "NaN"),
    ],
)
def test_hub__answers_what_no_hub_does__fails_in_a_short_sentence(
    clinic: Clinic, body: bytes, said: str
) -> None:
    with answering(body) as there:
        found = preflight.hub(replace(config.read(clinic.folder), hub=f"http://{there}"))
    assert found.result == FAILED and said in found.found and len(found.found) < 400


def test_hub__names_another_market__fails_and_another_superlink_warns(clinic: Clinic) -> None:
    node = config.read(clinic.folder)
    other = json.loads(network_of(node))
    for name, value, result in (
        ("market", "0x" + "1" * 40, FAILED),
        ("superlink", "elsewhere:1", WARNING),
        ("market", node.market.lower(), OK),
    ):
        with answering(json.dumps(other | {name: value}).encode()) as there:
            assert preflight.hub(replace(node, hub=f"http://{there}")).result == result


def test_hub__that_never_ends_its_answer__is_given_up(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "PATIENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        node = config.read(clinic.folder)
        began = time.monotonic()
        found = preflight.hub(replace(node, hub=f"http://127.0.0.1:{port}"))
        link = preflight.chain(replace(node, chain=f"http://127.0.0.1:{port}"))
        assert found.result == link.result == FAILED and time.monotonic() - began < 3
        assert "no answer within" in link.found


def test_chain__another_one__fails(clinic: Clinic) -> None:
    found = preflight.chain(replace(config.read(clinic.folder), chain_id=5))
    assert found.result == FAILED and "node.toml says chain_id=5" in found.found


def test_open_connection__beyond_this_machine__is_a_warning() -> None:
    assert preflight._unless_open("hub", "http://hub.example", "answers").result == WARNING
    assert preflight._unless_open("hub", "https://hub.example", "answers").result == OK


def test_clock__wrong_by_the_superlink__fails(clinic: Clinic, tmp_path: Path) -> None:
    write_certificates(tmp_path, ("127.0.0.1",))
    node = config.read(clinic.folder)
    with answering(tls=tmp_path, ahead=312.0) as there:
        found = preflight.clock(replace(node, superlink=there), True, False)
    assert found.result == FAILED and "behind the SuperLink's" in found.found
    assert preflight.clock(node, False, False).result == WARNING, "nobody says the time"


@pytest.mark.parametrize(
    ("check", "result"),
    [
        (preflight.disk(A_GB - 1), FAILED),
        (preflight.disk(2 * A_GB), WARNING),
        (preflight.disk(21 * A_GB), OK),
        (preflight.memory(A_GB, 1), FAILED),
        (preflight.memory(5 * A_GB, 4), WARNING),
        (preflight.memory(6 * A_GB, 4), OK),
        (preflight.python((3, 10, 9)), FAILED),
        (preflight.python((3, 13, 0)), OK),
    ],
    ids=str,
)
def test_machine__by_its_figures(check: preflight.Check, result: str) -> None:
    assert check.result == result and bool(check.do) == (result != OK)


@pytest.mark.parametrize(
    ("missing", "through", "result", "do"),
    [
        ({}, {"files": "", "disk": ""}, OK, ""),
        ({"disk": "on the disk"}, {"files": "", "disk": ""}, WARNING, "user namespaces"),
        ({}, {"files": "read the key", "disk": ""}, FAILED, "Landlock"),
    ],
)
def test_walls__missing_is_a_warning_and_broken_a_failure(
    missing: dict, through: dict, result: str, do: str, clinic: Clinic,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(preflight, "tried", lambda *_: (missing, through))
    found = preflight.walls(clinic.folder)
    assert found.result == result and do in found.do


# -- service files ---------------------------------------------------------------------------------


def parsed(text: str) -> configparser.ConfigParser:
    made = configparser.ConfigParser(interpolation=None, strict=True)
    made.optionxform = str  # type: ignore[assignment, method-assign]
    made.read_string(text)
    return made


UNIT = service.unit(PurePosixPath("/srv/node"), PurePosixPath("/opt/bin/datahub"), "ward", 400)


def test_unit__is_strict_and_leaves_the_workers_their_walls() -> None:
    made = parsed(UNIT)["Service"]
    assert made["User"] == "ward" and made["Restart"] == "always" and int(made["RestartSec"]) > 0
    assert made["ExecStart"] == '"/opt/bin/datahub" node start "/srv/node"'
    assert made["ProtectSystem"] == "strict" and made["ReadWritePaths"] == '"/srv/node"'
    assert made["NoNewPrivileges"] == "yes" and made["CapabilityBoundingSet"] == ""
    assert made["StandardOutput"] == made["StandardError"] == "journal"
    assert int(made["TasksMax"]) == 400 and made["MemoryMax"] and made["OOMPolicy"] == "continue"
    assert made["UMask"] == "0077"
    breaks = "RestrictNamespaces SystemCallFilter PrivateDevices ProtectClock ProcSubset "
    breaks += "MemoryDenyWriteExecute PrivateUsers DevicePolicy PrivateNetwork RootDirectory"
    assert not set(breaks.split()) & set(made)


def test_unit__of_roots_folder__gets_a_user_of_its_own() -> None:
    made = service.unit(PurePosixPath("/srv/node"), PurePosixPath("/usr/bin/datahub"), "root", 400)
    assert parsed(made)["Service"]["User"] == "datahub" and "useradd --system datahub" in made


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze, which is not here"
)
@pytest.mark.parametrize("folder", ["/srv/node", '/srv/a "ward" of 50% $HOME\\'])
def test_unit__systemd_itself__has_nothing_to_say_of_it(folder: str, tmp_path: Path) -> None:
    made = service.unit(PurePosixPath(folder), PurePosixPath("/usr/bin/env"), "root", 400)
    for text, silent in ((made, True), (made.replace("UMask=0077", "UMask=x\nNone=1"), False)):
        file = tmp_path / "datahub-node.service"
        file.write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=60
        )
        said = "\n".join(line for line in done.stderr.splitlines() if file.name in line)
        assert (done.returncode == 0 and not said) is silent, done.stderr


@given(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=30))
def test_unit__whatever_the_folder_is_called__no_second_line_is_written(name: str) -> None:
    folder, program = PurePosixPath("/srv") / name, PurePosixPath("/usr/bin/datahub")
    try:
        made = service.unit(folder, program, "ward", 400)
    except ConfigError:
        assert not name.isprintable()
        return
    plain = service.unit(PurePosixPath("/srv/x"), program, "ward", 400)
    assert {s: dict(parsed(made)[s]).keys() for s in parsed(made)} == {
        s: dict(parsed(plain)[s]).keys() for s in parsed(plain)
    }
    assert len(made.split("\n")) == len(plain.split("\n"))
    quoted = parsed(made)["Service"]["ReadWritePaths"][1:-1].replace("%%", "%")
    assert re.sub(r"\\(.)", r"\1", quoted) == str(folder)


@pytest.mark.parametrize(
    ("folder", "user", "said"),
    [
        ("/tmp/node", "ward", "folder for temporary files"),
        ("node", "ward", "must be a whole path"),
        ("/srv/a\nUser=root", "ward", "printable"),
        ("/srv/node", "ward\nUser=root", "no name that systemd takes"),
    ],
)
def test_unit__that_would_not_run_as_written__is_refused(folder: str, user: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        service.unit(PurePosixPath(folder), PurePosixPath("/usr/bin/datahub"), user, 400)


def instructions(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def test_image__is_of_this_python_runs_as_nobody_special_and_holds_no_folder() -> None:
    tables = [PurePosixPath("/data/x"), PurePosixPath("/data/x"), PurePosixPath("/srv/node/in")]
    made = service.image(PurePosixPath("/srv/node"), tables, (0, 0), "3.12")
    found = dict(instructions(made))
    assert found["FROM"] == "docker.io/library/python:3.12-slim"
    assert found["USER"] == "10001:10001"
    assert json.loads(found["ENTRYPOINT"]) + json.loads(found["CMD"]) == [
        "datahub",
        "node",
        "start",
        "/srv/node",
    ]
    copied = [one for word, rest in instructions(made) if word == "COPY" for one in rest.split()]
    sources = [one for one in copied if not one.startswith("/")]
    assert sources and all((ROOT / one).exists() for one in sources)
    assert all((ROOT / one).name in sources for one in ("datatokens", "fl_client", "fl_server"))
    assert made.count("'/data/x':'/data/x':ro") == 1 and "/srv/node/in" not in made
    assert "--security-opt=seccomp=unconfined" in made, "else a worker has no namespaces"


def test_image__a_colon_in_a_path__is_refused() -> None:
    with pytest.raises(ConfigError, match="holds a colon"):
        service.image(PurePosixPath("/srv/a:b"), [], (5, 5), "3.12")


def test_service__of_a_folder__is_printed_or_written_whole(
    clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="folder for temporary files"):
        run("service", str(clinic.folder))
    monkeypatch.setattr(service, "HIDDEN", ())
    printed = run("service", str(clinic.folder)).stdout
    assert f'ReadWritePaths="{clinic.folder.resolve()}"' in printed
    out = tmp_path / "datahub-node.service"
    assert run("service", str(clinic.folder), "--out", str(out)).exit_code == 0
    assert out.read_text() == printed
    with pytest.raises(ConfigError, match="in a folder that is there"):
        run("service", str(clinic.folder), "--out", str(tmp_path / "no" / "where"))
    image = run("service", str(clinic.folder), "--kind", "oci").stdout
    (entry,) = config.read(clinic.folder).datasets
    assert entry.source.file is not None
    assert f"'{entry.source.file.resolve().parent}'" in image


# -- how a node stands -----------------------------------------------------------------------------


def diary_of(folder: Path, chain: float = 0.0, walls: dict[str, str] | None = None) -> Diary:
    return Diary(folder, lambda: chain, lambda: walls)


def test_diary__writes_what_changed_and_once_a_minute_that_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    real = contacts.write_whole

    def counting(path: Path, content: bytes) -> None:
        written.append(path)
        real(path, content)

    monkeypatch.setattr(contacts, "write_whole", counting)
    now = [1000.0]
    clock(monkeypatch, contacts, time=lambda: now[0])
    diary = diary_of(tmp_path, 990.5, {"disk": "none"})
    diary.look()
    now[0] += 10
    diary.look()
    assert len(written) == 1, "nothing has changed"
    diary.spoke("hub")
    diary.look()
    assert len(written) == 2
    now[0] += contacts.MOST_S
    diary.look()
    assert len(written) == 3
    found = contacts.read(tmp_path)
    assert found == Contacts(
        1000, 1070, False, {"hub": 1010, "superlink": 0, "chain": 990}, {"disk": "none"}
    )
    assert found.running(1071) and not found.running(1071 + contacts.DEAD_S)
    assert not found.running(1071 - 24 * 3600), (
        "a clock that was set back by a day brings none back"
    )
    now[0] -= 500
    diary.look()
    assert len(written) == 4, "the clock was set back"
    diary.look(stopped=True)
    assert (late := contacts.read(tmp_path)) is not None and not late.running(now[0])
    again = diary_of(tmp_path)
    again.look()
    assert (kept := contacts.read(tmp_path)) is not None
    assert kept.spoke["hub"] == 1010 and kept.walls is None, "a restart forgets no contact"


def test_diary__of_a_running_node__ends_with_it_and_clears_what_a_killed_one_left(
    tmp_path: Path,
) -> None:
    (tmp_path / ".state.json.77").write_text("half")
    stop = threading.Event()
    diary_of(tmp_path).keep(stop)
    stop.set()
    end = time.monotonic() + 10
    while (found := contacts.read(tmp_path)) is None or not found.stopped:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]
    assert (tmp_path / "state.json").stat().st_mode & 0o077 == 0


def test_diary__on_a_full_disk__says_so_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(contacts, "write_whole", full)
    diary = diary_of(tmp_path)
    diary.look()
    diary.look()
    assert [r.message for r in caplog.records] == [
        "state.json cannot be written: No space left on device"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"spoke": 1}',
        '{"started": 1, "written": "x", "stopped": false, "spoke": {}, "walls": null}',
        '{"started": 1, "written": 1, "stopped": false, "walls": [],'
        ' "spoke": {"hub": 1, "superlink": 1, "chain": 1}}',
    ],
)
def test_state_file__damaged__is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    assert contacts.read(tmp_path) is None


def test_parties__each_answer_is_noted(clinic: Clinic) -> None:
    room, noted = clinic.room(), []
    assert room.chain.answered_at > time.time() - 60
    there = Publisher(room, lambda *_: None, lambda: noted.append("hub"))
    there._send(there.due(1000))
    assert noted == ["hub"]

    class Turns:
        def take(self, *_: object) -> None:
            time.sleep(0.01)

        def close(self) -> None:
            pass

    turned = threading.Event()
    turns: Any = Turns()
    with contextlib.closing(_Hand(turns, turned.set)):
        assert turned.wait(5)


def test_status__jobs_earnings_contacts_and_walls__for_scripts_and_for_people(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way = accepted(clinic)
    toml = clinic.folder / "node.toml"
    toml.write_text(toml.read_text().replace(FOR_EVERYBODY, ""))
    terms = clinic.paid()
    assert isinstance(admit(clinic.room(), terms.to_json(), GRAPH, WEIGHTS), Waiting)
    diary = diary_of(clinic.folder, time.time(), {"disk": "scratch is on the disk"})
    diary.spoke("hub")
    diary.look()
    said = json.loads(run("status", str(clinic.folder), "--json").stdout)
    assert said["jobs"] == {
        "waiting": [terms.job_id.hex()],
        "under_way": [under_way.job_id.hex()],
        "held": [],
    }
    assert said["running"] and set(said["contacts"]["spoke"]) == set(PARTIES)
    assert said["contacts"]["walls"] == {"disk": "scratch is on the disk"}
    (line,) = said["datasets"]
    before = "dataset_id name epsilon_spent epsilon_committed epsilon_pld jobs_left "
    before += "epsilon_lifetime delta not_served source_away jobs"
    assert set(before.split()) < set(line), "scripts of before find their keys"
    assert line["earned"] == {
        "hospital_units": 0,
        "withdrawn_units": 0,
        "contributor_units": 0,
        "jobs_settled": 0,
    }
    shown = run("status", str(clinic.folder)).output
    for words in (
        "jobs: 1 waiting, 1 under way, 0 held",
        "last answer of the superlink: never",
        "no wall around jobs' disk",
        "the node runs since",
        "has earned 0 units for the hospital",
    ):
        assert words in " ".join(shown.split()), words


def test_status__revenue_was_paid_in__is_what_the_dataset_has_earned(clinic: Clinic) -> None:
    clinic.room()
    market = Revenue(connect(clinic.url, OTHER_BUYER[1]), clinic.made.market)
    market.pay_revenue(clinic.dataset_id, 1001)
    (line,) = look(config.read(clinic.folder)).datasets
    assert line["earned"]["hospital_units"] + line["earned"]["contributor_units"] == 1001


def test_status__chain_away_or_another_one__all_else_is_said(clinic: Clinic) -> None:
    clinic.room()
    toml = clinic.folder / "node.toml"
    written = toml.read_text()
    for old, new, why in (
        (clinic.url, "http://127.0.0.1:1", "no chain answers"),
        (f"chain_id = {clinic.made.chain_id}", "chain_id = 5", "is chain"),
    ):
        toml.write_text(written.replace(old, new))
        done = run("status", str(clinic.folder), "--json")
        said = json.loads(done.stdout)
        assert done.exit_code == 0 and why in said["chain_away"]
        assert said["datasets"][0]["earned"] is None and said["contacts"] is None
        assert "what was earned is not known now" in run("status", str(clinic.folder)).output


def test_status__a_jobs_file_is_damaged__all_else_is_said(clinic: Clinic) -> None:
    terms = accepted(clinic)
    (clinic.folder / "jobs" / terms.job_id.hex() / "request.json").write_text("{")
    found = look(config.read(clinic.folder))
    assert "is damaged" in found.unread[0] and found.datasets[0]["earned"] is not None
    assert found.jobs["under_way"] == (terms.job_id.hex(),) and "datahub_jobs{" in metrics(found)
    assert "is damaged" in " ".join(run("status", str(clinic.folder)).output.split())


# -- metrics ---------------------------------------------------------------------------------------

SAMPLE = re.compile(r'(\w+)\{((?:\w+="(?:[^"\\\n]|\\\\|\\"|\\n)*",?)*)\} (\S+)')
LINE = {
    "dataset_id": 7,
    "name": 'a "ward"\\\nof two lines',
    "epsilon_spent": 0.5,
    "epsilon_committed": 1e-7,
    "epsilon_lifetime": 3.0,
    "not_served": "",
    "earned": {
        "hospital_units": 10**30,
        "withdrawn_units": 0,
        "contributor_units": 1,
        "jobs_settled": 2,
    },
}
STATE = State(
    "N",
    1000,
    Contacts(1, 990, False, {"hub": 5, "superlink": 6, "chain": 7}, {"disk": "why"}),
    {"waiting": ("a", "b"), "under_way": (), "held": ("c",)},
    (LINE,),
    (),
    "",
)


def samples(text: str) -> dict[tuple[str, str], float]:
    """As Prometheus reads it; fails for a line that it would not."""
    assert text.endswith("\n")
    kinds = re.findall(r"^# TYPE (\w+) (?:gauge|counter)$", text, re.MULTILINE)
    assert len(kinds) == len(set(kinds))
    found = {}
    for line in text.split("\n")[:-1]:
        if line.startswith("# "):
            continue
        read = SAMPLE.fullmatch(line)
        assert read and read[1] in kinds, line
        found[read[1], read[2]] = float(read[3])
    return found


def test_metrics__of_a_state__are_its_facts_in_prometheus_format() -> None:
    found = samples(metrics(STATE))
    of = 'dataset="7",name="a \\"ward\\"\\\\\\nof two lines"'
    assert found["datahub_node_up", ""] == found["datahub_chain_answers", ""] == 1
    assert found["datahub_jobs", 'state="waiting"'] == 2
    assert found["datahub_epsilon_spent", of] == 0.5
    assert found["datahub_epsilon_committed", of] == 1e-7
    assert found["datahub_earned_units_total", f'{of},part="hospital"'] == 1e30
    assert found["datahub_contact_timestamp_seconds", 'party="chain"'] == 7
    assert found["datahub_wall_missing", 'wall="disk"'] == 1
    assert found["datahub_wall_missing", 'wall="files"'] == 0
    assert {name for name, _ in found} == set(METRICS)


def test_metrics__what_is_not_known__has_no_line() -> None:
    unknown = replace(
        STATE, contacts=None, datasets=({**LINE, "earned": None},), chain_away="it is away"
    )
    found = samples(metrics(unknown))
    assert found["datahub_node_up", ""] == found["datahub_chain_answers", ""] == 0
    assert not {name for name, _ in found} & {
        "datahub_contact_timestamp_seconds",
        "datahub_earned_units_total",
        "datahub_wall_missing",
    }


@given(st.text(), st.floats(), st.integers(0, 2**256))
def test_metrics__whatever_a_dataset_is_called__every_line_is_read(
    name: str, spent: float, units: int
) -> None:
    earned = LINE["earned"] | {"hospital_units": units}  # type: ignore[operator]
    line = {**LINE, "name": name, "epsilon_spent": spent, "earned": earned}
    found = samples(metrics(replace(STATE, datasets=(line,))))
    assert len(found) == len(samples(metrics(STATE)))


# -- a folder of before ----------------------------------------------------------------------------

OLD_TOML = """\
name = "Old ward"
hub = "http://127.0.0.1:1"
chain = "{chain}"
chain_id = {chain_id}
registry = "{registry}"
market = "{market}"
payment_token = "{payment_token}"
superlink = "127.0.0.1:1"
engine = "book-keeping"

[policy]
buyers = ["*"]
purposes = ["*"]
max_epsilon_per_job = 4.5
minimum_persons = 20
longest_deadline_s = 1209600
reservations_per_buyer = 3
max_job_minutes = 240
max_memory_gb = 4
arbiters = []
"""


def test_folder_of_the_release_before__is_read_with_its_keys_ledger_and_datasets(
    clinic: Clinic,
) -> None:
    """node.toml without what policies have learned, a dataset's file and a ledger of 2026-11-25."""
    folder, made = clinic.folder, clinic.made
    (entry,) = config.read(folder).datasets
    for path in (*folder.glob("ledger.*"), folder / "keys" / "patients.key"):
        path.unlink(missing_ok=True)
    keys = {path.name: path.read_bytes() for path in (folder / "keys").iterdir()}
    assert set(keys) == {"node.key", "supernode.key"}
    names = ("chain_id", "registry", "market", "payment_token")
    network = {name: getattr(made, name) for name in names}
    (folder / "node.toml").write_text(OLD_TOML.format(chain=clinic.url, **network))
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        db.executescript((LEDGERS / "format_1.sql").read_text())
    ward = next(n for n in Ledger(folder / "ledger.sqlite").datasets() if not n.startswith("5e"))
    manifest = entry.manifest.as_dict() | {"version": 1}
    del manifest["records_per_patient"]
    document = {
        "file": str(entry.source.file),
        "patient_set": ward,
        "patient_column": "",
        "manifest": manifest,
    }
    entries.path_of(folder, clinic.dataset_id).write_text(json.dumps(document))
    before = Ledger(folder / "ledger.sqlite")
    spent, jobs = before.epsilon_spent(ward), [job.job_id for job in before.jobs(ward)]
    assert spent > 1 and len(jobs) == 2

    done = run("status", str(folder), "--json")
    said = json.loads(done.stdout)
    (line,) = said["datasets"]
    assert line["dataset_id"] == clinic.dataset_id and line["not_served"] == ""
    assert line["epsilon_spent"] >= spent and [job["job_id"] for job in line["jobs"]] == jobs
    assert said["contacts"] is None and said["unread"] == []
    room = clinic.room()
    assert room.skipped == {} and [e.dataset_id for e in room.datasets] == [clinic.dataset_id]
    node = config.read(folder)
    assert node.policy_of(clinic.dataset_id).approval == "person" and node.rules == ()
    kept = {path.name: path.read_bytes() for path in (folder / "keys").iterdir()}
    assert {name: kept[name] for name in keys} == keys and set(kept) - set(keys) == {"patients.key"}
    again = json.loads(run("status", str(folder), "--json").stdout)["datasets"]
    assert again[0]["epsilon_spent"] == line["epsilon_spent"], "an upgrade costs nothing twice"
    assert open_ledger(folder)[0].jobs(ward)[0].job_id == jobs[0]
