"""The revenue pools as typed calls: post contributors, claim, withdraw, sell vouchers. Amounts in base units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from web3.logs import DISCARD

from datatokens.chain import Chain
from datatokens.errors import BankError
from datatokens.registry import Token
from datatokens.terms import address, whole

MAX_WEIGHT = 2**128 - 1
MAX_COUNT = 10**9


@dataclass(frozen=True)
class Pool:
    """A dataset's pool: what waits for the hospital, and the epoch that new revenue goes to."""

    hospital_units: int
    epoch: int


@dataclass(frozen=True)
class Epoch:
    """One contributor tree and its money."""

    root: bytes
    total_weight: int
    credited_units: int
    claimed_units: int


class Revenue:
    """The revenue half of Market.sol at one address."""

    def __init__(self, chain: Chain, address: str):
        self.chain = chain
        self.contract = chain.contract("Market", address)

    def post_contributors(self, dataset_id: int, root: bytes, total_weight: int, uri: str) -> int:
        """Post a tree, by the dataset's owner; the epoch it is for. Raises TermsError, TransactionRefused.

        The sum of the leaves' weights is `total_weight`; the tree itself is published at `uri`.
        """
        whole("total_weight", total_weight, 1, MAX_WEIGHT)
        whole("bytes of root", len(root), 32, 32)
        receipt = self.chain.send(self.contract.functions.postContributors(dataset_id, root, total_weight, uri))
        (event,) = self.contract.events.ContributorsPosted().process_receipt(receipt, errors=DISCARD)
        return int(event["args"]["epoch"])

    def pool(self, dataset_id: int) -> Pool:
        """A dataset's pool."""
        return Pool(*self.chain.read(self.contract.functions.pool(dataset_id)))

    def epoch(self, dataset_id: int, epoch: int) -> Epoch:
        """One epoch of a dataset; zeros where nothing was posted or credited."""
        return Epoch(*self.chain.read(self.contract.functions.epoch(dataset_id, epoch)))

    def next_epoch(self, dataset_id: int) -> int:
        """The epoch that the next `post_contributors` will be for (leaves carry it)."""
        current = self.pool(dataset_id).epoch
        return current + 1 if self.epoch(dataset_id, current).total_weight else current

    def claimable(self, dataset_id: int, epoch: int, account: str, weight: int) -> int:
        """What `claim` would pay now."""
        return int(self.chain.read(self.contract.functions.claimable(dataset_id, epoch, account, weight)))

    def claimed(self, dataset_id: int, epoch: int, account: str) -> int:
        """What `account` has claimed so far."""
        return int(self.chain.read(self.contract.functions.claimed(dataset_id, epoch, account)))

    def claim(self, dataset_id: int, epoch: int, account: str, weight: int, proof: Sequence[bytes]) -> int:
        """Pay `account` its share; the units paid. Anyone may send it. Raises TransactionRefused."""
        account, weight = address("account", account), whole("weight", weight, 1, MAX_WEIGHT)
        receipt = self.chain.send(self.contract.functions.claim(dataset_id, epoch, account, weight, list(proof)))
        (event,) = self.contract.events.Claimed().process_receipt(receipt, errors=DISCARD)
        return int(event["args"]["units"])

    def withdraw_hospital(self, dataset_id: int, to: str) -> None:
        """The owner takes the hospital's part."""
        self.chain.send(self.contract.functions.withdrawHospital(dataset_id, address("to", to)))

    def buy_datatokens(self, dataset_id: int, count: int, price_units: int) -> None:
        """Buy `count` prepaid jobs at `price_units` each, approving what is short first.

        Raises BankError naming have and need when the balance is short, TransactionRefused for anything else.
        """
        account, needed = self.chain.address, whole("count", count, 1, MAX_COUNT) * price_units
        if account is None:
            raise BankError("buying datatokens needs the buyer's key; this connection has none")
        payment = Token(self.chain, self.chain.read(self.contract.functions.paymentToken()))
        have = payment.balance_units(account)
        if have < needed:
            raise BankError(f"{account} has {have} units of the payment token; {count} datatokens cost {needed}")
        if payment.allowance_units(account, self.contract.address) < needed:
            payment.approve(self.contract.address, needed)
        self.chain.send(self.contract.functions.buyDatatokens(dataset_id, count))
