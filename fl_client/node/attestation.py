"""What a node checks before it signs for a result, and the signatures themselves. Knows nothing of
connections.

A report is canonical JSON built by the theatre (fl_server.report). The node believes nothing in it
that it can work out itself: the model's hash, its own epsilon and counts, the split of the reward
pool.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datatokens.errors import TermsError
from datatokens.payouts import split
from datatokens.terms import (
    Attestation,
    DatasetTerm,
    JobTerms,
    Outcome,
    attestation_message,
    parse_canonical_json,
    privacy_charged,
    sign,
)
from fl_client.errors import ProtocolError
from fl_client.privacy.looks import cells, figures
from fl_client.protocol import JobSpec

TOLERANCE = {
    "epsilon_job": 1e-6,
    "epsilon_lifetime": 1e-6,
    "delta_lifetime": 0.0,
    "compute_seconds": 0.05,
}
LINE_FIELDS = {
    "dataset_id",
    "worked",
    "price_units",
    "reward_units",
    "compute_units",
    "compute_seconds",
    "epsilon_job",
    "epsilon_lifetime",
    "delta_lifetime",
    "scores",
    "unit",
}


@dataclass(frozen=True)
class OwnFigures:
    """What this node knows of its own part, from its own ledger."""

    dataset_id: int
    epsilon_job: float
    epsilon_lifetime: float
    delta_lifetime: float
    compute_seconds: float
    rounds_answered: int
    unit: str
    scores: Sequence[float] | None = None
    log_head: str = ""
    no_walls: str = ""


def rewards(terms: JobTerms, spec: JobSpec, worked: int) -> tuple[int, ...]:
    """The reward pool split by released persons over the datasets whose bit in `worked` is set; the
    rest get 0.
    """
    weights = [
        spec.persons[line.dataset_id] * (worked >> i & 1) for i, line in enumerate(terms.datasets)
    ]
    return split(terms.reward_units, weights)


def outcome(line: Mapping[str, Any]) -> Outcome:
    """What a hospital's line of the report comes to on the chain. Raises TermsError for a figure
    out of range.

    The privacy figure is the dataset's whole history after this job, epsilon at delta: so a job
    that spent and was
    never settled is in the figure of the next one, and nothing has to be summed with a loose bound.
    """
    if line["epsilon_lifetime"] is None:
        return Outcome(0, 0, 0, 0)
    spent = privacy_charged(line["epsilon_lifetime"], line["delta_lifetime"])
    return Outcome(line["compute_units"], line["reward_units"], *spent)


def compute_units(term: DatasetTerm, worked: bool, compute_seconds: float) -> int:
    """What metered compute comes to: nothing without the work."""
    return term.compute_units(compute_seconds) if worked else 0


def check_and_sign(
    key: bytes,
    terms: JobTerms,
    spec: JobSpec,
    own: OwnFigures,
    model_hash: bytes,
    report_raw: bytes,
) -> tuple[Attestation, bytes]:
    """The attestation over this report and this node's signature. Raises ProtocolError for any
    figure that is wrong.

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
        raise ProtocolError(
            f"report: {worked.bit_count()} hospitals worked, the quorum is {terms.quorum}"
        )
    shares = rewards(terms, spec, worked)
    for line, share in zip(lines, shares, strict=True):
        term = terms.datasets[terms.index_of_dataset(line["dataset_id"])]
        seconds = line["compute_seconds"]
        if (
            not isinstance(seconds, int | float)
            or isinstance(seconds, bool)
            or not 0 <= seconds < 1e9
        ):
            raise ProtocolError(f"report: compute_seconds={seconds!r} must be a number of seconds")
        expected_units = {
            "reward_units": share,
            "compute_units": compute_units(term, line["worked"], seconds),
            "price_units": term.price_units if line["worked"] else 0,
        }
        for name, units in expected_units.items():
            if line[name] != units:
                raise ProtocolError(
                    f"report: {name}={line[name]!r} of dataset {term.dataset_id} must be {units}"
                )
    mine = next(line for line in lines if line["dataset_id"] == own.dataset_id)
    if mine["worked"] is not True:
        raise ProtocolError("report: this node's own work is not counted")
    if own.rounds_answered < spec.rounds:
        raise ProtocolError(
            f"only {own.rounds_answered} of {spec.rounds} rounds were asked of this node"
        )
    for name in ("epsilon_job", "epsilon_lifetime", "delta_lifetime", "compute_seconds"):
        given, known = mine[name], getattr(own, name)
        if (
            isinstance(given, bool)
            or not isinstance(given, int | float)
            or not abs(given - known) <= TOLERANCE[name]
        ):
            raise ProtocolError(f"report: {name}={given!r} of this node must be {known:.6g}")
    if mine["unit"] != own.unit:
        raise ProtocolError(f"report: unit={mine['unit']!r} of this node must be {own.unit}")
    for name in ("log_head", "no_walls"):
        if mine.get(name, "") != getattr(own, name):
            raise ProtocolError(
                f"report: {name}={mine.get(name)!r:.120} of this node must be "
                f"{getattr(own, name)!r}"
            )
    if mine["scores"] != own.scores:
        raise ProtocolError("report: scores of this node are not the table that it released")
    if report.get("evaluation") != evaluation_of(lines, spec):
        raise ProtocolError(
            "report: evaluation does not follow from the hospitals' tables of scores"
        )
    try:
        outcomes = tuple(outcome(line) for line in lines)
    except (TermsError, TypeError) as error:
        raise ProtocolError(f"report: {error}") from error
    attestation = Attestation(
        terms.job_id, model_hash, hashlib.sha256(report_raw).digest(), worked, outcomes
    )
    return attestation, sign(attestation_message(terms, attestation), key)


def evaluation_of(lines: Sequence[Mapping[str, Any]], spec: JobSpec) -> dict[str, Any] | None:
    """The report's `evaluation`: what follows from the released tables; None without one. Rounded,
    so that every machine
    comes to the same text. Raises ProtocolError for a table that is none."""
    tables = [line["scores"] for line in lines if line["scores"] is not None]
    wanted = cells(spec.loss, spec.outputs)
    for scores in tables:
        if (
            not isinstance(scores, list)
            or len(scores) != wanted
            or not all(
                type(n) in (int, float) and math.isfinite(n) and abs(n) < 1e12 for n in scores
            )
        ):
            raise ProtocolError(f"report: scores must be {wanted} numbers")
    if not tables or not wanted:
        return None
    found = figures(spec.loss, spec.outputs, tables, spec.plan.score_noise_multiplier)
    return {name: _rounded(figure) for name, figure in found.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def _lines(report: Any, terms: JobTerms) -> Sequence[Mapping[str, Any]]:
    lines = report.get("hospitals") if isinstance(report, dict) else None
    if (
        not isinstance(lines, list)
        or len(lines) != len(terms.datasets)
        or not all(isinstance(line, dict) and set(line) >= LINE_FIELDS for line in lines)
        or [line["dataset_id"] for line in lines] != [d.dataset_id for d in terms.datasets]
    ):
        raise ProtocolError(
            "report: hospitals must list the datasets of the terms in their order, with every "
            "figure"
        )
    return lines
