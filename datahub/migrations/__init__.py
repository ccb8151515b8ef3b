"""The database's changes of shape, one file each in this folder (alembic). A new database is made
as it is now; an older hub's is changed, when the hub starts, one version after the other.

Knows nothing of what the tables are for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text
from sqlmodel import SQLModel

from datahub.errors import ConfigError

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

HEAD = "0002"  # the newest file here
FIRST = "0001"  # of a database from before versions were written down
LOCK = 0x6461746168756200  # of several hub processes that start at once, on PostgreSQL


def migrate(engine: Engine) -> str | None:
    """Make the tables, or bring an older hub's up to this version; which version was found, None
    for an empty database. All or nothing. Raises ConfigError for a database of a
    newer hub.
    """
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
        elif engine.dialect.name == "sqlite":  # its driver begins none before a table is made
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        found = _version(connection)
        if found == HEAD:
            return found
        if found is not None and found > HEAD:
            raise ConfigError(
                f"the database is of a newer hub (version {found}; this one knows {HEAD}): "
                "start that one, or put back the backup from before it"
            )
        from alembic.migration import MigrationContext
        from alembic.operations import Operations

        versions = scripts()
        steps = {"fn": lambda now, _context: versions._upgrade_revs(HEAD, now)}
        context = MigrationContext.configure(connection, opts=steps)
        if found is None:
            SQLModel.metadata.create_all(connection)
            context.stamp(versions, HEAD)
        else:
            context.stamp(versions, found)  # of what was not written down
            with Operations.context(context):
                context.run_migrations()
        return found


def scripts() -> ScriptDirectory:
    """The versions in this folder."""
    from alembic.script import ScriptDirectory

    here = str(Path(__file__).parent)
    return ScriptDirectory(here, version_locations=[here])


def _version(connection: Connection) -> str | None:
    tables = set(inspect(connection).get_table_names())
    if "alembic_version" in tables:
        version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return str(version) if version else None
    return FIRST if "job" in tables else None
