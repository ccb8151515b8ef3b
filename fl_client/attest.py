"""What a node checks before it signs for a result, and the signatures themselves. Knows nothing of connections.

A report is canonical JSON built by the theatre (fl_server.report). The node believes nothing in it that it can work
out itself: the model's hash, its own epsilon and counts, the split of the reward pool.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datatokens.errors import TermsError
from datatokens.payouts import split
from datatokens.terms import Attestation, JobTerms, attestation_message, parse_canonical_json, sign
from fl_client.errors import ProtocolError
from fl_client.protocol import JobSpec

EPSILON_TOLERANCE = 1e-6


@dataclass(frozen=True)
class OwnFigures:
    """What this node knows of its own part, from its own ledger."""

    dataset_id: int
    epsilon_job: float
    epsilon_lifetime: float
    rounds_answered: int


def rewards(terms: JobTerms, spec: JobSpec, worked: int) -> tuple[int, ...]:
    """The reward pool split by released persons over the datasets whose bit in `worked` is set; the rest get 0."""
    weights = [spec.persons[line.dataset_id] * (worked >> i & 1) for i, line in enumerate(terms.datasets)]
    return split(terms.reward_units, weights)


def check_and_sign(
    key: bytes,
    terms: JobTerms,
    spec: JobSpec,
    own: OwnFigures,
    model_hash: bytes,
    report_raw: bytes,
) -> tuple[Attestation, bytes]:
    """The attestation over this report and this node's signature. Raises ProtocolError for any figure that is wrong.

    `model_hash` is the node's own hash of the final aggregate that it was shown.
    """
    try:
        report = parse_canonical_json(report_raw)
    except TermsError as error:
        raise ProtocolError(f"report: {error}") from error
    lines = _lines(report, terms)
    worked = sum(1 << i for i, line in enumerate(lines) if line["worked"] is True)
    expected = {
        "job_id": terms.job_id.hex(),
        "terms_hash": terms.spec_hash.hex(),
        "model_hash": model_hash.hex(),
    }
    for name, value in expected.items():
        if report.get(name) != value:
            raise ProtocolError(f"report: {name}={report.get(name)!r} must be {value}")
    if worked.bit_count() < terms.quorum:
        raise ProtocolError(f"report: {worked.bit_count()} hospitals worked, the quorum is {terms.quorum}")
    shares = rewards(terms, spec, worked)
    for line, share in zip(lines, shares, strict=True):
        if line["reward_units"] != share:
            raise ProtocolError(
                f"report: reward_units={line['reward_units']!r} of dataset {line['dataset_id']} must be {share}"
            )
    mine = next(line for line in lines if line["dataset_id"] == own.dataset_id)
    if mine["worked"] is not True:
        raise ProtocolError("report: this node's own work is not counted")
    if own.rounds_answered < spec.rounds:
        raise ProtocolError(f"only {own.rounds_answered} of {spec.rounds} rounds were asked of this node")
    for name, known in (("epsilon_job", own.epsilon_job), ("epsilon_lifetime", own.epsilon_lifetime)):
        given = mine[name]
        if not isinstance(given, float) or not abs(given - known) <= EPSILON_TOLERANCE:
            raise ProtocolError(f"report: {name}={given!r} of this node must be {known:.6f}")
    attestation = Attestation(terms.job_id, model_hash, hashlib.sha256(report_raw).digest(), worked, shares)
    return attestation, sign(attestation_message(terms, attestation), key)


def _lines(report: Any, terms: JobTerms) -> Sequence[Mapping[str, Any]]:
    lines = report.get("hospitals") if isinstance(report, dict) else None
    wanted = {"dataset_id", "worked", "reward_units", "epsilon_job", "epsilon_lifetime"}
    if (
        not isinstance(lines, list)
        or len(lines) != len(terms.datasets)
        or not all(isinstance(line, dict) and wanted <= set(line) for line in lines)
        or [line["dataset_id"] for line in lines] != [d.dataset_id for d in terms.datasets]
    ):
        raise ProtocolError("report: hospitals must list the datasets of the terms in their order, with every figure")
    return lines
