"""Claims: what is shown is what the contract pays, with the proof that it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from datahub.errors import BadRequest
from datahub.index.tables import EpochRow
from datahub.market import claims, contributors
from datatokens.bindings.revenue import Claim
from datatokens.merkle import Tree
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


def test_earned__job_by_job__adds_up_to_what_the_contract_has_credited(hub: HubWorld) -> None:
    bank, ids = hub.bank, []
    for n, hospital in enumerate(bank.hospitals):
        mine = bank.registry(hospital)
        ids.append(mine.list_dataset(bank.node(n), 5, 3333, b"\1" * 32, "https://h", "H"))
        tree = Tree(ids[-1], 1, ENTRIES)
        bank.revenue(hospital).post_contributors(ids[-1], tree.root, "https://l")
        contributors.put_contributors(hub.desk, ids[-1], 1, ENTRIES)
    here = replace(bank, dataset_ids=ids)
    escrow = here.escrow(here.operator)
    for serial, (rewards, worked, compute) in enumerate(
        [((100, 200, 300), 0b111, 0), ((7, 0, 11), 0b101, 0), ((1, 1, 1), 0b111, 5)]
    ):
        here.serial = 10_000 + bank.serial + serial
        terms = here.funded(compute=(1, 10)) if compute else here.funded()
        attestation = here.attestation(terms, rewards, worked, compute)
        places = [terms.index_of_node(here.node(n)) for n in range(3)]
        signers = tuple(n for n, place in enumerate(places) if worked >> place & 1)
        signed = here.signatures(terms, attestation, signers)
        escrow.settle(terms, attestation, signed)
    bank.serial += 10
    hub.desk.index.catch_up()
    found = claims.earned(hub.desk, ACCOUNTS[3].lower())
    mine_ = [one for one in found if one.dataset_id in ids]
    assert len(mine_) == 8, "one of the three did not work in one of the jobs"
    assert {one.at for one in mine_} == {None}, "this hub did not run them"
    weight = dict(ENTRIES)[ACCOUNTS[3]]
    for dataset_id in ids:
        lines = [one for one in mine_ if one.dataset_id == dataset_id]
        credited = hub.desk.revenue.epoch(dataset_id, 1).credited_units
        assert sum(one.of_units for one in lines) == credited > 0
        whole = hub.desk.revenue.claimable(dataset_id, 1, ACCOUNTS[3], weight)
        assert 0 <= whole - sum(one.units for one in lines) < len(lines)
    # a list that was live after them has earned nothing of them
    with hub.desk.session() as session:
        row = session.get(EpochRow, (ids[0], 1))
        assert row is not None
        row.since = 2**62
        session.commit()
    assert not [one for one in claims.earned(hub.desk, ACCOUNTS[3]) if one.dataset_id == ids[0]]
