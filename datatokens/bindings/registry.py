"""The dataset registry as typed calls. Amounts in base units; knows nothing of jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from web3.logs import DISCARD

from datatokens.chain.connection import Chain
from datatokens.errors import BankError
from datatokens.terms import MAX_UNITS, address, whole

BPS = 10_000
UINT256 = 2**256 - 1
MAX_TIER = 15
MAX_ORDER_SECONDS = 2**32 - 1


class State(IntEnum):
    """What may be done with a dataset; RETIRED is final."""

    ACTIVE = 0
    PAUSED = 1
    RETIRED = 2


class Listing(IntEnum):
    """Which of a dataset's lists an account is on."""

    NONE = 0
    ALLOWED = 1
    DENIED = 2


class Roles(IntFlag):
    """What an account may do for the owner; ends when the dataset changes hands."""

    NONE = 0
    MANAGER = 1
    PUBLISHER = 2


@dataclass(frozen=True)
class Dataset:
    """A listed dataset as the chain has it. `price_units` per job; `contributor_bps` of 10000."""

    dataset_id: int
    owner: str
    datatoken: str
    price_units: int
    node: str
    contributor_bps: int
    manifest_hash: bytes


@dataclass(frozen=True)
class Standing:
    """The state of a dataset. `epsilon_micro` in 1e-6, `delta_atto` in 1e-18; both 0: no budget is
    stated.
    """

    state: State
    allow_list_only: bool
    tier_count: int
    version: int
    ownership: int
    market: str
    epsilon_micro: int
    delta_atto: int


@dataclass(frozen=True)
class Tier:
    """A service of a dataset. `price_units` of one datatoken (0: not sold), `order_s` of access per
    order in seconds
    (0: a one-job voucher); `max_supply` (0: no cap) and `minted`, both ever, with 18 decimals."""

    datatoken: str
    price_units: int
    order_s: int
    max_supply: int
    minted: int
    closed: bool


class Registry:
    """DatasetRegistry.sol at one address."""

    def __init__(self, chain: Chain, address: str):
        self.chain = chain
        self.contract = chain.contract("DatasetRegistry", address)

    def list_dataset(
        self,
        node: str,
        price_units: int,
        contributor_bps: int,
        manifest_hash: bytes,
        uri: str,
        symbol: str,
    ) -> int:
        """List a dataset owned by the connection's account; its id. Raises TermsError,
        TransactionRefused.
        """
        node, price_units = address("node", node), whole("price_units", price_units, 0, MAX_UNITS)
        whole("contributor_bps", contributor_bps, 0, BPS)
        whole("bytes of manifest_hash", len(manifest_hash), 32, 32)
        receipt = self.chain.send(
            self.contract.functions.listDataset(
                node, price_units, contributor_bps, manifest_hash, uri, symbol
            )
        )
        (event,) = self.contract.events.DatasetListed().process_receipt(receipt, errors=DISCARD)
        return int(event["args"]["datasetId"])

    def dataset(self, dataset_id: int) -> Dataset:
        """One dataset. Raises TransactionRefused (UnknownDataset)."""
        whole("dataset_id", dataset_id, 1, UINT256)
        datatoken, price_units, node, bps, manifest_hash = self.chain.read(
            self.contract.functions.dataset(dataset_id)
        )
        owner = self.chain.read(self.contract.functions.ownerOf(dataset_id))
        return Dataset(dataset_id, owner, datatoken, price_units, node, bps, manifest_hash)

    def datasets(self) -> list[Dataset]:
        """Every dataset, by id."""
        return [self.dataset(dataset_id) for dataset_id in range(1, self.count() + 1)]

    def count(self) -> int:
        """How many datasets are listed; their ids go from 1 to this number."""
        return int(self.chain.read(self.contract.functions.datasetCount()))

    def uri(self, dataset_id: int) -> str:
        """Where the dataset's manifest was last said to be, from the newest event about it."""
        owner_said = [
            event
            for kind in (
                self.contract.events.DatasetListed(),
                self.contract.events.ManifestChanged(),
            )
            if (event := self.chain.newest_log(kind, datasetId=dataset_id)) is not None
        ]
        if not owner_said:
            raise BankError(f"dataset {dataset_id} is not listed")
        newest = max(owner_said, key=lambda event: (event["blockNumber"], event["logIndex"]))
        return str(newest["args"]["uri"])

    def set_price(self, dataset_id: int, price_units: int) -> None:
        """Change the price of future jobs. Raises TransactionRefused (NotDatasetOwner)."""
        whole("price_units", price_units, 0, MAX_UNITS)
        self.chain.send(self.contract.functions.setPrice(dataset_id, price_units))

    def set_manifest(self, dataset_id: int, manifest_hash: bytes, uri: str) -> None:
        """Publish another manifest (`manifest_hash`: SHA-256 of its canonical JSON)."""
        whole("bytes of manifest_hash", len(manifest_hash), 32, 32)
        self.chain.send(self.contract.functions.setManifest(dataset_id, manifest_hash, uri))

    def set_node(self, dataset_id: int, node: str) -> None:
        """Rotate the node key; jobs already funded keep the key in their terms."""
        self.chain.send(self.contract.functions.setNode(dataset_id, address("node", node)))

    def mint_datatokens(self, dataset_id: int, to: str, amount: int) -> None:
        """Give away `amount` (18 decimals, 1e18 = one job) vouchers."""
        whole("amount", amount, 1, UINT256)
        self.chain.send(
            self.contract.functions.mintDatatokens(dataset_id, address("to", to), amount)
        )

    def mint_tier(self, dataset_id: int, tier_id: int, to: str, amount: int) -> None:
        """Give away `amount` (18 decimals) datatokens of a tier. Raises TransactionRefused
        (TierIsClosed, NotActive).
        """
        whole("amount", amount, 1, MAX_UNITS)
        self.chain.send(
            self.contract.functions.mintTier(dataset_id, _tier(tier_id), address("to", to), amount)
        )

    def standing(self, dataset_id: int) -> Standing:
        """State, tiers, version and stated budget. Raises TransactionRefused (UnknownDataset)."""
        state, *rest = self.chain.read(self.contract.functions.standing(dataset_id))
        return Standing(State(state), *rest)

    def tier(self, dataset_id: int, tier_id: int) -> Tier:
        """One tier; 0 is that of the listing. Raises TransactionRefused (UnknownTier)."""
        return Tier(*self.chain.read(self.contract.functions.tier(dataset_id, _tier(tier_id))))

    def add_tier(
        self, dataset_id: int, symbol: str, price_units: int, order_s: int, max_supply: int = 0
    ) -> int:
        """Add a tier; its id. Units as in Tier. Raises TermsError, TransactionRefused
        (TooManyTiers).
        """
        price_units = whole("price_units", price_units, 0, MAX_UNITS)
        order_s = whole("order_s", order_s, 0, MAX_ORDER_SECONDS)
        max_supply = whole("max_supply", max_supply, 0, MAX_UNITS)
        receipt = self.chain.send(
            self.contract.functions.addTier(dataset_id, symbol, price_units, order_s, max_supply)
        )
        (event,) = self.contract.events.TierAdded().process_receipt(receipt, errors=DISCARD)
        return int(event["args"]["tierId"])

    def set_tier_price(self, dataset_id: int, tier_id: int, price_units: int) -> None:
        """Change what one datatoken of a tier costs."""
        whole("price_units", price_units, 0, MAX_UNITS)
        self.chain.send(
            self.contract.functions.setTierPrice(dataset_id, _tier(tier_id), price_units)
        )

    def close_tier(self, dataset_id: int, tier_id: int) -> None:
        """Make no more datatokens of a tier, for good; those made stay valid."""
        self.chain.send(self.contract.functions.closeTier(dataset_id, _tier(tier_id)))

    def set_roles(self, dataset_id: int, account: str, roles: Roles) -> None:
        """Give `account` exactly these roles. Raises TransactionRefused (NotDatasetOwner)."""
        self.chain.send(
            self.contract.functions.setRoles(dataset_id, address("account", account), int(roles))
        )

    def roles(self, dataset_id: int, account: str) -> Roles:
        """The roles of `account` in the present ownership."""
        return Roles(
            self.chain.read(
                self.contract.functions.rolesOf(dataset_id, address("account", account))
            )
        )

    def set_state(self, dataset_id: int, state: State) -> None:
        """Pause, resume or (owner alone, for good) retire. Raises TransactionRefused
        (RetiredIsFinal).
        """
        self.chain.send(self.contract.functions.setState(dataset_id, int(state)))

    def set_privacy_budget(self, dataset_id: int, epsilon_micro: int, delta_atto: int) -> None:
        """State the lifetime budget: epsilon in 1e-6, delta in 1e-18. It may only fall afterwards
        (BudgetMayOnlyFall).
        """
        epsilon_micro = whole("epsilon_micro", epsilon_micro, 0, 2**64 - 1)
        delta_atto = whole("delta_atto", delta_atto, 0, 10**18 - 1)
        self.chain.send(
            self.contract.functions.setPrivacyBudget(dataset_id, epsilon_micro, delta_atto)
        )

    def set_allow_list_only(self, dataset_id: int, allow_list_only: bool) -> None:
        """Whether only accounts on the allow list may consume."""
        self.chain.send(self.contract.functions.setAllowListOnly(dataset_id, allow_list_only))

    def set_listing(self, dataset_id: int, accounts: Sequence[str], listing: Listing) -> None:
        """Put accounts on the allow or deny list, or take them off both."""
        checked = [address("account", account) for account in accounts]
        self.chain.send(self.contract.functions.setListing(dataset_id, checked, int(listing)))

    def listing(self, dataset_id: int, account: str) -> Listing:
        """Which list `account` is on."""
        return Listing(
            self.chain.read(
                self.contract.functions.listing(dataset_id, address("account", account))
            )
        )

    def check_acceptance(self, dataset_id: int, node: str, buyer: str, market: str) -> None:
        """Raises TransactionRefused with the reason why `market` would not take `node`'s acceptance
        of a job now.
        """
        where = address("market", market)
        asked = self.contract.functions.checkAcceptance(
            dataset_id, address("node", node), address("buyer", buyer)
        )
        self.chain.read(asked, where)

    def may_consume(self, dataset_id: int, account: str) -> bool:
        """Whether the dataset's state and lists let `account` consume it now."""
        return bool(
            self.chain.read(
                self.contract.functions.mayConsume(dataset_id, address("account", account))
            )
        )

    def allow_market(self, market: str, allowed: bool) -> None:
        """Vet a market, or take that back. Raises TransactionRefused (NotGuardian)."""
        self.chain.send(self.contract.functions.allowMarket(address("market", market), allowed))

    def set_market(self, dataset_id: int, market: str) -> None:
        """Sell in another allowed market, while paused. Raises TransactionRefused (NotPaused,
        MarketNotAllowed).
        """
        self.chain.send(self.contract.functions.setMarket(dataset_id, address("market", market)))

    def storefront(self) -> str:
        """Where the storefront is."""
        return str(self.chain.read(self.contract.functions.storefront()))


def _tier(tier_id: int) -> int:
    return whole("tier_id", tier_id, 0, MAX_TIER)


class Token:
    """An ERC-20: the payment token (6 decimals on the embedded chain) or a datatoken (18)."""

    def __init__(self, chain: Chain, address: str):
        self.chain = chain
        self.contract = chain.contract("TestUSD", address)

    def balance_units(self, account: str) -> int:
        """Balance in base units."""
        return int(self.chain.read(self.contract.functions.balanceOf(account)))

    def allowance_units(self, owner: str, spender: str) -> int:
        """What `spender` may take from `owner`."""
        return int(self.chain.read(self.contract.functions.allowance(owner, spender)))

    def approve(self, spender: str, units: int) -> None:
        """Let `spender` take up to `units`."""
        whole("units", units, 0, UINT256)
        self.chain.send(self.contract.functions.approve(spender, units))

    def transfer(self, to: str, units: int) -> None:
        """Send `units` from the connection's account. Raises TransactionRefused if it has less."""
        self.chain.send(
            self.contract.functions.transfer(address("to", to), whole("units", units, 0, UINT256))
        )

    def mint(self, to: str, units: int) -> None:
        """Mint, on the embedded chain, by the token's deployer."""
        self.chain.send(
            self.contract.functions.mint(address("to", to), whole("units", units, 0, UINT256))
        )
