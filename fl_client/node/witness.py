"""What the chain has seen this node sign, against its audit log: a log that lacks a line of it was
cut, or is an older copy, even where everything in the node's folder was put back together. Knows
nothing of ledgers and of what lines are otherwise about.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from datatokens.public_ledger import History
from fl_client.node.audit_log import HOW, AuditLog, LogError
from fl_client.node.entries import DatasetEntry
from fl_client.node.job_folder import JobFolder

MOST_OF_A_LINE = 100
Report = tuple[str, str]  # job id, SHA-256 of a report that was attested: both hexadecimal


def on_chain(entries: Sequence[DatasetEntry], seen: Mapping[int, History]) -> set[Report]:
    """The reports that the chain has with the signatures of these datasets' node."""
    return {
        (one.job_id.hex(), one.report_hash.hex())
        for entry in entries
        if entry.dataset_id in seen
        for one in seen[entry.dataset_id].attested
        if one.signed
    }


def in_log(log: AuditLog) -> set[Report]:
    """The reports that the log says were attested, and those that it says it has lost."""
    found: set[Report] = set()
    for line in log.lines():
        if line.event == "attested":
            found.add((line.facts["job"], line.facts["report_hash"]))
        elif line.event == "reconciled":
            found |= {(job, report) for job, report in line.facts.get("lost", ())}
    return found


def lacking(log: AuditLog, reports: Collection[Report]) -> list[Report]:
    """Those of `reports` that the log lacks, but for those of versions that kept no log."""
    known = in_log(log)
    return sorted(
        (job, report)
        for job, report in reports
        if (job, report) not in known and not _before_logs(log, job, report)
    )


def _before_logs(log: AuditLog, job: str, report: str) -> bool:
    folder = JobFolder(log.path.parent, job)
    return folder.report is None and folder.attested == report


def check(log: AuditLog, reports: Collection[Report]) -> None:
    """Raises LogError where the log lacks one of these reports."""
    if lost := lacking(log, reports):
        raise LogError(
            f"the chain has seen this node sign {len(lost)} reports that its audit log does not "
            f"know, that of job {lost[0][0][:12]} among them: the log was cut, or is an older "
            f"copy; {HOW}"
        )


def reconciled(log: AuditLog, charged: Sequence[Mapping[str, Any]], lost: Sequence[Report]) -> None:
    """Say in the log what was charged afterwards, and which reports it has lost the lines of: those
    it is not asked for again.
    """
    for start in range(0, max(1, len(charged), len(lost)), MOST_OF_A_LINE):
        part = slice(start, start + MOST_OF_A_LINE)
        log.note("reconciled", charged=[*charged[part]], lost=[*lost[part]])
