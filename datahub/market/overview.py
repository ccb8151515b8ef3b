"""The hub as its operator sees it: how far the index is, what waits and why, who works, what was
earned, what went wrong. Decides nothing.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

from sqlmodel import col, select

from datahub.index.tables import BlockRow
from datahub.market.desk import Desk
from datahub.market.domain import FINAL, JobState
from datahub.market.leases import JOB, WORKER
from datahub.market.tables import DeliveryRow, JobRow, LeaseRow
from datatokens.errors import BankError

MOST = 100  # lines of a list


class Complaints(logging.Handler):
    """The newest warnings and errors of this process, for a page."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: deque[tuple[float, str, str]] = deque(maxlen=MOST)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep (unix seconds, level, message)."""
        self.lines.append((record.created, record.levelname, record.getMessage()[:500]))


complaints = Complaints()


def facts(desk: Desk) -> dict[str, Any]:
    """Everything on the operator's page."""
    now = time.time()
    with desk.session() as session:
        block = session.exec(select(BlockRow.number).order_by(col(BlockRow.number).desc())).first()
        states = [str(state) for state in JobState if state not in FINAL]
        waiting = session.exec(
            select(JobRow)
            .where(col(JobRow.state).in_(states))
            .order_by(col(JobRow.quoted_at))
            .limit(MOST)
        ).all()
        leases = session.exec(select(LeaseRow).where(col(LeaseRow.until) > now)).all()
        untold = session.exec(select(DeliveryRow).limit(MOST)).all()
    try:
        head, chain, fees = desk.chain.block_number(), "", desk.escrow.credit_units(_me(desk))
        gas = desk.chain.balance_wei(_me(desk))
    except BankError as error:
        head, chain, fees, gas = None, str(error), None, None
    workers = {row.holder: 0 for row in leases if row.name.startswith(WORKER)}
    for row in leases:
        if row.name.startswith(JOB) and row.holder in workers:
            workers[row.holder] += 1
    return {
        "block": block,
        "head": head,
        "chain": chain,
        "fees_units": fees,
        "gas_wei": gas,
        "waiting": waiting,
        "workers": workers,
        "untold": untold,
        "complaints": list(complaints.lines)[::-1],
        "figures": desk.figures(),
    }


def _me(desk: Desk) -> str:
    return str(desk.chain.address)
