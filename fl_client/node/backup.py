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

import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from fl_client.data.shards import synced
from fl_client.errors import BackupError
from fl_client.node.config import OWN
from fl_client.node.job_folder import private_folder
from fl_client.node.sealed import Opener, Sealer
from fl_client.privacy.counter import RESTORED, Counter
from fl_client.privacy.ledger_file import LedgerFile

KEPT = (*OWN, "audit.*")
LEDGER, COUNTER = "ledger.sqlite", "ledger.counter"
BESIDE = {f"{LEDGER}-{what}" for what in ("wal", "shm", "journal")}  # SQLite's copy needs none
LEFT_OUT = {COUNTER, "audit.mark"} | BESIDE
TOGETHER = ("node.toml", "keys", "datasets")  # one of them says what another must hold
TRIES = 5
LEAST_PASSPHRASE = 12


@dataclass(frozen=True)
class Backup:
    """What is in one: how many files, of how many bytes together, when it was made (unix
    seconds).
    """

    files: int
    size: int
    at: int


def back_up(folder: Path, file: Path, passphrase: str) -> Backup:
    """Write everything that the node in `folder` keeps into `file`. Raises BackupError, and leaves
    nothing behind.
    """
    if not (folder / "node.toml").exists():
        raise BackupError(f"{folder} holds no node.toml: there is no node in it")
    if len(passphrase) < LEAST_PASSPHRASE:
        raise BackupError(
            f"a passphrase of {len(passphrase)} characters is guessed too soon; {LEAST_PASSPHRASE} "
            "are the least"
        )
    target = file.resolve()
    if target.exists():
        raise BackupError(f"{file} exists already; a backup takes no other file's place")
    if target.is_relative_to(folder.resolve()):
        raise BackupError(f"{file} is in the node's folder; put it on another disk")
    beside = None
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")  # 0600
        beside = Path(name)
        with os.fdopen(descriptor, "wb") as stream:
            made = _write_unchanged(folder, stream, passphrase)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(target)
        synced(target.parent)
    except OSError as error:
        where = error.filename or file
        raise BackupError(f"{where}: {error.strerror or error}; no backup is made") from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)
    return made


def _write_unchanged(folder: Path, stream: BinaryIO, passphrase: str) -> Backup:
    for _ in range(TRIES):
        stream.seek(0)
        stream.truncate()
        before = _stamps(folder)
        made = _write(folder, stream, passphrase)
        if _stamps(folder) == before:
            return made
    raise BackupError(
        f"keys, node.toml or datasets in {folder} change all the time; make the backup when no "
        "other command runs"
    )


def _write(folder: Path, stream: BinaryIO, passphrase: str) -> Backup:
    at, files, size = int(time.time()), 0, 0
    with (
        Sealer(stream, passphrase) as sealer,
        tarfile.open(fileobj=cast(Any, sealer), mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, content in _contents(folder):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = os.fstat(content.fileno()).st_size, at, 0o600
            tar.addfile(info, content)  # so many bytes: what is added meanwhile is not in it
            files, size = files + 1, size + info.size
    return Backup(files, size, at)


def _contents(folder: Path) -> Iterator[tuple[str, BinaryIO]]:
    for path in _paths(folder):
        name = path.relative_to(folder).as_posix()
        if not _kept(name) or name == LEDGER:
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir() or not path.exists()):
            raise BackupError(f"{path} is neither a file nor a folder; a backup holds no other")
        if path.is_dir():
            continue
        try:
            content = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")
        except FileNotFoundError:  # gone since, like a snapshot that nothing lists any more
            continue
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
    target = folder.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BackupError(f"{folder} is not empty; a backup is put back into a new folder only")
    beside = None
    try:
        with file.open("rb") as stream:
            private_folder(target.parent)
            beside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{target.name}.restoring-"))
            try:
                made = _read(stream, beside, passphrase)
            except (BackupError, tarfile.TarError) as error:
                raise BackupError(f"{file}: {error}") from error
        Counter(beside / COUNTER).write(RESTORED)
        beside.rename(target)  # fails where something has come to be in it
        synced(target.parent)
    except OSError as error:
        raise BackupError(
            f"{file} cannot be put back into {folder}: {error.strerror or error}"
        ) from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
    return made


def _read(stream: BinaryIO, folder: Path, passphrase: str) -> Backup:
    opener = Opener(stream, passphrase)
    at, files, size = 0, 0, 0
    with tarfile.open(fileobj=cast(Any, opener), mode="r|") as tar:
        for member in tar:
            if member.type != tarfile.REGTYPE or member.sparse or not _kept(member.name):
                raise BackupError(f"it holds {member.name[:80]!r}, which no backup holds")
            _write_file(folder / member.name, cast(BinaryIO, tar.extractfile(member)), member.size)
            at, files, size = int(member.mtime), files + 1, size + member.size
    while opener.read(1 << 20):  # to its end: only there is it known to be whole
        pass
    if not (folder / "node.toml").exists():
        raise BackupError("there is no node in it")
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        synced(path)
    return Backup(files, size, at)


def _write_file(path: Path, content: BinaryIO, size: int) -> None:
    private_folder(path.parent)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(content, file)
        file.flush()
        os.fsync(descriptor)
        if os.fstat(descriptor).st_size != size:
            raise BackupError(f"{path.name} is not of the length that was written")
