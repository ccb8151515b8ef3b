"""The datasets on sale: what the chain says wins, and a manifest counts only by its hash."""

from __future__ import annotations

import pytest

from datahub.errors import BadRequest, Conflict, NotFound
from datahub.market import catalogue
from tests.datahub.hub_world import HubWorld, manifest


def test_catch_up__new_datasets__are_listed_without_a_manifest_and_offline(
    bare_hub: HubWorld,
) -> None:
    bare_hub.desk.index.catch_up()
    rows = catalogue.listing(bare_hub.desk, bare_hub.bank.dataset_ids)
    assert [row["dataset_id"] for row in rows] == bare_hub.bank.dataset_ids
    assert {row["manifest"] for row in rows} == {None} and not any(row["online"] for row in rows)
    assert rows[0]["owner"] == bare_hub.bank.hospitals[0].address


def test_catch_up__twice_and_a_price_changed__is_the_new_price_once(hub: HubWorld) -> None:
    mine = hub.bank.registry(hub.bank.hospitals[0])
    before = mine.dataset(1).price_units
    mine.set_price(1, 77)
    try:
        hub.desk.index.catch_up()
        hub.desk.index.catch_up()
        rows = catalogue.listing(hub.desk, hub.bank.dataset_ids)
        assert [row["price_units"] for row in rows if row["dataset_id"] == 1] == [77]
        assert rows[0]["manifest"]["persons"] == 100  # what was sent stays, as its hash did
    finally:
        mine.set_price(1, before)


def test_listing__a_supernode_is_connected__its_dataset_is_online(hub: HubWorld) -> None:
    hub.connect(1)
    shown = {
        row["dataset_id"]: row["online"]
        for row in catalogue.listing(hub.desk, hub.bank.dataset_ids)
    }
    assert shown == {1: False, 2: True, 3: False}


def test_dataset_row__asked_first__is_read_from_the_chain(bare_hub: HubWorld) -> None:
    assert catalogue.dataset_row(bare_hub.desk, 2).node == bare_hub.bank.node(1)
    with pytest.raises(NotFound, match="dataset_id=99 is not listed"):
        catalogue.dataset_row(bare_hub.desk, 99)


def test_manifest_of__nothing_sent_yet__says_who_must(bare_hub: HubWorld) -> None:
    row = catalogue.dataset_row(bare_hub.desk, 1)
    with pytest.raises(Conflict, match="its hospital must send it"):
        catalogue.manifest_of(bare_hub.desk, row)


def test_put_manifest__the_one_whose_hash_is_on_the_chain__is_kept(bare_hub: HubWorld) -> None:
    catalogue.put_manifest(bare_hub.desk, 1, manifest(1).as_dict())
    assert catalogue.manifest_of(
        bare_hub.desk, catalogue.dataset_row(bare_hub.desk, 1)
    ) == manifest(1)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (manifest(1, persons=101).as_dict(), "its hash is not the one that dataset 1 has"),
        (manifest(2).as_dict(), "its hash is not the one that dataset 1 has"),
        (manifest(1).as_dict() | {"persons": 0}, "persons=0"),
        ({}, "manifest"),
    ],
)
def test_put_manifest__another_or_a_broken_one__refuses(
    bare_hub: HubWorld, document: dict[str, object], sentence: str
) -> None:
    with pytest.raises(BadRequest, match=sentence):
        catalogue.put_manifest(bare_hub.desk, 1, document)
    assert catalogue.listing(bare_hub.desk, [1])[0]["manifest"] is None


def test_catch_up__another_manifest_on_the_chain__the_old_one_is_dropped(hub: HubWorld) -> None:
    mine = hub.bank.registry(hub.bank.hospitals[2])
    mine.set_manifest(3, manifest(3, persons=301).hash, "https://h3")
    try:
        hub.desk.index.catch_up()
        two, three = catalogue.listing(hub.desk, [2, 3])
        assert two["manifest"] is not None and three["manifest"] is None
    finally:
        mine.set_manifest(3, manifest(3).hash, "https://h3")
