"""Pictures on disk as a training loop wants them: uint8 in .npy files of bounded size beside an
index, of which only what is asked for is read. Knows nothing of where they came from.

    >>> shards = write_shards(folder, pictures, rules)      # whole, or not at all
    >>> shards.shape, shards[[3, 1]].shape
    ((5, 1, 28, 28), (2, 1, 28, 28))

Rows are read, not mapped: pages of a mapped file count as this process's memory for as long as
nobody else wants it, and a file that is cut short under a map kills the process.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import IO, Any

import numpy as np

from datatokens.errors import TermsError
from datatokens.terms import canonical_json
from datatokens.wire import parse
from fl_client.data.pictures import PictureRules
from fl_client.errors import DatasetError

SHARD_BYTES = 256 << 20
INDEX = "index.json"
MOST_INDEX_BYTES = 16 << 20
PIECE = 1 << 22  # bytes read at once for a hash


class Shards:
    """float32 [n, channels, *size] in [-1, 1] by a row's number, an array of numbers, a slice or a
    mask, as a NumPy array would give them.

    `sha256` is of the rules and all pixels as they were written, for a cohort's version. Opening
    looks at every shard's length; `check` at every byte. Raises DatasetError naming the file.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        index = _index(folder)
        self.rules: PictureRules = index["rules"]
        self.sha256: str = index["sha256"]
        self._hashes: list[str] = [shard["sha256"] for shard in index["shards"]]
        self._names: list[str] = [_shard_name(i) for i in range(len(index["shards"]))]
        counts = [shard["pictures"] for shard in index["shards"]]
        self._ends = np.cumsum(counts)
        self._offsets = [
            _pixels_begin(folder / name, (count, *self.rules.shape))
            for name, count in zip(self._names, counts, strict=True)
        ]
        self.shape: tuple[int, ...] = (int(self._ends[-1]), *self.rules.shape)
        self.ndim = len(self.shape)
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        rows = np.asarray(rows)
        if rows.size == 0 and rows.dtype != bool:
            rows = rows.astype(np.int64)
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise IndexError(f"a mask of shape {rows.shape} for {len(self)} pictures")
            rows = np.flatnonzero(rows)
        if rows.dtype.kind not in "iu":
            raise IndexError(f"rows of type {rows.dtype}: whole numbers, a slice or a mask are")
        flat = rows.astype(np.int64).ravel()
        if flat.size and not -len(self) <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"rows {flat.min()} to {flat.max()} of {len(self)} pictures")
        out = np.empty((len(flat), *self.shape[1:]), np.float32)
        self._fill(out, flat % len(self))
        return out.reshape(*rows.shape, *self.shape[1:])

    def look(self) -> None:
        """Raises DatasetError where a shard is gone or has another length."""
        Shards(self.folder)

    def only(self, rows: np.ndarray) -> Chosen:
        """Those at `rows` (numbers or a mask), which are still read when they are asked for."""
        return Chosen(self, np.arange(len(self))[rows])

    def _fill(self, out: np.ndarray, rows: np.ndarray) -> None:
        size = math.prod(self.shape[1:])
        pixels = np.empty(self.shape[1:], np.uint8)
        order = np.argsort(rows, kind="stable")  # each shard is opened once, and read forwards
        shards = np.searchsorted(self._ends, rows[order], side="right")
        for shard in np.unique(shards):
            start = int(self._ends[shard - 1]) if shard else 0
            path = self.folder / self._names[shard]
            with _reading(path) as file:
                for at in order[shards == shard]:
                    place = self._offsets[shard] + (int(rows[at]) - start) * size
                    if os.preadv(file.fileno(), [pixels.data], place) != size:
                        raise DatasetError(f"{path}: is shorter than it was")
                    to_inputs(pixels, out[at])

    def check(self) -> None:
        """Raise DatasetError naming the first shard whose pixels are not those that were
        written.
        """
        content = _content(self.rules)
        for name, offset, expected in zip(self._names, self._offsets, self._hashes, strict=True):
            own = hashlib.sha256()
            with _reading(self.folder / name) as file:
                file.seek(offset)
                while piece := file.read(PIECE):
                    own.update(piece)
                    content.update(piece)
            if own.hexdigest() != expected:
                raise DatasetError(f"{self.folder / name}: its pixels are not those it was made of")
        if content.hexdigest() != self.sha256:
            raise DatasetError(f"{self.folder / INDEX}: its sha256 is not that of the pictures")


class Chosen:
    """Some of the pictures, in some order, as `Shards` gives all of them."""

    def __init__(self, shards: Shards, rows: np.ndarray):
        self.shards, self.rows = shards, rows
        self.shape: tuple[int, ...] = (len(rows), *shards.shape[1:])
        self.ndim, self.dtype = shards.ndim, shards.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.shards[self.rows[rows]]

    def look(self) -> None:
        """As that of all."""
        self.shards.look()

    def only(self, rows: np.ndarray) -> Chosen:
        """Fewer of them."""
        return Chosen(self.shards, self.rows[rows])


Pictures = Shards | Chosen


def to_inputs(pixels: np.ndarray, out: np.ndarray) -> None:
    """Write a model's inputs of uint8 `pixels` to the float32 array `out`: (x / 255 - .5) / .5,
    exactly -1 and 1 at the ends.
    """
    np.divide(pixels, np.float32(127.5), out=out)
    out -= 1


def write_shards(folder: Path, pictures: Iterable[np.ndarray], rules: PictureRules) -> Shards:
    """Write uint8 pictures [channels, *size], one after the other, to the new `folder`, readable by
    this user alone. Whatever `pictures` raises ends it, and leaves nothing behind.
    """
    if folder.exists():
        raise DatasetError(f"{folder}: is there already; pictures are written to a new folder")
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(folder)
        beside.mkdir(mode=0o700)
        _write(beside, pictures, rules)
        synced(beside)
        beside.rename(folder)
        synced(folder.parent)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Shards(folder)


def _sweep(folder: Path) -> None:
    """Take away what processes that were killed while they wrote to `folder` have left of it."""
    for left in folder.parent.glob(f".{escape(folder.name)}.*"):
        number = left.name.rpartition(".")[2]
        if number.isdecimal() and (
            int(number) == os.getpid() or not Path("/proc", number).exists()
        ):
            shutil.rmtree(left)


def _write(folder: Path, pictures: Iterable[np.ndarray], rules: PictureRules) -> None:
    most = max(1, SHARD_BYTES // math.prod(rules.shape))
    content = _content(rules)
    listed: list[dict[str, Any]] = []
    source = _checked(pictures, rules)
    first = next(source, None)
    if first is None:
        raise DatasetError("no pictures: at least one is needed")
    while first is not None:
        with _new(folder / _shard_name(len(listed))) as file:
            file.write(_header((most, *rules.shape)))
            own, count = hashlib.sha256(), 0
            while first is not None and count < most:
                raw = first.tobytes()
                file.write(raw)
                own.update(raw)
                content.update(raw)
                count += 1
                first = next(source, None)
            file.seek(0)
            file.write(_header((count, *rules.shape)))
        listed.append({"pictures": count, "sha256": own.hexdigest()})
    index = {"version": 1, "rules": rules.as_dict(), "shards": listed}
    with _new(folder / INDEX) as file:
        file.write(json.dumps(index | {"sha256": content.hexdigest()}, indent=1).encode())


def _checked(pictures: Iterable[np.ndarray], rules: PictureRules) -> Iterator[np.ndarray]:
    for i, picture in enumerate(pictures):
        if picture.dtype != np.uint8 or picture.shape != rules.shape:
            raise DatasetError(
                f"picture {i} is {picture.dtype} {list(picture.shape)}; by the rules it must be "
                f"uint8 {list(rules.shape)}"
            )
        yield picture


def _content(rules: PictureRules) -> Any:
    return hashlib.sha256(canonical_json(rules.as_dict()) + b"\n")


def _shard_name(number: int) -> str:
    return f"pictures-{number:05}.npy"


def _header(shape: tuple[int, ...]) -> bytes:
    """Of an .npy file; equally long for every number of pictures, so that it can be corrected."""
    described = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + (246).to_bytes(2, "little") + described.ljust(245) + b"\n"


@contextmanager
def _new(path: Path) -> Iterator[IO[bytes]]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def synced(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk; before, the power may take them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error


def _pixels_begin(path: Path, shape: tuple[int, ...]) -> int:
    header = _header(shape)
    with _reading(path) as file:
        if file.read(len(header)) != header:
            raise DatasetError(f"{path}: is not the shard of {shape[0]} pictures that it should be")
        length = os.fstat(file.fileno()).st_size
    if length != (whole := len(header) + math.prod(shape)):
        raise DatasetError(f"{path}: has {length} bytes of {whole}")
    return len(header)


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    with _reading(path) as file:
        raw = file.read(MOST_INDEX_BYTES)
    try:
        index = parse(raw)
        rules = PictureRules.from_dict(index["rules"])
        shards, sha256 = index["shards"], index["sha256"]
        right = (
            index["version"] == 1
            and len(shards) > 0
            and _is_hash(sha256)
            and all(
                type(shard["pictures"]) is int
                and shard["pictures"] > 0
                and _is_hash(shard["sha256"])
                for shard in shards
            )
        )
    except (TermsError, DatasetError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: is no index of pictures") from error
    if not right:
        raise DatasetError(f"{path}: is no index of pictures")
    return {"rules": rules, "shards": shards, "sha256": sha256}


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
