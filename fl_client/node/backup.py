"""A node's folder in one encrypted file, made while the node runs, and a folder made of it again.
Knows nothing of jobs, datasets or chains.

The ledger is copied by SQLite between two changes, and last: whatever the other files tell of, it
knows already. They are written whole by whoever writes them, and copied as they are; where keys,
node.toml or a listing changed meanwhile, the copy is made again.

What tells a ledger (ledger.counter) or a log (audit.mark) from an older copy of itself is not in a
backup: put back beside a ledger of the same age, it would say that this is the one that was written
last, and what was spent since would be spent again. In its place a restored folder gets a counter
that no ledger fits (counter.RESTORED), however little has changed since: the node serves nothing
until `datahub node reconcile` has charged what the chain and the folder know and the ledger does
not, and has closed every job that it held open at its worst.

    >>> back_up(folder, file, passphrase)    # whole, or no file
    >>> restore(file, folder, passphrase)    # whole, or no folder

Tables themselves, which lie elsewhere, are not in it: jobs see snapshots, and those are.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fl_client.errors import BackupError
from fl_client.node.archive import Backup, make_folder, opened, pack, write_file
from fl_client.node.config import OWN
from fl_client.privacy.counter import RESTORED, Counter
from fl_client.privacy.ledger_file import LedgerFile

KEPT = (*OWN, "audit.*")
LEDGER, COUNTER = "ledger.sqlite", "ledger.counter"
BESIDE = {f"{LEDGER}-{what}" for what in ("wal", "shm", "journal")}  # SQLite's copy needs none
LEFT_OUT = {COUNTER, "audit.mark"} | BESIDE
TOGETHER = ("node.toml", "keys", "datasets")  # one of them says what another must hold
TRIES = 5


def back_up(folder: Path, file: Path, passphrase: str) -> Backup:
    """Write everything that the node in `folder` keeps into `file`. Raises BackupError, and leaves
    nothing behind.
    """
    if not (folder / "node.toml").exists():
        raise BackupError(f"{folder} holds no node.toml: there is no node in it")
    return write_file(
        folder, file, passphrase, lambda stream: _write_unchanged(folder, stream, passphrase)
    )


def _write_unchanged(folder: Path, stream: BinaryIO, passphrase: str) -> Backup:
    for _ in range(TRIES):
        stream.seek(0)
        stream.truncate()
        before = _stamps(folder)
        made = pack(stream, passphrase, _contents(folder))
        if _stamps(folder) == before:
            return made
    raise BackupError(
        f"keys, node.toml or datasets in {folder} change all the time; make the backup when no "
        "other command runs"
    )


def _contents(folder: Path) -> Iterator[tuple[str, BinaryIO]]:
    for path in _paths(folder):
        name = path.relative_to(folder).as_posix()
        if not _kept(name) or name == LEDGER:
            continue
        content = opened(path)
        if content is not None:  # gone since, like a snapshot that nothing lists any more
            with content:
                yield name, content
    if (folder / LEDGER).exists():
        with LedgerFile(folder / LEDGER).copy() as copied:
            yield LEDGER, copied


def _paths(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink() and _kept(path.name):
            yield from sorted(path.rglob("*"))


def _kept(name: str) -> bool:
    """Whether a file of this name, relative to a node's folder, belongs into a backup: never one
    that is being written, and never one outside.
    """
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and any(fnmatchcase(path.parts[0], own) for own in KEPT)
        and not any(part.startswith(".") or part.endswith(".lock") for part in path.parts)
        and name == path.as_posix()
        and name not in LEFT_OUT
    )


def _stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    found = {}
    for name in TOGETHER:
        for path in (folder / name, *sorted((folder / name).rglob("*"))):
            if not path.name.startswith(".") and path.is_file():
                there = path.stat()
                found[path] = there.st_size, there.st_mtime_ns
    return found


def restore(file: Path, folder: Path, passphrase: str) -> Backup:
    """Make the node's folder of a backup. Raises BackupError, and leaves nothing behind, where
    there is a folder with something in it already, or where the backup is not whole.
    """
    return make_folder(file, folder, passphrase, _kept, _finish)


def _finish(folder: Path) -> None:
    if not (folder / "node.toml").exists():
        raise BackupError("there is no node in it")
    Counter(folder / COUNTER).write(RESTORED)
