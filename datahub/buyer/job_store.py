"""What a buyer keeps of a job on the own disk, from before it is paid: terms, graph, weights,
schema.

The escrow pays or refunds only against the terms, so they are never in memory alone. The terms are
written last: a folder that has them has everything, and one whose terms are not those of its name
counts as none. Knows nothing of hubs and chains.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datahub.buyer.networks import home
from datahub.errors import NotFound, OrderRefused
from datatokens.errors import TermsError
from datatokens.terms import JobTerms, canonical_json
from datatokens.wire import parse
from fl_client.node.job_folder import private_folder, write_whole

PAYING_S = 300.0  # how long one payment of a wallet waits for another; a send waits 180 s at most
TERMS, GRAPH, WEIGHTS = "terms.json", "graph.json", "weights.safetensors"
SCHEMA = "schema.json"
ORDER = "order.json"  # what was asked for, to ask for the same again
QUESTION = "question.txt"  # of a job that asks for figures; its graph says the same
SHORTEST_NAME = 6  # digits of a job id that are enough, if they are of one job only


@dataclass(frozen=True)
class KeptJob:
    """A job's folder."""

    path: Path

    @property
    def id(self) -> str:
        """Job id, 64 hexadecimal digits."""
        return self.path.name

    @property
    def terms(self) -> JobTerms:
        """The terms that were quoted."""
        return JobTerms.from_json((self.path / TERMS).read_bytes())

    @property
    def model_files(self) -> tuple[bytes, bytes]:
        """(graph, weights) as they were exported."""
        return (self.path / GRAPH).read_bytes(), (self.path / WEIGHTS).read_bytes()

    @property
    def schema(self) -> bytes:
        """The schema's canonical JSON; nothing where the job was kept before schemas were."""
        path = self.path / SCHEMA
        return path.read_bytes() if path.exists() else b""

    @property
    def order(self) -> dict[str, Any]:
        """The datasets and settings that were asked for (Market.quote); {} where the job was kept
        before they were.
        """
        path = self.path / ORDER
        found: dict[str, Any] = parse(path.read_bytes()) if path.exists() else {}
        return found

    @property
    def question(self) -> str:
        """What the job asks; nothing for one that trains."""
        path = self.path / QUESTION
        return path.read_text("utf-8") if path.exists() else ""


def jobs_folder() -> Path:
    """Where jobs are kept."""
    return home() / "jobs"


def keep(
    terms: JobTerms,
    graph: bytes,
    weights: bytes,
    schema: bytes,
    question: str = "",
    order: Mapping[str, Any] | None = None,
) -> KeptJob:
    """Write a job down, readable by this user only, on the disk when this returns."""
    kept = KeptJob(jobs_folder() / terms.job_id.hex())
    for folder in (home(), jobs_folder(), kept.path):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = {GRAPH: graph, WEIGHTS: weights, SCHEMA: schema, TERMS: terms.to_json()}
    if question:
        files = {QUESTION: question.encode(), **files}
    if order:
        files = {ORDER: canonical_json(dict(order)), **files}
    for name, content in files.items():
        write_whole(kept.path / name, content)
    return kept


def kept_jobs() -> list[KeptJob]:
    """Every job that was kept whole, oldest first."""
    paths = sorted(jobs_folder().glob(f"*/{TERMS}"), key=lambda path: path.stat().st_mtime)
    return [job for path in paths if (job := kept(path.parent.name))]


def kept(job_id: str) -> KeptJob | None:
    """The job whose whole id this is, if it was kept whole."""
    job = KeptJob(jobs_folder() / job_id)
    try:
        return job if job.terms.job_id.hex() == job_id else None
    except (FileNotFoundError, TermsError):
        return None  # what was paid for it, if anything, the chain knows


@contextmanager
def sole_payer(wallet: str) -> Iterator[None]:
    """While no other process of this user pays from `wallet`: an approval is for one payment, so
    that a second one in between would take it away. Whoever is killed leaves nothing locked. Raises
    OrderRefused after PAYING_S.
    """
    private_folder(home())
    lock = os.open(home() / f"paying-{wallet.lower()}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        end = time.monotonic() + PAYING_S
        while not _locked(lock):
            if time.monotonic() > end:
                raise OrderRefused(
                    f"another process has been paying from {wallet} for {PAYING_S:.0f} s: nothing "
                    "was paid here; end it, or wait for it, and go on with: datahub job resume"
                )
            time.sleep(0.05)
        yield
    finally:
        os.close(lock)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def whole_id(start: str, known: list[str]) -> str:
    """The one id of `known` that begins with `start`. Raises NotFound for none or several."""
    wanted = start.lower().removeprefix("0x")
    found = sorted({one for one in known if one.startswith(wanted)})
    if len(wanted) < SHORTEST_NAME or len(found) != 1:
        why = f"{len(found)} jobs begin so" if len(found) > 1 else "no such job is known"
        raise NotFound(
            f"job {start[:70]!r}: {why}; give its id, or at least {SHORTEST_NAME} digits of it "
            "(datahub job list lists them)"
        )
    return found[0]
