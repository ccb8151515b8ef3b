"""A hub's folder in one encrypted file, made while the hub runs, and a folder made of it again.
Knows nothing of what jobs compute.

The database is copied first, by SQLite between two changes: whatever it names was there before, and
models, trees and jobs are copied after it. What has happened since a backup is on the chain: a hub
that is put back reads it, ends what was settled or refunded meanwhile, and goes on with the rest. A
job that was paid since is taken up when its buyer resumes it, or refunded after its deadline.

Of jobs that have ended the hospitals' report and the sealed result are kept, which their buyers may
still fetch, and not the model that they began with.

    >>> back_up(config, file, passphrase)     # whole, or no file
    >>> restore(file, folder, passphrase)     # whole, or no folder
"""

from __future__ import annotations

import json
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from sqlalchemy.engine import URL, make_url
from sqlmodel import Session, col, create_engine, select

from datahub.config import HubConfig
from datahub.market.domain import FINAL
from datahub.market.tables import JobRow
from datahub.web.operations import TOKEN_FILE
from fl_client.errors import BackupError
from fl_client.node.archive import Backup, make_folder, opened, pack, write_file

DATABASE, HOW, SUPERLINK = "hub.sqlite", "database.txt", "superlink"
OWN = ("hub.toml", "deployment.json", TOKEN_FILE, "keys", "trees", "models")
# of the SuperLink: certificates, the operator's token, which nodes are registered
OF_SUPERLINK = ("ca.crt", "server.pem", "server.key", "operator.token", "nodes.json")
KEPT = {*OWN, DATABASE, HOW, SUPERLINK}
ONCE = ("graph.json", "weights.safetensors")  # what an ended job needs no more

POSTGRESQL = """\
The hub's database is PostgreSQL, and not in this backup. Copy it first, and this folder after it:
    pg_dump --format=custom --no-owner --file=hub.dump {url}
Put it back into an empty database, then start the hub:
    pg_restore --no-owner --dbname={url} hub.dump
"""


def back_up(config: HubConfig, file: Path, passphrase: str) -> Backup:
    """Write everything that the hub of this folder keeps into `file`. Raises BackupError, and
    leaves nothing behind.
    """
    return write_file(
        config.folder,
        file,
        passphrase,
        lambda stream: pack(stream, passphrase, _contents(config)),
    )


def restore(file: Path, folder: Path, passphrase: str) -> Backup:
    """Make a hub's folder of a backup; hub.toml names the new one. Raises BackupError, and leaves
    nothing behind, as datahub node restore does.
    """
    target = folder.resolve()
    return make_folder(file, folder, passphrase, _kept, lambda made: _finish(made, target))


def how_to_copy(config: HubConfig) -> str:
    """What else has to be run for a database that is not a file here; "" for SQLite."""
    url = make_url(config.database)
    if _file(url) is not None:
        return ""
    plain = URL.create(url.get_backend_name(), url.username, None, url.host, url.port, url.database)
    return POSTGRESQL.format(url=plain.render_as_string())


def _file(url: URL) -> Path | None:
    """SQLite's file."""
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def _contents(config: HubConfig) -> Iterator[tuple[str, BinaryIO]]:
    with tempfile.TemporaryDirectory(dir=config.folder, prefix=".backup-") as beside:
        how, copy = Path(beside) / HOW, Path(beside) / DATABASE
        source = _file(make_url(config.database))
        if source is None:
            how.write_text(how_to_copy(config))
            ended = _ended(config.database)
            yield from _named(HOW, how)
        else:
            _copy(source, copy)
            ended = _ended(f"sqlite:///{copy}")
            yield from _named(DATABASE, copy)
    for name in OWN:
        yield from _all(config.folder / name, PurePosixPath(name))
    for name in OF_SUPERLINK:
        yield from _all(config.superlink_folder / name, PurePosixPath(SUPERLINK) / name)
    for job in sorted(config.jobs_folder.glob("*")):
        for name, content in _all(job, PurePosixPath(SUPERLINK, "jobs", job.name)):
            if job.name in ended and name.endswith(ONCE):
                content.close()
            else:
                yield name, content


def _copy(source: Path, target: Path) -> None:
    if not source.exists():
        raise BackupError(f"{source} is not there: the hub has never been started")
    with closing(sqlite3.connect(source)) as there, closing(sqlite3.connect(target)) as here:
        there.backup(here)  # one moment of it, whoever writes meanwhile


def _ended(database: str) -> set[str]:
    engine = create_engine(database)
    with Session(engine) as session:
        over = col(JobRow.state).in_([str(state) for state in FINAL])
        found = set(session.exec(select(JobRow.job_id).where(over)).all())
    engine.dispose()
    return found


def _all(path: Path, name: PurePosixPath) -> Iterator[tuple[str, BinaryIO]]:
    """A file, or all that are in a folder."""
    if path.is_dir() and not path.is_symlink():
        for one in sorted(path.iterdir()):
            yield from _all(one, name / one.name)
    elif _kept(str(name)):
        yield from _named(str(name), path)


def _named(name: str, path: Path) -> Iterator[tuple[str, BinaryIO]]:
    content = opened(path)
    if content is not None:  # gone since, like a model that nothing names any more
        with content:
            yield name, content


def _kept(name: str) -> bool:
    """Whether a file of this name, relative to a hub's folder, belongs into a backup: never one
    that is being written, and never one outside.
    """
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and path.parts[0] in KEPT
        and not any(part.startswith(".") or part.endswith(".lock") for part in path.parts)
        and name == path.as_posix()
    )


def _finish(made: Path, target: Path) -> None:
    toml = made / "hub.toml"
    if not toml.exists():
        raise BackupError("there is no hub in it")
    places = {"superlink_folder": str(target / SUPERLINK)}
    if (made / DATABASE).exists():
        places["database"] = f"sqlite:///{target / DATABASE}"
    lines = toml.read_text().splitlines()
    for name, value in places.items():
        found = [i for i, line in enumerate(lines) if re.match(rf"\s*{name}\s*=", line)]
        if len(found) != 1:
            raise BackupError(f"its hub.toml has {len(found)} lines of {name}, not one")
        lines[found[0]] = f"{name} = {json.dumps(value)}"
    toml.write_text("\n".join([*lines, ""]))
