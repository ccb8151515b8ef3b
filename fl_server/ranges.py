"""What the terms of a job allow a hospital's reply to say: every number that is averaged, shown,
billed or put on the chain is checked against it when it arrives.

Pure. Each bound is one that an honest node breaks with a chance under 1e-14, or never. Knows
nothing of messages; parameters are bounded in aggregation.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from fl_client.data.manifests import MOST_RECORDS, UNITS
from fl_client.privacy import accounting
from fl_client.privacy.plan import Charge
from fl_client.privacy.slots import needed, round_seconds
from fl_client.protocol import JobSpec, Scored, Trained

SD = 8.0  # a Gaussian is further out with a chance of 1e-15
MOST_EPSILON = 1e6  # that can be put on the chain (datatokens.terms.privacy_charged)
LEAST_DELTA, MOST_DELTA = 1e-30, 0.01
MOST_WORK = 10**11  # operations of one sample that a node takes (fl_client.model.graph)
_HEAD = re.compile(r"[0-9a-f]{64}", re.ASCII)
_WORDS = re.compile(r"[a-z, ]*", re.ASCII)
SAME = 1e-6  # of an epsilon that two machines work out


def round_problem(said: Trained, spec: JobSpec, persons: int, number: int) -> str | None:
    """What in the reply to round `number` of a hospital with `persons` released patients cannot be;
    None if everything can.
    """
    plan, most = spec.plan, needed(persons, 1.0)
    noise = SD * plan.metric_noise_multiplier * plan.metric_clip / persons
    seconds = round_seconds(plan, spec.local_steps, persons, MOST_RECORDS, MOST_WORK)
    return (
        _outside("loss", said.loss, -noise, plan.metric_clip * most / persons + noise)
        or _outside("compute_seconds", said.compute_seconds, 0.0, seconds)
        or _privacy_problem(said, spec.round_charges() * number, plan.delta)
        or (None if said.unit in UNITS else f"unit={said.unit!r} must be one of {', '.join(UNITS)}")
        or (None if said.device.isprintable() else f"device={said.device!r} must be printable")
        or _head_problem(said.log_head)
        or (
            None if _WORDS.fullmatch(said.no_walls) else f"no_walls={said.no_walls!r} must be words"
        )
    )


def scores_problem(said: Scored, spec: JobSpec, persons: int) -> str | None:
    """The same of the table of the final model's scores."""
    noise = SD * spec.plan.score_noise_multiplier
    charges = spec.round_charges() * spec.rounds + spec.evaluation_charges()
    most = needed(persons, 1.0) + noise
    wrong = (_outside("scores", cell, -noise, most) for cell in said.scores)
    return (
        next(filter(None, wrong), None)
        or _privacy_problem(said, charges, spec.plan.delta)
        or _head_problem(said.log_head)
    )


def _head_problem(head: str) -> str | None:
    if not head or _HEAD.fullmatch(head):
        return None
    return f"log_head={head!r} must be 64 hexadecimal digits"


def _privacy_problem(said: Trained | Scored, charges: Sequence[Charge], delta: float) -> str | None:
    """A lifetime holds the job: at its own delta it is never less than what the job alone comes to
    there. (A node's lifetime pays for the choice of its order besides, so it is more.)
    """
    job = accounting.epsilon(charges, delta)
    if not math.isclose(said.epsilon_job, job, rel_tol=SAME, abs_tol=SAME):
        return f"epsilon_job={said.epsilon_job:.6g}; by the terms it is {job:.6g}"
    if problem := _outside("delta_lifetime", said.delta_lifetime, LEAST_DELTA, MOST_DELTA):
        return problem
    least = (1 - SAME) * accounting.epsilon(charges, said.delta_lifetime)
    return _outside("epsilon_lifetime", said.epsilon_lifetime, least, MOST_EPSILON)


def _outside(name: str, value: float, low: float, high: float) -> str | None:
    if low <= value <= high:
        return None
    return f"{name}={value:.6g}; the terms allow {low:.6g} to {high:.6g}"
