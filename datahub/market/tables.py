"""The hub's tables. A cache: everything about money can be read again from the chain.

"Table", not "model": a model is the trained network.
"""

from __future__ import annotations

from datetime import datetime

from sqlmodel import Field, SQLModel


class DatasetRow(SQLModel, table=True):
    """A listed dataset as the registry has it, with its public manifest once the hospital has sent
    it.
    """

    __tablename__ = "dataset"
    dataset_id: int = Field(primary_key=True)
    owner: str
    datatoken: str
    node: str = Field(index=True)
    price_units: str  # integers up to 2**96 as text: SQLite's integers end at 2**63
    contributor_bps: int
    manifest_hash: str
    manifest: str | None = None


class SchemaRow(SQLModel, table=True):
    """Which schema a kept manifest has: 64 hexadecimal digits each."""

    __tablename__ = "dataset_schema"
    manifest_hash: str = Field(primary_key=True)
    schema_hash: str = Field(index=True)


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
    quoted_at: datetime
    funded_at: datetime | None = None
    ended_at: datetime | None = None
