"""What the chain says, in tables. All of them can be dropped and come back the same: nothing here
is the hub's own.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index
from sqlmodel import Field, SQLModel

IN_BLOCK = 2**20  # more events than a block holds


def place(block: int, position: int) -> int:
    """Where an event stands among all, as one number that grows."""
    return block * IN_BLOCK + position


class SeenRow(SQLModel, table=True):
    """How far the index has got: one row. `version` counts the writers' turns, so that of two
    workers at once one begins again.
    """

    __tablename__ = "index_seen"
    only: int = Field(primary_key=True, default=1)
    version: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    market: str  # whose events these are


class BlockRow(SQLModel, table=True):
    """A block up to which all was read, by which another way of the chain is noticed."""

    __tablename__ = "index_block"
    number: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    hash: str


class EventRow(SQLModel, table=True):
    """One event of the registry, the market or the node registry; `about` is what it changes
    (fold.py), `args` JSON.
    """

    __tablename__ = "index_event"
    block: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    position: int = Field(primary_key=True)
    name: str
    about: str = Field(index=True)
    args: str


class DatasetRow(SQLModel, table=True):
    """A listed dataset. Units up to 2**96 are text, since databases' whole numbers end at 2**63.

    `state`: 0 active, 1 paused, 2 retired. `epsilon_micro` is the highest lifetime epsilon (1e-6)
    that was attested, in `jobs_attested` jobs; `accepted` to `lost` is what the escrow has counted.
    """

    __tablename__ = "dataset"
    dataset_id: int = Field(primary_key=True)
    owner: str = Field(index=True)
    datatoken: str
    node: str = Field(index=True)
    price_units: str
    contributor_bps: int
    manifest_hash: str = Field(index=True)
    state: int = 0
    epsilon_micro: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    jobs_attested: int = 0
    accepted: int = 0
    settled: int = 0
    failed: int = 0
    disputed: int = 0
    lost: int = 0


class EscrowRow(SQLModel, table=True):
    """A job's money and result. `status` as datatokens.bindings.escrow.Status says; bits count the
    job's datasets; what is not yet so is "".
    """

    __tablename__ = "index_job"
    job_id: str = Field(primary_key=True)
    buyer: str = Field(index=True)
    status: str
    amount_units: str
    deadline: int = Field(sa_column=Column(BigInteger, nullable=False))  # unix seconds
    block: int = Field(sa_column=Column(BigInteger, nullable=False))  # in which it was paid for
    accepted: str = "0"
    model_hash: str = ""
    report_hash: str = ""
    worked: str = "0"
    ended: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))  # its place, below
    paid_bps: int = 0
    paid_units: str = ""
    change_units: str = ""


class AttestedRow(SQLModel, table=True):
    """A dataset in a job: since when its node's acceptance is on the chain (""), and what was
    attested: lifetime epsilon (1e-6), computing and reward units; 0 before.
    """

    __tablename__ = "index_line"
    __table_args__ = (Index("index_line_dataset", "dataset_id", "epsilon_micro"),)
    job_id: str = Field(primary_key=True)
    position: int = Field(primary_key=True)
    dataset_id: int
    price_units: str
    compute_units: str = "0"
    reward_units: str = "0"
    epsilon_micro: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))


class EpochRow(SQLModel, table=True):
    """One contributor list that is or was live, and what was credited to it; `since`: the place of
    the event that made it live.
    """

    __tablename__ = "index_epoch"
    dataset_id: int = Field(primary_key=True)
    epoch: int = Field(primary_key=True)
    root: str
    since: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    credited_units: str


class ClaimedRow(SQLModel, table=True):
    """What an account has claimed of one epoch."""

    __tablename__ = "index_claimed"
    dataset_id: int = Field(primary_key=True)
    epoch: int = Field(primary_key=True)
    account: str = Field(primary_key=True)
    units: str


class KeyRow(SQLModel, table=True):
    """A node key and its hospital. Valid from and until: unix seconds."""

    __tablename__ = "index_key"
    key: str = Field(primary_key=True)
    hospital_id: int = Field(index=True)
    valid_from: int = Field(sa_column=Column(BigInteger, nullable=False))
    valid_until: int = Field(sa_column=Column(BigInteger, nullable=False))
    revoked: bool


class HospitalRow(SQLModel, table=True):
    """A registered hospital and what it offers in general; `minute_units` "" where it never
    said.
    """

    __tablename__ = "index_hospital"
    hospital_id: int = Field(primary_key=True)
    owner: str
    minute_units: str = ""
    hardware: str = ""
