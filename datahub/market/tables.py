"""The hub's own tables: what people and nodes have sent, and how far jobs are. What the chain says
is in datahub/index/tables.py.

"Table", not "model": a model is the trained network.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Column, Index, String
from sqlmodel import Field, SQLModel


class ManifestRow(SQLModel, table=True):
    """A public manifest that a hospital has sent (canonical JSON), by its SHA-256, which the chain
    has; both hashes are 64 hexadecimal digits. `kept_at`: when it first came, in unix seconds.
    """

    __tablename__ = "manifest"
    manifest_hash: str = Field(primary_key=True)
    schema_hash: str = Field(index=True)
    document: str
    kept_at: float


class EntryRow(SQLModel, table=True):
    """A dataset as the catalogue finds it: what it is searched, filtered and sorted by. Made from
    the index, the manifest and the offer whenever one of them changes (entries.py).

    `epsilon_left` is what one more job may cost; `price_rank` is the price in base units, at most
    2**63 - 1; `on_sale`: it is active and its manifest is here.
    """

    __tablename__ = "entry"
    __table_args__ = (
        Index("entry_schema", "schema_hash", "on_sale", "persons"),
        *(
            Index(f"entry_{column}", "on_sale", column, "dataset_id")
            for column in ("title", "price_rank", "persons", "epsilon_left")
        ),
    )
    dataset_id: int = Field(primary_key=True)
    on_sale: bool
    title: str
    hospital: str
    kind: str
    unit: str
    node: str = Field(index=True)
    schema_hash: str
    persons: int = Field(sa_column=Column(BigInteger, nullable=False))
    price_rank: int = Field(sa_column=Column(BigInteger, nullable=False))
    epsilon_left: float
    offer_ends: int | None = Field(default=None, index=True)  # unix seconds


class WordRow(SQLModel, table=True):
    """A word of what is public of a dataset, in small letters."""

    __tablename__ = "entry_word"
    __table_args__ = (Index("entry_word_of", "dataset_id", "word"),)
    # in the order of its letters' numbers everywhere, so that an index finds what begins with one
    word: str = Field(
        sa_column=Column(
            String().with_variant(String(collation="C"), "postgresql"), primary_key=True
        )
    )
    dataset_id: int = Field(primary_key=True)


class OfferRow(SQLModel, table=True):
    """The newest offer of a dataset (fl_client/node/offer.py) and the node key's signature."""

    __tablename__ = "offer"
    dataset_id: int = Field(primary_key=True)
    document: str
    signature: str
    issued_at: int


class NodeRow(SQLModel, table=True):
    """A node key, its SuperNode's public key, and the SuperLink's id for it."""

    __tablename__ = "node"
    node: str = Field(primary_key=True)
    supernode_public_key: str
    supernode_id: str  # unsigned 64 bits


class ContributorRow(SQLModel, table=True):
    """One leaf of a dataset's contributor tree."""

    __tablename__ = "contributor"
    dataset_id: int = Field(primary_key=True)
    epoch: int = Field(primary_key=True)
    position: int = Field(primary_key=True)
    account: str = Field(index=True)
    weight: str


class TreeRow(SQLModel, table=True):
    """The tree over a kept contributor list; its nodes are in the hub's folder under `root`."""

    __tablename__ = "tree"
    dataset_id: int = Field(primary_key=True)
    epoch: int = Field(primary_key=True)
    root: str
    leaves: int


class QuoteRow(SQLModel, table=True):
    """Terms that were quoted and not yet paid, for an hour; `model_bytes` of graph and weights."""

    __tablename__ = "quote"
    job_id: str = Field(primary_key=True)
    terms: str
    graph_hash: str = Field(index=True)
    weights_hash: str = Field(index=True)
    model_bytes: int
    quoted_at: float = Field(index=True)  # unix seconds


class FigureRow(SQLModel, table=True):
    """What is worked out once when a job is settled: the tighter epsilon that its page shows."""

    __tablename__ = "figure"
    job_id: str = Field(primary_key=True)
    epsilon_pld: float | None


class JobRow(SQLModel, table=True):
    """A job: its terms, and where the hub has got with it."""

    __tablename__ = "job"
    job_id: str = Field(primary_key=True)
    buyer: str = Field(index=True)
    terms: str
    state: str = Field(index=True)
    reason: str = ""
    run_id: str | None = None
    runs_started: int = 0
    quoted_at: datetime = Field(index=True)
    funded_at: datetime | None = None
    ended_at: datetime | None = None


class LeaseRow(SQLModel, table=True):
    """Who of several hub processes does a thing, and until when (unix seconds)."""

    __tablename__ = "lease"
    name: str = Field(primary_key=True)
    holder: str
    until: float


class RepeatRow(SQLModel, table=True):
    """What a request that its client has named was answered, for an hour; hashes of name and
    request.
    """

    __tablename__ = "repeat"
    name: str = Field(primary_key=True)
    asked: str
    answer: str
    at: float = Field(index=True)  # unix seconds


class SignInRow(SQLModel, table=True):
    """A text that waits for a wallet's signature; its SHA-256, for whom, until when."""

    __tablename__ = "sign_in"
    text_hash: str = Field(primary_key=True)
    account: str
    ends: float = Field(index=True)  # unix seconds


class SessionRow(SQLModel, table=True):
    """Somebody who is signed in: the SHA-256 of the browser's token."""

    __tablename__ = "browser_session"
    token_hash: str = Field(primary_key=True)
    account: str
    ends: float = Field(index=True)  # unix seconds


class WebhookRow(SQLModel, table=True):
    """Whom to tell of a buyer's jobs, and the secret that signs it."""

    __tablename__ = "webhook"
    account: str = Field(primary_key=True)
    url: str
    secret: str


class DeliveryRow(SQLModel, table=True):
    """What is to be told, how often that was tried, and when next (unix seconds)."""

    __tablename__ = "delivery"
    number: int | None = Field(default=None, primary_key=True)
    account: str
    body: str
    tries: int
    due: float = Field(index=True)
