"""Who of several hub processes does a thing: a row for each thing, taken for some seconds and taken
again while it is done. A process that died loses its things when the seconds are over.

Two who do the same thing at once cost work, not money: every step is safe to take twice. Knows
nothing of what is done.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Collection

from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, delete, func, or_, select, update

from datahub.market.tables import LeaseRow

LIVES_S = 10.0  # of a lease; clocks of several machines must agree to a few seconds
WORKER, JOB = "worker:", "job:"


class Leases:
    """The leases of one process on one database."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.me = f"{socket.gethostname()[:60]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._mine: set[str] = set()
        self._renewed = time.time()
        self._ended = False
        self._lock = threading.RLock()  # one thread renews, another takes, a third ends

    @property
    def held(self) -> int:
        """How many jobs are this process's, as it last knew."""
        return sum(name.startswith("job:") for name in set(self._mine))

    @property
    def ended(self) -> bool:
        """Whether everything was given up: nothing is this process's any more."""
        return self._ended

    def renew(self) -> None:
        """Say that this process lives, and keep what it holds: call it well within LIVES_S. What
        another has taken meanwhile is no longer held.
        """
        with self._lock:
            if self._ended:
                return
            now = time.time()
            with Session(self.engine) as session:
                session.exec(delete(LeaseRow).where(col(LeaseRow.until) < now - 60 * LIVES_S))
                held = update(LeaseRow).where(col(LeaseRow.holder) == self.me)
                session.execute(held.values(until=now + LIVES_S))
                session.commit()
                mine = select(LeaseRow.name).where(LeaseRow.holder == self.me)
                self._mine = set(session.exec(mine).all())
            self._renewed = now
            self.take(WORKER + self.me)

    def workers(self) -> int:
        """How many processes live, this one included."""
        with Session(self.engine) as session:
            alive = col(LeaseRow.name).startswith(WORKER), col(LeaseRow.until) > time.time()
            return max(1, session.exec(select(func.count()).where(*alive)).one())

    def take(self, name: str) -> bool:
        """Whether `name` is this process's now."""
        with self._lock:
            return not self._ended and self._take(name)

    def _take(self, name: str) -> bool:
        now = time.time()
        if now > self._renewed + LIVES_S:  # this process has slept: what it held may be another's
            self._mine.clear()
        if name in self._mine:
            return True
        with Session(self.engine) as session:
            free = or_(col(LeaseRow.until) < now, col(LeaseRow.holder) == self.me)
            taken = update(LeaseRow).where(col(LeaseRow.name) == name, free)
            done = session.execute(taken.values(holder=self.me, until=now + LIVES_S))
            if not getattr(done, "rowcount", 0):
                if session.get(LeaseRow, name) is not None:
                    return False
                session.add(LeaseRow(name=name, holder=self.me, until=now + LIVES_S))
            try:
                session.commit()
            except IntegrityError:  # another process was quicker
                return False
        self._mine.add(name)
        return True

    def share(self, names: Collection[str]) -> set[str]:
        """Those of `names` that this process does now: what it holds already, and of what is free
        as many as leave the others theirs; the rest of what it held is given up.
        """
        fair = -(-len(names) // self.workers())
        held = [name for name in names if name in self._mine and self.take(name)]
        mine = set(held[:fair])
        self.give_up([one for one in self._mine if one.startswith(JOB) and one not in mine])
        for name in names:
            if len(mine) == fair:
                break
            if name not in mine and self.take(name):
                mine.add(name)
        return mine

    def give_up(self, names: Collection[str]) -> None:
        """Let others have them at once."""
        if names:
            with Session(self.engine) as session:
                mine = col(LeaseRow.holder) == self.me
                session.exec(delete(LeaseRow).where(col(LeaseRow.name).in_(names), mine))
                session.commit()
            self._mine -= set(names)

    def end(self) -> None:
        """Give up everything, for good: this process stops."""
        with self._lock:
            self._ended = True
            self._mine.clear()
            with Session(self.engine) as session:
                session.exec(delete(LeaseRow).where(col(LeaseRow.holder) == self.me))
                session.commit()
