"""Contributor lists: kept only where their root is on the chain."""

from __future__ import annotations

import pytest
from eth_account import Account
from sqlmodel import select

from datahub.errors import BadRequest
from datahub.market import contributors
from datahub.market.tables import ContributorRow
from datatokens.merkle import Tree
from tests.datahub.hub_world import HubWorld

ACCOUNTS = [str(Account.from_key(bytes([i]) * 32).address) for i in range(1, 5)]
ENTRIES = [(account, weight) for weight, account in enumerate(ACCOUNTS, 1)]


def listed(hub: HubWorld) -> int:
    """A new dataset of hospital 0, so that its epochs start at 1."""
    mine = hub.bank.registry(hub.bank.hospitals[0])
    return mine.list_dataset(hub.bank.node(0), 5, 2500, b"\1" * 32, "https://h", "H")


def post(hub: HubWorld, dataset_id: int, entries: list[tuple[str, int]]) -> int:
    revenue = hub.bank.revenue(hub.bank.hospitals[0])
    epoch = revenue.next_epoch(dataset_id)
    return revenue.post_contributors(dataset_id, Tree(dataset_id, epoch, entries).root, "https://l")


def kept(hub: HubWorld, dataset_id: int) -> list[tuple[str, int]]:
    with hub.desk.session() as session:
        rows = session.exec(
            select(ContributorRow).where(ContributorRow.dataset_id == dataset_id)
        ).all()
    return [(row.account, int(row.weight)) for row in sorted(rows, key=lambda r: r.position)]


def test_put_contributors__the_posted_list__is_kept_in_order_and_replaced_by_itself(
    hub: HubWorld,
) -> None:
    dataset_id = listed(hub)
    epoch = post(hub, dataset_id, ENTRIES)
    lower = [(account.lower(), weight) for account, weight in ENTRIES]
    for entries in (ENTRIES, lower):  # another spelling of the same addresses is the same list
        contributors.put_contributors(hub.desk, dataset_id, epoch, entries)
        assert kept(hub, dataset_id) == ENTRIES


def test_put_contributors__a_list_that_still_waits__is_kept_too(hub: HubWorld) -> None:
    dataset_id = listed(hub)
    post(hub, dataset_id, ENTRIES)
    hub.bank.money(hub.bank.buyer).approve(hub.bank.deployment.market, 1000)
    hub.bank.revenue(hub.bank.buyer).pay_revenue(dataset_id, 1000)
    epoch = post(hub, dataset_id, ENTRIES[:2])
    assert hub.desk.revenue.pending_contributors(dataset_id) is not None
    contributors.put_contributors(hub.desk, dataset_id, epoch, ENTRIES[:2])
    assert kept(hub, dataset_id) == ENTRIES[:2]


@pytest.mark.parametrize(
    "entries",
    [
        [(ACCOUNTS[0], 9), *ENTRIES[1:]],  # another sum
        [(ACCOUNTS[1], 1), (ACCOUNTS[0], 2), *ENTRIES[2:]],  # the same sum, other weights
        [ENTRIES[0], ENTRIES[2], ENTRIES[1], ENTRIES[3]],  # other pairs of leaves
        ENTRIES[:3],
    ],
)
def test_put_contributors__another_list_than_the_posted_one__refuses(
    hub: HubWorld, entries: list[tuple[str, int]]
) -> None:
    dataset_id = listed(hub)
    epoch = post(hub, dataset_id, ENTRIES)
    with pytest.raises(BadRequest, match="root is not the one of dataset"):
        contributors.put_contributors(hub.desk, dataset_id, epoch, entries)
    assert kept(hub, dataset_id) == []


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([], "1 to 1000000 entries, not 0"),
        ([("0x12", 10)], "account='0x12' must be an address"),
        ([(ACCOUNTS[0], 0), (ACCOUNTS[1], 10)], "weight=0"),
        ([(ACCOUNTS[0], 5), (ACCOUNTS[0], 5)], "is on the list twice"),
    ],
)
def test_put_contributors__a_list_that_is_none__says_what_is_wrong(
    hub: HubWorld, entries: list[tuple[str, int]], sentence: str
) -> None:
    dataset_id = listed(hub)
    epoch = post(hub, dataset_id, ENTRIES)  # weights that sum to 10, as those of the last case do
    with pytest.raises(BadRequest, match=sentence):
        contributors.put_contributors(hub.desk, dataset_id, epoch, entries)
