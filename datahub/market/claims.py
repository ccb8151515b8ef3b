"""What an account may claim as a contributor, with the proofs that the contract wants.

The chain says what is owed and the kept lists prove whose it is; nothing is sent here, since only
the contributor's own transaction (or one on its behalf) moves the money.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from sqlmodel import select

from datahub.errors import BadRequest
from datahub.market import contributors
from datahub.market.desk import Desk
from datahub.market.tables import ContributorRow
from datatokens.errors import BankError, TermsError
from datatokens.terms import address

log = logging.getLogger("datahub.hub")


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
        for row in session.exec(
            select(ContributorRow).where(ContributorRow.account == account)
        ).all():
            root, siblings = contributors.proof(desk, row)
            units, claimed = 0, 0
            try:
                claimed = desk.revenue.claimed(row.dataset_id, row.epoch, account)
                # a list that was replaced while it waited proves nothing, and would spoil the whole
                # transaction
                if desk.revenue.epoch(row.dataset_id, row.epoch).root == root:
                    units = desk.revenue.claimable(
                        row.dataset_id, row.epoch, account, int(row.weight)
                    )
            except BankError as error:
                log.warning(
                    "claims of %s from dataset %d are not known: %s", account, row.dataset_id, error
                )
            proof = tuple("0x" + sibling.hex() for sibling in siblings)
            claims.append(
                Claim(row.dataset_id, row.epoch, account, int(row.weight), units, claimed, proof)
            )
    return claims
