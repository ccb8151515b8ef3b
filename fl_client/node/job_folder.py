"""What a node keeps of one job on its disk: terms, model files, what people have decided, its own
answer, what it attested.

Each file is written whole or not at all, and the answer last: a job with an answer has everything.
A job without one that has been asked about (REQUEST) waits for a person. A file that is damaged is
found when it is read (JobDamaged), and costs its own job alone (`of_each`).
Knows nothing of what is in the files, of ledgers or of chains.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from datatokens.errors import BankError
from datatokens.terms import JobTerms, whole
from fl_client.errors import JobDamaged, ProtocolError, Refusal
from fl_client.protocol import Refused, Signed

TERMS, GRAPH, WEIGHTS = "terms.json", "graph.json", "weights.safetensors"
ANSWER, ATTESTED, REPORT = "answer.json", "attested.txt", "report.json"
REQUEST, DECISIONS = "request.json", "decisions.json"
HELD, RELEASES = "held.json", "releases.json"
GONE = "gone.txt"
# what earlier versions did not keep of a job that waits
OF_OLDER_VERSIONS = {"seconds": 0.0, "by": "", "so_far": None}
LATEST = 253_402_300_799  # unix seconds: what people call a date ends with the year 9999
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
T = TypeVar("T")


@dataclass(frozen=True)
class Decision:
    """What a person has said: who (as they call themselves), yes or no, why, when (unix
    seconds).
    """

    by: str
    yes: bool
    reason: str
    at: float


def private_folder(path: Path) -> None:
    """Make the folder, and those above it that are missing, for this user alone."""
    if not path.exists():
        private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def belong(descriptor: int, folder: Path) -> None:
    """What root makes in a node's folder belongs to whoever that belongs to: `sudo datahub node
    approve` must leave nothing that the node cannot read.
    """
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path`, on the disk when this returns: whole, or not at all;
    readable by this user only.
    """
    private_folder(path.parent)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            belong(descriptor, path.parent)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:  # a half of it would fill a full disk still more
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else the new name may be lost with the power
    finally:
        os.close(folder)


class JobFolder:
    """The folder of the job `job_id` (64 hexadecimal digits) under a node's folder; may not exist
    yet. Raises ProtocolError for an id that is none.
    """

    def __init__(self, node_folder: Path, job_id: str):
        if len(job_id) != 64 or not all(c in "0123456789abcdef" for c in job_id):
            raise ProtocolError(f"job={job_id[:80]!r} must be 64 hexadecimal digits")
        self.path = node_folder / "jobs" / job_id

    @contextmanager
    def reading(self, *names: str) -> Iterator[None]:
        """What goes wrong within is that these files are not what was written: JobDamaged."""
        try:
            yield
        except (*UNREADABLE, RecursionError) as error:
            raise self._damaged(names, type(error).__name__) from error
        except (BankError, Refusal) as error:
            raise self._damaged(names, str(error)[:200]) from error

    def _damaged(self, names: tuple[str, ...], why: str) -> JobDamaged:
        return JobDamaged(
            f"job {self.path.name[:12]}: {' or '.join(names)} in {self.path} is damaged or cannot "
            f"be read ({why}); other jobs are not touched by it"
        )

    def _read(self, name: str, made: Callable[[bytes], T]) -> T | None:
        """What is `made` of a file; None where it is not there. Raises JobDamaged."""
        with self.reading(name):
            try:
                content = (self.path / name).read_bytes()
            except FileNotFoundError:
                return None
            return made(content)

    @property
    def answer(self) -> Signed | Refused | None:
        """The answer that was signed for the job; None before. Raises JobDamaged, as all that reads
        does.
        """
        return self._read(ANSWER, _answer)

    @property
    def terms(self) -> JobTerms | None:
        """The job's terms, if they are here."""
        return self._read(TERMS, JobTerms.from_json)

    @property
    def model_files(self) -> tuple[bytes, bytes]:
        """(graph, weights) as they arrived."""
        with self.reading(GRAPH, WEIGHTS):
            return (self.path / GRAPH).read_bytes(), (self.path / WEIGHTS).read_bytes()

    @property
    def model_bytes(self) -> int:
        """How many those are."""
        with self.reading(GRAPH, WEIGHTS):
            return sum((self.path / name).stat().st_size for name in (GRAPH, WEIGHTS))

    def keep(
        self, terms: bytes, graph: bytes, weights: bytes, answer: Signed | Refused, by: str = ""
    ) -> None:
        """Keep the job and what was answered; asked again, the node says the same. `by`: the rule
        or the people who said yes.
        """
        self._keep_files(terms, graph, weights)
        said = {
            "accepted": isinstance(answer, Signed),
            "reason": answer.reason if isinstance(answer, Refused) else "",
            "signature": answer.signature.hex(),
            "by": by,
            "at": time.time(),
        }
        write_whole(self.path / ANSWER, json.dumps(said).encode())

    def _keep_files(self, terms: bytes, graph: bytes, weights: bytes) -> None:
        for name, content in ((TERMS, terms), (GRAPH, graph), (WEIGHTS, weights)):
            write_whole(self.path / name, content)

    def answered_by(self) -> tuple[str, float]:
        """(who or what said yes, when); ("", 0) without an answer, or before there were rules."""

        def made(content: bytes) -> tuple[str, float]:
            value = json.loads(content)
            return str(value.get("by", "")), float(value.get("at", 0.0))

        return self._read(ANSWER, made) or ("", 0.0)

    # -- what waits for a person -------------------------------------------------------------------

    def keep_request(
        self, terms: bytes, graph: bytes, weights: bytes, facts: Mapping[str, Any]
    ) -> None:
        """Keep a job that passed every check and waits, with what a person is shown of it."""
        self._keep_files(terms, graph, weights)
        write_whole(self.path / REQUEST, json.dumps(facts).encode())

    @property
    def request(self) -> dict[str, Any] | None:
        """What `keep_request` kept; None for a job that nobody was asked about."""
        return self._read(REQUEST, _request)

    @property
    def gone(self) -> str:
        """Why a job that waited need not be decided any more; "" while it must."""
        return self._read(GONE, _text) or ""

    def keep_gone(self, why: str) -> None:
        """Note that a job that waits need not be decided any more."""
        write_whole(self.path / GONE, why.encode())

    def hold(self, facts: Mapping[str, Any]) -> None:
        """Keep a result that a person has to let go, with this node's signature for it."""
        write_whole(self.path / HELD, json.dumps(facts).encode())

    @property
    def held(self) -> dict[str, Any] | None:
        """What `hold` kept; None where nothing is held, or not any more."""
        return None if self.attested_model else self._read(HELD, _held)

    def decisions(self, about: str = DECISIONS) -> tuple[Decision, ...]:
        """What people have said so far, oldest first, of the job or of its result (RELEASES)."""
        return self._read(about, _decisions) or ()

    def decide(self, decision: Decision, about: str = DECISIONS) -> None:
        """Add what somebody has said, while the folder is `locked`. One person's newer word takes
        the older one's place.
        """
        name = decision.by.casefold()
        others = [one for one in self.decisions(about) if one.by.casefold() != name]
        content = json.dumps([asdict(one) for one in (*others, decision)]).encode()
        write_whole(self.path / about, content)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody decides about the job meanwhile, in this process or another: between what was
        said and the answer to it no other word comes.
        """
        with self.reading(".lock"):
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            belong(lock, self.path)
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    @property
    def attested_model(self) -> str:
        """The hash of the model that this node has attested, hexadecimal; "" for none yet."""
        return self._attested().partition(" ")[0]

    @property
    def attested(self) -> str:
        """The hash of the report that this node has attested, hexadecimal; "" for none yet."""
        return self._attested().partition(" ")[2]

    def _attested(self) -> str:
        return self._read(ATTESTED, _text) or ""

    def keep_report(self, report: bytes) -> None:
        """Keep the report of the result that is about to be attested, or was."""
        write_whole(self.path / REPORT, report)

    @property
    def report(self) -> bytes | None:
        """What `keep_report` kept; None before, and of jobs of versions that kept none."""
        return self._read(REPORT, bytes)

    def keep_attested(self, result: str) -> None:
        """Note the one result that is ever signed for the job. Raises ProtocolError for another."""
        if self._read(ATTESTED, _text) not in (None, result):
            raise ProtocolError("this node has already signed another result of this job")
        write_whole(self.path / ATTESTED, result.encode())


def _text(content: bytes) -> str:
    return content.decode(errors="replace")


def _answer(content: bytes) -> Signed | Refused:
    value = json.loads(content)
    signature = bytes.fromhex(value["signature"])
    return Signed(signature) if value["accepted"] else Refused(str(value["reason"]), signature)


def _moment(value: Any) -> float:
    if not 0 <= float(value) <= LATEST:  # nor what is not a number
        raise ValueError(f"{value!r:.40} is no time")
    return float(value)


def _request(content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = OF_OLDER_VERSIONS | dict(json.loads(content))
    whole("dataset_id", found["dataset_id"], 1, 2**32 - 1)
    _moment(found["at"])
    _moment(found["seconds"])
    return found | {"by": str(found["by"])}


def _held(content: bytes) -> dict[str, Any]:
    found = dict(json.loads(content))
    whole("dataset_id", found["dataset_id"], 1, 2**32 - 1)
    bytes.fromhex(found["signature"])
    return found | {"result": str(found["result"])}


def _decisions(content: bytes) -> tuple[Decision, ...]:
    found = json.loads(content)
    if not isinstance(found, list) or not all(type(one["yes"]) is bool for one in found):
        raise TypeError("no list of a yes or no each")
    return tuple(
        Decision(str(one["by"]), one["yes"], str(one["reason"]), _moment(one["at"]))
        for one in found
    )


def job_folders(node_folder: Path) -> list[JobFolder]:
    """Every job that the node has a folder of."""
    found = sorted((node_folder / "jobs").glob("[0-9a-f]" * 64))
    return [JobFolder(node_folder, path.name) for path in found]


def of_each(
    node_folder: Path, seen: Callable[[JobFolder], T | None]
) -> tuple[list[T], dict[str, str]]:
    """What is `seen` in the folder of each job, None left out; and job id -> why, of those of which
    a file is damaged: each costs itself alone.
    """
    found, damaged = [], {}
    for one in job_folders(node_folder):
        try:
            if (made := seen(one)) is not None:
                found.append(made)
        except JobDamaged as error:
            damaged[one.path.name] = str(error)
    return found, damaged
