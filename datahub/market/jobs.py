"""Drive jobs to their end: look at chain, run and reports, take the one next idempotent step, and
again.

Nothing here depends on having seen an event, so the hub can be stopped and started at any moment.
Knows nothing of HTTP; money moves only through fl_server.settlement.
"""

from __future__ import annotations

import json
import logging
import threading
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlmodel import col, select

from datahub.errors import BadRequest, Conflict, HubError, NotFound
from datahub.market.desk import Desk
from datahub.market.domain import FINAL, JobState, advance
from datahub.market.tables import JobRow, NodeRow
from datatokens.errors import BankError, TermsError
from datatokens.terms import JobTerms
from fl_client.errors import NodeError
from fl_client.privacy.accounting import pld_epsilon
from fl_client.protocol import JobSpec
from fl_server import settlement
from fl_server.errors import TheatreError

log = logging.getLogger("datahub.hub")

MAX_RUNS = 3
PATIENCE = timedelta(
    seconds=90
)  # a killed node is let in again after a minute; then a quorum may start without it
TICK_S = 0.3
_pld = lru_cache(maxsize=100)(pld_epsilon)  # a second of work, always the same


def submit(desk: Desk, raw_terms: bytes) -> JobRow:
    """Take a job in. Idempotent. Raises BadRequest for bad terms, Conflict for a job that the
    escrow does not hold.
    """
    try:
        terms = JobTerms.from_json(raw_terms)
        spec = JobSpec.from_dict(terms.spec)
    except (TermsError, NodeError) as error:
        raise BadRequest(f"terms: {error}") from error
    if terms.chain_id != desk.config.chain_id or terms.market != desk.config.market:
        raise BadRequest(
            f"terms: chain_id={terms.chain_id} and market={terms.market} are not this hub's"
        )
    job_id = terms.job_id.hex()
    with desk.session() as session:
        if row := session.get(JobRow, job_id):
            return row
        if desk.escrow.job(terms.job_id).status != "funded":
            raise Conflict(
                f"job {job_id[:12]}: the escrow holds no money for exactly these terms; pay first"
            )
        for name in ("graph_hash", "weights_hash"):
            if not (desk.config.models_folder / getattr(spec, name)).exists():
                raise Conflict(f"{name}: the model's file is not here; ask for the quote again")
        now = datetime.now(UTC)
        row = JobRow(
            job_id=job_id,
            buyer=terms.buyer,
            terms=raw_terms.decode(),
            state=JobState.FUNDED,
            quoted_at=now,
            funded_at=now,
        )
        session.add(row)
        session.commit()
    return row


def job_row(desk: Desk, job_id: str) -> JobRow:
    """The row of a job. Raises NotFound."""
    with desk.session() as session:
        row = session.get(JobRow, job_id.removeprefix("0x"))
    if row is None:
        raise NotFound(f"job_id={job_id[:80]} is not known here")
    return row


class Reconciler(threading.Thread):
    """The loop, in a thread of the hub's process. One broken job never stops the others."""

    def __init__(self, desk: Desk):
        super().__init__(name="reconcile", daemon=True)
        self.desk = desk
        self.stopping = threading.Event()

    def run(self) -> None:
        """Until stopped: every open job takes its next step."""
        while not self.stopping.wait(TICK_S):
            try:
                reconcile(self.desk)
            except Exception:
                # The loop is level-triggered: whatever went wrong, the next look starts from the
                # facts again.
                log.exception("reconcile")


def reconcile(desk: Desk) -> None:
    """One look at every open job."""
    with desk.session() as session:
        rows = session.exec(
            select(JobRow).where(col(JobRow.state).not_in([str(s) for s in FINAL]))
        ).all()
    for row in rows:
        before = (row.state, row.reason, row.run_id, row.runs_started)
        try:
            step(desk, row)
        except (BankError, TheatreError, HubError) as error:
            row.reason = str(error)
            log.warning("job %s: %s", row.job_id[:12], error)
        if (row.state, row.reason, row.run_id, row.runs_started) != before:
            with desk.session() as session:
                session.merge(row)
                session.commit()


def step(desk: Desk, row: JobRow) -> None:
    """The one next step of a job; changes `row`, which the caller keeps."""
    terms = JobTerms.from_json(row.terms.encode())
    status = desk.escrow.job(terms.job_id).status
    if status in ("settled", "refunded"):
        _end(desk, row, JobState(status))
        return
    folder = desk.config.jobs_folder / row.job_id
    if status in ("proposed", "disputed"):
        _wait_or_finalize(desk, row, terms)
        return
    if (folder / "acceptances.json").exists():
        settlement.accept(desk.escrow, terms, json.loads((folder / "acceptances.json").read_text()))
    if (folder / "outcome.json").exists():
        _act_on_outcome(desk, row, terms, folder)
    elif desk.chain.now() > terms.deadline:
        row.reason = row.reason or "the deadline passed before the hospitals had signed a result"
        desk.escrow.refund(terms)
    elif row.run_id is None:
        _start_run(desk, row, terms, folder)
    else:
        _watch_run(desk, row, folder)


def _start_run(desk: Desk, row: JobRow, terms: JobTerms, folder: Path) -> None:
    known = desk.superlink.runs_of(row.job_id)
    if len(known) > row.runs_started:  # started just before a crash of the hub
        row.run_id, row.runs_started = str(known[-1]), len(known)
        return
    spec = JobSpec.from_dict(terms.spec)
    with desk.session() as session:
        nodes = {line.node: session.get(NodeRow, line.node) for line in terms.datasets}
    if missing := [node for node, found in nodes.items() if found is None]:
        raise Conflict(f"node {missing[0]} has not registered with this hub")
    online = desk.superlink.online_nodes()
    absent = [
        node for node, found in nodes.items() if found and int(found.supernode_id) not in online
    ]
    waited = datetime.now(UTC) - (row.funded_at or row.quoted_at).replace(tzinfo=UTC)
    if absent and (len(nodes) - len(absent) < terms.quorum or waited < PATIENCE):
        row.reason = f"waiting for node {absent[0]} to connect"
        return
    row.reason = ""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "terms.json").write_bytes(row.terms.encode())
    (folder / "nodes.json").write_text(
        json.dumps({n: int(r.supernode_id) for n, r in nodes.items() if r})
    )
    for name, digest in (
        ("graph.json", spec.graph_hash),
        ("weights.safetensors", spec.weights_hash),
    ):
        (folder / name).write_bytes((desk.config.models_folder / digest).read_bytes())
    row.run_id = str(desk.superlink.start_run(row.job_id))
    row.runs_started += 1


def _watch_run(desk: Desk, row: JobRow, folder: Path) -> None:
    events = {line["event"] for line in progress(folder)}
    if "round" in events:
        row.state = advance(JobState(row.state), JobState.RUNNING)
    elif "admission" in events:
        row.state = advance(JobState(row.state), JobState.ACCEPTED)
    if (folder / f"outcome.{row.runs_started}.json").exists():
        return  # that run failed, and it was the last: only the deadline is left
    status = desk.superlink.run_status(int(row.run_id or 0))
    if status.state == "finished" and not (folder / "outcome.json").exists():
        _another_run(
            row,
            f"run {row.run_id} ended without an outcome ({status.outcome}: {status.details[:300]})",
        )


def _act_on_outcome(desk: Desk, row: JobRow, terms: JobTerms, folder: Path) -> None:
    outcome = settlement.read_outcome((folder / "outcome.json").read_bytes())
    if outcome["state"] == "attested":
        row.state = advance(JobState(row.state), JobState.ATTESTED)
        if desk.chain.now() > terms.deadline:
            row.reason = "the result came after the deadline"
            desk.escrow.refund(terms)
        else:
            settlement.settle(desk.escrow, terms, outcome, (folder / "report.json").read_bytes())
    elif outcome["state"] == "refused":
        row.reason = "; ".join(r["reason"] for r in outcome["rejections"].values())
        settlement.refund_rejected(desk.escrow, terms, outcome["rejections"])
    else:
        (folder / "outcome.json").replace(folder / f"outcome.{row.runs_started}.json")
        _another_run(row, outcome["reason"])
        return
    status = desk.escrow.job(terms.job_id).status
    if status in ("settled", "refunded"):
        _end(desk, row, JobState(status))


def _wait_or_finalize(desk: Desk, row: JobRow, terms: JobTerms) -> None:
    """An attested job whose window is open, or a dispute: the hub waits, and pays out when time is
    over.
    """
    job = desk.escrow.job(terms.job_id)
    row.state = advance(
        JobState(row.state), JobState.DISPUTED if job.status == "disputed" else JobState.ATTESTED
    )
    if desk.chain.now() > job.until:
        attested = desk.escrow.attested(terms.job_id)
        if attested is None:
            raise Conflict(f"job {row.job_id[:12]}: the chain has lost its attestation")
        desk.escrow.finalize(terms, attested)
        _end(desk, row, JobState.SETTLED)
    else:
        what = "the arbiter may rule" if job.status == "disputed" else "the result may be disputed"
        row.reason = f"{what} until {datetime.fromtimestamp(job.until, UTC):%Y-%m-%d %H:%M} UTC"


def _another_run(row: JobRow, reason: str) -> None:
    """Nodes answer rounds again with the same replies, so a further run costs no privacy; after
    three, the deadline.
    """
    if row.runs_started < MAX_RUNS:
        row.run_id, row.reason = None, f"{reason}; starting again"
    else:
        row.reason = f"{reason}; the buyer is refunded at the deadline"


def _end(desk: Desk, row: JobRow, state: JobState) -> None:
    row.state = state
    row.ended_at = datetime.now(UTC)
    if state is JobState.SETTLED:
        row.reason = ""


def progress(folder: Path) -> list[dict[str, Any]]:
    """The lines of progress.jsonl, newest run included; [] before the run has begun."""
    try:
        text = (folder / "progress.jsonl").read_text()
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue  # the last line is being written right now
    return lines


def describe(desk: Desk, row: JobRow) -> dict[str, Any]:
    """A job as the API and the page show it."""
    terms = JobTerms.from_json(row.terms.encode())
    spec = JobSpec.from_dict(terms.spec)
    folder = desk.config.jobs_folder / row.job_id
    lines = progress(folder)
    rounds = {line["number"]: line for line in lines if line["event"] == "round"}
    admissions = {line["dataset_id"]: line for line in lines if line["event"] == "admission"}
    settled = desk.escrow.settlement(terms.job_id) if row.state == JobState.SETTLED else None
    # only what was attested is shown
    report = (
        json.loads((folder / "report.json").read_bytes())
        if settled
        else {"evaluation": None, "hospitals": []}
    )
    attested = {line["dataset_id"]: line for line in report["hospitals"] if line["worked"]}
    return {
        "job_id": row.job_id,
        "buyer": row.buyer,
        "state": row.state,
        "reason": row.reason,
        "purpose": spec.purpose,
        "amount_units": terms.amount_units,
        "deadline": terms.deadline,
        "rounds_planned": spec.rounds,
        "delta": spec.plan.delta,
        # of settled jobs only: what hospitals have accepted is small enough for its grid
        "epsilon_pld": _pld(
            spec.round_charges() * spec.rounds + spec.evaluation_charges(), spec.plan.delta
        )
        if settled
        else None,
        "datasets": [
            {
                "dataset_id": line.dataset_id,
                "node": line.node,
                "price_units": line.price_units,
                "voucher": line.voucher,
                "accepted": admissions.get(line.dataset_id, {}).get("accepted"),
                "reason": admissions.get(line.dataset_id, {}).get("reason", ""),
                "attested": {
                    name: attested[line.dataset_id][name]
                    for name in ("epsilon_job", "epsilon_lifetime", "unit")
                }
                if line.dataset_id in attested
                else None,
            }
            for line in terms.datasets
        ],
        "rounds": [rounds[number] for number in sorted(rounds)],
        "events": [
            {"at": line["at"], "event": line["event"]} for line in lines if line["event"] != "round"
        ],
        "runs_started": row.runs_started,
        "funded_at": row.funded_at.isoformat() if row.funded_at else None,
        "ended_at": row.ended_at.isoformat() if row.ended_at else None,
        "settlement": settled
        and {
            "model_hash": settled.attestation.model_hash.hex(),
            "report_hash": settled.attestation.report_hash.hex(),
            "worked": settled.attestation.worked,
            "paid_bps": settled.paid_bps,
            "paid_units": settled.paid_units,
            "change_units": settled.change_units,
        },
        "evaluation": report["evaluation"],
        "result_ready": (folder / "result.sealed").exists() and row.state == JobState.SETTLED,
    }


def recent(desk: Desk, limit: int = 100) -> list[dict[str, Any]]:
    """The newest jobs, one short line each."""
    with desk.session() as session:
        rows = session.exec(
            select(JobRow).order_by(col(JobRow.quoted_at).desc()).limit(limit)
        ).all()
    return [
        {
            "job_id": row.job_id,
            "buyer": row.buyer,
            "state": row.state,
            "reason": row.reason,
            "amount_units": JobTerms.from_json(row.terms.encode()).amount_units,
            "funded_at": row.funded_at.isoformat() if row.funded_at else None,
        }
        for row in rows
    ]


def result_file(desk: Desk, row: JobRow, name: str) -> bytes:
    """report.json or result.sealed of a settled job. Raises Conflict before it is settled."""
    if row.state != JobState.SETTLED:
        raise Conflict(
            f"job {row.job_id[:12]} is {row.state}; its result is given out once it is settled"
        )
    return (desk.config.jobs_folder / row.job_id / name).read_bytes()
