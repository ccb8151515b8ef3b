"""A cohort out of a real PostgreSQL server, which a source may only read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, text

from fl_client.data import readers
from fl_client.data.sources import Source
from fl_client.data.tables import load
from fl_client.errors import DatasetError, SourceAway
from tests.fl_client.test_sources import OMOP, SCHEMA, SECRET
from tests.postgresql import needs_postgresql, running_postgresql

pytestmark = needs_postgresql
pytest.importorskip("psycopg", reason="the PostgreSQL driver is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_postgresql() as url:
        _fill(url)
        yield url


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
