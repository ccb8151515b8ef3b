"""A cohort out of a real PostgreSQL server, which a source may only read."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from fl_client.data import readers
from fl_client.data.sources import Source
from fl_client.data.tables import load
from fl_client.errors import DatasetError, SourceAway
from tests.fl_client.test_sources import OMOP, SCHEMA, SECRET

FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
pytestmark = pytest.mark.skipif(
    not FOUND or (os.getuid() == 0 and not shutil.which("runuser")),
    reason="PostgreSQL is not installed",
)
pytest.importorskip("psycopg", reason="the PostgreSQL driver is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
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
        for _ in range(100):
            try:
                _fill(url)
                break
            except Exception:
                time.sleep(0.1)
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


def _fill(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as db:
        for line in (
            "create sequence s",
            "create table person (person_id int, year_of_birth int, gender_concept_id int)",
            "create table condition_occurrence (person_id int, condition_concept_id int)",
            "create table visit_occurrence (person_id int, visit_start_date date)",
            "insert into person values (1, 1966, 8507), (2, 1986, 8532), (3, 1990, 8532)",
            "insert into condition_occurrence values (2, 201826), (1, 4), (3, 201826)",
            "insert into visit_occurrence values (1, '2024-05-01'), (2, '2025-01-01')",
        ):
            db.execute(text(line))
    engine.dispose()


def source(url: str, query: str) -> Source:
    return Source.from_dict(
        {"source": {"url": url, "query": query}, "patients": {"columns": ["id"]}}
    )


def test_postgresql__an_omop_cohort__is_a_table(server: str) -> None:
    found = load(source(server, OMOP), SCHEMA, SECRET)
    assert found.targets.tolist() == [0, 1] and found.persons == 2
    assert found.features[:, :2].tolist() == [[1, 0], [-1, 1]]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("WITH x AS (DELETE FROM person RETURNING person_id) SELECT * FROM x", "data-modifying"),
        ("SELECT nextval('s') FROM (SELECT 1) a", "read-only transaction"),
        ("SELECT 1; DROP TABLE person", "must be one SELECT"),
    ],
)
def test_postgresql__anything_but_a_look__is_refused_and_changes_nothing(
    server: str, query: str, said: str
) -> None:
    with pytest.raises(DatasetError, match=said):
        load(source(server, query), SCHEMA)
    engine = create_engine(server)
    with engine.connect() as db:
        assert db.execute(text("select count(*) from person")).scalar() == 3
    engine.dispose()


def test_postgresql__a_server_that_is_not_there__is_a_sentence() -> None:
    away = "postgresql+psycopg://owner@127.0.0.1:1/none"
    with pytest.raises(DatasetError, match=r"the database answers the query: .*refused"):
        load(source(away, "SELECT 1"), SCHEMA)


def test_postgresql__a_query_that_does_not_end__is_away(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "QUERY_S", 1)
    with pytest.raises(SourceAway, match="statement timeout"):
        load(source(server, "SELECT person_id AS id, pg_sleep(60) FROM person"), SCHEMA)
