"""Claims: what is shown is what the contract pays, with the proof that it takes."""

from __future__ import annotations

import pytest

from datahub.errors import BadRequest
from datahub.market import claims, contributors
from datatokens.bindings.revenue import Claim
from tests.datahub.hub_world import BPS, HubWorld
from tests.datahub.test_contributors import ACCOUNTS, ENTRIES, listed, post

REVENUE = 1_000_000
OF_ALL = REVENUE * BPS // 10_000  # the contributors' part


def earning(hub: HubWorld) -> int:
    """A new dataset with a kept list that has earned REVENUE."""
    dataset_id = listed(hub)
    epoch = post(hub, dataset_id, ENTRIES)
    contributors.put_contributors(hub.desk, dataset_id, epoch, ENTRIES)
    hub.bank.revenue(hub.bank.buyer).pay_revenue(dataset_id, REVENUE)
    hub.desk.index.catch_up()
    return dataset_id


def test_claims_of__revenue_came_in__the_share_by_weight_with_a_proof_that_pays(
    hub: HubWorld,
) -> None:
    dataset_id = earning(hub)
    (claim,) = claims.claims_of(hub.desk, ACCOUNTS[3].lower())
    assert (claim.dataset_id, claim.epoch, claim.weight) == (dataset_id, 1, 4)
    assert (claim.claimable_units, claim.claimed_units) == (OF_ALL * 4 // 10, 0)
    proof = tuple(bytes.fromhex(sibling[2:]) for sibling in claim.proof)
    paid = hub.bank.revenue(hub.bank.buyer).claim_on_behalf(
        ACCOUNTS[3], [Claim(dataset_id, claim.epoch, claim.weight, proof)]
    )
    assert paid == {dataset_id: claim.claimable_units}
    hub.desk.index.catch_up()
    (after,) = claims.claims_of(hub.desk, ACCOUNTS[3])
    assert (after.claimable_units, after.claimed_units) == (0, claim.claimable_units)


def test_claims_of__several_datasets__one_claim_each(hub: HubWorld) -> None:
    ids = {earning(hub), earning(hub)}
    found = claims.claims_of(hub.desk, ACCOUNTS[0])
    assert {claim.dataset_id for claim in found} == ids
    assert {claim.claimable_units for claim in found} == {OF_ALL // 10}


def test_claims_of__a_list_that_was_replaced_while_it_waited__nothing_to_claim(
    hub: HubWorld,
) -> None:
    dataset_id = earning(hub)
    epoch = post(hub, dataset_id, ENTRIES[:2])
    contributors.put_contributors(hub.desk, dataset_id, epoch, ENTRIES[:2])
    post(hub, dataset_id, ENTRIES[2:])  # takes the waiting list's place
    units = {c.epoch: c.claimable_units for c in claims.claims_of(hub.desk, ACCOUNTS[0])}
    assert units[epoch] == 0  # its proof would spoil the whole transaction


def test_claims_of__a_stranger__has_none_and_no_address_is_refused(hub: HubWorld) -> None:
    earning(hub)
    assert claims.claims_of(hub.desk, str(hub.bank.operator.address)) == []
    with pytest.raises(BadRequest, match="account='me' must be an address"):
        claims.claims_of(hub.desk, "me")
