"""What a wallet in somebody's browser is asked to sign: transactions to the contracts of this hub's
network, each with what it does in words. Holds no key, sends nothing; knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from datahub.errors import BadRequest, Conflict
from datahub.market import claims, jobs
from datahub.market.desk import Desk
from datahub.market.domain import FINAL, JobState
from datatokens.bindings.revenue import Claim
from datatokens.bindings.unsigned import Unsigned, claiming, paying, refunding
from datatokens.errors import BankError, ChainUnreachable, NodeRefused, TermsError
from datatokens.terms import JobTerms


def payment(desk: Desk, raw_terms: bytes) -> dict[str, Any]:
    """For quoted terms: approve, and pay into escrow. Raises BadRequest for terms that are not this
    hub's, Conflict where the buyer has too little.
    """
    try:
        terms = JobTerms.from_json(raw_terms)
    except TermsError as error:
        raise BadRequest(f"terms: {error}") from error
    if (terms.chain_id, terms.market) != (desk.config.chain_id, desk.config.market):
        raise BadRequest(
            f"terms: chain_id={terms.chain_id} and market={terms.market} are not this hub's"
        )
    return _asked(desk, lambda: paying(desk.escrow, terms))


def claim(desk: Desk, account: str, to: str) -> dict[str, Any]:
    """For a contributor: everything that is claimable now, to `to`. Raises BadRequest, and Conflict
    where there is nothing.
    """
    shares = [
        Claim(one.dataset_id, one.epoch, one.weight, tuple(bytes.fromhex(p[2:]) for p in one.proof))
        for one in claims.claims_of(desk, account)
        if one.claimable_units
    ]
    if not shares:
        raise Conflict(f"account={account}: there is nothing to claim now")
    return _asked(desk, lambda: claiming(desk.revenue, shares, to or account))


def refund(desk: Desk, job_id: str) -> dict[str, Any]:
    """For a job that was not settled by its deadline. Raises NotFound, and Conflict before it."""
    row = jobs.job_row(desk, job_id)
    terms = JobTerms.from_json(row.terms.encode())
    if JobState(row.state) in FINAL:
        raise Conflict(f"job {row.job_id[:12]} is {row.state}: there is nothing to give back")
    left = terms.deadline - desk.chain.now()
    if left > 0:
        raise Conflict(
            f"job {row.job_id[:12]}: its money comes back after its deadline, in {left} s; on "
            "signed refusals it comes back by itself before"
        )
    return _asked(desk, lambda: refunding(desk.escrow, terms))


def _asked(desk: Desk, make: Callable[[], Sequence[Unsigned]]) -> dict[str, Any]:
    try:
        steps = make()
    except (ChainUnreachable, NodeRefused):
        raise  # passing
    except TermsError as error:
        raise BadRequest(str(error)) from error
    except BankError as error:
        raise Conflict(str(error)) from error
    return {"chain_id": desk.config.chain_id, "transactions": [asdict(step) for step in steps]}
