"""A hub's figures as metrics: jobs, money, index, chain, loops, this process. Each is looked up at
most every few seconds, however often it is asked for. Knows nothing of HTTP.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Float, cast
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import col, func, select

from datahub.index.tables import EscrowRow
from datahub.market.desk import Desk
from datahub.market.domain import FINAL, JobState
from datahub.market.readiness import ANSWER_S, Probe
from datahub.market.reconcile import Loop
from datahub.market.seldom import Seldom
from datahub.market.tables import JobRow
from datahub.web import live
from datahub.web.counted import Counts
from datahub.web.exposition import COUNTER, GAUGE, Family, Sample, gauge
from datatokens.errors import BankError

T = TypeVar("T")
JOBS_S, MONEY_S, PURSE_S = 5.0, 30.0, 30.0  # how old the figures of each may be
OPEN = [str(state) for state in JobState if state not in FINAL]


class Figures:
    """Of one hub process; `loops` are those that run beside its answers."""

    def __init__(self, desk: Desk, loops: Callable[[], Sequence[Loop]], counts: Counts):
        self._desk, self._loops, self._counts = desk, loops, counts
        self._started = time.time()
        self._jobs = Probe(Seldom(self._ask_jobs, JOBS_S))
        self._money = Probe(Seldom(self._ask_money, MONEY_S))
        self._purse = Probe(Seldom(self._ask_purse, PURSE_S))

    def families(self) -> list[Family]:
        """All that is known now: what does not answer is left out."""
        return [
            *self._counts.families(),
            *self._of_jobs(),
            *self._of_chain(),
            *self._of_process(),
        ]

    def _of_jobs(self) -> Iterator[Family]:
        jobs = _known(self._jobs)
        if jobs is not None:
            yield Family(
                "datahub_open_jobs",
                GAUGE,
                "Jobs that have not ended, by state.",
                [Sample(jobs.get(state, 0), {"state": state}) for state in OPEN],
            )
            yield Family(
                "datahub_ended_jobs_total",
                COUNTER,
                "Jobs that have ended, by how.",
                [Sample(jobs.get(str(s), 0), {"state": str(s)}) for s in sorted(FINAL)],
            )
        money = _known(self._money)
        if money is not None:
            yield Family(
                "datahub_units_total",
                COUNTER,
                "Base units of the payment token that this hub's jobs have moved: paid out by "
                "settling, given back by refunds.",
                [Sample(units, {"how": how}) for how, units in sorted(money.items())],
            )

    def _of_chain(self) -> Iterator[Family]:
        desk, now = self._desk, time.time()
        yield gauge("datahub_index_block", "Block up to which the index is.", desk.index.block)
        yield gauge("datahub_index_lag_blocks", "Blocks that it is behind.", desk.index.lag)
        if desk.index.caught_up_at:
            yield gauge(
                "datahub_index_age_seconds",
                "Seconds since the index was last up to the chain.",
                now - desk.index.caught_up_at,
            )
        if desk.chain.answered_at:
            yield gauge(
                "datahub_chain_answer_age_seconds",
                "Seconds since the chain's last answer.",
                now - desk.chain.answered_at,
            )
        purse = _known(self._purse)
        if purse is not None:
            yield gauge(
                "datahub_operator_wei", "Gas coin that the operator's key has left, in wei.", purse
            )
        yield Family(
            "datahub_loop_turn_age_seconds",
            GAUGE,
            "Seconds since a loop's last turn.",
            [Sample(now - loop.turned_at, {"loop": loop.name}) for loop in self._loops()],
        )

    def _of_process(self) -> Iterator[Family]:
        leases = self._desk.leases.held
        yield gauge("datahub_leases", "Jobs that this process drives now.", leases)
        yield gauge("datahub_watchers", "Streams of events that are open here.", live.watchers())
        yield gauge(
            "process_start_time_seconds", "When the process began, in unix seconds.", self._started
        )
        for name, help, value in _of_memory():
            yield gauge(name, help, value)

    def _ask_jobs(self) -> dict[str, int]:
        with self._desk.session() as session:
            states = select(JobRow.state, func.count()).group_by(JobRow.state)
            return dict(session.exec(states).all())

    def _ask_money(self) -> dict[str, float]:
        # as floating point: a metric is no other, and units go beyond what databases count
        sums = {"settled": EscrowRow.paid_units, "refunded": EscrowRow.amount_units}
        found = {}
        with self._desk.session() as session:
            for status, units in sums.items():
                wanted = (
                    select(func.sum(cast(func.nullif(units, ""), Float)))
                    .join(JobRow, col(JobRow.job_id) == col(EscrowRow.job_id))
                    .where(EscrowRow.status == status)
                )
                found[status] = float(session.exec(wanted).one() or 0.0)
        return found

    def _ask_purse(self) -> int:
        chain = self._desk.chain
        return chain.balance_wei(chain.address) if chain.address else 0


def _known(probe: Probe[T]) -> T | None:
    try:
        return probe(ANSWER_S)
    except (TimeoutError, SQLAlchemyError, BankError):
        return None


def _of_memory() -> Iterator[tuple[str, str, float]]:
    """What Linux says of this process."""
    own = Path("/proc/self")
    if (own / "statm").exists():
        pages = int((own / "statm").read_text().split()[1])
        yield (
            "process_resident_memory_bytes",
            "Memory that the process holds, in bytes.",
            pages * os.sysconf("SC_PAGE_SIZE"),
        )
        yield "process_open_fds", "Files and connections open.", len(list((own / "fd").iterdir()))
