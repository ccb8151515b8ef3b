"""A counter beside the ledger, which a restored copy of the ledger does not bring back.

Every change of the ledger has a mark, a number and a random word, in the ledger and in this file.
The file is written first, with the marks before and after the change; the ledger commits; the file
is written again, with the mark after it alone; only then may anything leave the node. So the
ledger's mark is in the file, whatever was killed when; and a ledger whose mark is not in the file
is another one than was written last: a backup, a snapshot, an empty one. Knows nothing of what the
ledger holds.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mark:
    """Which change a ledger was last written by. The first has number 0 and no word."""

    number: int = 0
    word: str = ""

    @classmethod
    def parse(cls, text: str) -> Mark:
        """The mark that `str` wrote."""
        number, _, word = text.partition(" ")
        return cls(int(number), word)

    def __str__(self) -> str:
        return f"{self.number} {self.word}"

    def following(self) -> Mark:
        """The mark of the next change."""
        return Mark(self.number + 1, secrets.token_hex(8))


# the only mark of a counter that was made for a ledger out of a backup: no ledger has it
RESTORED = Mark(0, "restored")


class Counter:
    """The counter in one file, with a lock beside it."""

    def __init__(self, path: Path):
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One change at a time, over all processes; the lock ends with the process."""
        descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def marks(self) -> tuple[Mark, ...]:
        """The marks that the ledger may have; none where there is no file. Raises ValueError for a
        file that is not readable.
        """
        try:
            return tuple(Mark.parse(text) for text in json.loads(self.path.read_text()))
        except FileNotFoundError:
            return ()
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{self.path.name} is not a list of marks") from error

    def write(self, *marks: Mark) -> None:
        """Replace the file, on the disk when this returns: whole, or not at all."""
        beside = self.path.with_name(f".{self.path.name}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump([str(mark) for mark in marks], file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
