"""What waits for a person at the hospital: which jobs, until when, and what was decided. A decision
is a file in the job's folder, written by whoever may write there; the node acts on it when it is
asked the next time. Knows nothing of connections, ledgers or how a job is shown.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datatokens.terms import JobTerms
from fl_client.errors import ConfigError, PolicyRefusal
from fl_client.node.audit_log import AuditLog
from fl_client.node.job_folder import (
    ANSWER,
    DECISIONS,
    RELEASES,
    TERMS,
    Decision,
    JobFolder,
    job_folders,
    of_each,
)
from fl_client.node.policy import TWO_PERSONS, Policy, Request, Rule
from fl_client.protocol import MAX_REASON, JobSpec

MOST_WAITING = 100  # jobs at a time
MOST_BYTES = 20 * 10**9  # of their models
LEAST_AFTER_S = 300  # between the last moment for a yes and the job's deadline
WEEK_S = 7 * 24 * 3600
WHOLE_NAME = 80


@dataclass(frozen=True)
class Waits:
    """A job that waits: its folder, its terms, what was kept about it, what was said so far."""

    folder: JobFolder
    terms: JobTerms
    facts: Mapping[str, Any]
    decisions: tuple[Decision, ...]

    @property
    def job_id(self) -> str:
        """64 hexadecimal digits."""
        return self.folder.path.name

    @property
    def until(self) -> int:
        """When it is refused if nobody has answered (unix seconds)."""
        return until(self.terms, self.facts["seconds"])


def until(terms: JobTerms, seconds: float) -> int:
    """The last moment for a yes: as the terms say, and early enough for a job of so many seconds to
    be done.
    """
    latest = terms.deadline - LEAST_AFTER_S - math.ceil(seconds)
    return min(latest, JobSpec.from_dict(terms.spec).answer_by or latest)


def waiting(folder: Path) -> list[Waits]:
    """Every job of a node's folder that waits for a person, the first to end first; not those of
    which a file is damaged (`damaged`).
    """
    return sorted(of_each(folder, _waits)[0], key=lambda waits: waits.until)


def damaged(folder: Path) -> tuple[str, ...]:
    """Why jobs are not shown, in a sentence each: a file of theirs is damaged."""
    return tuple(of_each(folder, lambda one: (_waits(one), one.held))[1].values())


def held(folder: Path) -> list[Waits]:
    """Every job whose result waits for a person."""
    return of_each(folder, _held)[0]


def _waits(one: JobFolder) -> Waits | None:
    facts, terms = one.request, one.terms
    if facts is None or terms is None or one.answer is not None or one.gone:
        return None
    with one.reading(TERMS):
        until(terms, facts["seconds"])  # an older version may have taken what this one does not
    return Waits(one, terms, facts, one.decisions())


def _held(one: JobFolder) -> Waits | None:
    facts, terms = one.held, one.terms
    return Waits(one, terms, facts, one.decisions(RELEASES)) if facts and terms else None


def room_for(folder: Path, size: int, buyer: str, most_of_buyer: int) -> None:
    """Raises PolicyRefusal where the inbox takes no further job of `size` bytes, or none of this
    buyer: who pays for many and has the money back keeps nobody else out.
    """
    there = waiting(folder)
    own = sum(one.terms.buyer == buyer for one in there)
    if own >= most_of_buyer:
        raise PolicyRefusal(
            f"buyer={buyer} has {own} jobs that wait for a person at this hospital; at most "
            f"{most_of_buyer} at a time may"
        )
    sizes, _ = of_each(folder, lambda one: one.model_bytes if _waits(one) else None)
    if len(there) >= MOST_WAITING or sum(sizes) + size > MOST_BYTES:
        raise PolicyRefusal(
            f"{len(there)} jobs wait for a person at this hospital, and no more are kept; order "
            "again later"
        )


def verdict(
    decisions: Sequence[Decision], approval: str, end: int, now: float
) -> tuple[str, ...] | None:
    """Who has said yes, if that is enough; None while it is not. Raises PolicyRefusal where
    somebody has said no, and after the `end`.
    """
    for one in decisions:
        if not one.yes:
            raise PolicyRefusal(one.reason)
    if len(decisions) >= (2 if approval == TWO_PERSONS else 1):
        return tuple(one.by for one in decisions)
    if now > end:
        when = datetime.fromtimestamp(end, UTC)
        raise PolicyRefusal(f"nobody at this hospital has said yes by {when:%Y-%m-%d %H:%M} UTC")
    return None


def rule_for(rules: Sequence[Rule], folder: Path, dataset_id: int, request: Request) -> Rule | None:
    """The first rule that takes this job."""
    since = time.time() - WEEK_S
    for rule in rules:
        if rule.takes(dataset_id, request, 0):
            taken, unread = of_each(folder, lambda one: one.answered_by())
            # an answer that cannot be read may have been this rule's
            answers = [JobFolder(folder, job).path / ANSWER for job in unread]
            taken += [(of(rule), one.stat().st_mtime) for one in answers if one.exists()]
            if rule.takes(
                dataset_id, request, sum(by == of(rule) and at > since for by, at in taken)
            ):
                return rule
    return None


def of(rule: Rule) -> str:
    """How an answer names the rule that gave it."""
    return f"rule {rule.name}"


def decide(
    folder: Path,
    policy_of: Any,
    job: str,
    by: str,
    yes: bool,
    reason: str = "",
    about: str = DECISIONS,
) -> tuple[Waits, bool]:
    """Write down what somebody says of a job that waits; whether that decides it. `job` may be the
    beginning of an id. Raises ConfigError with what to do.
    """
    by, reason = " ".join(by.split()), reason.strip()
    if not 1 <= len(by) <= WHOLE_NAME or not by.isprintable():
        raise ConfigError(f"by={by!r:.100} must be a name of 1 to {WHOLE_NAME} characters")
    if by.casefold().startswith("rule "):
        raise ConfigError(f"by={by!r}: so are the rules of node.toml called, and no person")
    if not yes and not 1 <= len(reason) <= MAX_REASON - 100:
        raise ConfigError("reason: a refusal says why, in 1 to 1900 characters; the buyer reads it")
    if not reason.isprintable():
        raise ConfigError("reason: plain characters on one line, please; the buyer reads it")
    one = find(folder, job, about)
    if about == DECISIONS and time.time() > one.until:
        raise ConfigError(f"job {one.job_id[:12]}: its time for an answer is over; it is refused")
    what = "decided" if about == DECISIONS else "let go"
    with one.folder.locked():
        if about == DECISIONS and one.folder.answer is not None:
            raise ConfigError(f"job {one.job_id[:12]} was answered a moment ago")
        AuditLog(folder).note(what, job=one.job_id, by=by, yes=yes, reason=reason)
        one.folder.decide(Decision(by, yes, reason, time.time()), about)
    said = one.folder.decisions(about)
    policy: Policy = policy_of(one.facts["dataset_id"])
    need = 2 if policy.approval == TWO_PERSONS and about == DECISIONS else 1
    return one, not yes or len(said) >= need


def find(folder: Path, job: str, about: str = DECISIONS) -> Waits:
    """The one job that waits (or whose result does) and begins with `job`. Raises ConfigError, or
    JobDamaged.
    """
    if about == RELEASES:
        there = held(folder)
    else:
        there = waiting(folder)
    known = [one for one in there if job and one.job_id.startswith(job.removeprefix("0x"))]
    if len(known) == 1:
        return known[0]
    if known:
        raise ConfigError(f"job={job!r}: {len(known)} jobs begin so; write more of it")
    for one in job_folders(folder):
        if not job or not one.path.name.startswith(job.removeprefix("0x")):
            continue
        _waits(one)  # says why, where a file of it is damaged
        if one.gone or one.answer:
            if one.gone:
                raise ConfigError(f"job {one.path.name[:12]} is over: {one.gone}")
            said, _ = one.answered_by()
            by = f" by {said}" if said else ""
            raise ConfigError(f"job {one.path.name[:12]} was answered already{by}")
    raise ConfigError(f"job={job!r} does not wait here; see: datahub node inbox {folder}")
