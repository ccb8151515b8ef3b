"""The datasets on sale: what the registry says, plus the public manifests that hospitals send.

A manifest is kept only if its hash is the one on-chain, so nobody needs an account to send one.
Knows nothing of contributors or jobs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Mapping
from typing import Any

from sqlmodel import col, select

from datahub.errors import BadRequest, Conflict, NotFound
from datahub.index.tables import DatasetRow
from datahub.market import entries, offers
from datahub.market.desk import Desk
from datahub.market.entries import Asked
from datahub.market.tables import EntryRow, ManifestRow, NodeRow
from datatokens.errors import TermsError
from datatokens.terms import canonical_json
from datatokens.wire import parse
from fl_client.data.manifests import Manifest
from fl_client.errors import DatasetError
from fl_server.errors import SuperLinkError

MOST_ID = 2**31 - 1  # of a dataset, as far as the database's whole numbers go
PAGE, MOST_SHARING, MOST_GROUPS = 20, 64, 24
STATES = ("active", "paused", "retired")


def dataset_row(desk: Desk, dataset_id: int) -> DatasetRow:
    """The row of a dataset, as the chain has it now. Raises NotFound, ChainUnreachable."""
    if not 1 <= dataset_id <= MOST_ID:
        raise NotFound(f"dataset_id={str(dataset_id)[:20]} is not listed")
    desk.index.catch_up()
    with desk.session() as session:
        row = session.get(DatasetRow, dataset_id)
    if row is None:
        raise NotFound(f"dataset_id={dataset_id} is not listed")
    return row


def manifest_of(desk: Desk, row: DatasetRow) -> Manifest:
    """The manifest that the hospital has sent. Raises Conflict where it has not yet."""
    with desk.session() as session:
        kept = session.get(ManifestRow, row.manifest_hash)
    if kept is None:
        raise Conflict(
            f"dataset {row.dataset_id} has no manifest here yet; its hospital must send it"
        )
    return Manifest.from_dict(parse(kept.document.encode()))


def put_manifest(desk: Desk, dataset_id: int, document: Mapping[str, Any]) -> None:
    """Keep a manifest whose hash is on-chain. Raises BadRequest for any other."""
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
    schema_hash = hashlib.sha256(canonical_json(manifest.as_dict()["schema"])).hexdigest()
    with desk.session() as session:
        if session.get(ManifestRow, row.manifest_hash) is None:
            session.merge(
                ManifestRow(
                    manifest_hash=row.manifest_hash,
                    schema_hash=schema_hash,
                    document=raw.decode(),
                    kept_at=time.time(),
                )
            )
        same = select(DatasetRow.dataset_id).where(DatasetRow.manifest_hash == row.manifest_hash)
        entries.refresh(session, session.exec(same).all())
        session.commit()


def schema(desk: Desk, schema_hash: str) -> bytes:
    """The canonical JSON whose SHA-256 is `schema_hash`, of any dataset here. Raises NotFound."""
    with desk.session() as session:
        of = select(EntryRow.dataset_id).where(EntryRow.schema_hash == schema_hash).limit(1)
        found = session.exec(of).first() if schema_hash else None
    if found is None:
        raise NotFound(f"schema {schema_hash[:80]} is of no dataset here")
    return schema_of(desk, found)


def schema_of(desk: Desk, dataset_id: int) -> bytes:
    """The canonical JSON of a dataset's schema. Raises NotFound."""
    with desk.session() as session:
        row = session.get(DatasetRow, dataset_id)
        kept = session.get(ManifestRow, row.manifest_hash) if row else None
    if kept is None:
        raise NotFound(f"dataset_id={dataset_id} is not listed here with a manifest")
    return _schema_in(kept)


def _schema_in(row: ManifestRow) -> bytes:
    """The schema's canonical JSON: a part of the manifest's, which was checked when it was kept."""
    return canonical_json(parse(row.document.encode())["schema"])


def sharing(desk: Desk, schema_hash: str) -> list[int]:
    """The first datasets (MOST_SHARING) that have this schema, which one order can be over."""
    with desk.session() as session:
        return entries.sharing(session, schema_hash, MOST_SHARING)


def groups(desk: Desk) -> list[dict[str, Any]]:
    """The schemas that most datasets have: how many they are, with how many persons, and the lines
    of the first of them (at most MOST_SHARING).
    """
    with desk.session() as session:
        found = entries.groups(session, MOST_GROUPS)
    return [
        {"datasets": number, "persons": persons, "rows": listing(desk, sharing(desk, schema_hash))}
        for schema_hash, number, persons in found
    ]


def following(desk: Desk, after: int, most: int) -> list[int]:
    """The next `most` datasets on sale whose ids are above `after`, in order."""
    with desk.session() as session:
        wanted = select(EntryRow.dataset_id).where(
            col(EntryRow.on_sale).is_(True), col(EntryRow.dataset_id) > after
        )
        ordered = wanted.order_by(col(EntryRow.dataset_id)).limit(most)
        return list(session.exec(ordered).all())


def owned_by(desk: Desk, account: str) -> list[dict[str, Any]]:
    """The first datasets (PAGE) of an owner, on sale or not."""
    with desk.session() as session:
        wanted = select(DatasetRow.dataset_id).where(DatasetRow.owner == account)
        ids = session.exec(wanted.order_by(col(DatasetRow.dataset_id)).limit(PAGE)).all()
    return listing(desk, ids)


def of_node(desk: Desk, node: str) -> list[dict[str, Any]]:
    """The first datasets (PAGE) that a node key serves."""
    with desk.session() as session:
        wanted = select(DatasetRow.dataset_id).where(DatasetRow.node == node)
        ids = session.exec(wanted.order_by(col(DatasetRow.dataset_id)).limit(PAGE)).all()
    return listing(desk, ids)


def dataset(desk: Desk, dataset_id: int) -> dict[str, Any]:
    """One line of `listing`, with what the chain has seen of its privacy: the highest lifetime
    epsilon that its node has attested, and for how many jobs. Raises NotFound.
    """
    found = listing(desk, [dataset_id])
    if not found:
        raise NotFound(f"dataset_id={dataset_id} is not listed")
    return found[0]


def page(desk: Desk, asked: Asked, limit: int = PAGE) -> tuple[list[dict[str, Any]], str]:
    """What fits, in order, as `listing` has it, at most `limit`; and the cursor of the next page,
    "" for none. Raises BadRequest.
    """
    with desk.session() as session:
        ids, more = entries.page(session, asked, limit)
    rows = {row["dataset_id"]: row for row in listing(desk, ids)}
    return [rows[one] for one in ids if one in rows], more


def online_nodes(desk: Desk) -> set[str]:
    """The node keys whose machine is connected, up to a second ago."""
    try:
        online = desk.online()
    except SuperLinkError:
        return set()
    with desk.session() as session:
        wanted = select(NodeRow.node).where(col(NodeRow.supernode_id).in_(map(str, online)))
        return set(session.exec(wanted).all())


def listing(desk: Desk, only: Collection[int]) -> list[dict[str, Any]]:
    """These datasets by id, each with its public manifest and offer, and whether its node is
    connected. From tables alone, but for who is connected.
    """
    only = [one for one in only if 1 <= one <= MOST_ID]
    wanted = (
        select(DatasetRow, ManifestRow)
        .join(
            ManifestRow,
            col(ManifestRow.manifest_hash) == col(DatasetRow.manifest_hash),
            isouter=True,
        )
        .where(col(DatasetRow.dataset_id).in_(only))
        .order_by(col(DatasetRow.dataset_id))
    )
    online = online_nodes(desk)
    offered = offers.current(desk, only)
    with desk.session() as session:
        rows = session.exec(wanted).all()
    return [
        {
            "dataset_id": row.dataset_id,
            "owner": row.owner,
            "node": row.node,
            "datatoken": row.datatoken,
            "price_units": int(row.price_units),
            "contributor_bps": row.contributor_bps,
            "manifest_hash": row.manifest_hash,
            "manifest": parse(kept.document.encode()) if kept else None,
            "schema_hash": kept.schema_hash if kept else None,
            "kept_at": kept.kept_at if kept else None,
            "state": STATES[row.state],
            "offer": offered.get(row.dataset_id),
            "online": row.node in online,
            "privacy": {
                "epsilon_spent": row.epsilon_micro / 10**6,
                "jobs_attested": row.jobs_attested,
            },
        }
        for row, kept in rows
    ]
