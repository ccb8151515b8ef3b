"""What a node keeps of one job on its disk: terms, model files, its own answer, what it attested.

Each file is written whole or not at all, and the answer last: a job with an answer has everything.
Knows nothing of what is in the files, of ledgers or of chains.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from datatokens.terms import JobTerms
from fl_client.errors import ProtocolError
from fl_client.protocol import Refused, Signed

TERMS, GRAPH, WEIGHTS = "terms.json", "graph.json", "weights.safetensors"
ANSWER, ATTESTED = "answer.json", "attested.txt"


def private_folder(path: Path) -> None:
    """Make the folder, and those above it that are missing, for this user alone."""
    if not path.exists():
        private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path`, on the disk when this returns: whole, or not at all;
    readable by this user only.
    """
    private_folder(path.parent)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
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

    @property
    def answer(self) -> Signed | Refused | None:
        """The answer that was signed for the job; None before."""
        try:
            value = json.loads((self.path / ANSWER).read_text())
        except FileNotFoundError:
            return None
        signature = bytes.fromhex(value["signature"])
        return Signed(signature) if value["accepted"] else Refused(value["reason"], signature)

    @property
    def terms(self) -> JobTerms | None:
        """The job's terms, if they are here."""
        try:
            return JobTerms.from_json((self.path / TERMS).read_bytes())
        except FileNotFoundError:
            return None

    @property
    def model_files(self) -> tuple[bytes, bytes]:
        """(graph, weights) as they arrived."""
        return (self.path / GRAPH).read_bytes(), (self.path / WEIGHTS).read_bytes()

    def keep(self, terms: bytes, graph: bytes, weights: bytes, answer: Signed | Refused) -> None:
        """Keep the job and what was answered; asked again, the node says the same."""
        for name, content in ((TERMS, terms), (GRAPH, graph), (WEIGHTS, weights)):
            write_whole(self.path / name, content)
        said = {
            "accepted": isinstance(answer, Signed),
            "reason": answer.reason if isinstance(answer, Refused) else "",
            "signature": answer.signature.hex(),
        }
        write_whole(self.path / ANSWER, json.dumps(said).encode())

    def keep_attested(self, result: str) -> None:
        """Note the one result that is ever signed for the job. Raises ProtocolError for another."""
        path = self.path / ATTESTED
        if path.exists() and path.read_text() != result:
            raise ProtocolError("this node has already signed another result of this job")
        write_whole(path, result.encode())


def job_folders(node_folder: Path) -> list[JobFolder]:
    """Every job that the node has a folder of."""
    return [JobFolder(node_folder, p.name) for p in sorted((node_folder / "jobs").glob("?" * 64))]
