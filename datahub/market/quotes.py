"""Quotes that wait for their payment: kept within bounds, and made a job when the chain shows that
one was paid, without anybody telling.

What does not fit pushes out the oldest quote, which harms nobody: its buyer's own folder holds
everything, and hands it over with the job. Knows nothing of prices.
"""

from __future__ import annotations

import logging
import time

from sqlmodel import Session, col, delete, func, select

from datahub import logs
from datahub.errors import Conflict
from datahub.index.tables import EscrowRow
from datahub.market import jobs, model_files, repeats
from datahub.market.desk import Desk
from datahub.market.seldom import Pauses
from datahub.market.tables import QuoteRow
from datatokens.terms import JobTerms
from fl_client.protocol import JobSpec

log = logging.getLogger("datahub.hub")

KEPT_S = 3600  # after the quote
MOST = 10_000
MOST_MODEL_BYTES = 2 * 1024**3  # of all quotes that wait


def keep(desk: Desk, terms: JobTerms, graph: bytes, weights: bytes) -> None:
    """Keep quoted terms and the model's files until they are paid, pushed out or an hour old."""
    spec = JobSpec.from_dict(terms.spec)
    with desk.models(), desk.session() as session:
        session.add(
            QuoteRow(
                job_id=terms.job_id.hex(),
                terms=terms.to_json().decode(),
                graph_hash=spec.graph_hash,
                weights_hash=spec.weights_hash,
                model_bytes=len(graph) + len(weights),
                quoted_at=time.time(),
            )
        )
        pushed_out = _make_room(session)
        session.commit()
        if pushed_out:
            model_files.sweep(desk, session)
        model_files.put(desk, (graph, weights))


def _make_room(session: Session) -> int:
    """Drop the oldest quotes until number and bytes are within bounds; how many."""
    session.flush()
    count, size = session.exec(select(func.count(), func.sum(QuoteRow.model_bytes))).one()
    dropped = 0
    while count - dropped > MOST or size > MOST_MODEL_BYTES:
        row = session.exec(select(QuoteRow).order_by(col(QuoteRow.quoted_at)).limit(1)).one()
        size, dropped = size - row.model_bytes, dropped + 1
        session.delete(row)
        session.flush()
    return dropped


def forget_old(desk: Desk) -> None:
    """Drop quotes of more than an hour ago that were not paid, and the files that nothing names
    any more. Raises ChainUnreachable, and drops nothing.
    """
    take_up(desk)
    with desk.models(), desk.session() as session:
        session.exec(delete(QuoteRow).where(col(QuoteRow.quoted_at) < time.time() - KEPT_S))
        session.commit()
        model_files.sweep(desk, session)
    repeats.forget(desk)


def take_up(desk: Desk, pauses: Pauses | None = None) -> None:
    """Make a job of every waiting quote that was paid. Raises ChainUnreachable."""
    pauses = pauses or Pauses()
    desk.index.catch_up()
    paid = select(QuoteRow).join(EscrowRow, col(EscrowRow.job_id) == col(QuoteRow.job_id))
    with desk.session() as session:
        rows = session.exec(paid.where(EscrowRow.status == "funded")).all()
    for row in rows:
        if not pauses.over(row.job_id):
            continue
        pauses.note(row.job_id, failed=True)
        with logs.about(row.job_id):
            try:
                jobs.submit(desk, row.terms.encode())
            except Conflict as error:
                log.warning("job %s is not taken up: %s", row.job_id[:12], error)
            else:
                pauses.note(row.job_id, failed=False)
                log.info("job %s is paid, and taken up", row.job_id[:12])
