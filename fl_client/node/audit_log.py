"""What a node has decided and released, one line each, every line with the hash of the one before:
nobody can change, take out or put in a line without changing all that follow. Knows nothing of what
the lines are about.

A line is on the disk before what it tells of leaves or takes effect. Beside the log stands the hash
of its newest line (MARK), written with the line before it first and alone afterwards, so that a log
which was cut, or put back from a copy, is another one than was written last. Where both were put
back the heads in reports tell: those are hashed on the chain (`anchors`). A torn last line, of a
full disk or a lost power, was never acknowledged; it is taken off, and the next line says so.

Lines are canonical JSON: n (from 1), at (unix seconds), event, facts, version, before (SHA-256 of
the line before it, hexadecimal; of the first line 64 zeros).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from datatokens.errors import TermsError
from datatokens.terms import canonical_json, parse_canonical_json
from fl_client.errors import NodeError
from fl_client.node.job_folder import belong, write_whole

LOG, MARK, LOCK = "audit.log", "audit.mark", "audit.lock"
NOTHING = "0" * 64
MOST_LINE = 64 * 1024
MOST_LOST = 500  # heads that one break names
TAIL = 1 << 17  # bytes looked at for the last line
NEWEST = 1 << 20  # ... and for the newest ones
HOW = "say what happened: datahub node reconcile FOLDER"


class LogError(NodeError):
    """The audit log is not the one that was written last, or a line of it is not what it was."""


@dataclass(frozen=True)
class Head:
    """The newest line: its number and its hash. Number 0 of an empty log."""

    number: int = 0
    hash: str = NOTHING

    def __str__(self) -> str:
        return f"{self.number} {self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """What `str` wrote. Raises LogError."""
        number, _, digest = text.partition(" ")
        hexadecimal = len(digest) == 64 and not set(digest) - set("0123456789abcdef")
        if not (number.isascii() and number.isdigit() and len(number) <= 15 and hexadecimal):
            raise LogError(f"{text[:80]!r} is not the head of a log")
        return cls(int(number), digest)


@dataclass(frozen=True)
class Line:
    """One line that was written."""

    number: int
    at: float
    event: str
    facts: dict[str, Any]
    version: str
    before: str
    hash: str


class AuditLog:
    """The log of a node's folder."""

    def __init__(self, folder: Path):
        self.path, self._mark = folder / LOG, folder / MARK
        self._lock = folder / LOCK

    def note(self, event: str, **facts: Any) -> Head:
        """Add a line, on the disk when this returns. Raises LogError where the log is not the one
        that was written last.
        """
        with self._locked():
            head, torn = self._last()
            self._check_mark(head)
            if torn:
                with self.path.open("r+b") as file:
                    file.truncate(self.path.stat().st_size - torn)
                head = self._add(head, "torn line taken off", {"bytes": torn})
            return self._add(head, event, facts)

    @property
    def head(self) -> Head:
        """The newest line. Raises LogError where the log is not the one that was written last."""
        with self._locked():
            head, _ = self._last()
            self._check_mark(head)
            return head

    def check(self) -> None:
        """Raises LogError where the log is not the one that was written last."""
        with self._locked():
            self._check_mark(self._last()[0])

    def mend(self, why: str, anchors: Collection[str] = ()) -> Head:
        """Go on from the log as it is, and say so in it: why, what the mark knew, and which of the
        `anchors` it has not: those it is not asked for again. A log of which a line is not what was
        written is set aside under another name, and a new one begins with its hash.
        """
        with self._locked():
            there, aside = set(), ""
            try:
                there = {line.hash for line in self.lines()}
            except LogError:
                aside = self._set_aside()
            lost = sorted(set(anchors) - there)
            head, torn = self._last()
            known = [str(one) for one in self._marks()]
            if torn:
                with self.path.open("r+b") as file:
                    file.truncate(self.path.stat().st_size - torn)
            facts = {"why": why, "the mark knew": known, "torn": torn, "aside": aside}
            for start in range(0, max(1, len(lost)), MOST_LOST):  # of a line
                part = lost[start : start + MOST_LOST]
                head = self._add(head, "break", facts | {"lost": part})
            return head

    def _set_aside(self) -> str:
        """Another name for a log that cannot be gone on with, and its SHA-256."""
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        name = f"{LOG}.{int(time.time())}.{digest[:12]}"
        self.path.replace(self.path.with_name(name))
        return f"{name} {digest}"

    def lines(self) -> Iterator[Line]:
        """Every line, oldest first. Raises LogError at the first that is not what was written."""
        before, number = NOTHING, 0
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            for raw in file:
                number += 1
                if not raw.endswith(b"\n"):
                    raise LogError(f"line {number} of {self.path} is torn")
                found = _read(raw[:-1], number)
                if found.number != number or found.before != before:
                    raise LogError(
                        f"line {number} of {self.path} does not follow the one before it: a line "
                        "was changed, taken out or put in there"
                    )
                before = found.hash
                yield found

    def newest(self, most: int) -> list[Line]:
        """The newest lines, newest first, at most so many and no more than NEWEST bytes of them:
        quick, however long the log is. Raises LogError where one of them is not what was written,
        or the last one is not the one that was written last.
        """
        with self._locked():
            head, torn = self._last()
            self._check_mark(head)
            if not head.number:
                return []
            with self.path.open("rb") as file:
                start = max(0, self.path.stat().st_size - NEWEST)
                file.seek(start)
                whole = file.read()
        raws = (whole[:-torn] if torn else whole).split(b"\n")[1 if start else 0 : -1][-most:]
        first = head.number - len(raws) + 1
        found = [_read(raw, first + i) for i, raw in enumerate(raws)]
        for before, line in pairwise(found):
            if line.before != before.hash or line.number != before.number + 1:
                raise LogError(f"line {line.number} does not follow the one before it")
        return found[::-1]

    def verify(self, anchors: Collection[str] = ()) -> Head:
        """The head of a log whose every line follows the one before, which is the one that was
        written last and has a line with each of the hashes `anchors`, but for those that a break in
        it has named. Raises LogError naming the line.
        """
        head, wanted = Head(), set(anchors) - {NOTHING}
        for line in self.lines():
            head = Head(line.number, line.hash)
            wanted.discard(line.hash)
            if line.event == "break":
                wanted -= set(line.facts["lost"])
        if wanted:
            raise LogError(
                f"the log ends at line {head.number}, and {len(wanted)} reports on the chain name "
                f"lines that are not in it: it was cut, or is another copy; {HOW}"
            )
        self._check_mark(head)
        return head

    # -- on the disk -------------------------------------------------------------------------------

    def _add(self, head: Head, event: str, facts: dict[str, Any]) -> Head:
        line = canonical_json(
            {
                "n": head.number + 1,
                "at": round(time.time(), 3),
                "event": event,
                "facts": facts,
                "version": VERSION,
                "before": head.hash,
            }
        )
        if len(line) > MOST_LINE:
            raise LogError(f"a line of {len(line)} bytes; {MOST_LINE} are the most")
        new = Head(head.number + 1, hashlib.sha256(line).hexdigest())
        self._write_mark(head, new)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            written = os.write(descriptor, line + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if written != len(line) + 1:
            raise LogError(f"{self.path}: the disk took {written} of {len(line) + 1} bytes")
        self._write_mark(new)
        return new

    def _last(self) -> tuple[Head, int]:
        """(the last whole line, how many bytes of a torn one follow it)."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return Head(), 0
        with self.path.open("rb") as file:
            file.seek(max(0, size - TAIL))
            tail = file.read()
        whole, newline, torn = tail.rpartition(b"\n")
        if not newline:
            if size > TAIL:
                raise LogError(f"{self.path} ends in a line that is none; {HOW}")
            return Head(), len(torn)
        last = whole.rpartition(b"\n")[2]
        return Head(_read(last, 0).number, hashlib.sha256(last).hexdigest()), len(torn)

    def _marks(self) -> list[Head]:
        try:
            return [Head.parse(text) for text in json.loads(self._mark.read_text())]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, AttributeError) as error:
            raise LogError(f"{self._mark} is not readable; {HOW}") from error

    def _write_mark(self, *heads: Head) -> None:
        write_whole(self._mark, json.dumps([str(head) for head in heads]).encode())

    def _check_mark(self, head: Head) -> None:
        known = self._marks()
        if (known or head.number) and head not in known:
            newest = max(known, key=lambda one: one.number, default=Head())
            raise LogError(
                f"the audit log ends at line {head.number}, and line {newest.number} was written "
                f"last: it was cut, changed, or put back from a copy; {HOW}"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            belong(descriptor, self._lock.parent)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


VERSION = version("datahub")


def _read(raw: bytes, number: int) -> Line:
    where = f"line {number}" if number else "the last line"
    try:
        value = parse_canonical_json(raw)
        return Line(
            value["n"],
            value["at"],
            value["event"],
            value["facts"],
            value["version"],
            value["before"],
            hashlib.sha256(raw).hexdigest(),
        )
    except (TermsError, KeyError, TypeError) as error:
        raise LogError(f"{where} of the audit log is not one that was written: {error}") from error
