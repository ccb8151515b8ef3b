"""The storefront as typed calls: quote, buy, dispense, order, fees. Amounts in base units, counts
in whole datatokens.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from web3.logs import DISCARD

from datatokens.bindings.registry import MAX_TIER, Registry, Token
from datatokens.chain.connection import Chain
from datatokens.errors import BankError
from datatokens.money import amount
from datatokens.terms import MAX_UNITS, address, whole

MAX_PLATFORM_BPS = 500
MAX_PUBLISH_BPS = 1_000
MAX_COUNT = 2**32 - 1
ZERO = "0x" + "00" * 20
NO_PERMIT = (0, 0, 0, bytes(32), bytes(32))


@dataclass(frozen=True)
class Quote:
    """What a purchase costs now, and in which market: the dataset's part, the fees on top, and
    their sum.
    """

    market: str
    payment_token: str
    price_units: int
    publish_units: int
    platform_units: int
    total_units: int


@dataclass(frozen=True)
class Limits:
    """A dispenser's limits in whole datatokens, counted over the whole life of the tier."""

    on: bool
    allow_listed: bool
    per_dispense: int
    per_account: int
    in_all: int


class Storefront:
    """Storefront.sol at one address."""

    def __init__(self, chain: Chain, address: str):
        self.chain = chain
        self.contract = chain.contract("Storefront", address)

    def quote(self, dataset_id: int, tier_id: int, count: int = 1) -> Quote:
        """What `buy` would cost now. Raises TransactionRefused (UnknownTier)."""
        tier_id, count = _tier(tier_id), whole("count", count, 1, MAX_COUNT)
        return Quote(*self.chain.read(self.contract.functions.quote(dataset_id, tier_id, count)))

    def buy(self, dataset_id: int, tier_id: int, count: int, quote: Quote) -> int:
        """Buy at no more than `quote`, approving what is short first; the units paid.

        Raises BankError without a key, TransactionRefused (CostsMore, MarketChanged,
        MayNotConsume).
        """
        purchase = self._purchase(dataset_id, tier_id, count, quote, quote.total_units)
        receipt = self.chain.send(self.contract.functions.buy(purchase, NO_PERMIT))
        (event,) = self.contract.events.Bought().process_receipt(receipt, errors=DISCARD)
        return int(event["args"]["priceUnits"]) + int(event["args"]["feeUnits"])

    def buy_and_order(
        self,
        dataset_id: int,
        tier_id: int,
        consumer: str,
        quote: Quote,
        fee_to: str = ZERO,
        fee_units: int = 0,
    ) -> int:
        """Buy one datatoken and order with it; when the access ends (Unix seconds). The fee comes
        on top of `quote`.
        """
        fee_units = whole("fee_units", fee_units, 0, MAX_UNITS)
        purchase = self._purchase(dataset_id, tier_id, 1, quote, quote.total_units + fee_units)
        fee = (address("fee_to", fee_to), fee_units)
        self.chain.send(
            self.contract.functions.buyAndOrder(
                purchase, address("consumer", consumer), fee, NO_PERMIT
            )
        )
        return self.order_expiry(dataset_id, tier_id, consumer)

    def order(self, dataset_id: int, tier_id: int, consumer: str, datatoken: str) -> int:
        """Burn one datatoken (allowing it first) for access; when the access ends (Unix
        seconds).
        """
        token = Token(self.chain, datatoken)
        account = self._account()
        if token.allowance_units(account, self.contract.address) < 10**18:
            token.approve(self.contract.address, 10**18)
        consumer = address("consumer", consumer)
        self.chain.send(
            self.contract.functions.order(dataset_id, _tier(tier_id), consumer, ZERO, (ZERO, 0))
        )
        return self.order_expiry(dataset_id, tier_id, consumer)

    def order_expiry(self, dataset_id: int, tier_id: int, consumer: str) -> int:
        """When the access of `consumer` ends (Unix seconds); 0 = there was none."""
        consumer = address("consumer", consumer)
        return int(
            self.chain.read(
                self.contract.functions.orderExpiry(dataset_id, _tier(tier_id), consumer)
            )
        )

    def set_limits(self, dataset_id: int, tier_id: int, limits: Limits) -> None:
        """Set a dispenser, by owner or manager. Raises TransactionRefused (NotManager)."""
        for name in ("per_dispense", "per_account", "in_all"):
            whole(name, getattr(limits, name), 0, MAX_COUNT)
        self.chain.send(
            self.contract.functions.setLimits(dataset_id, _tier(tier_id), astuple(limits))
        )

    def limits(self, dataset_id: int, tier_id: int) -> Limits:
        """The limits in force."""
        return Limits(*self.chain.read(self.contract.functions.limits(dataset_id, _tier(tier_id))))

    def dispense(self, dataset_id: int, tier_id: int, count: int) -> None:
        """Take datatokens for nothing. Raises TransactionRefused (DispenserOff, OverLimit,
        MayNotConsume).
        """
        whole("count", count, 1, MAX_COUNT)
        self.chain.send(self.contract.functions.dispense(dataset_id, _tier(tier_id), count))

    def set_publish_fee(self, dataset_id: int, recipient: str, bps: int) -> None:
        """Set who published the dataset and their part (of 10000, on top of each price), once, by
        the owner.
        """
        bps = whole("bps", bps, 1, MAX_PUBLISH_BPS)
        self.chain.send(
            self.contract.functions.setPublishFee(dataset_id, address("recipient", recipient), bps)
        )

    def fees_units(self, payment_token: str, account: str) -> int:
        """Fees that wait for `account`."""
        return int(self.chain.read(self.contract.functions.fees(payment_token, account)))

    def withdraw_fees(self, payment_token: str, to: str) -> None:
        """Take all own fees in one token. Raises TransactionRefused (NoFees)."""
        self.chain.send(self.contract.functions.withdrawFees(payment_token, address("to", to)))

    def _account(self) -> str:
        if self.chain.address is None:
            raise BankError("the storefront needs the buyer's key; this connection has none")
        return self.chain.address

    def _purchase(
        self, dataset_id: int, tier_id: int, count: int, quote: Quote, most: int
    ) -> tuple[int, int, int, str, int]:
        account, count = self._account(), whole("count", count, 1, MAX_COUNT)
        payment = Token(self.chain, quote.payment_token)
        have = payment.balance_units(account)
        if have < most:
            raise BankError(
                f"{account} has {amount(have)}; this costs {amount(most)}: send "
                f"{amount(most - have)} more to that address"
            )
        if payment.allowance_units(account, self.contract.address) < most:
            payment.approve(self.contract.address, most)
        return dataset_id, _tier(tier_id), count, quote.market, most


def job_units(
    registry: Registry, dataset_id: int, tier_id: int, account: str, voucher: bool = False
) -> int:
    """What one job of `account` by a tier other than 0 pays for the dataset now, in base units:
    nothing with one of its datatokens, or while access by it is open. Raises BankError for a tier
    that is closed, or not sold where neither pays, TransactionRefused (UnknownTier).
    """
    tier = registry.tier(dataset_id, tier_id)
    if tier.closed:
        raise BankError(f"tier {tier_id} of dataset {dataset_id} is closed")
    shop = Storefront(registry.chain, registry.storefront())
    if voucher or shop.order_expiry(dataset_id, tier_id, account) > registry.chain.now():
        return 0
    if not tier.price_units:
        raise BankError(
            f"tier {tier_id} of dataset {dataset_id} is not sold, and {account} has no open access "
            "by it: pay with one of its datatokens as a voucher, or use one up for access first"
        )
    return tier.price_units


def _tier(tier_id: int) -> int:
    return whole("tier_id", tier_id, 0, MAX_TIER)
