"""Every older hub's database becomes today's with all that was in it, on both kinds of database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, text
from sqlmodel import SQLModel

from datahub import migrations
from datahub.errors import ConfigError
from datahub.market.desk import open_database
from tests.postgresql import needs_postgresql, running_postgresql

SCHEMAS = Path(__file__).parent / "schemas"
RELEASED = {path.stem: path for path in sorted(SCHEMAS.glob("*.sql"))}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_postgresql)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        made = create_engine(f"sqlite:///{tmp_path / 'hub.sqlite'}")
    else:
        made = create_engine(request.getfixturevalue("server"))
        with made.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
    yield made
    made.dispose()


def older(engine: Engine, version: str) -> None:
    """The database as a hub of that version has left it."""
    kind = "DATETIME" if engine.dialect.name == "sqlite" else "TIMESTAMPTZ"
    lines = RELEASED[version].read_text().replace("TIMESTAMP", kind).splitlines()
    with engine.begin() as connection:
        for line in lines:
            if line and not line.startswith("--"):
                connection.exec_driver_sql(line)


def same_as_new(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []


@pytest.mark.parametrize("version", RELEASED)
def test_migrate__an_older_hubs_database__is_todays_with_all_that_was_sent(
    engine: Engine, version: str
) -> None:
    older(engine, version)
    assert migrations.migrate(engine) == version
    same_as_new(engine)
    with engine.connect() as connection:

        def rows(line: str) -> list[tuple[object, ...]]:
            return [tuple(row) for row in connection.execute(text(line))]

        assert rows("select manifest_hash, schema_hash, document from manifest") == [
            ("aa", hashlib.sha256(b'{"a":[2],"b":1}').hexdigest(), '{"schema":{"b":1,"a":[2]}}')
        ]
        assert rows("select * from node") == [("0xC", "PEM", "18446744073709551615")]
        assert rows("select account, weight from contributor") == [("0xD", "7")]
        assert rows("select job_id, state from job") == [("dd", "settled")]
        assert rows("select count(*) from dataset") == [(0,)], "those come back from the chain"
    assert migrations.migrate(engine) == migrations.HEAD


def test_migrate__a_database_with_schemas_by_hash__too(engine: Engine) -> None:
    older(engine, "0001")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE dataset_schema (manifest_hash VARCHAR)"))
    migrations.migrate(engine)
    assert "dataset_schema" not in inspect(engine).get_table_names()


def test_migrate__a_new_database__is_made_as_it_is_now(engine: Engine) -> None:
    assert migrations.migrate(engine) is None
    same_as_new(engine)
    assert migrations.migrate(engine) == migrations.HEAD


def test_migrate__a_step_that_fails__leaves_the_database_as_it_was(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    older(engine, "0001")
    with engine.begin() as connection:
        connection.execute(text("UPDATE dataset SET manifest = 'torn' WHERE dataset_id = 1"))
    with pytest.raises(Exception, match=r"torn|JSON"):
        migrations.migrate(engine)
    tables = inspect(engine).get_table_names()
    assert "entry" not in tables and "alembic_version" not in tables
    with engine.connect() as connection:
        assert connection.execute(text("select count(*) from dataset")).scalar() == 2


def test_migrate__a_newer_hubs_database__is_refused_in_a_sentence(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'hub.sqlite'}"
    engine = open_database(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="of a newer hub"):
        open_database(url)


def test_versions__the_newest_is_what_the_code_names_and_each_older_one_has_its_database() -> None:
    script = migrations.scripts()
    assert script.get_current_head() == migrations.HEAD
    older_ones = {one.revision for one in script.walk_revisions()} - {migrations.HEAD}
    assert older_ones == set(RELEASED)
