"""The dataset registry as typed calls. Amounts in base units; knows nothing of jobs."""

from __future__ import annotations

from dataclasses import dataclass

from web3.logs import DISCARD

from datatokens.chain import Chain
from datatokens.errors import BankError
from datatokens.terms import MAX_UNITS, address, whole

BPS = 10_000
UINT256 = 2**256 - 1


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


class Registry:
    """DatasetRegistry.sol at one address."""

    def __init__(self, chain: Chain, address: str):
        self.chain = chain
        self.contract = chain.contract("DatasetRegistry", address)

    def list_dataset(
        self, node: str, price_units: int, contributor_bps: int, manifest_hash: bytes, uri: str, symbol: str
    ) -> int:
        """List a dataset owned by the connection's account; its id. Raises TermsError, TransactionRefused."""
        node, price_units = address("node", node), whole("price_units", price_units, 0, MAX_UNITS)
        whole("contributor_bps", contributor_bps, 0, BPS)
        whole("bytes of manifest_hash", len(manifest_hash), 32, 32)
        receipt = self.chain.send(
            self.contract.functions.listDataset(node, price_units, contributor_bps, manifest_hash, uri, symbol)
        )
        (event,) = self.contract.events.DatasetListed().process_receipt(receipt, errors=DISCARD)
        return int(event["args"]["datasetId"])

    def dataset(self, dataset_id: int) -> Dataset:
        """One dataset. Raises TransactionRefused (UnknownDataset)."""
        whole("dataset_id", dataset_id, 1, UINT256)
        datatoken, price_units, node, bps, manifest_hash = self.chain.read(self.contract.functions.dataset(dataset_id))
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
            for kind in (self.contract.events.DatasetListed(), self.contract.events.ManifestChanged())
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
        self.chain.send(self.contract.functions.mintDatatokens(dataset_id, address("to", to), amount))


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
        self.chain.send(self.contract.functions.transfer(address("to", to), whole("units", units, 0, UINT256)))

    def mint(self, to: str, units: int) -> None:
        """Mint, on the embedded chain, by the token's deployer."""
        self.chain.send(self.contract.functions.mint(address("to", to), whole("units", units, 0, UINT256)))
