"""What an account may claim as a contributor, with the proofs that the contract wants.

The chain says what is owed and the kept lists prove whose it is; nothing is sent here, since only
the contributor's own transaction (or one on its behalf) moves the money.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from sqlmodel import Session, col, select

from datahub.errors import BadRequest
from datahub.index.tables import AttestedRow, ClaimedRow, DatasetRow, EpochRow, EscrowRow
from datahub.market import contributors
from datahub.market.desk import Desk
from datahub.market.tables import ContributorRow, JobRow
from datatokens.bindings.registry import BPS
from datatokens.errors import TermsError
from datatokens.merkle import total_weight
from datatokens.terms import address


@dataclass(frozen=True)
class Claim:
    """What one account may claim from one dataset's epoch, with the proof that the contract
    wants.
    """

    dataset_id: int
    epoch: int
    account: str
    weight: int
    claimable_units: int
    claimed_units: int
    proof: tuple[str, ...]


def claims_of(desk: Desk, account: str) -> list[Claim]:
    """Everything that `account` is a contributor of, with what it can claim now (base units)."""
    try:
        account = address("account", account)
    except TermsError as error:
        raise BadRequest(str(error)) from error
    claims = []
    with desk.session() as session:
        rows = session.exec(select(ContributorRow).where(ContributorRow.account == account)).all()
        for row in rows:
            root, siblings = contributors.proof(desk, row)
            key = row.dataset_id, row.epoch
            there = session.get(EpochRow, key)
            taken = session.get(ClaimedRow, (*key, account))
            claimed = int(taken.units) if taken else 0
            # a list that was replaced while it waited proves nothing, and would spoil the whole
            # transaction
            live = there is not None and there.root == root.hex()
            units = (
                entitled(int(there.credited_units), int(row.weight), root) - claimed
                if live and there is not None
                else 0
            )
            proof = tuple("0x" + sibling.hex() for sibling in siblings)
            claims.append(Claim(*key, account, int(row.weight), max(0, units), claimed, proof))
    return claims


def entitled(credited_units: int, weight: int, root: bytes) -> int:
    """What one contributor has earned so far of what an epoch was credited, rounded down as the
    contract does (RevenuePools._left).
    """
    return credited_units * weight // total_weight(root)


@dataclass(frozen=True)
class Earning:
    """What one settled job has earned an account, as it was credited (base units, rounded down for
    each job, so that the sum may be some units less than what can be claimed). `at`: when it
    settled, where this hub ran it.
    """

    job_id: str
    dataset_id: int
    epoch: int
    units: int
    of_units: int  # what all contributors of the dataset got
    at: datetime | None


def earned(desk: Desk, account: str, most: int = 100) -> list[Earning]:
    """Job by job, the newest first, at most `most`. Raises BadRequest."""
    try:
        account = address("account", account)
    except TermsError as error:
        raise BadRequest(str(error)) from error
    with desk.session() as session:
        mine = session.exec(select(ContributorRow).where(ContributorRow.account == account)).all()
        found = [one for row in mine for one in _of_list(session, row, most)]
        found.sort(key=lambda one: one[0], reverse=True)
        return [
            replace(earning, at=job.ended_at)
            if (job := session.get(JobRow, earning.job_id)) is not None
            else earning
            for _, earning in found[:most]
        ]


def _of_list(session: Session, mine: ContributorRow, most: int) -> list[tuple[int, Earning]]:
    """(its place on the chain, what it earned) of each job that settled while a list was live."""
    epoch = session.get(EpochRow, (mine.dataset_id, mine.epoch))
    dataset = session.get(DatasetRow, mine.dataset_id)
    if epoch is None or dataset is None:
        return []
    after = session.get(EpochRow, (mine.dataset_id, mine.epoch + 1))
    lines = session.exec(
        select(AttestedRow, EscrowRow)
        .join(EscrowRow, col(EscrowRow.job_id) == col(AttestedRow.job_id))
        .where(
            AttestedRow.dataset_id == mine.dataset_id,
            EscrowRow.status == "settled",
            col(EscrowRow.ended) > epoch.since,
            *([col(EscrowRow.ended) < after.since] if after else []),
        )
        .order_by(col(EscrowRow.ended).desc())
        .limit(most)
    ).all()
    root = bytes.fromhex(epoch.root)
    found = []
    for line, job in lines:
        if int(job.worked) >> line.position & 1:
            # JobEscrow._payPools and RevenuePools._settlePool: price and reward are shared
            shared = (int(line.price_units) + int(line.reward_units)) * job.paid_bps // BPS
            units = shared * dataset.contributor_bps // BPS
            part = entitled(units, int(mine.weight), root)
            found.append(
                (job.ended, Earning(job.job_id, mine.dataset_id, mine.epoch, part, units, None))
            )
    return found
