"""Datasets, the nodes that serve them, and their contributors: what the chain says, plus public
documents.

A document is kept only if its hash is the one on-chain, so nobody needs an account to send one.
Knows nothing of jobs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, delete, select

from datahub.errors import BadRequest, Conflict, NotFound
from datahub.market.desk import Desk
from datahub.market.tables import ContributorRow, DatasetRow, NodeRow
from datatokens.bindings.nodes import KeyState, NodeRegistry, public_point
from datatokens.bindings.registry import Dataset
from datatokens.errors import BankError, TermsError
from datatokens.merkle import MAX_WEIGHT, Tree, total_weight
from datatokens.terms import address, canonical_json, whole
from fl_client.data.schemas import Manifest
from fl_client.errors import DatasetError
from fl_server.errors import SuperLinkError

log = logging.getLogger("datahub.hub")

MAX_CONTRIBUTORS = 1_000_000
SYNC_ATTEMPTS = 3


def sync(desk: Desk) -> None:
    """Bring the dataset table up to the registry (new datasets, changed prices, keys,
    manifests).
    """
    listed = desk.registry.datasets()
    for attempt in range(SYNC_ATTEMPTS):
        try:
            with desk.session() as session:
                for dataset in listed:
                    _copy(session, dataset)
                session.commit()
            return
        except IntegrityError:  # another worker inserted the same new dataset at the same moment
            if attempt == SYNC_ATTEMPTS - 1:
                raise


def _copy(session: Session, dataset: Dataset) -> None:
    manifest_hash = dataset.manifest_hash.hex()
    row = session.get(DatasetRow, dataset.dataset_id)
    facts: dict[str, Any] = {
        "dataset_id": dataset.dataset_id,
        "owner": dataset.owner,
        "datatoken": dataset.datatoken,
        "node": dataset.node,
        "price_units": str(dataset.price_units),
        "contributor_bps": dataset.contributor_bps,
        "manifest_hash": manifest_hash,
    }
    if row is None:
        session.add(DatasetRow(**facts))
        return
    if row.manifest_hash != manifest_hash:
        row.manifest = None
    for name, value in facts.items():
        if getattr(row, name) != value:
            setattr(row, name, value)


def dataset_row(desk: Desk, dataset_id: int) -> DatasetRow:
    """The row of a dataset, read from the chain if it is new. Raises NotFound."""
    with desk.session() as session:
        row = session.get(DatasetRow, dataset_id)
    if row is None:
        sync(desk)
        with desk.session() as session:
            row = session.get(DatasetRow, dataset_id)
    if row is None:
        raise NotFound(f"dataset_id={dataset_id} is not listed")
    return row


def manifest_of(row: DatasetRow) -> Manifest:
    """The manifest that the hospital has sent. Raises Conflict where it has not yet."""
    if row.manifest is None:
        raise Conflict(
            f"dataset {row.dataset_id} has no manifest here yet; its hospital must send it"
        )
    return Manifest.from_dict(json.loads(row.manifest))


def put_manifest(desk: Desk, dataset_id: int, document: Mapping[str, Any]) -> None:
    """Keep a manifest whose hash is on-chain. Raises BadRequest for any other."""
    sync(desk)
    row = dataset_row(desk, dataset_id)
    try:
        manifest = Manifest.from_dict(document)
        raw = canonical_json(manifest.as_dict())
    except (DatasetError, TermsError) as error:
        raise BadRequest(str(error)) from error
    if hashlib.sha256(raw).hexdigest() != row.manifest_hash:
        raise BadRequest(
            f"manifest: its hash is not the one that dataset {dataset_id} has on-chain"
        )
    row.manifest = raw.decode()
    with desk.session() as session:
        session.add(row)
        session.commit()


def hospital(desk: Desk, node: str) -> dict[str, Any]:
    """The registration file (ERC-8004) of the hospital that a node key serves. Raises NotFound for
    any other key.
    """
    try:
        node = address("node", node)
    except TermsError as error:
        raise BadRequest(str(error)) from error
    nodes = NodeRegistry(desk.chain, desk.config.registry)
    status = nodes.status(node)
    if status.state is KeyState.UNKNOWN:
        raise NotFound(f"node={node} is not in the node registry")
    with desk.session() as session:
        rows = session.exec(
            select(DatasetRow).where(DatasetRow.node == node).order_by(col(DatasetRow.dataset_id))
        ).all()
    names = [Manifest.from_dict(json.loads(row.manifest)).hospital for row in rows if row.manifest]
    offer = nodes.offer(status.hospital_id)
    return {
        "type": "https://eips.ethereum.org/EIPS/eip-8004#registration-v1",
        "name": names[-1] if names else node,
        "description": offer.hardware if offer else "",
        "services": [],
        "registrations": [
            {
                "agentId": status.hospital_id,
                "agentRegistry": f"eip155:{desk.config.chain_id}:{nodes.contract.address}",
            }
        ],
        "node": node,
        "state": status.state.value,
        "owner": status.owner,
        "minute_units": offer.minute_units if offer else None,
        "datasets": [
            {"dataset_id": row.dataset_id, **vars(desk.escrow.standing(row.dataset_id))}
            for row in rows
        ],
    }


def register_node(desk: Desk, node: str, public_key_pem: str) -> int:
    """Register a SuperNode that its node key vouches for in the node registry; the SuperLink's node
    id.

    Raises BadRequest for a node that no dataset names, or that does not vouch for this key.
    """
    sync(desk)
    try:
        node = address("node", node)
        point = public_point(public_key_pem.encode())
    except TermsError as error:
        raise BadRequest(str(error)) from error
    if not NodeRegistry(desk.chain, desk.config.registry).vouches(node, point):
        raise BadRequest(
            f"supernode_public_key: no active node key {node} vouches for it in the node registry"
        )
    with desk.session() as session:
        if session.exec(select(DatasetRow).where(DatasetRow.node == node)).first() is None:
            raise BadRequest(f"node={node} signs for no listed dataset; list one first")
        supernode_id = desk.superlink.register_node(public_key_pem.encode(), node)
        row = NodeRow(
            node=node, supernode_public_key=public_key_pem, supernode_id=str(supernode_id)
        )
        session.merge(row)
        session.commit()
    return supernode_id


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
            rows = session.exec(
                select(ContributorRow)
                .where(
                    ContributorRow.dataset_id == row.dataset_id, ContributorRow.epoch == row.epoch
                )
                .order_by(col(ContributorRow.position))
            ).all()
            tree = Tree(row.dataset_id, row.epoch, [(r.account, int(r.weight)) for r in rows])
            units, claimed = 0, 0
            try:
                claimed = desk.revenue.claimed(row.dataset_id, row.epoch, account)
                # a list that was replaced while it waited proves nothing, and would spoil the whole
                # transaction
                if desk.revenue.epoch(row.dataset_id, row.epoch).root == tree.root:
                    units = desk.revenue.claimable(
                        row.dataset_id, row.epoch, account, int(row.weight)
                    )
            except BankError as error:
                log.warning(
                    "claims of %s from dataset %d are not known: %s", account, row.dataset_id, error
                )
            proof = tuple("0x" + sibling.hex() for sibling in tree.proof(row.position))
            claims.append(
                Claim(row.dataset_id, row.epoch, account, int(row.weight), units, claimed, proof)
            )
    return claims


def listing(desk: Desk) -> list[dict[str, Any]]:
    """The catalogue as shown: every dataset, its public manifest, whether its node is connected."""
    try:
        online = desk.superlink.online_nodes()
    except SuperLinkError:
        online = set()
    with desk.session() as session:
        nodes = {row.node: int(row.supernode_id) for row in session.exec(select(NodeRow)).all()}
        rows = session.exec(select(DatasetRow).order_by(col(DatasetRow.dataset_id))).all()
    return [
        {
            "dataset_id": row.dataset_id,
            "owner": row.owner,
            "node": row.node,
            "datatoken": row.datatoken,
            "price_units": int(row.price_units),
            "contributor_bps": row.contributor_bps,
            "manifest_hash": row.manifest_hash,
            "manifest": json.loads(row.manifest) if row.manifest else None,
            "online": nodes.get(row.node) in online if row.node in nodes else False,
        }
        for row in rows
    ]
