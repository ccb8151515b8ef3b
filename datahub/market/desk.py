"""What every part of the front desk works with: configuration, database, and its own views of chain
and SuperLink.

Knows nothing of HTTP and takes no decision.
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Engine, event
from sqlmodel import Session, create_engine, func, select

from datahub.config import HubConfig
from datahub.index.indexer import Indexer, Touched
from datahub.market import entries
from datahub.market.domain import FINAL, JobState
from datahub.market.leases import Leases
from datahub.market.seldom import Seldom
from datahub.market.tables import JobRow
from datahub.migrations import migrate
from datatokens.bindings.escrow import Escrow
from datatokens.bindings.registry import Registry
from datatokens.bindings.revenue import Revenue
from datatokens.chain.connection import Chain, connect
from fl_server.runs import SuperLink
from fl_server.superlink import operator_token

ONLINE_S = 1.0  # how old an answer about who is connected may be
FIGURES_S = 5.0  # and one of what all datasets and jobs add up to


@dataclass(frozen=True)
class Desk:
    """The open connections of one hub process."""

    config: HubConfig
    engine: Engine
    chain: Chain
    registry: Registry
    escrow: Escrow
    revenue: Revenue
    superlink: SuperLink
    index: Indexer = field(init=False)  # what the chain says, in this database
    leases: Leases = field(init=False)
    stopping: threading.Event = field(init=False)  # set when this process is told to end
    online: Seldom[set[int]] = field(init=False)  # the SuperLink's ids of connected nodes
    figures: Seldom[dict[str, int]] = field(init=False)  # of the home page
    shared: Seldom[dict[str, int]] = field(init=False)  # schema hash -> datasets, if several

    def __post_init__(self) -> None:
        config = self.config
        made = {
            "index": Indexer(
                self.engine, self.chain, config.registry, config.market, _entries_again
            ),
            "leases": Leases(self.engine),
            "stopping": threading.Event(),
            "online": Seldom(lambda: self.superlink.online_nodes(), ONLINE_S),
            "figures": Seldom(self._figures, FIGURES_S),
            "shared": Seldom(self._shared, FIGURES_S),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def session(self) -> Session:
        """A database session; rows stay readable after commit."""
        return Session(self.engine, expire_on_commit=False)

    @contextmanager
    def models(self) -> Iterator[None]:
        """Held while model files are written, or those of nobody deleted: by one thread of one of
        the hub's processes.
        """
        with (self.config.folder / "models.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _shared(self) -> dict[str, int]:
        with self.session() as session:
            return entries.shared(session)

    def _figures(self) -> dict[str, int]:
        with self.session() as session:
            states = select(JobRow.state, func.count()).group_by(JobRow.state)
            jobs = dict(session.exec(states).all())
            return entries.totals(session) | {
                "settled": jobs.get(JobState.SETTLED, 0),
                "open_jobs": sum(n for state, n in jobs.items() if state not in FINAL),
            }


def _entries_again(session: Session, touched: Touched) -> None:
    entries.refresh(session, touched.datasets)


def open_database(url: str) -> Engine:
    """The engine, with tables as this version has them: an older hub's are brought up to it. SQLite
    is put into WAL mode so that pages never wait for the reconcile loop. Raises ConfigError.
    """
    # a connection for each thread that answers (40) and each loop: who waits for one is refused
    engine = create_engine(url, max_overflow=45)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _wal(connection: object, _record: object) -> None:
            connection.execute("PRAGMA journal_mode=WAL")  # type: ignore[attr-defined]
            connection.execute("PRAGMA busy_timeout=10000")  # type: ignore[attr-defined]

    migrate(engine)
    return engine


def open_desk(config: HubConfig) -> Desk:
    """Connect to everything. Raises ChainUnreachable; the SuperLink may come up later."""
    chain = connect(config.chain, key=config.operator_key)
    return Desk(
        config=config,
        engine=open_database(config.database),
        chain=chain,
        registry=Registry(chain, config.registry),
        escrow=Escrow(chain, config.market),
        revenue=Revenue(chain, config.market),
        superlink=SuperLink(
            config.superlink_here or config.superlink,
            config.superlink_folder / "ca.crt",
            operator_token(config.superlink_folder),
        ),
    )
