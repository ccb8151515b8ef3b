"""Datatokens from a buyer's side: what a dataset's tiers cost, and buying, taking, giving and using
their tokens. One datatoken of a tier without hours is a voucher for one job; one of a tier with
hours opens access for so long.

Everything is asked of the buyer's own chain connection, and is paid only in the market and token
that were pinned. Amounts in base units, counts in whole datatokens. Knows nothing of jobs and hubs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from datahub.buyer import job_store
from datahub.errors import OrderRefused
from datatokens.bindings.escrow import ONE_JOB
from datatokens.bindings.registry import Token
from datatokens.bindings.storefront import Quote as Price
from datatokens.bindings.storefront import Storefront
from datatokens.money import amount
from datatokens.terms import whole

if TYPE_CHECKING:
    from datahub.buyer.sdk import Wallet

MAX_COUNT = 2**32 - 1


@dataclass(frozen=True)
class Tier:
    """A tier of a dataset as the chain has it, for one account.

    price_units  what one datatoken costs now, fees included; None where it is not sold
    access_s     how long one datatoken opens access; 0: it is a voucher for one job
    left         how many may still be made; None without a limit
    free         whether its owner gives datatokens away, within limits
    held         how many this account has
    open_until   when this account's access ends (unix seconds); 0: there was none
    """

    id: int
    price_units: int | None
    access_s: int
    left: int | None
    closed: bool
    free: bool
    held: int
    open_until: int


def tiers(wallet: Wallet, dataset_id: int) -> list[Tier]:
    """Every tier of a dataset. Raises TransactionRefused for an unknown one."""
    return [
        _tier(wallet, dataset_id, number)
        for number in range(wallet.registry.standing(dataset_id).tier_count)
    ]


def _tier(wallet: Wallet, dataset_id: int, number: int) -> Tier:
    said, shop = wallet.registry.tier(dataset_id, number), _shop(wallet)
    account = str(wallet.chain.address)
    sold = said.price_units > 0 and not said.closed
    return Tier(
        number,
        shop.quote(dataset_id, number).total_units if sold else None,
        said.order_s,
        (said.max_supply - said.minted) // ONE_JOB if said.max_supply else None,
        said.closed,
        shop.limits(dataset_id, number).on and not said.closed,
        Token(wallet.chain, said.datatoken).balance_units(account) // ONE_JOB,
        shop.order_expiry(dataset_id, number, account),
    )


def price(wallet: Wallet, dataset_id: int, tier: int, count: int) -> Price:
    """What `count` datatokens cost now. Raises OrderRefused where they are not sold, or would be
    paid for in another market or token than the pinned ones.
    """
    whole("count", count, 1, MAX_COUNT)
    if wallet.registry.tier(dataset_id, tier).price_units == 0:
        raise OrderRefused(
            f"tier {tier} of dataset {dataset_id} is not sold; its owner may give datatokens away: "
            f"datahub data tiers {dataset_id} says how many"
        )
    found, made = _shop(wallet).quote(dataset_id, tier, count), wallet.network.deployment
    for name in ("market", "payment_token"):
        if getattr(found, name).lower() != getattr(made, name).lower():
            raise OrderRefused(
                f"dataset {dataset_id} is sold for {name}={getattr(found, name)}, and "
                f"{wallet.network.name} is pinned to {getattr(made, name)}; nothing was paid"
            )
    return found


def buy(wallet: Wallet, dataset_id: int, tier: int, count: int, max_units: int | None) -> int:
    """Buy datatokens at today's price, which may be at most `max_units`; the units paid."""
    quoted = price(wallet, dataset_id, tier, count)
    if max_units is not None and quoted.total_units > max_units:
        raise OrderRefused(
            f"{count} of tier {tier} of dataset {dataset_id} cost "
            f"{amount(quoted.total_units)} now, above the {amount(max_units)} that you allow; "
            "nothing was paid"
        )
    with job_store.sole_payer(str(wallet.chain.address)):
        return _shop(wallet).buy(dataset_id, tier, count, quoted)


def take(wallet: Wallet, dataset_id: int, tier: int, count: int) -> None:
    """Take datatokens that the owner gives away. Raises TransactionRefused beyond its limits."""
    _shop(wallet).dispense(dataset_id, tier, count)


def give(wallet: Wallet, dataset_id: int, to: str, count: int, tier: int) -> None:
    """Give datatokens of this wallet to another account. Raises OrderRefused with too few."""
    whole("count", count, 1, MAX_COUNT)
    token = _enough(wallet, dataset_id, tier, count)
    token.transfer(to, count * ONE_JOB)


def use(wallet: Wallet, dataset_id: int, tier: int) -> int:
    """Use one datatoken of a tier with hours up: access to the dataset until the unix seconds
    returned, after any that is open already. Raises OrderRefused for a tier without hours.
    """
    if wallet.registry.tier(dataset_id, tier).order_s == 0:
        raise OrderRefused(
            f"a datatoken of tier {tier} of dataset {dataset_id} is a voucher: use it with a job "
            f"(datahub order new --voucher {dataset_id}"
            f"{f' --tier {dataset_id}={tier}' * bool(tier)})"
        )
    token = _enough(wallet, dataset_id, tier, 1)
    with job_store.sole_payer(str(wallet.chain.address)):
        account, datatoken = str(wallet.chain.address), str(token.contract.address)
        return _shop(wallet).order(dataset_id, tier, account, datatoken)


def _enough(wallet: Wallet, dataset_id: int, tier: int, count: int) -> Token:
    """The tier's datatoken, of which this wallet has `count`."""
    token = Token(wallet.chain, wallet.registry.tier(dataset_id, tier).datatoken)
    held = token.balance_units(str(wallet.chain.address)) // ONE_JOB
    if held < count:
        raise OrderRefused(
            f"{wallet.chain.address} holds {held} datatokens of tier {tier} of dataset "
            f"{dataset_id}, not {count}; buy more with: datahub data buy-access {dataset_id} "
            f"--tier {tier}"
        )
    return token


def _shop(wallet: Wallet) -> Storefront:
    return Storefront(wallet.chain, wallet.registry.storefront())
