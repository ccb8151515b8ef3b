"""What every part of the front desk works with: configuration, database, and its own views of chain
and SuperLink.

Knows nothing of HTTP and takes no decision.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from sqlalchemy import Engine, event
from sqlmodel import Session, SQLModel, create_engine

from datahub.config import HubConfig
from datahub.market.following import Follower, Seldom
from datatokens.bindings.escrow import Escrow, Settlement
from datatokens.bindings.registry import Registry
from datatokens.bindings.revenue import Revenue
from datatokens.chain.connection import Chain, connect
from datatokens.public_ledger import History, Watch
from fl_server.runs import SuperLink
from fl_server.superlink import operator_token

ONLINE_S = 1.0  # how old an answer about who is connected may be
SPENT_S = 2.0  # and one about what was attested


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
    listings: Follower = field(init=False)  # of the registry
    payments: Follower = field(init=False)  # of the market
    online: Seldom[set[int]] = field(init=False)  # the SuperLink's ids of connected nodes
    spent: Seldom[dict[int, History]] = field(init=False)  # by dataset id, of all time
    settlements: dict[str, Settlement] = field(init=False, default_factory=dict)  # by job id
    # held while model files are written, or those of nobody deleted
    models: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        made = {
            "listings": Follower(self.chain, self.config.registry),
            "payments": Follower(self.chain, self.config.market),
            "spent": Seldom(Watch(self.chain, self.config.market).look, SPENT_S),
            "online": Seldom(lambda: self.superlink.online_nodes(), ONLINE_S),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def session(self) -> Session:
        """A database session; rows stay readable after commit."""
        return Session(self.engine, expire_on_commit=False)


def open_database(url: str) -> Engine:
    """The engine, with tables made. SQLite is put into WAL mode so that pages never wait for the
    reconcile loop.
    """
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _wal(connection: object, _record: object) -> None:
            connection.execute("PRAGMA journal_mode=WAL")  # type: ignore[attr-defined]
            connection.execute("PRAGMA busy_timeout=10000")  # type: ignore[attr-defined]

    SQLModel.metadata.create_all(engine)
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
            config.superlink,
            config.superlink_folder / "ca.crt",
            operator_token(config.superlink_folder),
        ),
    )
