"""Roles, tiers, lists, dispenser and orders through the typed bindings, on the embedded chain and
on anvil.
"""

from __future__ import annotations

import pytest
from bank_world import PRICE, World

from datatokens.bindings.registry import Listing, Roles, State
from datatokens.bindings.storefront import Limits, Storefront
from datatokens.chain.connection import Chain
from datatokens.errors import TransactionRefused

HOUR = 3600


def shop(world: World, chain: Chain) -> Storefront:
    return Storefront(chain, world.registry(chain).storefront())


def listed(world: World, price: int = PRICE) -> int:
    mine = world.registry(world.hospitals[0])
    return mine.list_dataset(world.node(0), price, 2_500, b"\x07" * 32, "https://s", "SHOP")


def test_roles__manager__prices_until_the_dataset_is_paused_and_retired(world: World) -> None:
    dataset_id, mine = listed(world), world.registry(world.hospitals[0])
    mine.set_roles(dataset_id, str(world.buyer.address), Roles.MANAGER)
    assert mine.roles(dataset_id, str(world.buyer.address)) is Roles.MANAGER
    world.registry(world.buyer).set_price(dataset_id, 7)
    assert mine.tier(dataset_id, 0).price_units == 7
    with pytest.raises(TransactionRefused, match="does not own"):
        world.registry(world.buyer).set_state(dataset_id, State.RETIRED)
    mine.set_state(dataset_id, State.RETIRED)
    assert mine.standing(dataset_id).state is State.RETIRED
    with pytest.raises(TransactionRefused, match=f"dataset {dataset_id} is retired, so nothing"):
        mine.mint_tier(dataset_id, 0, str(world.buyer.address), 10**18)


def test_lists__denied_account__may_not_consume(world: World) -> None:
    dataset_id, mine, buyer = (
        listed(world),
        world.registry(world.hospitals[0]),
        str(world.buyer.address),
    )
    assert mine.may_consume(dataset_id, buyer)
    mine.set_allow_list_only(dataset_id, True)
    assert not mine.may_consume(dataset_id, buyer)
    mine.set_listing(dataset_id, [buyer], Listing.ALLOWED)
    assert mine.may_consume(dataset_id, buyer)
    mine.set_listing(dataset_id, [buyer], Listing.DENIED)
    assert (mine.may_consume(dataset_id, buyer), mine.listing(dataset_id, buyer)) == (
        False,
        Listing.DENIED,
    )


def test_dispense__within_limits__opens_access_and_a_second_order_extends_it(world: World) -> None:
    dataset_id, mine, buyer = (
        listed(world),
        world.registry(world.hospitals[0]),
        str(world.buyer.address),
    )
    tier_id = mine.add_tier(dataset_id, "HOUR", 0, HOUR)
    shop(world, world.hospitals[0]).set_limits(dataset_id, tier_id, Limits(True, False, 2, 2, 3))
    front = shop(world, world.buyer)
    with pytest.raises(TransactionRefused, match="leaves 2 datatokens here, not 3"):
        front.dispense(dataset_id, tier_id, 3)
    front.dispense(dataset_id, tier_id, 2)
    with pytest.raises(TransactionRefused, match="leaves 0 datatokens here, not 1"):
        front.dispense(dataset_id, tier_id, 1)
    token = mine.tier(dataset_id, tier_id).datatoken
    first = front.order(dataset_id, tier_id, buyer, token)
    assert front.order(dataset_id, tier_id, buyer, token) == first + HOUR


def test_buy__quoted__pays_what_was_quoted(world: World) -> None:
    dataset_id, front = listed(world), shop(world, world.buyer)
    quote = front.quote(dataset_id, 0, 2)
    assert front.buy(dataset_id, 0, 2, quote) == quote.total_units == 2 * PRICE
