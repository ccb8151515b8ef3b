"""A hub as a service: systemd itself, YAML and nginx itself read what is written."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest
from typer.testing import CliRunner

from datahub.errors import ConfigError
from datahub.operator import service
from datahub.operator.cli import hub as commands
from fl_server.certificates import write_certificates
from tests.datahub.hub_world import HubWorld
from tests.datahub.test_serving import prepared

PROGRAM = PurePosixPath("/usr/bin/env")


def parsed(text: str) -> configparser.RawConfigParser:
    made = configparser.RawConfigParser(strict=False)
    made.optionxform = str  # type: ignore[assignment,method-assign]
    made.read_string(text)
    return made


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze, which is not here"
)
@pytest.mark.parametrize("folder", ["/srv/hub", '/srv/a "hub" of 50% $HOME\\'])
def test_units__systemd_itself__has_nothing_to_say_of_them(folder: str, tmp_path: Path) -> None:
    made = service.units(PurePosixPath(folder), PROGRAM, "root", "0.0.0.0")
    assert set(made) == {"datahub-hub.service", "datahub-superlink.service"}
    for name, text in made.items():
        for content, silent in ((text, True), (text.replace("UMask=0077", "UMask=x\nN=1"), False)):
            file = tmp_path / name
            file.write_text(content)
            done = subprocess.run(
                ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=60
            )
            said = "\n".join(line for line in done.stderr.splitlines() if name in line)
            assert (not said) is silent, done.stderr


def test_units__what_strangers_reach__may_write_its_folder_alone() -> None:
    made = service.units(PurePosixPath("/srv/hub"), PROGRAM, "ward", "0.0.0.0")
    for text in made.values():
        found = parsed(text)["Service"]
        assert found["ReadWritePaths"] == '"/srv/hub"' and found["ProtectSystem"] == "strict"
        assert found["User"] == "ward" and found["CapabilityBoundingSet"] == ""
        assert int(found["TimeoutStopSec"]) > 15  # of serving.py: 10 s, and what is around them
    start = parsed(made["datahub-hub.service"])["Service"]["ExecStart"]
    assert start == '"/usr/bin/env" hub start "/srv/hub"'


@pytest.mark.parametrize(
    ("folder", "user"), [("hub", "x"), ("/srv/a\nb", "x"), ("/tmp/hub", "x"), ("/srv/hub", "a b")]
)
def test_units__what_systemd_could_not_be_told__one_sentence(folder: str, user: str) -> None:
    with pytest.raises(ConfigError):
        service.units(PurePosixPath(folder), PROGRAM, user, "0.0.0.0")


def composed(superlink: str = "superlink.example.org:9092") -> dict[str, str]:
    return dict(service.compose(PurePosixPath("/srv/hub"), (1000, 1000), superlink, "3.12"))


def test_compose__as_yaml__hub_and_superlink_share_a_network_and_are_reached_by_nginx() -> None:
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load(composed()["compose.yaml"])["services"]
    assert set(found) == {"database", "superlink", "hub", "nginx"}
    assert found["hub"]["network_mode"] == "service:superlink"  # the gate's loopback
    assert [name for name, one in found.items() if "ports" in one] == ["nginx"]
    for name in ("hub", "superlink"):
        assert found[name]["read_only"] and found[name]["cap_drop"] == ["ALL"]
        assert found[name]["user"] == "1000:1000"
    assert found["superlink"]["command"] == ["superlink", "/srv/hub", "--host", "0.0.0.0"]


@pytest.mark.parametrize(
    ("folder", "ids", "superlink"),
    [
        ("/srv/a:b", (1, 1), "x:1"),
        ("/srv/hub", (0, 0), "x:1"),
        ("/srv/hub", (1, 1), "x"),
        ("/srv/hub", (1, 1), "x;y:1"),
    ],
)
def test_compose__what_could_not_be_written_there__one_sentence(
    folder: str, ids: tuple[int, int], superlink: str
) -> None:
    with pytest.raises(ConfigError):
        service.compose(PurePosixPath(folder), ids, superlink, "3.12")


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx, which is not here")
def test_nginx__itself__takes_the_file(tmp_path: Path) -> None:
    write_certificates(tmp_path / "tls")
    text = composed()["nginx.conf"].replace("/etc/nginx/tls/fullchain.pem", "/tls/server.pem")
    text = text.replace("/etc/nginx/tls/privkey.pem", "/tls/server.key")
    text = text.replace(" /tls/", f" {tmp_path}/tls/").replace(" superlink:", " 127.0.0.1:")
    file = tmp_path / "nginx.conf"
    file.write_text(f"pid {tmp_path}/pid; error_log {tmp_path}/log;\n{text}")
    done = subprocess.run(["nginx", "-t", "-c", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_command__systemd__writes_both_and_prints_both(hub: HubWorld, tmp_path: Path) -> None:
    folder = prepared(hub)
    done = CliRunner().invoke(commands, ["service", str(folder), "--out", str(tmp_path)])
    # pytest's own folders are in /tmp, which a service does not see
    assert done.exit_code == 1 and "temporary files" in str(done.exception)
    done = CliRunner().invoke(commands, ["service", str(folder), "--out", str(tmp_path / "no")])
    assert done.exit_code == 1
