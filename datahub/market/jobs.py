"""Jobs as the hub keeps and shows them: taken in once they are paid, described from the terms, the
run's progress and the chain.

Knows nothing of HTTP, and takes no step for a job: reconcile.py does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import tuple_
from sqlmodel import Session, col, select

from datahub.errors import BadRequest, Conflict, NotFound
from datahub.index.tables import EscrowRow
from datahub.market import model_files
from datahub.market.desk import Desk
from datahub.market.domain import FINAL, JobState
from datahub.market.tables import FigureRow, JobRow, NodeRow, QuoteRow
from datahub.order import LONGEST_S
from datatokens.errors import TermsError
from datatokens.terms import JobTerms
from datatokens.wire import parse
from fl_client.errors import NodeError
from fl_client.privacy import accounting
from fl_client.protocol import JobSpec, sha256_hex
from fl_server.run_folder import RunFolder

OUTSIDE = "settled outside this hub: there is no report or model of it here"
# beyond it, which no hospital that guards anybody accepts, the tighter figure costs minutes
MOST_EPSILON = 100.0
CLOCK_S = 600


def submit(desk: Desk, raw_terms: bytes, files: tuple[bytes, ...] = ()) -> JobRow:
    """Take a job in, with the model's `files` where the quote's are gone. Idempotent.

    Raises BadRequest for bad terms, Conflict for a job that the escrow does not hold or that cannot
    run here: one that this hub has not quoted must name nodes that it knows, end within the longest
    time of an order and pay the fee, or anybody could fill the hub with jobs that never start.
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
            _again(desk, row, spec, files)
            return row
        if desk.escrow.job(terms.job_id).status != "funded":
            raise Conflict(
                f"job {job_id[:12]}: the escrow holds no money for exactly these terms; pay first"
            )
        quoted = session.get(QuoteRow, job_id)
        if quoted is None and (problem := _not_ours(desk, session, terms)):
            raise Conflict(
                f"job {job_id[:12]} is not taken: {problem}; `datahub job refund` brings its money "
                "back after the deadline"
            )
    with desk.models(), desk.session() as session:
        if row := session.get(JobRow, job_id):  # told of and seen on the chain at the same time
            return row
        named = [getattr(spec, name) for name in model_files.NAMES]
        model_files.put(desk, (one for one in files if sha256_hex(one) in named))
        for name, digest in zip(model_files.NAMES, named, strict=True):
            if not (desk.config.models_folder / digest).exists():
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
        if quoted is not None:
            session.delete(quoted)
        session.commit()
    return row


def _again(desk: Desk, row: JobRow, spec: JobSpec, files: tuple[bytes, ...]) -> None:
    """A job that is told of again may bring files that were lost here."""
    if JobState(row.state) not in FINAL:
        named = [getattr(spec, name) for name in model_files.NAMES]
        with desk.models():
            model_files.put(desk, (one for one in files if sha256_hex(one) in named))


def _not_ours(desk: Desk, session: Session, terms: JobTerms) -> str | None:
    """Why a job that this hub has not quoted cannot run here; None if it can."""
    for line in terms.datasets:
        if session.get(NodeRow, line.node) is None:
            return f"node {line.node} of dataset {line.dataset_id} has not registered with this hub"
    left = terms.deadline - desk.chain.now()
    if left > LONGEST_S + CLOCK_S:
        return f"its deadline is {left} s ahead, and {LONGEST_S} are the most"
    prices = sum(line.price_units for line in terms.datasets)
    fee = (prices + terms.reward_units) * desk.config.fee_bps // 10_000
    if terms.fee_units < fee:
        return f"fee_units={terms.fee_units} is less than this hub's fee of {fee}"
    return None


def job_row(desk: Desk, job_id: str) -> JobRow:
    """The row of a job. Raises NotFound."""
    with desk.session() as session:
        row = session.get(JobRow, job_id.removeprefix("0x"))
    if row is None:
        raise NotFound(f"job_id={job_id[:80]} is not known here")
    return row


def run_folder(desk: Desk, row: JobRow) -> RunFolder:
    """Where the runs of a job read and write."""
    return RunFolder(desk.config.jobs_folder / row.job_id)


def undecided(lines: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Dataset id -> until when, of those where the newest run waits for a person's answer."""
    found: dict[int, int] = {}
    for line in lines:
        if line["event"] == "started":
            found = {}
        elif line["event"] == "waiting":
            found[int(line["dataset_id"])] = int(line["until"])
        elif line["event"] in ("admission", "attestation"):
            found.pop(int(line["dataset_id"]), None)
    return found


def waits_for(undecided: Mapping[int, int]) -> str:
    """The same as a sentence; "" for nobody."""
    each = [
        f"the hospital of dataset {dataset_id} (until "
        f"{datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M} UTC)"
        for dataset_id, end in sorted(undecided.items())
    ]
    return f"waiting for {', '.join(each)}" if each else ""


def describe(desk: Desk, row: JobRow) -> dict[str, Any]:
    """A job as the API and the page show it."""
    terms = JobTerms.from_json(row.terms.encode())
    spec = JobSpec.from_dict(terms.spec)
    folder = run_folder(desk, row)
    lines = folder.events()
    rounds = {
        line["number"]: line for line in lines if line["event"] == "round" and "number" in line
    }
    admissions = {
        line["dataset_id"]: line
        for line in lines
        if line["event"] == "admission" and "dataset_id" in line
    }
    waits = {} if JobState(row.state) in FINAL else undecided(lines)
    settled = _settled(desk, row)
    # only what was attested is shown; hospitals may have settled among themselves, without this hub
    ours = settled is not None and _is_ours(folder, settled.report_hash)
    report = parse(folder.report) if ours else {"evaluation": None, "hospitals": []}
    attested = {line["dataset_id"]: line for line in report["hospitals"] if line["worked"]}
    return {
        "job_id": row.job_id,
        "buyer": row.buyer,
        "state": row.state,
        "reason": OUTSIDE if settled and not ours else row.reason,
        "purpose": spec.purpose,
        "amount_units": terms.amount_units,
        "deadline": terms.deadline,
        "rounds_planned": spec.rounds,
        "loss": spec.loss,
        "loss_clip": spec.plan.metric_clip,
        "delta": spec.plan.delta,
        "epsilon_pld": _figure(desk, row.job_id),
        "datasets": [
            {
                "dataset_id": line.dataset_id,
                "node": line.node,
                "price_units": line.price_units,
                "voucher": line.voucher,
                # none: not asked yet, or it did not answer, which is no refusal
                "accepted": None
                if admissions.get(line.dataset_id, {}).get("silent")
                else admissions.get(line.dataset_id, {}).get("accepted"),
                # until when a person there decides (unix seconds)
                "waiting_until": waits.get(line.dataset_id),
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
            "model_hash": settled.model_hash,
            "report_hash": settled.report_hash,
            "worked": int(settled.worked),
            "paid_bps": settled.paid_bps,
            "paid_units": int(settled.paid_units),
            "change_units": int(settled.change_units),
        },
        "evaluation": report["evaluation"],
        "result_ready": ours,
    }


def keep_figure(desk: Desk, terms: JobTerms) -> None:
    """Work out the tighter epsilon of a settled job, once, where it costs at most a second or so;
    a job that no hospital with a budget would have accepted has none.
    """
    spec = JobSpec.from_dict(terms.spec)
    charges = spec.round_charges() * spec.rounds + spec.evaluation_charges()
    cheap = accounting.epsilon(charges, spec.plan.delta) <= MOST_EPSILON
    found = accounting.pld_epsilon(charges, spec.plan.delta) if cheap else None
    with desk.session() as session:
        session.merge(FigureRow(job_id=terms.job_id.hex(), epsilon_pld=found))
        session.commit()


def _figure(desk: Desk, job_id: str) -> float | None:
    with desk.session() as session:
        row = session.get(FigureRow, job_id)
    return row.epsilon_pld if row else None


def recent(
    desk: Desk, limit: int = 100, after: str = "", buyer: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """The newest jobs (of one buyer), one short line each, and the cursor of the next page, "" for
    none. Raises BadRequest for a cursor that is none.
    """
    place = col(JobRow.quoted_at), col(JobRow.job_id)
    wanted = select(JobRow, EscrowRow.amount_units).join(
        EscrowRow, col(EscrowRow.job_id) == col(JobRow.job_id), isouter=True
    )
    if buyer:
        wanted = wanted.where(JobRow.buyer == buyer)
    if after:
        wanted = wanted.where(tuple_(*place) < tuple_(*_cursor(after)))
    ordered = wanted.order_by(*(one.desc() for one in place)).limit(limit + 1)
    with desk.session() as session:
        rows = session.exec(ordered).all()
    shown = [
        {
            "job_id": row.job_id,
            "buyer": row.buyer,
            "state": row.state,
            "reason": row.reason,
            # a job that was told of in the very moment of its payment is not in the index yet
            "amount_units": int(units or JobTerms.from_json(row.terms.encode()).amount_units),
            "funded_at": row.funded_at.isoformat() if row.funded_at else None,
        }
        for row, units in rows[:limit]
    ]
    last = rows[limit - 1][0] if len(rows) > limit else None
    return shown, f"{last.quoted_at.isoformat()},{last.job_id}" if last else ""


def _cursor(text: str) -> tuple[datetime, str]:
    at, _, job_id = text.partition(",")
    try:
        return datetime.fromisoformat(at), job_id
    except ValueError as error:
        raise BadRequest(
            f"after={text[:60]!r} is no cursor; take it from the page before"
        ) from error


def _settled(desk: Desk, row: JobRow) -> EscrowRow | None:
    """What the chain says of a settled job; None before."""
    if row.state != JobState.SETTLED:
        return None
    with desk.session() as session:
        found = session.get(EscrowRow, row.job_id)
    return found if found is not None and found.status == "settled" else None


def _is_ours(folder: RunFolder, report_hash: str) -> bool:
    """Whether the report here is the one that was attested on the chain."""
    return folder.has_result and sha256_hex(folder.report) == report_hash


def result(desk: Desk, row: JobRow) -> RunFolder:
    """The folder with report and sealed model of a settled job. Raises Conflict before that."""
    if row.state != JobState.SETTLED:
        raise Conflict(
            f"job {row.job_id[:12]} is {row.state}; its result is given out once it is settled"
        )
    folder = run_folder(desk, row)
    if not folder.has_result:
        raise Conflict(f"job {row.job_id[:12]} was {OUTSIDE}")
    return folder
