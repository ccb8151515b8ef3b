"""The hospitals behind the datasets: who a node key belongs to, and which machine dials in for it.

The node registry on the chain decides both; the hub only passes machines on to the SuperLink.
Knows nothing of jobs.
"""

from __future__ import annotations

import time
from typing import Any

from sqlmodel import col, select

from datahub.errors import BadRequest, NotFound
from datahub.index.tables import DatasetRow, HospitalRow, KeyRow
from datahub.market.desk import Desk
from datahub.market.tables import ManifestRow, NodeRow
from datatokens.bindings.nodes import KeyState, NodeRegistry, canonical_pem, public_point
from datatokens.errors import TermsError
from datatokens.terms import address
from datatokens.wire import parse

MOST_DATASETS = 100  # of one key that are named, the newest
RECORD = ("accepted", "settled", "failed", "disputed", "lost")  # numbers of jobs


def hospital(desk: Desk, node: str) -> dict[str, Any]:
    """The registration file (ERC-8004) of the hospital that a node key serves. Raises NotFound for
    any other key.
    """
    try:
        node = address("node", node)
    except TermsError as error:
        raise BadRequest(str(error)) from error
    with desk.session() as session:
        key = session.get(KeyRow, node)
        if key is None:
            raise NotFound(f"node={node} is not in the node registry")
        home = session.get(HospitalRow, key.hospital_id)
        rows = session.exec(
            select(DatasetRow)
            .where(DatasetRow.node == node)
            .order_by(col(DatasetRow.dataset_id).desc())
            .limit(MOST_DATASETS)
        ).all()
        names = [
            parse(kept.document.encode())["hospital"]
            for row in rows[:1]
            if (kept := session.get(ManifestRow, row.manifest_hash))
        ]
    state = _state(key, int(time.time()))
    assert home is not None  # a key is written with its hospital
    return {
        "type": "https://eips.ethereum.org/EIPS/eip-8004#registration-v1",
        "name": names[0] if names else node,
        "description": home.hardware,
        "services": [],
        "registrations": [
            {
                "agentId": key.hospital_id,
                "agentRegistry": f"eip155:{desk.config.chain_id}:{desk.index.nodes}",
            }
        ],
        "node": node,
        "state": state.value,
        "owner": None if state is KeyState.REVOKED else home.owner,
        "minute_units": int(home.minute_units) if home.minute_units else None,
        "datasets": [
            {"dataset_id": row.dataset_id, **{name: getattr(row, name) for name in RECORD}}
            for row in reversed(rows)
        ],
    }


def _state(key: KeyRow, now: int) -> KeyState:
    """What a key may do now (NodeRegistry.keyStatus)."""
    if key.revoked:
        return KeyState.REVOKED
    if now < key.valid_from:
        return KeyState.WAITING
    return KeyState.ACTIVE if now < key.valid_until else KeyState.EXPIRED


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
    desk.index.catch_up()  # after the check, which costs a stranger a registration
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
