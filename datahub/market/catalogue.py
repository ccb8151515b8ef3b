"""The datasets on sale: what the registry says, plus the public manifests that hospitals send.

A manifest is kept only if its hash is the one on-chain, so nobody needs an account to send one.
Knows nothing of contributors or jobs.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from datahub.errors import BadRequest, Conflict, NotFound
from datahub.market import offers
from datahub.market.desk import Desk
from datahub.market.following import Logs
from datahub.market.tables import DatasetRow, NodeRow, SchemaRow
from datatokens.bindings.registry import Dataset
from datatokens.errors import BankError, TermsError, TransactionRefused
from datatokens.public_ledger import History
from datatokens.terms import canonical_json
from datatokens.wire import parse
from fl_client.data.manifests import Manifest
from fl_client.errors import DatasetError
from fl_server.errors import SuperLinkError

log = logging.getLogger("datahub.hub")

SYNC_ATTEMPTS = 3
FRESH_S = 1.0


def sync(desk: Desk, pause: float = 0.0) -> None:
    """Bring the dataset table up to the registry (new datasets, changed prices, keys, manifests):
    all of it at the process's first look, then what has had an event since the last one, which is
    at least `pause` seconds ago.
    """
    desk.listings.look(lambda logs: _keep(desk, _changed(desk, logs)), pause)


def fresh(desk: Desk) -> None:
    """`sync` for those who look only: what is kept is shown where the chain does not answer, and
    however many look, the chain is asked once a second.
    """
    try:
        sync(desk, FRESH_S)
    except BankError as error:
        log.warning("the catalogue may be old: %s", error)


def _changed(desk: Desk, logs: Logs | None) -> list[Dataset]:
    if logs is None:
        _know_schemas(desk)
        return desk.registry.datasets()
    # dataset ids are small numbers and stand in a topic; accounts and hashes are never that small
    count = desk.registry.count()
    words = {int.from_bytes(topic, "big") for one in logs for topic in one["topics"][1:]}
    return [desk.registry.dataset(word) for word in sorted(words) if 1 <= word <= count]


def _keep(desk: Desk, listed: Iterable[Dataset]) -> None:
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
    """The row of a dataset, as the chain has it now. Raises NotFound."""
    try:
        _keep(desk, [desk.registry.dataset(dataset_id)])
    except (TransactionRefused, TermsError) as error:
        raise NotFound(f"dataset_id={dataset_id} is not listed") from error
    with desk.session() as session:
        row = session.get(DatasetRow, dataset_id)
        assert row is not None  # it was kept above, and rows are never deleted
        return row


def manifest_of(row: DatasetRow) -> Manifest:
    """The manifest that the hospital has sent. Raises Conflict where it has not yet."""
    if row.manifest is None:
        raise Conflict(
            f"dataset {row.dataset_id} has no manifest here yet; its hospital must send it"
        )
    return Manifest.from_dict(parse(row.manifest.encode()))


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
    row.manifest = raw.decode()
    with desk.session() as session:
        session.add(row)
        session.merge(_schema_of(row))
        session.commit()


def _schema_of(row: DatasetRow) -> SchemaRow:
    found = hashlib.sha256(_schema_in(row)).hexdigest()
    return SchemaRow(manifest_hash=row.manifest_hash, schema_hash=found)


def _schema_in(row: DatasetRow) -> bytes:
    """The schema's canonical JSON: a part of the manifest's, which was checked when it was kept."""
    assert row.manifest is not None
    return canonical_json(parse(row.manifest.encode())["schema"])


def _know_schemas(desk: Desk) -> None:
    """Of manifests that were kept before schemas were known by their hash."""
    with desk.session() as session:
        known = select(SchemaRow.manifest_hash)
        kept = select(DatasetRow).where(col(DatasetRow.manifest).is_not(None))
        for row in session.exec(kept.where(col(DatasetRow.manifest_hash).not_in(known))):
            session.merge(_schema_of(row))
        with suppress(IntegrityError):  # another worker has started at the same moment
            session.commit()


def schema(desk: Desk, schema_hash: str) -> bytes:
    """The canonical JSON whose SHA-256 is `schema_hash`, of any dataset here. Raises NotFound."""
    if not (ids := sharing(desk, schema_hash)):
        raise NotFound(f"schema {schema_hash[:80]} is of no dataset here")
    return schema_of(desk, ids[0])


def schema_of(desk: Desk, dataset_id: int) -> bytes:
    """The canonical JSON of a dataset's schema. Raises NotFound."""
    with desk.session() as session:
        row = session.get(DatasetRow, dataset_id)
    if row is None or row.manifest is None:
        raise NotFound(f"dataset_id={dataset_id} is not listed here with a manifest")
    return _schema_in(row)


def sharing(desk: Desk, schema_hash: str) -> list[int]:
    """The datasets that have this schema, which one order can be over."""
    with desk.session() as session:
        wanted = (
            select(DatasetRow.dataset_id)
            .join(SchemaRow, col(SchemaRow.manifest_hash) == col(DatasetRow.manifest_hash))
            .where(SchemaRow.schema_hash == schema_hash, col(DatasetRow.manifest).is_not(None))
        )
        return sorted(session.exec(wanted).all())


def dataset(desk: Desk, dataset_id: int) -> dict[str, Any]:
    """One line of `listing`, with what the chain has seen of its privacy: the highest lifetime
    epsilon that its node has attested, and for how many jobs; None where the chain does not answer.
    Raises NotFound.
    """
    found = listing(desk, [dataset_id])
    if not found:
        raise NotFound(f"dataset_id={dataset_id} is not listed")
    privacy: dict[str, Any] | None = None
    try:
        history = desk.spent().get(dataset_id, History((), ()))
        privacy = {
            "epsilon_spent": history.epsilon_micro / 10**6,
            "jobs_attested": len(history.attested),
        }
    except BankError as error:
        log.warning("what was spent is not known: %s", error)
    return found[0] | {"privacy": privacy}


def listing(desk: Desk, only: Collection[int] | None = None) -> list[dict[str, Any]]:
    """The catalogue as shown: every dataset (or `only` these), its public manifest, whether its
    node is connected. From tables alone, but for who is connected, which may be a second old.
    """
    try:
        online = desk.online()
    except SuperLinkError:
        online = set()
    offered = offers.current(desk)
    wanted = select(DatasetRow).order_by(col(DatasetRow.dataset_id))
    if only is not None:
        wanted = wanted.where(col(DatasetRow.dataset_id).in_(only))
    with desk.session() as session:
        nodes = {row.node: int(row.supernode_id) for row in session.exec(select(NodeRow)).all()}
        known = session.exec(select(SchemaRow)).all()
        schemas = {row.manifest_hash: row.schema_hash for row in known}
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
            "manifest": parse(row.manifest.encode()) if row.manifest else None,
            "schema_hash": schemas.get(row.manifest_hash) if row.manifest else None,
            "offer": offered.get(row.dataset_id),
            "online": nodes.get(row.node) in online if row.node in nodes else False,
        }
        for row in rows
    ]
