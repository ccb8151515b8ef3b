"""The hospitals behind the datasets: who a node key belongs to, and which machine dials in for it.

The node registry on the chain decides both; the hub only passes machines on to the SuperLink.
Knows nothing of jobs.
"""

from __future__ import annotations

from typing import Any

from sqlmodel import col, select

from datahub.errors import BadRequest, NotFound
from datahub.market.catalogue import manifest_of, sync
from datahub.market.desk import Desk
from datahub.market.tables import DatasetRow, NodeRow
from datatokens.bindings.nodes import KeyState, NodeRegistry, canonical_pem, public_point
from datatokens.errors import TermsError
from datatokens.terms import address


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
    names = [manifest_of(row).hospital for row in rows if row.manifest]
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
    try:
        node = address("node", node)
        point = public_point(public_key_pem.encode())
    except TermsError as error:
        raise BadRequest(str(error)) from error
    if not NodeRegistry(desk.chain, desk.config.registry).vouches(node, point):
        raise BadRequest(
            f"supernode_public_key: no active node key {node} vouches for it in the node registry"
        )
    # one key has one spelling, or a stranger could register a hospital's machine again and again
    public_key_pem = canonical_pem(public_key_pem)
    sync(desk)  # after the check, which costs a stranger a registration
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
