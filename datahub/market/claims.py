"""What an account may claim as a contributor, with the proofs that the contract wants.

The chain says what is owed and the kept lists prove whose it is; nothing is sent here, since only
the contributor's own transaction (or one on its behalf) moves the money.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlmodel import select

from datahub.errors import BadRequest
from datahub.index.tables import ClaimedRow, EpochRow
from datahub.market import contributors
from datahub.market.desk import Desk
from datahub.market.tables import ContributorRow
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
