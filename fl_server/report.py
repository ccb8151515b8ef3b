"""The report of a job: one canonical JSON document that the nodes check and hash, the chain keeps
the hash of.

Pure. Knows nothing of runs or chains: figures in, bytes out. Times of day are left out, since the
report must be the same when a run is repeated after a crash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datatokens.terms import JobTerms, canonical_json
from fl_client.node.attestation import compute_units, evaluation_of, rewards
from fl_client.protocol import JobSpec


@dataclass(frozen=True)
class Round:
    """One round as released: the mean loss (noised) and the half-width of its 95 % interval."""

    number: int
    loss: float
    loss_interval95: float


@dataclass(frozen=True)
class Part:
    """One hospital's part: None for the epsilons where it never answered."""

    dataset_id: int
    rounds_answered: int
    epsilon_job: float | None
    epsilon_lifetime: float | None
    delta_lifetime: float | None
    compute_seconds: float
    device: str
    unit: str = ""  # what privacy protects there: patient or record
    scores: list[float] | None = None  # the released table, fl_client.privacy.evaluation
    log_head: str = ""  # the newest line of the hospital's audit log at its last reply
    no_walls: str = ""  # what its machine could not raise around the job


def loss_interval95(spec: JobSpec, dataset_ids: Sequence[int]) -> float:
    """Half-width of the 95 % interval of the averaged loss that comes from the noise added for
    privacy.

    Each hospital's mean has noise of sd z*L/n (plan.metric_noise_multiplier z, metric_clip L);
    weighted by n/N the average has sd z*L*sqrt(hospitals)/N.
    """
    persons = sum(spec.persons[d] for d in dataset_ids)
    noise = spec.plan.metric_noise_multiplier * spec.plan.metric_clip
    return float(1.96 * noise * len(dataset_ids) ** 0.5 / persons)


def build(
    terms: JobTerms,
    spec: JobSpec,
    model_hash: bytes,
    rounds: Sequence[Round],
    parts: Mapping[int, Part],
) -> tuple[bytes, int]:
    """(report bytes, worked bits). Worked = answered every round."""
    worked = 0
    for i, line in enumerate(terms.datasets):
        part = parts.get(line.dataset_id)
        if part is not None and part.rounds_answered == spec.rounds:
            worked |= 1 << i
    shares = rewards(terms, spec, worked)
    hospitals: list[dict[str, Any]] = []
    for i, line in enumerate(terms.datasets):
        part = parts.get(line.dataset_id, Part(line.dataset_id, 0, None, None, None, 0.0, ""))
        hospitals.append(
            {
                "dataset_id": line.dataset_id,
                "node": line.node,
                "persons": spec.persons[line.dataset_id],
                "worked": bool(worked >> i & 1),
                "unit": part.unit,
                "rounds_answered": part.rounds_answered,
                "epsilon_job": part.epsilon_job,
                "epsilon_lifetime": part.epsilon_lifetime,
                "delta_lifetime": part.delta_lifetime,
                "compute_seconds": part.compute_seconds,
                "scores": part.scores if worked >> i & 1 else None,
                "device": part.device,
                "log_head": part.log_head,
                "no_walls": part.no_walls,
                "price_units": line.price_units if worked >> i & 1 else 0,
                "reward_units": shares[i],
                "compute_units": compute_units(line, bool(worked >> i & 1), part.compute_seconds),
            }
        )
    report = {
        "version": 1,
        "job_id": terms.job_id.hex(),
        "terms_hash": terms.spec_hash.hex(),
        "model_hash": model_hash.hex(),
        "neighbours": "one unit more or less: a patient with all records, or one record, as each "
        "hospital says",
        "delta": spec.plan.delta,
        "plan": spec.plan.as_dict(),
        "losses": "means over patients of the incoming model's loss, each counted up to "
        "plan.metric_clip, noised",
        "rounds": [
            {"number": r.number, "loss": r.loss, "loss_interval95": r.loss_interval95}
            for r in rounds
        ],
        "evaluation": evaluation_of(hospitals, spec),
        "hospitals": hospitals,
    }
    return canonical_json(report), worked
