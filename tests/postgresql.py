"""A real PostgreSQL server for the time of some tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
needs_postgresql = pytest.mark.skipif(
    not FOUND or (os.getuid() == 0 and not shutil.which("runuser")),
    reason="PostgreSQL is not installed (make tools)",
)


@contextmanager
def running_postgresql() -> Iterator[str]:
    """The URL of an empty database, whose owner is whoever connects from this machine."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own are root's alone
    as_user: list[str] = []
    if os.getuid() == 0:  # the server refuses to be root
        as_user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data, binaries = folder / "data", FOUND[-1].parent
    made = [str(binaries / "initdb"), "-D", str(data), "-U", "owner", "-A", "trust"]
    subprocess.run([*as_user, *made], check=True, capture_output=True, cwd="/")
    options = ["-D", str(data), "-p", str(port), "-k", str(folder), "-h", "127.0.0.1"]
    log = (folder / "log").open("w")
    running = subprocess.Popen(
        [*as_user, str(binaries / "postgres"), *options], stdout=log, stderr=log, cwd="/"
    )
    url = f"postgresql+psycopg://owner@127.0.0.1:{port}/postgres"
    try:
        _answers(url)
        yield url
    finally:
        subprocess.run(
            [*as_user, str(binaries / "pg_ctl"), "-D", str(data), "stop", "-m", "fast"],
            check=True,
            capture_output=True,
            cwd="/",
        )
        running.wait(20)
        log.close()
        shutil.rmtree(folder)


def _answers(url: str) -> None:
    engine = create_engine(url)
    for attempt in range(200):
        try:
            with engine.connect() as connection:
                connection.execute(text("select 1"))
            break
        except OperationalError:
            if attempt == 199:
                raise
            time.sleep(0.1)
    engine.dispose()
