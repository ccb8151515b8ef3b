"""The revenue pools as typed calls: contributor lists and their disputes, claims, the hospital's
part, vouchers.

Amounts in base units of the market's payment token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eth_account.messages import SignableMessage, encode_typed_data
from web3.logs import DISCARD

from datatokens.bindings.registry import Token
from datatokens.chain.connection import Chain
from datatokens.errors import BankError, TermsError
from datatokens.merkle import MAX_WEIGHT, total_weight
from datatokens.money import amount
from datatokens.terms import DOMAIN_NAME, DOMAIN_VERSION, MAX_UNITS, address, whole

MAX_COUNT = 10**9
_CLAIM_TO = (
    ("account", "address"),
    ("to", "address"),
    ("nonce", "uint256"),
    ("deadline", "uint256"),
    ("shares", "Share[]"),
)
_SHARE = (("datasetId", "uint256"), ("epoch", "uint64"), ("weight", "uint64"))


@dataclass(frozen=True)
class Pool:
    """A dataset's registers, of everything ever credited; `epoch` is the live list's, 0 where none
    ever was.

    `contributor_bps` is the registry's as of the last acceptance or sale; `settled` the number of
    jobs paid for.
    """

    hospital_units: int
    contributor_units: int
    contributor_bps: int
    epoch: int
    settled: int


@dataclass(frozen=True)
class Epoch:
    """One contributor list that is or was live, and its money; `root` is zeros until it is live."""

    root: bytes
    total_weight: int
    credited_units: int
    claimed_units: int


@dataclass(frozen=True)
class Pending:
    """A contributor list that waits, times in unix seconds; `disputer` and `disputed_at` are None
    out of dispute.
    """

    root: bytes
    posted_at: int
    disputed_at: int | None
    disputer: str | None


@dataclass(frozen=True)
class Claim:
    """One share: the weight that an account has in a dataset's list of one epoch, and the proof of
    it.
    """

    dataset_id: int
    epoch: int
    weight: int
    proof: tuple[bytes, ...]

    def __post_init__(self) -> None:
        whole("dataset_id", self.dataset_id, 1, 2**256 - 1)
        whole("epoch", self.epoch, 1, 2**64 - 1)
        whole("weight", self.weight, 1, MAX_WEIGHT)
        for sibling in self.proof:
            whole("bytes of a proof's step", len(sibling), 32, 32)

    def to_struct(self) -> tuple[int, int, int, list[bytes]]:
        """IRevenuePools.Claim as the ABI encoder takes it."""
        return (self.dataset_id, self.epoch, self.weight, list(self.proof))


def claim_message(
    chain_id: int,
    market: str,
    account: str,
    claims: Sequence[Claim],
    to: str,
    nonce: int,
    deadline: int,
) -> SignableMessage:
    """EIP-712 ClaimTo, which lets anyone submit `claims` of `account` to be paid to `to`, once,
    until `deadline`.
    """
    return encode_typed_data(
        domain_data={
            "name": DOMAIN_NAME,
            "version": DOMAIN_VERSION,
            "chainId": chain_id,
            "verifyingContract": market,
        },
        message_types={
            "ClaimTo": [{"name": name, "type": kind} for name, kind in _CLAIM_TO],
            "Share": [{"name": name, "type": kind} for name, kind in _SHARE],
        },
        message_data={
            "account": address("account", account),
            "to": address("to", to),
            "nonce": nonce,
            "deadline": deadline,
            "shares": [
                {"datasetId": c.dataset_id, "epoch": c.epoch, "weight": c.weight} for c in claims
            ],
        },
    )


class Revenue:
    """The revenue half of Market.sol at one address."""

    def __init__(self, chain: Chain, address: str):
        self.chain = chain
        self.contract = chain.contract("Market", address)

    def post_contributors(self, dataset_id: int, root: bytes, uri: str) -> int:
        """Post a list, by the dataset's owner; the epoch it is for. Raises TermsError,
        TransactionRefused.

        The list is published at `uri`. It is live at once if it is the dataset's first and its
        contributors have earned nothing yet; else it waits for `activate_contributors`.
        """
        if len(root) != 32 or not total_weight(root):
            raise TermsError(
                "root must be 32 bytes and end in the sum of the weights, which is not 0"
            )
        receipt = self.chain.send(self.contract.functions.postContributors(dataset_id, root, uri))
        (event,) = self.contract.events.ContributorsPosted().process_receipt(
            receipt, errors=DISCARD
        )
        return int(event["args"]["epoch"])

    def activate_contributors(self, dataset_id: int) -> int:
        """Make the pending list live, by anyone after its dispute window; its epoch. Raises
        TransactionRefused.
        """
        receipt = self.chain.send(self.contract.functions.activateContributors(dataset_id))
        (event,) = self.contract.events.ContributorsLive().process_receipt(receipt, errors=DISCARD)
        return int(event["args"]["epoch"])

    def dispute_contributors(self, dataset_id: int, root: bytes) -> None:
        """Freeze the pending list `root` for a bond, approving the bond first. Raises BankError
        where it is short.
        """
        self._approve(self.dispute_bond_units(), "disputing a contributor list")
        self.chain.send(self.contract.functions.disputeContributors(dataset_id, root))

    def rule_dispute(self, dataset_id: int, root: bytes, upheld: bool) -> None:
        """The arbiter's word: `upheld` drops the list. Raises TransactionRefused."""
        self.chain.send(self.contract.functions.ruleDispute(dataset_id, root, upheld))

    def expire_dispute(self, dataset_id: int) -> None:
        """Drop a disputed list that the arbiter has not ruled on in time, by anyone. Raises
        TransactionRefused.
        """
        self.chain.send(self.contract.functions.expireDispute(dataset_id))

    def pending_contributors(self, dataset_id: int) -> Pending | None:
        """The list that waits, if any."""
        root, posted_at, disputed_at, disputer = self.chain.read(
            self.contract.functions.pendingContributors(dataset_id)
        )
        if not any(root):
            return None
        return Pending(root, posted_at, disputed_at or None, disputer if disputed_at else None)

    def dispute_bond_units(self) -> int:
        """What a dispute costs the one who is wrong."""
        return int(self.chain.read(self.contract.functions.disputeBondUnits()))

    def pool(self, dataset_id: int) -> Pool:
        """A dataset's registers."""
        return Pool(*self.chain.read(self.contract.functions.pool(dataset_id)))

    def withdrawn(self, dataset_id: int) -> int:
        """What the hospital has taken out of `hospital_units` so far."""
        return int(self.chain.read(self.contract.functions.withdrawn(dataset_id)))

    def epoch(self, dataset_id: int, epoch: int) -> Epoch:
        """One epoch of a dataset; zeros where nothing was live or credited."""
        return Epoch(*self.chain.read(self.contract.functions.epoch(dataset_id, epoch)))

    def next_epoch(self, dataset_id: int) -> int:
        """The epoch that the next `post_contributors` will be for (leaves carry it)."""
        return self.pool(dataset_id).epoch + 1

    def claimable(self, dataset_id: int, epoch: int, account: str, weight: int) -> int:
        """What a claim would pay now to one who can prove this weight."""
        return int(
            self.chain.read(self.contract.functions.claimable(dataset_id, epoch, account, weight))
        )

    def claimed(self, dataset_id: int, epoch: int, account: str) -> int:
        """What `account` has claimed so far."""
        return int(self.chain.read(self.contract.functions.claimed(dataset_id, epoch, account)))

    def claim_nonce(self, account: str) -> int:
        """The nonce that the next signed claim of `account` must carry."""
        return int(self.chain.read(self.contract.functions.claimNonce(address("account", account))))

    def claim(self, claims: Sequence[Claim], to: str) -> dict[int, int]:
        """Pay the sender's own shares to `to`, all in one transaction; dataset id -> units. Raises
        TransactionRefused.
        """
        return self._claim(
            self.contract.functions.claim([c.to_struct() for c in claims], address("to", to))
        )

    def claim_on_behalf(self, account: str, claims: Sequence[Claim]) -> dict[int, int]:
        """Pay `account` its shares, whoever sends it; dataset id -> units. Raises
        TransactionRefused.
        """
        structs = [c.to_struct() for c in claims]
        return self._claim(
            self.contract.functions.claimOnBehalf(address("account", account), structs)
        )

    def claim_for(
        self, account: str, claims: Sequence[Claim], to: str, deadline: int, signature: bytes
    ) -> dict[int, int]:
        """Submit what `account` signed (see `claim_message`); dataset id -> units. Raises
        TransactionRefused.
        """
        account, to, structs = (
            address("account", account),
            address("to", to),
            [c.to_struct() for c in claims],
        )
        return self._claim(
            self.contract.functions.claimFor(account, structs, to, deadline, signature)
        )

    def _claim(self, call: object) -> dict[int, int]:
        receipt = self.chain.send(call)
        paid: dict[int, int] = {}
        for event in self.contract.events.Claimed().process_receipt(receipt, errors=DISCARD):
            dataset_id = int(event["args"]["datasetId"])
            paid[dataset_id] = paid.get(dataset_id, 0) + int(event["args"]["units"])
        return paid

    def withdraw_hospital(self, dataset_id: int, to: str) -> int:
        """The owner takes the hospital's part; the units. Raises TransactionRefused, also where
        there is nothing.
        """
        receipt = self.chain.send(
            self.contract.functions.withdrawHospital(dataset_id, address("to", to))
        )
        (event,) = self.contract.events.HospitalWithdrawn().process_receipt(receipt, errors=DISCARD)
        return int(event["args"]["units"])

    def pay_revenue(self, dataset_id: int, units: int) -> None:
        """Pay revenue into a dataset's pool, approving it first. Raises BankError where the balance
        is short.
        """
        self._approve(whole("units", units, 1, MAX_UNITS), f"paying into dataset {dataset_id}")
        self.chain.send(self.contract.functions.payRevenue(dataset_id, units))

    def buy_datatokens(self, dataset_id: int, count: int, price_units: int) -> None:
        """Buy `count` prepaid jobs at `price_units` each, approving what is short first.

        Raises BankError naming have and need when the balance is short, TransactionRefused for
        anything else.
        """
        self._approve(
            whole("count", count, 1, MAX_COUNT) * price_units, f"buying {count} datatokens"
        )
        self.chain.send(self.contract.functions.buyDatatokens(dataset_id, count))

    def _approve(self, needed: int, purpose: str) -> None:
        """Let the market take `needed` units of the sender's, if the sender has them."""
        account = self.chain.address
        if account is None:
            raise BankError(f"{purpose} needs a key; this connection has none")
        payment = Token(self.chain, self.chain.read(self.contract.functions.paymentToken()))
        have = payment.balance_units(account)
        if have < needed:
            raise BankError(f"{account} has {amount(have)}; {purpose} costs {amount(needed)}")
        if payment.allowance_units(account, self.contract.address) < needed:
            payment.approve(self.contract.address, needed)
