"""What a buyer keeps of a job on the own disk, from before it is paid: terms, graph, weights.

The escrow pays or refunds only against the terms, so they are never in memory alone. The terms are
written last: a folder that has them has everything. Knows nothing of hubs and chains.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datahub.buyer.networks import home
from datahub.errors import NotFound
from datatokens.terms import JobTerms
from fl_client.node.job_folder import write_whole

TERMS, GRAPH, WEIGHTS = "terms.json", "graph.json", "weights.safetensors"
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


def jobs_folder() -> Path:
    """Where jobs are kept."""
    return home() / "jobs"


def keep(terms: JobTerms, graph: bytes, weights: bytes) -> KeptJob:
    """Write a job down, readable by this user only, on the disk when this returns."""
    kept = KeptJob(jobs_folder() / terms.job_id.hex())
    for folder in (home(), jobs_folder(), kept.path):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, content in ((GRAPH, graph), (WEIGHTS, weights), (TERMS, terms.to_json())):
        write_whole(kept.path / name, content)
    return kept


def kept_jobs() -> list[KeptJob]:
    """Every job that was kept whole, oldest first."""
    found = [KeptJob(path.parent) for path in jobs_folder().glob(f"*/{TERMS}")]
    return sorted(found, key=lambda job: (job.path / TERMS).stat().st_mtime)


def kept(job_id: str) -> KeptJob | None:
    """The job whose whole id this is, if it was kept."""
    path = jobs_folder() / job_id
    return KeptJob(path) if (path / TERMS).exists() else None


def whole_id(start: str, known: list[str]) -> str:
    """The one id of `known` that begins with `start`. Raises NotFound for none or several."""
    wanted = start.lower().removeprefix("0x")
    found = sorted({one for one in known if one.startswith(wanted)})
    if len(wanted) < SHORTEST_NAME or len(found) != 1:
        why = f"{len(found)} jobs begin so" if len(found) > 1 else "no such job is known"
        raise NotFound(
            f"job {start[:70]!r}: {why}; give its id, or at least {SHORTEST_NAME} digits of it "
            "(datahub jobs lists them)"
        )
    return found[0]
