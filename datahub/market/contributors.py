"""The contributor lists of the datasets, kept so that everybody can get a proof.

A list is kept only if its root is the one on-chain, so nobody needs an account to send one. The
nodes of its tree are kept in a file, so that a proof reads one word for each level and builds
nothing. Knows nothing of jobs, or of what anybody is owed (claims.py).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from sqlmodel import Session, col, delete, insert, select

from datahub.errors import BadRequest, Busy
from datahub.market.desk import Desk
from datahub.market.tables import ContributorRow, TreeRow
from datatokens.errors import TermsError
from datatokens.merkle import MAX_WEIGHT, Tree, steps, total_weight
from datatokens.terms import address, whole
from fl_client.node.job_folder import write_whole

MAX_CONTRIBUTORS = 1_000_000
WORD = 32
WAIT_S = 10.0
_building = threading.Lock()  # one list at a time: a million entries take seconds


def put_contributors(
    desk: Desk, dataset_id: int, epoch: int, entries: Sequence[tuple[str, int]]
) -> None:
    """Keep a contributor list whose root is the epoch's on-chain, live or pending, so that
    everybody can get a proof.

    Raises BadRequest for a list with another root, Busy while another list is looked at.
    """
    if not 1 <= len(entries) <= MAX_CONTRIBUTORS:
        raise BadRequest(
            f"contributors: a list has 1 to {MAX_CONTRIBUTORS} entries, not {len(entries)}"
        )
    root = _posted_root(desk, dataset_id, epoch)
    other = BadRequest(
        f"contributors: the list's root is not the one of dataset {dataset_id}, epoch {epoch}, "
        "on-chain"
    )
    # before anything is made of a stranger's million entries
    if total_weight(root) != sum(weight for _, weight in entries):
        raise other
    if not _building.acquire(timeout=WAIT_S):
        raise Busy("contributors: another list is being looked at; send this one again")
    try:
        clean = [(address("account", a), whole("weight", w, 1, MAX_WEIGHT)) for a, w in entries]
        tree = Tree(dataset_id, epoch, clean)
        if tree.root != root:
            raise other
        _keep(desk, dataset_id, epoch, clean, tree)
    except TermsError as error:
        raise BadRequest(f"contributors: {error}") from error
    finally:
        _building.release()


def _keep(
    desk: Desk, dataset_id: int, epoch: int, entries: Sequence[tuple[str, int]], tree: Tree
) -> None:
    with desk.session() as session:
        _keep_tree(desk, session, dataset_id, epoch, tree)
        session.exec(
            delete(ContributorRow).where(
                col(ContributorRow.dataset_id) == dataset_id, col(ContributorRow.epoch) == epoch
            )
        )
        session.execute(
            insert(ContributorRow),
            [
                {
                    "dataset_id": dataset_id,
                    "epoch": epoch,
                    "position": i,
                    "account": account,
                    "weight": str(weight),
                }
                for i, (account, weight) in enumerate(entries)
            ],
        )
        session.commit()


def _keep_tree(desk: Desk, session: Session, dataset_id: int, epoch: int, tree: Tree) -> TreeRow:
    """The file first: a row without one would be a proof that cannot be given."""
    write_whole(desk.config.trees_folder / tree.root.hex(), tree.words)
    row = TreeRow(dataset_id=dataset_id, epoch=epoch, root=tree.root.hex(), leaves=tree.leaves)
    return session.merge(row)


def proof(desk: Desk, entry: ContributorRow) -> tuple[bytes, list[bytes]]:
    """(root, proof) of one leaf of a kept list. A list whose tree's file is gone, or which an older
    version kept, has it built again, once.
    """
    with desk.session() as session:
        row = session.get(TreeRow, (entry.dataset_id, entry.epoch))
        if row is None or not (desk.config.trees_folder / row.root).exists():
            row = _keep_tree(desk, session, entry.dataset_id, entry.epoch, _tree_of(session, entry))
            session.commit()
    with (desk.config.trees_folder / row.root).open("rb") as file:
        siblings = []
        for step in steps(row.leaves, entry.position):
            file.seek(step * WORD)
            siblings.append(file.read(WORD))
    return bytes.fromhex(row.root), siblings


def _tree_of(session: Session, entry: ContributorRow) -> Tree:
    rows = session.exec(
        select(ContributorRow.account, ContributorRow.weight)
        .where(ContributorRow.dataset_id == entry.dataset_id, ContributorRow.epoch == entry.epoch)
        .order_by(col(ContributorRow.position))
    ).all()
    return Tree(entry.dataset_id, entry.epoch, [(account, int(w)) for account, w in rows])


def _posted_root(desk: Desk, dataset_id: int, epoch: int) -> bytes:
    """The root on-chain of a list that is live, was, or waits; zeros where there is none."""
    root = desk.revenue.epoch(dataset_id, epoch).root
    if not any(root) and epoch == desk.revenue.next_epoch(dataset_id):
        pending = desk.revenue.pending_contributors(dataset_id)
        return pending.root if pending else root
    return root
