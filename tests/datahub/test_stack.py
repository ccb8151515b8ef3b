"""The processes of a marketplace: a death is told with its last words, and stopping stops all."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from datahub.demo.stack import Processes, free_ports, wait_for
from datahub.errors import HubError


def test_free_ports__several__are_all_different() -> None:
    assert len(set(free_ports(20))) == 20


def test_processes__one_that_serves__is_waited_for_and_stopped(tmp_path: Path) -> None:
    processes, (port,) = Processes(tmp_path / "logs"), free_ports(1)
    processes.start("files", "http.server", "--bind", "127.0.0.1", str(port))
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for("the server", lambda: httpx.get(url, timeout=2).is_success, processes)
        running = processes.running["files"]
    finally:
        processes.stop()
    assert running.poll() is not None and processes.running == {}
    assert "GET / HTTP" in (tmp_path / "logs" / "files.log").read_text()


def test_check__one_has_ended__says_which_and_its_last_line(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("parser", "json.tool", str(tmp_path / "nothing.json"))
    with pytest.raises(HubError, match=r"parser ended unexpectedly: .*nothing\.json"):
        wait_for("the parser", lambda: False, processes, timeout_s=30)
    processes.stop()


def test_wait_for__never_ready__gives_up_in_time(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(HubError, match="the moon is not ready after 0 s"):
        wait_for("the moon", lambda: False, Processes(tmp_path), timeout_s=0.3)
    assert time.monotonic() - started < 3
