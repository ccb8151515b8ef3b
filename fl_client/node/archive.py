"""Files in one encrypted file, whole or not at all, and a folder made of them again. Knows nothing
of which files belong into it: whoever backs something up says which, and what may be in one that is
put back.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from fl_client.data.shards import synced
from fl_client.errors import BackupError
from fl_client.node.job_folder import private_folder
from fl_client.node.sealed import Opener, Sealer

T = TypeVar("T")
LEAST_PASSPHRASE = 12


@dataclass(frozen=True)
class Backup:
    """What is in one: how many files, of how many bytes together, when it was made (unix
    seconds).
    """

    files: int
    size: int
    at: int


def write_file(folder: Path, file: Path, passphrase: str, write: Callable[[BinaryIO], T]) -> T:
    """What `write` gives, which writes the backup of `folder` into the stream that it is given.
    Raises BackupError, and leaves nothing behind.
    """
    if len(passphrase) < LEAST_PASSPHRASE:
        raise BackupError(
            f"a passphrase of {len(passphrase)} characters is guessed too soon; {LEAST_PASSPHRASE} "
            "are the least"
        )
    target = file.resolve()
    if target.exists():
        raise BackupError(f"{file} exists already; a backup takes no other file's place")
    if target.is_relative_to(folder.resolve()):
        raise BackupError(f"{file} is in the folder itself; put it on another disk")
    beside = None
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")  # 0600
        beside = Path(name)
        with os.fdopen(descriptor, "wb") as stream:
            made = write(stream)
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


def pack(stream: BinaryIO, passphrase: str, contents: Iterable[tuple[str, BinaryIO]]) -> Backup:
    """Seal files, each a name and an open file, into the stream."""
    at, files, size = int(time.time()), 0, 0
    with (
        Sealer(stream, passphrase) as sealer,
        tarfile.open(fileobj=cast(Any, sealer), mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, content in contents:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = os.fstat(content.fileno()).st_size, at, 0o600
            tar.addfile(info, content)  # so many bytes: what is added meanwhile is not in it
            files, size = files + 1, size + info.size
    return Backup(files, size, at)


def opened(path: Path) -> BinaryIO | None:
    """A file to be packed; None for a folder, and for what is gone. Raises BackupError for a link
    or a device.
    """
    if path.is_symlink() or not (path.is_file() or path.is_dir() or not path.exists()):
        raise BackupError(f"{path} is neither a file nor a folder; a backup holds no other")
    if path.is_dir():
        return None
    try:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")
    except FileNotFoundError:
        return None


def make_folder(
    file: Path,
    folder: Path,
    passphrase: str,
    kept: Callable[[str], bool],
    finish: Callable[[Path], None],
) -> Backup:
    """Make the folder of a backup that holds names that are `kept` alone; `finish` does the rest in
    it before it has its name. Raises BackupError, and leaves nothing behind, where there is a
    folder with something in it already, or where the backup is not whole.
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
                made = _unpack(stream, beside, passphrase, kept)
                finish(beside)
            except (BackupError, tarfile.TarError) as error:
                raise BackupError(f"{file}: {error}") from error
        for path in (beside, *(path for path in beside.rglob("*") if path.is_dir())):
            synced(path)
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


def _unpack(stream: BinaryIO, folder: Path, passphrase: str, kept: Callable[[str], bool]) -> Backup:
    opener = Opener(stream, passphrase)
    at, files, size = 0, 0, 0
    with tarfile.open(fileobj=cast(Any, opener), mode="r|") as tar:
        for member in tar:
            if member.type != tarfile.REGTYPE or member.sparse or not kept(member.name):
                raise BackupError(f"it holds {member.name[:80]!r}, which no backup holds")
            _write(folder / member.name, cast(BinaryIO, tar.extractfile(member)), member.size)
            at, files, size = int(member.mtime), files + 1, size + member.size
    while opener.read(1 << 20):  # to its end: only there is it known to be whole
        pass
    return Backup(files, size, at)


def _write(path: Path, content: BinaryIO, size: int) -> None:
    private_folder(path.parent)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(content, file)
        file.flush()
        os.fsync(descriptor)
        if os.fstat(descriptor).st_size != size:
            raise BackupError(f"{path.name} is not of the length that was written")
