"""The addresses of what others harvest: Croissant and HealthDCAT-AP of a dataset, the catalogue in
pages, a feed. What stands in them is made in datahub/metadata/; here it is looked up.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from datahub.errors import Conflict, NotFound
from datahub.market import catalogue
from datahub.market.catalogue import MOST_ID
from datahub.market.desk import Desk
from datahub.market.entries import Asked
from datahub.metadata import croissant, dcat, feed
from datahub.metadata.listed import Listed
from datahub.web import pages
from datahub.web.pages import DatasetId

router = APIRouter(include_in_schema=False)

LINKED_DATA = "application/ld+json"
ATOM = "application/atom+xml; charset=utf-8"


@router.get("/datasets/{dataset_id}/croissant.json")
def croissant_document(request: Request, dataset_id: DatasetId) -> Response:
    """One dataset in Croissant 1.0."""
    listed = _one(request, dataset_id)
    try:
        table = bytes(pages.made_up_table(request, dataset_id).body)  # as it is given out
    except Conflict:
        table = None
    return _json(croissant.document(listed, table if listed.table else None))


@router.get("/datasets/{dataset_id}/dcat.jsonld")
def dcat_document(request: Request, dataset_id: DatasetId) -> Response:
    """One dataset in DCAT 3 with HealthDCAT-AP's terms."""
    return _json(dcat.document(_one(request, dataset_id)))


@router.get("/catalogue.jsonld")
def catalogue_document(
    request: Request, after: Annotated[int, Query(ge=0, le=MOST_ID)] = 0
) -> Response:
    """The catalogue, so many datasets at a time, each page with the address of the next."""
    desk = pages.desk_of(request)
    ids = catalogue.following(desk, after, dcat.PAGE + 1)
    last = len(ids) <= dcat.PAGE
    page = _listed(request, ids[: dcat.PAGE])
    return _json(dcat.catalogue(_hub(request), _market(desk), page, after, last))


@router.get("/feed.atom")
def atom_feed(request: Request) -> Response:
    """The newest datasets as an Atom feed."""
    desk = pages.desk_of(request)
    rows, _ = catalogue.page(desk, Asked(sort="newest"), feed.MOST)
    found = _listed(request, [row["dataset_id"] for row in rows])
    newest = sorted(found, key=lambda one: -one.dataset_id)
    return Response(feed.document(_hub(request), _market(desk), newest), media_type=ATOM)


def _hub(request: Request) -> str:
    return pages.address_of(request)


def _market(desk: Desk) -> str:
    """The registry on its chain (CAIP-10): the same for every hub that lists from it."""
    return f"eip155:{desk.config.chain_id}:{desk.config.registry}"


def _one(request: Request, dataset_id: int) -> Listed:
    found = _listed(request, [dataset_id])
    if not found:
        raise NotFound(f"dataset_id={dataset_id} is not listed here with a manifest")
    return found[0]


def _listed(request: Request, ids: Collection[int]) -> list[Listed]:
    """Those of `ids` that have a manifest, in the order of their ids."""
    desk = pages.desk_of(request)
    rows = [row for row in catalogue.listing(desk, ids) if row["manifest"]]
    hub, market = _hub(request), _market(desk)
    return [
        Listed(
            hub,
            market,
            row["dataset_id"],
            row["manifest"],
            row["schema_hash"],
            datetime.fromtimestamp(int(row["kept_at"]), UTC),
            tuple(row["offer"]["purposes"]) if row["offer"] else (),
            # no offer says them yet
            tuple(row["offer"].get("permits", ())) if row["offer"] else (),
        )
        for row in rows
    ]


def _json(document: dict[str, Any]) -> Response:
    return Response(json.dumps(document), media_type=LINKED_DATA)
