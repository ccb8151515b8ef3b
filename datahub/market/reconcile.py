"""Drive jobs to their end: look at chain, run and reports, take the one next idempotent step, and
again.

Nothing here depends on having seen an event, so the hub can be stopped and started at any moment.
Knows nothing of HTTP; money moves only through fl_server.settlement.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from sqlmodel import col, select

from datahub import logs
from datahub.errors import Conflict, HubError
from datahub.market import entries, jobs, quotes, webhooks
from datahub.market.desk import Desk
from datahub.market.domain import FINAL, JobState, advance
from datahub.market.leases import JOB, LIVES_S
from datahub.market.seldom import Pauses
from datahub.market.tables import JobRow, NodeRow
from datatokens.errors import BankError
from datatokens.terms import JobTerms
from fl_client.protocol import JobSpec
from fl_server import settlement
from fl_server.errors import TheatreError
from fl_server.run_folder import RunFolder

log = logging.getLogger("datahub.hub")

LONGEST_REST_S = 3600.0  # between two runs of a job, when all before have failed
# for a machine that is being restarted; then a quorum may start without it
PATIENCE = timedelta(seconds=90)
TICK_S = 0.3
QUIET_S = 2.0  # a run that writes is alive, and the SuperLink need not be asked
ACCEPT_AGAIN_S = 20.0
AWAY_S = 5.0  # after a look that could not be taken, as the chain was away


class Loop(threading.Thread):
    """The hub's chores, in a thread of its process. One broken job never stops the others."""

    def __init__(self, desk: Desk, chores: Mapping[Callable[[Desk], None], float], name: str):
        super().__init__(name=name, daemon=True)
        self.desk, self.chores = desk, chores
        self.stopping = threading.Event()
        self.turned_at = time.time()  # unix seconds of the last turn, in which a chore may hang

    def run(self) -> None:
        """Until stopped: each chore, every so many seconds."""
        chores = self.chores
        due = dict.fromkeys(chores, 0.0)
        while not (self.stopping.wait(TICK_S) or self.desk.stopping.is_set()):
            self.turned_at = time.time()
            for chore in chores:
                if time.monotonic() < due[chore]:
                    continue
                due[chore] = time.monotonic() + chores[chore]
                try:
                    chore(self.desk)
                except BankError as error:
                    log.warning("%s; the hub asks again", error)
                    due[chore] = time.monotonic() + AWAY_S
                except Exception:
                    # level-triggered: whatever went wrong, the next look starts from the facts
                    log.exception("reconcile")
                    due[chore] = time.monotonic() + AWAY_S


def loops(desk: Desk, *, drive: bool) -> list[Loop]:
    """What runs beside a hub's answers: the index and this process's leases; with `drive` jobs
    too, in a thread of their own, since a step may wait long for the chain.
    """
    pauses = Pauses()
    looking: dict[Callable[[Desk], None], float] = {  # -> how often, in seconds
        lambda desk: desk.index.catch_up(): TICK_S,
        forget_ended_offers: 5.0,
    }
    if not drive:
        return [Loop(desk, looking, "index")]
    driving: dict[Callable[[Desk], None], float] = {
        lambda desk: quotes.take_up(desk, pauses): TICK_S,
        lambda desk: reconcile(desk, pauses, shared=True): TICK_S,
        quotes.forget_old: 60.0,
    }
    looking[lambda desk: desk.leases.renew()] = LIVES_S / 3
    telling: dict[Callable[[Desk], None], float] = {tell: 1.0}
    return [
        Loop(desk, looking, "index"),
        Loop(desk, driving, "reconcile"),
        Loop(desk, telling, "webhooks"),
    ]


def tell(desk: Desk) -> None:
    """What buyers' webhooks are to be told, by one of several hub processes."""
    if desk.leases.take("webhooks"):
        webhooks.deliver(desk)


def stop(desk: Desk, running: Sequence[Loop]) -> None:
    """End the loops, and let others have what this process held: within some seconds, whatever
    hangs. A step that waits for the chain may be cut off: each is taken again until it is done.
    """
    for loop in running:
        loop.stopping.set()
    for loop in running:
        loop.join(timeout=0.5)
    giving_up = threading.Thread(target=desk.leases.end, daemon=True)
    giving_up.start()
    giving_up.join(timeout=2.0)


def forget_ended_offers(desk: Desk) -> None:
    """What nodes said of what is left, where it is good no longer."""
    with desk.session() as session:
        if entries.forget_ended_offers(session):
            session.commit()


def reconcile(desk: Desk, pauses: Pauses | None = None, shared: bool = False) -> None:
    """One look at every open job that has no pause; whatever one job's step raises is its own. Of
    several hub processes (`shared`) each looks at its own.
    """
    pauses = pauses or Pauses()
    with desk.session() as session:
        rows = session.exec(
            select(JobRow).where(
                col(JobRow.state).in_([str(s) for s in JobState if s not in FINAL])
            )
        ).all()
    online = cache(desk.superlink.online_nodes)  # asked once a look, if any job waits for it
    mine = desk.leases.share([JOB + row.job_id for row in rows]) if shared else None
    for row in rows:
        if desk.stopping.is_set():  # others take what is left
            return
        if pauses.over(row.job_id) and (mine is None or f"job:{row.job_id}" in mine):
            with logs.about(row.job_id):
                _look(desk, row, online, pauses)


def _look(desk: Desk, row: JobRow, online: Callable[[], set[int]], pauses: Pauses) -> None:
    failed = True
    before = (row.state, row.reason, row.run_id, row.runs_started)
    try:
        step(desk, row, online)
        failed = False
    except (BankError, TheatreError, HubError) as error:
        row.reason = str(error)
        log.warning("job %s: %s", row.job_id[:12], error)
    except Exception:
        # rubbish in a file of this job, a full disk: never another job's trouble
        row.reason = "the hub could not take this job's next step; its operator's log says why"
        log.exception("job %s", row.job_id[:12])
    pauses.note(row.job_id, failed)
    if (row.state, row.reason, row.run_id, row.runs_started) != before:
        try:
            with desk.session() as session:
                session.merge(row)
                if row.state != before[0]:
                    webhooks.note(session, row)
                session.commit()
        except Exception:  # the next look takes the same step again
            log.exception("job %s is not written down", row.job_id[:12])
        said = "".join(c if c.isprintable() else " " for c in row.reason)
        log.info("job %s is %s %s", row.job_id[:12], row.state, said)


def step(desk: Desk, row: JobRow, online: Callable[[], set[int]]) -> None:
    """The one next step of a job; changes `row`, which the caller keeps."""
    terms = JobTerms.from_json(row.terms.encode())
    status = desk.escrow.job(terms.job_id).status
    if status in ("settled", "refunded"):
        _end(desk, row, JobState(status))
        return
    if status == "none":  # a chain that was put back, or another one: nothing is done for it
        raise Conflict("the escrow does not hold this job")
    folder = jobs.run_folder(desk, row)
    if status in ("proposed", "disputed"):
        _wait_or_finalize(desk, row, terms)
        return
    if desk.chain.now() > terms.deadline:  # before anything that the contract would refuse by now
        _refund(desk, row, terms, folder)
        return
    acceptances = folder.acceptances
    # one that the chain refuses is tried again, but not at every look
    due = folder.taken_s_ago > ACCEPT_AGAIN_S
    if acceptances and (due or folder.taken is None) and not _all_taken(folder, acceptances):
        settlement.accept(desk.escrow, terms, acceptances)
        accepted = desk.escrow.job(terms.job_id).accepted
        taken = [line.node for i, line in enumerate(terms.datasets) if accepted >> i & 1]
        folder.keep_taken(taken)
    if outcome := folder.outcome:
        _act_on_outcome(desk, row, terms, folder, outcome)
    elif row.run_id is None:
        _start_run(desk, row, terms, folder, online)
    else:
        _watch_run(desk, row, folder)


def _all_taken(folder: RunFolder, acceptances: Mapping[str, str]) -> bool:
    return folder.taken is not None and set(acceptances) <= folder.taken


def _refund(desk: Desk, row: JobRow, terms: JobTerms, folder: RunFolder) -> None:
    """The deadline has passed: the buyer has everything back, whatever a run has left behind."""
    if row.state == JobState.ATTESTED or folder.has_result:
        row.reason = "the result came after the deadline"
    row.reason = row.reason or "the deadline passed before the hospitals had signed a result"
    desk.escrow.refund(terms)
    _end(desk, row, JobState.REFUNDED)


def _start_run(
    desk: Desk,
    row: JobRow,
    terms: JobTerms,
    folder: RunFolder,
    online: Callable[[], set[int]],
) -> None:
    if goes_on := desk.superlink.open_runs(row.job_id):  # started just before a crash of the hub
        row.run_id, row.runs_started = str(goes_on[-1]), row.runs_started + 1
        return
    spec = JobSpec.from_dict(terms.spec)
    with desk.session() as session:
        nodes = {line.node: session.get(NodeRow, line.node) for line in terms.datasets}
    if missing := [node for node, found in nodes.items() if found is None]:
        raise Conflict(f"node {missing[0]} has not registered with this hub")
    absent = [
        node for node, found in nodes.items() if found and int(found.supernode_id) not in online()
    ]
    waited = datetime.now(UTC) - (row.funded_at or row.quoted_at).replace(tzinfo=UTC)
    if absent and (len(nodes) - len(absent) < terms.quorum or waited < PATIENCE):
        row.reason = f"waiting for node {absent[0]} to connect"
        return
    if folder.rested_s(row.runs_started) < rest_s(row.runs_started):
        return
    row.reason = ""
    models = desk.config.models_folder
    folder.hand_over(
        row.terms.encode(),
        graph=(models / spec.graph_hash).read_bytes(),
        weights=(models / spec.weights_hash).read_bytes(),
        nodes={node: int(found.supernode_id) for node, found in nodes.items() if found},
    )
    row.run_id = str(desk.superlink.start_run(row.job_id))
    row.runs_started += 1


def _watch_run(desk: Desk, row: JobRow, folder: RunFolder) -> None:
    events = folder.events()
    kinds = {line["event"] for line in events}
    waits = jobs.waits_for(jobs.undecided(events))
    if "round" in kinds:
        state = JobState.RUNNING
    elif waits:
        state = JobState.WAITING
    else:
        state = JobState.ACCEPTED if "admission" in kinds else JobState(row.state)
    if kinds & {"round", "admission", "waiting"}:
        row.state, row.reason = advance(JobState(row.state), state), waits
    if folder.has_outcome_of(row.runs_started):  # set aside, and then the hub was killed
        _another_run(row, "the last run failed")
        return
    if folder.outcome is None and folder.quiet_s < QUIET_S:
        return  # it is alive
    status = desk.superlink.run_status(int(row.run_id or 0))
    if status.state == "finished" and folder.outcome is None:
        reason = f"run {row.run_id} ended without an outcome"
        reason = f"{reason} ({status.outcome}: {status.details[:300]})"
        folder.finish("failed", reason=reason)
        folder.set_outcome_aside(row.runs_started)
        _another_run(row, reason)


def _act_on_outcome(
    desk: Desk, row: JobRow, terms: JobTerms, folder: RunFolder, outcome: Mapping[str, Any]
) -> None:
    if outcome["state"] == "attested":
        row.state = advance(JobState(row.state), JobState.ATTESTED)
        settlement.settle(desk.escrow, terms, outcome, folder.report)
    elif outcome["state"] == "refused":
        row.reason = "; ".join(r["reason"] for r in outcome["rejections"].values())
        settlement.refund_rejected(desk.escrow, terms, outcome["rejections"])
    else:
        folder.set_outcome_aside(row.runs_started)
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


def rest_s(runs: int) -> float:
    """Seconds from the end of run number `runs`, which failed, to the next: none after the first,
    which may have fallen with the SuperLink, then twice as many each time.
    """
    return 0.0 if runs <= 1 else min(LONGEST_REST_S, 5.0 * 2 ** min(runs - 2, 20))


def _another_run(row: JobRow, reason: str) -> None:
    """Nodes answer rounds again with the same replies, so a further run costs no privacy."""
    rest = rest_s(row.runs_started)
    row.run_id = None
    row.reason = f"{reason}; starting again" + (f" {rest:.0f} s later" if rest else "")


def _end(desk: Desk, row: JobRow, state: JobState) -> None:
    desk.index.catch_up()  # whoever reads of the end finds what was paid
    if state is JobState.SETTLED:
        row.reason = ""
        try:
            jobs.keep_figure(desk, JobTerms.from_json(row.terms.encode()))
        except Exception:  # a figure for people to look at: the result does not wait for it
            log.exception("job %s has no tighter epsilon", row.job_id[:12])
    row.state = state
    row.ended_at = datetime.now(UTC)
