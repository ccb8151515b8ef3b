"""Transactions for a wallet that is somewhere else, a browser's, to sign: whom they go to,
calldata, and in words what they do. Signs and sends nothing, and holds no key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datatokens.bindings.escrow import Escrow
from datatokens.bindings.revenue import Claim, Revenue
from datatokens.terms import JobTerms, address


@dataclass(frozen=True)
class Unsigned:
    """One transaction: `to` an address, `data` calldata (0x...), `what` it does in one sentence."""

    to: str
    data: str
    what: str


def paying(escrow: Escrow, terms: JobTerms) -> list[Unsigned]:
    """What the buyer of `terms` signs to escrow exactly its price: approvals as far as they are not
    there, then the job. Raises BankError where the buyer has too little.
    """
    market = escrow.contract.address
    steps = []
    for token, units in escrow.spent(terms, terms.buyer):
        if token.allowance_units(terms.buyer, market) != units:
            steps.append(
                Unsigned(
                    token.contract.address,
                    token.contract.encode_abi("approve", [market, units]),
                    f"allow the market {market} to take {units} base units of the token "
                    f"{token.contract.address}, for this payment alone",
                )
            )
    data = escrow.contract.encode_abi("createJob", [terms.to_struct()])
    what = (
        f"pay {terms.amount_units} base units into escrow for job {terms.job_id.hex()[:12]}; they "
        "go to hospitals only against their signatures, and what is not earned comes back"
    )
    return [*steps, Unsigned(market, data, what)]


def refunding(escrow: Escrow, terms: JobTerms) -> list[Unsigned]:
    """What anybody signs, after the deadline of a job that was not settled, to send its money back
    to its buyer.
    """
    data = escrow.contract.encode_abi("refund", [terms.to_struct()])
    what = (
        f"give the {terms.amount_units} base units of job {terms.job_id.hex()[:12]} back to "
        f"{terms.buyer}"
    )
    return [Unsigned(escrow.contract.address, data, what)]


def claiming(revenue: Revenue, claims: Sequence[Claim], to: str) -> list[Unsigned]:
    """What a contributor signs to be paid every one of its shares, to any address, in one
    transaction. Raises TermsError for an address that is none.
    """
    to = address("to", to)
    data = revenue.contract.encode_abi("claim", [[c.to_struct() for c in claims], to])
    ids = ", ".join(str(one) for one in sorted({c.dataset_id for c in claims}))
    what = f"pay what is mine from dataset {ids} to {to}"
    return [Unsigned(revenue.contract.address, data, what)]
