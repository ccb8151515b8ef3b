"""The life of an order through the typed bindings, on the embedded chain and on anvil."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
from bank_world import BPS, FEE, PRICE, REWARD, World
from eth_account import Account
from typer.testing import CliRunner

from datatokens import cli
from datatokens.bindings.escrow import EscrowJob, Status
from datatokens.bindings.registry import Token
from datatokens.bindings.revenue import Claim, Pending, claim_message
from datatokens.chain.connection import connect
from datatokens.chain.rpc_server import accounts
from datatokens.deploy import Deployment, check, deploy, verify
from datatokens.errors import BankError, TermsError, TransactionRefused
from datatokens.merkle import Tree
from datatokens.terms import (
    DisputeTerms,
    acceptance_message,
    address,
    attestation_message,
    rejection_message,
    sign,
)

STRANGER_KEY = accounts()[9][1]
CONTRIBUTORS = [(accounts()[10][0], 3), (accounts()[11][0], 1)]


def refusal(action: object, *arguments: object) -> TransactionRefused:
    with pytest.raises(TransactionRefused) as caught:
        action(*arguments)  # type: ignore[operator]
    return caught.value


def test_registry__dataset_listed__comes_back_as_it_was_given(world: World) -> None:
    dataset = world.registry(world.buyer).dataset(world.dataset_ids[1])
    assert dataset.owner == world.hospitals[1].address
    assert dataset.node == world.node(1)
    assert (dataset.price_units, dataset.contributor_bps, dataset.manifest_hash) == (
        PRICE,
        BPS,
        b"\x01" * 32,
    )
    assert world.registry(world.buyer).uri(world.dataset_ids[1]) == "https://h1"
    assert [d.dataset_id for d in world.registry(world.buyer).datasets()][:3] == world.dataset_ids


def test_registry__manifest_changed__newest_uri_wins(world: World) -> None:
    mine = world.registry(world.hospitals[2])
    mine.set_manifest(world.dataset_ids[2], b"\x09" * 32, "https://new")
    assert mine.uri(world.dataset_ids[2]) == "https://new"
    assert mine.dataset(world.dataset_ids[2]).manifest_hash == b"\x09" * 32
    with pytest.raises(BankError, match="dataset 1000000 is not listed"):
        mine.uri(10**6)


def test_registry__stranger_sets_price__refused_with_sentence(world: World) -> None:
    said = refusal(world.registry(world.buyer).set_price, world.dataset_ids[0], 1)
    assert said.name == "NotDatasetOwner"
    assert str(said) == f"{world.buyer.address} does not own dataset {world.dataset_ids[0]}"
    assert said.args_by_name == {"datasetId": world.dataset_ids[0], "caller": world.buyer.address}
    assert refusal(world.registry(world.buyer).dataset, 10**6).name == "UnknownDataset"


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("node", ("0x12", 1, 0, b"\0" * 32, "", "")),
        ("price_units", (accounts()[0][0], -1, 0, b"\0" * 32, "", "")),
        ("price_units", (accounts()[0][0], 2**96, 0, b"\0" * 32, "", "")),
        ("contributor_bps", (accounts()[0][0], 1, 10_001, b"\0" * 32, "", "")),
        ("manifest_hash", (accounts()[0][0], 1, 0, b"\0" * 31, "", "")),
    ],
)
def test_registry__bad_input__names_the_field(
    world: World, field: str, arguments: tuple[object, ...]
) -> None:
    with pytest.raises(TermsError, match=field):
        world.registry(world.hospitals[0]).list_dataset(*arguments)  # type: ignore[arg-type]


def test_order__settled__every_unit_is_accounted_for(world: World) -> None:
    escrow, money = world.escrow(world.buyer), world.money(world.buyer)
    before, fee_before = (
        money.balance_units(str(world.buyer.address)),
        escrow.credit_units(str(world.operator.address)),
    )
    pools = [world.revenue(world.buyer).pool(i).hospital_units for i in world.dataset_ids]
    terms = world.terms()
    assert escrow.job(terms.job_id).status is Status.NONE
    escrow.create_job(terms)
    job = escrow.job(terms.job_id)
    assert job == EscrowJob(Status.FUNDED, terms.amount_units, 0, 0)
    assert escrow.settlement(terms.job_id) is None
    some = world.acceptances(terms, (2,))
    world.escrow(world.operator).accept(terms, some)
    assert escrow.job(terms.job_id).accepted == 1 << terms.index_of_node(world.node(2))
    world.escrow(world.operator).accept(
        terms, world.acceptances(terms)
    )  # the one that is there is left out
    world.escrow(world.operator).accept(
        terms, world.acceptances(terms)
    )  # nothing left: nothing is sent
    assert escrow.job(terms.job_id).accepted == 0b111

    third = REWARD // 3
    attestation = world.attestation(terms, (third, third, 0))
    world.escrow(world.operator).settle(terms, attestation, world.signatures(terms, attestation))

    settlement = escrow.settlement(terms.job_id)
    assert settlement is not None
    assert settlement.attestation == attestation
    assert settlement.paid_bps == 10_000
    assert settlement.paid_units == 3 * PRICE + 2 * third
    assert settlement.change_units == REWARD - 2 * third
    assert escrow.job(terms.job_id).status is Status.SETTLED
    assert before - money.balance_units(str(world.buyer.address)) == settlement.paid_units + FEE
    assert escrow.credit_units(str(world.operator.address)) - fee_before == FEE
    rewarded = zip(terms.datasets, attestation.outcomes, strict=True)
    earned = {line.dataset_id: PRICE + outcome.reward_units for line, outcome in rewarded}
    for dataset_id, pool_before in zip(world.dataset_ids, pools, strict=True):
        hospital = earned[dataset_id] - earned[dataset_id] * BPS // 10_000
        assert world.revenue(world.buyer).pool(dataset_id).hospital_units - pool_before == hospital


def test_order__hospital_absent__its_price_comes_back(world: World) -> None:
    terms, escrow = world.funded(), world.escrow(world.buyer)
    absent = terms.index_of_node(world.node(2))
    rewards = tuple(0 if i == absent else 10 for i in range(3))
    attestation = world.attestation(terms, rewards, worked=0b111 & ~(1 << absent))
    before = escrow.standing(world.dataset_ids[2])
    world.escrow(world.operator).settle(
        terms, attestation, world.signatures(terms, attestation, (0, 1))
    )
    settlement = world.escrow(world.buyer).settlement(terms.job_id)
    assert settlement is not None
    assert (settlement.paid_units, settlement.change_units) == (2 * PRICE + 20, PRICE + REWARD - 20)
    assert escrow.standing(world.dataset_ids[2]) == dataclasses.replace(
        before, failed=before.failed + 1
    )


def test_order__metered_compute__paid_to_the_hospital_and_the_rest_of_the_cap_comes_back(
    world: World,
) -> None:
    terms = world.funded(compute=(7, 700))
    assert terms.amount_units == 3 * (PRICE + 700) + REWARD + FEE
    line, pool = terms.datasets[0], world.revenue(world.buyer).pool
    assert [line.compute_units(s) for s in (0.0, 0.1, 60, 60.1, 1e9)] == [0, 7, 7, 14, 700]
    before = pool(line.dataset_id).hospital_units
    attestation = world.attestation(terms, (0, 0, 0), compute_units=14)
    world.escrow(world.operator).settle(terms, attestation, world.signatures(terms, attestation))
    settlement = world.escrow(world.buyer).settlement(terms.job_id)
    assert settlement is not None
    assert (settlement.paid_units, settlement.change_units) == (3 * (PRICE + 14), 3 * 686 + REWARD)
    assert pool(line.dataset_id).hospital_units - before == PRICE - PRICE * BPS // 10_000 + 14


def test_dispute__ruled_against_the_hospitals__the_buyer_has_the_money_and_the_bond_back(
    world: World,
) -> None:
    arbiter, money, buyer = world.hospitals[0], world.money(world.buyer), str(world.buyer.address)
    before = money.balance_units(buyer)
    terms = world.funded(dispute=DisputeTerms(3600, str(arbiter.address), 500, 0))
    attestation = world.attestation(terms)
    world.escrow(world.operator).settle(terms, attestation, world.signatures(terms, attestation))
    assert world.escrow(world.buyer).job(terms.job_id).status is Status.PROPOSED
    assert world.escrow(world.buyer).settlement(terms.job_id) is None
    assert refusal(world.escrow(world.operator).finalize, terms, attestation).name == "WindowOpen"
    world.escrow(world.buyer).dispute(terms, attestation)
    assert money.balance_units(buyer) == before - terms.amount_units - 500
    assert refusal(world.escrow(world.buyer).rule, terms, attestation, 0).name == "NotArbiter"
    with pytest.raises(TermsError, match="paid_bps=10001"):
        world.escrow(arbiter).rule(terms, attestation, 10_001)
    world.escrow(arbiter).rule(terms, attestation, 0)
    assert money.balance_units(buyer) == before
    settlement = world.escrow(world.buyer).settlement(terms.job_id)
    assert settlement is not None
    assert (settlement.paid_bps, settlement.paid_units, settlement.change_units) == (
        0,
        0,
        terms.amount_units,
    )


def test_dispute__nobody_objects__paid_after_the_window(world: World) -> None:
    terms = world.funded(dispute=DisputeTerms(3600, str(world.hospitals[0].address), 500, 0))
    attestation = world.attestation(terms)
    world.escrow(world.operator).settle(terms, attestation, world.signatures(terms, attestation))
    world.travel(3700)
    assert refusal(world.escrow(world.buyer).dispute, terms, attestation).name == "WindowClosed"
    other = dataclasses.replace(attestation, model_hash=b"\x44" * 32)
    assert refusal(world.escrow(world.operator).finalize, terms, other).name == "OtherResult"
    world.escrow(world.operator).finalize(terms, attestation)
    assert world.escrow(world.buyer).job(terms.job_id).status is Status.SETTLED


def test_accept__by_a_key_that_is_not_registered__refused(world: World) -> None:
    terms = world.paid()
    forged = {world.node(0): sign(acceptance_message(terms), STRANGER_KEY)}
    assert refusal(world.escrow(world.operator).accept, terms, forged).name == "BadSignature"
    attestation = world.attestation(terms)
    said = refusal(
        world.escrow(world.operator).settle,
        terms,
        attestation,
        world.signatures(terms, attestation),
    )
    assert said.name == "NotAccepted"


def test_order__voucher__pays_one_datatoken_and_refund_returns_it(world: World) -> None:
    buyer, dataset_id = str(world.buyer.address), world.dataset_ids[0]
    world.revenue(world.buyer).buy_datatokens(dataset_id, 1, PRICE)
    vouchers = Token(world.buyer, world.registry(world.buyer).dataset(dataset_id).datatoken)
    held = vouchers.balance_units(buyer)
    assert held >= 10**18
    terms = world.funded(vouchers=(0,))
    assert terms.amount_units == 2 * PRICE + REWARD + FEE
    assert vouchers.balance_units(buyer) == held - 10**18
    reason = "purpose is not allowed"
    rejections = {
        world.node(n): (reason, sign(rejection_message(terms, reason), world.node_keys[n]))
        for n in (0, 1)
    }
    world.escrow(world.operator).refund_rejected(terms, rejections)
    assert vouchers.balance_units(buyer) == held
    assert world.escrow(world.buyer).job(terms.job_id).status is Status.REFUNDED


def test_create_job__voucher_of_a_second_tier__takes_that_tiers_datatoken(world: World) -> None:
    buyer, dataset_id = str(world.buyer.address), world.dataset_ids[1]
    mine = world.registry(world.hospitals[1])
    tier = mine.add_tier(dataset_id, "SECOND", 0, 0)
    first, second = (Token(world.buyer, mine.tier(dataset_id, t).datatoken) for t in (0, tier))
    quoted = world.terms(vouchers=(1,))
    lines = [
        dataclasses.replace(line, tier=tier if line.voucher else 0) for line in quoted.datasets
    ]
    terms = dataclasses.replace(quoted, datasets=tuple(lines))
    escrow = world.escrow(world.buyer)
    mine.mint_datatokens(dataset_id, buyer, 10**18)  # of tier 0: does not help
    held = first.balance_units(buyer)
    with pytest.raises(
        BankError, match=f"less than one datatoken of tier {tier} of dataset {dataset_id}"
    ):
        escrow.create_job(terms)
    mine.mint_tier(dataset_id, tier, buyer, 10**18)
    escrow.create_job(terms)
    assert escrow.job(terms.job_id).status is Status.FUNDED
    assert (first.balance_units(buyer), second.balance_units(buyer)) == (held, 0)


def test_create_job__balance_short__names_have_and_need(world: World) -> None:
    poor = connect(world.url, STRANGER_KEY)
    terms = dataclasses.replace(world.terms(), buyer=str(poor.address))
    with pytest.raises(
        BankError,
        match=rf"has 0.00 tUSD \(0 base units\); this job needs .*{terms.amount_units} base",
    ):
        world.escrow(poor).create_job(terms)
    with pytest.raises(
        BankError, match=rf"has 0.00 tUSD.*2 datatokens costs .*\({2 * PRICE} base units"
    ):
        world.revenue(poor).buy_datatokens(world.dataset_ids[0], 2, PRICE)


def test_create_job__without_key__says_so(world: World) -> None:
    with pytest.raises(BankError, match="needs the buyer's key"):
        world.escrow(connect(world.url)).create_job(world.terms())
    with pytest.raises(BankError, match="needs a key"):
        world.registry(connect(world.url)).set_price(1, 1)


def test_create_job__another_buyer_twice_or_late__refused(world: World) -> None:
    terms = world.funded()
    assert refusal(world.escrow(world.buyer).create_job, terms).name == "JobExists"
    world.money(world.operator).mint(str(world.operator.address), 10**9)
    assert refusal(world.escrow(world.operator).create_job, world.terms()).name == "NotBuyer"
    late = dataclasses.replace(terms, deadline=world.operator.now() + 60)
    assert refusal(world.escrow(world.buyer).create_job, late).name == "BadDeadline"


def test_settle__unpaid_job__refused(world: World) -> None:
    terms = world.terms()
    attestation = world.attestation(terms)
    said = refusal(
        world.escrow(world.operator).settle,
        terms,
        attestation,
        world.signatures(terms, attestation),
    )
    assert str(said) == "the job is unpaid, so this cannot be done"
    assert said.args_by_name["jobId"] == terms.job_id


def test_settle__signature_of_a_stranger__refused_before_any_gas(world: World) -> None:
    terms = world.funded()
    attestation = world.attestation(terms)
    by_stranger = sign(attestation_message(terms, attestation), STRANGER_KEY)
    forged = world.signatures(terms, attestation) | {world.node(0): by_stranger}
    wei = world.operator.balance_wei(str(world.operator.address))
    assert (
        refusal(world.escrow(world.operator).settle, terms, attestation, forged).name
        == "BadSignature"
    )
    assert world.operator.balance_wei(str(world.operator.address)) == wei


@pytest.mark.parametrize("change", ["job", "chain_id", "model"])
def test_settle__attestation_of_something_else__refused(world: World, change: str) -> None:
    terms = world.funded()
    attestation = world.attestation(terms)
    signed_terms, signed = terms, attestation
    if change == "job":
        signed = dataclasses.replace(attestation, job_id=world.terms().job_id)
    elif change == "chain_id":
        signed_terms = dataclasses.replace(terms, chain_id=1)
    else:
        signed = dataclasses.replace(attestation, model_hash=b"\x33" * 32)
    signatures = world.signatures(signed_terms, signed)
    assert (
        refusal(world.escrow(world.operator).settle, terms, attestation, signatures).name
        == "BadSignature"
    )


def test_settle__too_few_signatures__refused(world: World) -> None:
    terms = world.funded()
    attestation = world.attestation(terms)
    said = refusal(
        world.escrow(world.operator).settle,
        terms,
        attestation,
        world.signatures(terms, attestation, (1,)),
    )
    assert said.name == "QuorumNotMet"
    with pytest.raises(TermsError, match="not part of this job"):
        world.escrow(world.operator).settle(terms, attestation, {accounts()[0][0]: b""})


def test_refund__only_after_deadline__then_never_settles(world: World) -> None:
    money, buyer = world.money(world.buyer), str(world.buyer.address)
    before = money.balance_units(buyer)
    terms = world.funded(seconds=900)
    assert refusal(world.escrow(world.operator).refund, terms).name == "DeadlineNotPassed"
    world.travel(1000)
    attestation = world.attestation(terms)
    assert "has passed" in str(
        refusal(
            world.escrow(world.operator).settle,
            terms,
            attestation,
            world.signatures(terms, attestation),
        )
    )
    world.escrow(world.operator).refund(terms)
    assert money.balance_units(buyer) == before
    assert world.escrow(world.buyer).job(terms.job_id).status is Status.REFUNDED
    assert world.escrow(world.buyer).settlement(terms.job_id) is None
    said = refusal(
        world.escrow(world.operator).settle,
        terms,
        attestation,
        world.signatures(terms, attestation),
    )
    assert str(said) == "the job is refunded, so this cannot be done"
    assert refusal(world.escrow(world.operator).refund, terms).name == "WrongStatus"


def test_refund_rejected__forged_or_too_few__refused(world: World) -> None:
    terms = world.funded()
    reason = "no"
    one = {world.node(0): (reason, sign(rejection_message(terms, reason), world.node_keys[0]))}
    assert refusal(world.escrow(world.operator).refund_rejected, terms, one).name == "QuorumNotMet"
    other_words = {node: ("yes", signature) for node, (_, signature) in one.items()}
    forged = other_words | {
        world.node(1): ("yes", sign(rejection_message(terms, "yes"), STRANGER_KEY))
    }
    assert (
        refusal(world.escrow(world.operator).refund_rejected, terms, forged).name == "BadSignature"
    )


def new_dataset(world: World, owner: int = 0, bps: int = BPS) -> int:
    """A dataset with empty registers."""
    return world.registry(world.hospitals[owner]).list_dataset(
        world.node(owner), PRICE, bps, b"\x05" * 32, "https://new", "NEW"
    )


def test_claim__whole_list__pays_exact_shares_once(world: World) -> None:
    owner, dataset_id = world.hospitals[1], new_dataset(world, 1)
    revenue, money = world.revenue(owner), world.money(owner)
    assert revenue.next_epoch(dataset_id) == 1
    tree = Tree(dataset_id, 1, CONTRIBUTORS)
    assert revenue.post_contributors(dataset_id, tree.root, "https://tree") == 1
    assert revenue.next_epoch(dataset_id) == 2
    assert revenue.epoch(dataset_id, 1).total_weight == 4
    world.revenue(world.buyer).pay_revenue(dataset_id, PRICE)
    credited = revenue.epoch(dataset_id, 1).credited_units
    assert credited == revenue.pool(dataset_id).contributor_units == PRICE * BPS // 10_000
    assert revenue.pool(dataset_id).hospital_units == PRICE - credited

    strangers = world.revenue(
        connect(world.url, STRANGER_KEY)
    )  # anyone may submit; the money goes to the contributor
    for index, (account, weight) in enumerate(CONTRIBUTORS):
        share = credited * weight // 4
        mine = [Claim(dataset_id, 1, weight, tuple(tree.proof(index)))]
        assert revenue.claimable(dataset_id, 1, account, weight) == share
        before = money.balance_units(account)
        assert strangers.claim_on_behalf(account, mine) == {dataset_id: share}
        assert money.balance_units(account) - before == share
        assert revenue.claimed(dataset_id, 1, account) == share
        said = refusal(strangers.claim_on_behalf, account, mine)
        assert str(said) == f"{account} has nothing left to claim here"
    account, weight = CONTRIBUTORS[0]
    good = Claim(dataset_id, 1, weight, tuple(tree.proof(0)))
    for wrong in (
        dataclasses.replace(good, proof=tuple(tree.proof(1))),
        dataclasses.replace(good, weight=4),
    ):
        assert refusal(strangers.claim_on_behalf, account, [wrong]).name == "BadProof"
    assert refusal(strangers.claim_on_behalf, str(owner.address), [good]).name == "BadProof"
    assert (
        refusal(strangers.claim_on_behalf, account, [dataclasses.replace(good, epoch=2)]).name
        == "NoContributors"
    )


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17, 64, 100])
def test_claim__random_list__every_proof_made_here_is_good_there(world: World, size: int) -> None:
    made = random.Random(size)
    dataset_id, revenue = new_dataset(world), world.revenue(world.hospitals[0])
    entries = [(f"0x{made.randrange(2**160):040x}", made.randrange(1, 2**57)) for _ in range(size)]
    tree = Tree(dataset_id, 1, entries)
    revenue.post_contributors(dataset_id, tree.root, "")
    world.revenue(world.buyer).pay_revenue(dataset_id, 10**9)
    credited, total = (
        revenue.epoch(dataset_id, 1).credited_units,
        sum(weight for _, weight in entries),
    )
    paid = 0
    for index, (account, weight) in enumerate(entries):
        share = credited * weight // total
        call = (dataset_id, 1, weight, tree.proof(index))
        assert (
            share
            and revenue.chain.read(
                revenue.contract.functions.claimOnBehalf(address("a", account), [call])
            )
            == share
        )
        if index < 5:
            paid += sum(revenue.claim_on_behalf(account, [Claim(*call)]).values())
    assert revenue.epoch(dataset_id, 1).claimed_units == paid <= credited


def test_claim__several_datasets_and_epochs__is_one_transaction_to_any_address(
    world: World,
) -> None:
    key, purse = accounts()[10][1], Account.create().address
    me, claims = Account.from_key(key).address, []
    datasets = [new_dataset(world, owner) for owner in range(3)]
    for owner, dataset_id in enumerate(datasets):
        tree = Tree(dataset_id, 1, CONTRIBUTORS)
        world.revenue(world.hospitals[owner]).post_contributors(dataset_id, tree.root, "")
        claims.append(Claim(dataset_id, 1, 3, tuple(tree.proof(0))))
        world.revenue(world.buyer).pay_revenue(dataset_id, 1_000 * (owner + 1))
    mine = world.revenue(connect(world.url, key))
    blocks = mine.chain.block_number()
    paid = mine.claim(claims, purse)
    assert mine.chain.block_number() == blocks + 1
    expected = {i: 1_000 * (n + 1) * BPS // 10_000 * 3 // 4 for n, i in enumerate(datasets)}
    assert paid == expected
    assert world.money(world.buyer).balance_units(purse) == sum(expected.values())
    assert refusal(mine.claim, claims, purse).args_by_name == {"account": me}


def test_claim_for__signed_by_the_account__a_relayer_pays_the_gas_once(world: World) -> None:
    key, purse = accounts()[10][1], Account.create().address
    account, dataset_id = Account.from_key(key).address, new_dataset(world)
    tree = Tree(dataset_id, 1, CONTRIBUTORS)
    world.revenue(world.hospitals[0]).post_contributors(dataset_id, tree.root, "")
    world.revenue(world.buyer).pay_revenue(dataset_id, 10_000)
    claims = [Claim(dataset_id, 1, 3, tuple(tree.proof(0)))]
    relayer, deadline = world.revenue(connect(world.url, STRANGER_KEY)), world.operator.now() + 600
    nonce = relayer.claim_nonce(account)
    where = (
        world.deployment.chain_id,
        world.deployment.market,
        account,
        claims,
        purse,
        nonce,
        deadline,
    )
    signature = sign(claim_message(*where), key)
    thief = Account.create().address
    said = refusal(relayer.claim_for, account, claims, thief, deadline, signature)
    assert said.name == "BadClaimSignature"
    share = 10_000 * BPS // 10_000 * 3 // 4
    assert relayer.claim_for(account, claims, purse, deadline, signature) == {dataset_id: share}
    assert world.money(world.buyer).balance_units(purse) == share
    assert relayer.claim_nonce(account) == nonce + 1
    world.revenue(world.buyer).pay_revenue(dataset_id, 10_000)
    assert (
        refusal(relayer.claim_for, account, claims, purse, deadline, signature).name
        == "BadClaimSignature"
    )
    world.travel(1200)  # blocks mined at once run ahead of the clock
    assert (
        refusal(relayer.claim_for, account, claims, purse, deadline, signature).name
        == "ClaimExpired"
    )


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("dataset_id", {"dataset_id": 0}),
        ("epoch", {"epoch": 0}),
        ("weight", {"weight": 2**64}),
        ("proof", {"proof": (b"1",)}),
    ],
)
def test_claim__bad_input__names_the_field(field: str, change: dict[str, object]) -> None:
    with pytest.raises(TermsError, match=field):
        dataclasses.replace(Claim(1, 1, 1, ()), **change)  # type: ignore[arg-type]


def test_contributors__a_later_list__serves_after_its_window_and_can_be_disputed(
    world: World,
) -> None:
    owner, dataset_id = world.revenue(world.hospitals[0]), new_dataset(world)
    world.revenue(world.buyer).pay_revenue(dataset_id, 10_000)
    tree = Tree(dataset_id, 1, CONTRIBUTORS)
    assert owner.pending_contributors(dataset_id) is None
    assert owner.post_contributors(dataset_id, tree.root, "") == 1
    pending = owner.pending_contributors(dataset_id)
    assert pending is not None and pending == Pending(tree.root, pending.posted_at, None, None)
    assert refusal(owner.activate_contributors, dataset_id).name == "DisputeWindowOpen"
    disputer = world.revenue(world.buyer)
    before = world.money(world.buyer).balance_units(str(world.buyer.address))
    assert (
        refusal(disputer.dispute_contributors, dataset_id, b"\x01" * 32).name
        == "AnotherRootPending"
    )
    disputer.dispute_contributors(dataset_id, tree.root)
    bond = disputer.dispute_bond_units()
    assert before - world.money(world.buyer).balance_units(str(world.buyer.address)) == bond > 0
    frozen = owner.pending_contributors(dataset_id)
    assert frozen is not None and frozen.disputer == world.buyer.address and frozen.disputed_at
    assert refusal(owner.post_contributors, dataset_id, tree.root, "").name == "AlreadyInDispute"
    assert refusal(owner.rule_dispute, dataset_id, tree.root, False).name == "NotArbiter"
    world.revenue(world.operator).rule_dispute(dataset_id, tree.root, False)
    assert owner.pool(dataset_id).hospital_units == 10_000 - 10_000 * BPS // 10_000 + bond
    world.travel(4 * 24 * 3600)
    assert disputer.activate_contributors(dataset_id) == 1
    assert owner.epoch(dataset_id, 1).root == tree.root
    assert owner.epoch(dataset_id, 1).credited_units == 10_000 * BPS // 10_000

    later = Tree(dataset_id, 2, CONTRIBUTORS).root
    assert owner.post_contributors(dataset_id, later, "") == 2
    disputer.dispute_contributors(dataset_id, later)
    assert refusal(disputer.expire_dispute, dataset_id).name == "ArbiterHasTime"
    before = world.money(world.buyer).balance_units(str(world.buyer.address))
    world.travel(15 * 24 * 3600)
    disputer.expire_dispute(dataset_id)
    assert world.money(world.buyer).balance_units(str(world.buyer.address)) - before == bond
    assert owner.pending_contributors(dataset_id) is None
    with pytest.raises(TermsError, match="root"):
        owner.post_contributors(dataset_id, b"\x01" * 24 + bytes(8), "")


def test_withdraw__hospital_and_hub__take_what_is_theirs_only(world: World) -> None:
    terms = world.funded()
    attestation = world.attestation(terms)
    world.escrow(world.operator).settle(terms, attestation, world.signatures(terms, attestation))
    owner, dataset_id, purse = world.hospitals[0], world.dataset_ids[0], Account.create().address
    assert (
        refusal(world.revenue(world.buyer).withdraw_hospital, dataset_id, purse).name
        == "NotDatasetOwner"
    )
    waiting = world.revenue(owner).pool(dataset_id).hospital_units - world.revenue(owner).withdrawn(
        dataset_id
    )
    assert world.revenue(owner).withdraw_hospital(dataset_id, purse) == waiting > 0
    assert world.money(owner).balance_units(purse) == waiting
    assert (
        world.revenue(owner).withdrawn(dataset_id)
        == world.revenue(owner).pool(dataset_id).hospital_units
    )
    assert (
        refusal(world.revenue(owner).withdraw_hospital, dataset_id, purse).name
        == "NothingToWithdraw"
    )
    assert refusal(world.escrow(world.buyer).withdraw_credit, purse).name == "NothingToWithdraw"
    fees = world.escrow(world.operator).credit_units(str(world.operator.address))
    world.escrow(world.operator).withdraw_credit(purse)
    assert world.money(owner).balance_units(purse) == waiting + fees


def test_token__transfer_of_more_than_there_is__refused(world: World) -> None:
    poor = connect(world.url, STRANGER_KEY)
    said = refusal(world.money(poor).transfer, accounts()[0][0], 5)
    assert str(said) == f"{poor.address} has 0 units and needs 5"
    with pytest.raises(TermsError, match="units=-1"):
        world.money(poor).approve(accounts()[0][0], -1)


def test_create_job__whatever_was_approved_before__approves_exactly_the_price(
    world: World,
) -> None:
    money, market = world.money(world.buyer), world.deployment.market
    money.approve(market, 2**80)
    terms = world.terms()
    world.escrow(world.buyer).create_job(terms)
    assert money.allowance_units(str(world.buyer.address), market) == 0
    with pytest.raises(TransactionRefused):  # the job is there already: nothing stays approved
        world.escrow(world.buyer).create_job(terms)
    assert money.allowance_units(str(world.buyer.address), market) == 0


def test_refund_recorded__a_buyer_who_has_nothing_but_the_job_id__gets_every_unit_back(
    world: World,
) -> None:
    before = world.money(world.buyer).balance_units(str(world.buyer.address))
    terms = world.paid(seconds=1200)
    mine = world.escrow(world.buyer)
    assert mine.created_by(str(world.buyer.address))[terms.job_id] == terms.deadline
    assert terms.job_id not in mine.created_by(str(world.operator.address))
    with pytest.raises(TransactionRefused):
        mine.refund_recorded(terms.job_id)
    world.travel(1300)
    mine.refund_recorded(terms.job_id)
    assert world.money(world.buyer).balance_units(str(world.buyer.address)) == before
    with pytest.raises(BankError, match="was never paid"):
        mine.refund_recorded(b"\x07" * 32)


def test_deployment__saved_and_verified__and_another_contract_is_not_ours(
    world: World, tmp_path: Path
) -> None:
    made = world.deployment
    verify(world.buyer, made.registry, made.market)
    with pytest.raises(BankError, match="does not carry the Market"):
        verify(world.buyer, made.registry, made.payment_token)
    with pytest.raises(BankError, match="there is no contract at"):
        verify(world.buyer, accounts()[0][0], made.market)
    other = deploy(world.operator, made.payment_token, str(world.buyer.address))
    with pytest.raises(BankError, match="do not name each other"):
        verify(world.buyer, other.registry, made.market)
    with pytest.raises(BankError, match="is not a contract"):
        deploy(world.operator, accounts()[5][0])
    assert verify(world.buyer, made.registry, made.market) == made
    check(world.buyer, made)
    for name in ("payment_token", "fee_recipient"):
        with pytest.raises(BankError, match=f"has the {name} "):
            check(world.buyer, dataclasses.replace(made, **{name: accounts()[5][0]}))
    with pytest.raises(BankError, match="not chain 5"):
        check(world.buyer, dataclasses.replace(made, chain_id=5))
    path = tmp_path / "deployment.json"
    made.save(path)
    assert Deployment.load(path) == made
    path.write_text(json.dumps({"chain_id": 1}))
    with pytest.raises(BankError, match="is not a deployment"):
        Deployment.load(path)


def test_cli__deploy_then_status__shows_the_market(world: World, tmp_path: Path) -> None:
    key, out = tmp_path / "key", tmp_path / "deployment.json"
    key.write_text(accounts()[0][1])
    runner = CliRunner()
    done = runner.invoke(
        cli.app, ["deploy", "--key-file", str(key), "--out", str(out), "--chain", world.url]
    )
    assert done.exit_code == 0, done.output
    same = runner.invoke(cli.app, ["verify", str(out), "--chain", world.url])
    assert same.exit_code == 0 and "carry the code of this version" in same.stdout
    other = tmp_path / "other.json"
    made = Deployment.load(out)
    dataclasses.replace(made, market=made.payment_token).save(other)
    differs = runner.invoke(cli.app, ["verify", str(other), "--chain", world.url])
    assert differs.exit_code == 1 and "does not carry the Market" in differs.stderr
    shown = runner.invoke(cli.app, ["status", str(out), "--chain", world.url, "--json"])
    assert shown.exit_code == 0, shown.output
    facts = json.loads(shown.stdout)
    assert (facts["chain_id"], facts["datasets"], facts["market_holds_units"]) == (31337, 0, 0)
    assert facts["market"] == Deployment.load(out).market
    unreachable = runner.invoke(cli.app, ["status", str(out), "--chain", "http://127.0.0.1:9"])
    assert unreachable.exit_code == 1
    assert "no chain answers at http://127.0.0.1:9" in unreachable.stderr
