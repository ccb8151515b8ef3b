"""The contributor lists of the datasets, kept so that everybody can get a proof.

A list is kept only if its root is the one on-chain, so nobody needs an account to send one. Knows
nothing of jobs, or of what anybody is owed (claims.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import col, delete

from datahub.errors import BadRequest
from datahub.market.desk import Desk
from datahub.market.tables import ContributorRow
from datatokens.errors import TermsError
from datatokens.merkle import MAX_WEIGHT, Tree, total_weight
from datatokens.terms import address, whole

MAX_CONTRIBUTORS = 1_000_000


def put_contributors(
    desk: Desk, dataset_id: int, epoch: int, entries: Sequence[tuple[str, int]]
) -> None:
    """Keep a contributor list whose root is the epoch's on-chain, live or pending, so that
    everybody can get a proof.

    Raises BadRequest for a list with another root.
    """
    if not 1 <= len(entries) <= MAX_CONTRIBUTORS:
        raise BadRequest(
            f"contributors: a list has 1 to {MAX_CONTRIBUTORS} entries, not {len(entries)}"
        )
    try:
        clean = [(address("account", a), whole("weight", w, 1, MAX_WEIGHT)) for a, w in entries]
    except TermsError as error:
        raise BadRequest(f"contributors: {error}") from error
    # the sum is checked first: a tree of a stranger's million entries is not even built
    root = _posted_root(desk, dataset_id, epoch)
    fits = total_weight(root) == sum(weight for _, weight in clean)
    if not fits or _root_of(dataset_id, epoch, clean) != root:
        raise BadRequest(
            f"contributors: the list's root is not the one of dataset {dataset_id}, epoch {epoch}, "
            "on-chain"
        )
    with desk.session() as session:
        session.exec(
            delete(ContributorRow).where(
                col(ContributorRow.dataset_id) == dataset_id, col(ContributorRow.epoch) == epoch
            )
        )
        session.add_all(
            ContributorRow(
                dataset_id=dataset_id, epoch=epoch, position=i, account=account, weight=str(weight)
            )
            for i, (account, weight) in enumerate(clean)
        )
        session.commit()


def _posted_root(desk: Desk, dataset_id: int, epoch: int) -> bytes:
    """The root on-chain of a list that is live, was, or waits; zeros where there is none."""
    root = desk.revenue.epoch(dataset_id, epoch).root
    if not any(root) and epoch == desk.revenue.next_epoch(dataset_id):
        pending = desk.revenue.pending_contributors(dataset_id)
        return pending.root if pending else root
    return root


def _root_of(dataset_id: int, epoch: int, entries: Sequence[tuple[str, int]]) -> bytes:
    try:
        return Tree(dataset_id, epoch, entries).root
    except TermsError as error:
        raise BadRequest(f"contributors: {error}") from error
