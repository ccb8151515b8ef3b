"""The chain's events into tables, each once and in order; taken back where the chain has gone
another way since. Knows nothing of HTTP, manifests, or what a job computes.

Every row follows from the events about one thing (fold.py), so a row that an event touched, new or
taken back, is made again from those that are left. Credits and a hospital's record, which no event
says, are read from the contracts whenever an event has changed them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlmodel import Session, col, delete, func, select, update

from datahub.index import fold
from datahub.index.tables import (
    AttestedRow,
    BlockRow,
    ClaimedRow,
    DatasetRow,
    EpochRow,
    EscrowRow,
    EventRow,
    HospitalRow,
    KeyRow,
    SeenRow,
    place,
)
from datatokens.bindings.escrow import Escrow
from datatokens.bindings.events import Event, Events
from datatokens.bindings.revenue import Revenue
from datatokens.chain.connection import Chain

BLOCKS = 20_000  # of one turn, which is one transaction of the database
KEPT = 1000  # blocks behind the newest in which another way of the chain is looked for
TRIES = 5


@dataclass(frozen=True)
class Touched:
    """The datasets and jobs whose rows a turn has made again."""

    datasets: frozenset[int]
    jobs: frozenset[str]


After = Callable[[Session, Touched], None]


class Indexer:
    """Brings the tables of one database up to the chain. Several at once, in other processes too,
    cost only the work: of two turns one begins again.
    """

    def __init__(self, engine: Engine, chain: Chain, registry: str, market: str, after: After):
        self.engine, self.chain, self.market = engine, chain, market
        self.events = Events(chain, registry, market)
        self.nodes = self.events.nodes  # the node registry's address
        self.escrow, self.revenue = Escrow(chain, market), Revenue(chain, market)
        self._after = after  # in the same transaction as the rows
        self.head = 0  # the newest block that counts, as this process last heard
        self.block = 0  # up to which this process last found the tables
        self.caught_up_at = 0.0  # unix seconds of when the tables last were up to it

    def catch_up(self) -> None:
        """Until everything up to the newest block that counts is in the tables. Raises
        ChainUnreachable.
        """
        failed = 0
        while True:
            try:
                if self._turn():
                    self.caught_up_at = time.time()
                    return
            except (IntegrityError, OperationalError):  # another worker was quicker, or is at it
                failed += 1
                if failed == TRIES:
                    raise

    @property
    def lag(self) -> int:
        """Blocks between the tables and the newest one, as this process last found them."""
        return max(0, self.head - self.block)

    def _turn(self) -> bool:
        """One step; whether it was the last."""
        head = self.head = self.chain.block_number()
        with Session(self.engine) as session:
            seen = session.get(SeenRow, 1)
            blocks = self._blocks(session)
            self.block = blocks[0].number if blocks else 0
            if seen is not None and seen.market == self.market and blocks:
                if blocks[0].number == head:
                    return True
                if blocks[0].number > head and self._same(b for b in blocks if b.number <= head):
                    return True  # a chain node that is behind the one before it
            fork = self._fork(blocks) if seen is not None and seen.market == self.market else -1
            last = min(head, fork + BLOCKS)
            here = self.chain.block_hash(last)
            found = self.events.between(fork + 1, last)
            if here is None or self.chain.block_hash(last) != here:
                return False  # it went another way meanwhile
            if not self._begin(session, seen):
                session.rollback()
                return False
            touched = self._take_back(session, fork)
            touched |= self._write(session, found)
            session.exec(delete(BlockRow).where(col(BlockRow.number) < last - KEPT))
            session.add(BlockRow(number=last, hash=here.hex()))
            session.flush()
            self._after(session, self._refresh(session, touched))
            session.commit()
        self.block = last
        return last == head

    def _begin(self, session: Session, seen: SeenRow | None) -> bool:
        """Take this turn, which nobody else can then; False where somebody has taken it."""
        if seen is None:
            session.add(SeenRow(only=1, version=1, market=self.market))
            session.flush()
            return True
        mine = update(SeenRow).where(col(SeenRow.version) == seen.version)
        done = session.execute(mine.values(version=seen.version + 1, market=self.market))
        return bool(getattr(done, "rowcount", 0) == 1)

    def _blocks(self, session: Session) -> Sequence[BlockRow]:
        return session.exec(select(BlockRow).order_by(col(BlockRow.number).desc())).all()

    def _same(self, blocks: Iterable[BlockRow]) -> bool:
        """Whether the newest of `blocks` is still the chain's, if there is any."""
        newest = next(iter(blocks), None)
        if newest is None:
            return True
        there = self.chain.block_hash(newest.number)
        return there is not None and there.hex() == newest.hash

    def _fork(self, blocks: Sequence[BlockRow]) -> int:
        """The newest block that is kept here and still on the chain; -1 for none."""
        return next((block.number for block in blocks if self._same([block])), -1)

    def _take_back(self, session: Session, fork: int) -> set[str]:
        """Forget what was said after block `fork`; what it was about."""
        gone = session.exec(
            select(EventRow.about).where(col(EventRow.block) > fork).distinct()
        ).all()
        # a job's lines are needed to find the pools that it changed: they may be gone after
        pools = {
            f"pool:{line.dataset_id}"
            for thing in gone
            if thing.startswith("job:")
            for line in _lines(session, thing.removeprefix("job:"))
        }
        for table in (EventRow, BlockRow):
            where = EventRow.block if table is EventRow else BlockRow.number
            session.exec(delete(table).where(col(where) > fork))
        touched = {*gone, *pools}
        for thing in touched:
            if thing.startswith("pool:"):  # lists may be live no longer, or credited with less
                number = int(thing.removeprefix("pool:"))
                session.exec(delete(EpochRow).where(col(EpochRow.dataset_id) == number))
        return touched

    def _write(self, session: Session, found: Iterable[Event]) -> set[str]:
        touched = set()
        for one in found:
            what = fold.about(one.contract, one.name, one.args)
            session.add(
                EventRow(
                    block=one.block,
                    position=one.position,
                    name=one.name,
                    about=what,
                    args=json.dumps(one.args),
                )
            )
            touched.add(what)
        session.flush()
        return touched

    def _refresh(self, session: Session, touched: set[str]) -> Touched:
        """Make the rows of these things again."""
        jobs, pools, datasets = set(), set(), set()
        for thing in sorted(touched):
            kind, _, name = thing.partition(":")
            if kind == "job":
                before = {line.dataset_id for line in _lines(session, name)}
                _job(session, name)
                jobs.add(name)
                pools |= before | {line.dataset_id for line in _lines(session, name)}
            elif kind == "pool":
                pools.add(int(name))
            elif kind == "claimed":
                _claimed(session, thing, *name.split(":"))
            elif kind == "hospital":
                _hospital(session, int(name))
            elif kind == "dataset":
                _dataset(session, int(name))
                datasets.add(int(name))
        session.flush()
        for number in pools:
            self._pool(session, number)
        return Touched(frozenset(datasets | pools), frozenset(jobs))

    def _pool(self, session: Session, dataset_id: int) -> None:
        """What only the contracts know of a dataset: its record, and what its lists were credited.
        Older lists than the one before the live one do not change.
        """
        row = session.get(DatasetRow, dataset_id)
        if row is None:
            return
        for name, value in vars(self.escrow.standing(dataset_id)).items():
            setattr(row, name, value)
        row.epsilon_micro, row.jobs_attested = session.exec(
            select(func.coalesce(func.max(AttestedRow.epsilon_micro), 0), func.count()).where(
                AttestedRow.dataset_id == dataset_id, AttestedRow.epsilon_micro > 0
            )
        ).one()
        starts = {
            said["epoch"]: at
            for _, at, name, said in _said(session, f"pool:{dataset_id}")
            if name == "ContributorsLive"
        }
        live = self.revenue.pool(dataset_id).epoch
        mine = select(EpochRow.epoch).where(EpochRow.dataset_id == dataset_id)
        kept = set(session.exec(mine).all())
        for number in range(1, live + 1):
            if number not in kept or number >= live - 1:
                there = self.revenue.epoch(dataset_id, number)
                session.merge(
                    EpochRow(
                        dataset_id=dataset_id,
                        epoch=number,
                        root=there.root.hex(),
                        since=starts.get(number, 0),
                        credited_units=str(there.credited_units),
                    )
                )


def _said(session: Session, about: str) -> list[tuple[int, int, str, dict[str, Any]]]:
    """(block, place, name, arguments) of the events about one thing, oldest first."""
    rows = session.exec(
        select(EventRow)
        .where(EventRow.about == about)
        .order_by(col(EventRow.block), col(EventRow.position))
    ).all()
    return [
        (row.block, place(row.block, row.position), row.name, json.loads(row.args)) for row in rows
    ]


def _lines(session: Session, job_id: str) -> Sequence[AttestedRow]:
    return session.exec(select(AttestedRow).where(AttestedRow.job_id == job_id)).all()


def _dataset(session: Session, dataset_id: int) -> None:
    events = [(name, said) for *_, name, said in _said(session, f"dataset:{dataset_id}")]
    found, row = fold.dataset(events), session.get(DatasetRow, dataset_id)
    if found is None:
        if row is not None:
            session.delete(row)
    elif row is None:
        session.add(DatasetRow(dataset_id=dataset_id, **found))
    else:
        for name, value in found.items():
            setattr(row, name, value)


def _job(session: Session, job_id: str) -> None:
    found = fold.job(_said(session, f"job:{job_id}"))
    session.exec(delete(AttestedRow).where(col(AttestedRow.job_id) == job_id))
    session.exec(delete(EscrowRow).where(col(EscrowRow.job_id) == job_id))
    if found is not None:
        session.add(EscrowRow(job_id=job_id, **found.columns))
        for position, line in enumerate(found.lines):
            session.add(AttestedRow(job_id=job_id, position=position, **line))
    session.flush()


def _claimed(session: Session, about: str, dataset_id: str, epoch: str, account: str) -> None:
    units = sum(said["units"] for *_, said in _said(session, about))
    key: dict[str, Any] = {
        "dataset_id": int(dataset_id),
        "epoch": int(epoch),
        "account": account,
    }
    row = session.get(ClaimedRow, tuple(key.values()))
    if not units:
        if row is not None:
            session.delete(row)
    else:
        session.merge(ClaimedRow(**key, units=str(units)))


def _hospital(session: Session, hospital_id: int) -> None:
    events = [(name, said) for *_, name, said in _said(session, f"hospital:{hospital_id}")]
    found = fold.hospital(events)
    session.exec(delete(HospitalRow).where(col(HospitalRow.hospital_id) == hospital_id))
    session.exec(delete(KeyRow).where(col(KeyRow.hospital_id) == hospital_id))
    if found is not None:
        session.add(HospitalRow(hospital_id=hospital_id, **found.columns))
        for key, columns in found.keys.items():
            session.add(KeyRow(key=key, hospital_id=hospital_id, **columns))
