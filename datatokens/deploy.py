"""Put the contracts on a chain, and check that what is there is what this repository compiles
to.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from datatokens.bindings.storefront import MAX_PLATFORM_BPS
from datatokens.chain.artifacts import artifact
from datatokens.chain.connection import Chain
from datatokens.errors import BankError
from datatokens.terms import address, whole

# 100 of a token with 6 decimals: no toy, and not out of a contributor's reach
DISPUTE_BOND_UNITS = 100_000_000


@dataclass(frozen=True)
class Deployment:
    """Where the contracts are, and what the market was constructed with for good: what is paid in
    and who gets the fees.
    """

    chain_id: int
    registry: str
    market: str
    payment_token: str
    fee_recipient: str

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Deployment:
        """Read what `save` wrote. Raises BankError for anything else."""
        try:
            value = json.loads(path.read_text())
            return cls(
                whole("chain_id", value["chain_id"], 1, 2**64 - 1),
                address("registry", value["registry"]),
                address("market", value["market"]),
                address("payment_token", value["payment_token"]),
                address("fee_recipient", value["fee_recipient"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BankError(
                f"{path} is not a deployment: {type(error).__name__} {error}"
            ) from error


def deploy(
    chain: Chain,
    payment_token: str | None = None,
    fee_recipient: str | None = None,
    guardian: str | None = None,
    platform_bps: int = 0,
) -> Deployment:
    """Deploy registries, market and storefront from the connection's account; it may allow further
    markets.

    Without `payment_token` (an existing ERC-20) a test stablecoin is deployed too, which this
    account may mint. The hub's fees are credited to `fee_recipient`, by default this account; of
    every datatoken that the storefront sells these are `platform_bps` of the price (0 to 500 of
    10000), for good. `guardian` (this account by default) may pause new jobs and rules on disputed
    contributor lists. The registry names the storefront.
    """
    whole("platform_bps", platform_bps, 0, MAX_PLATFORM_BPS)
    if payment_token is not None and not chain.code(address("payment_token", payment_token)):
        raise BankError(
            f"payment_token={payment_token} is not a contract on chain {chain.chain_id}"
        )
    token = payment_token or chain.deploy("TestUSD")
    fees = address("fee_recipient", fee_recipient or chain.address)
    guard = address("guardian", guardian or chain.address)
    registry = chain.deploy("DatasetRegistry", chain.address, chain.deploy("NodeRegistry"))
    market = chain.deploy("Market", registry, token, fees, guard, DISPUTE_BOND_UNITS)
    storefront = chain.deploy("Storefront", registry, fees, platform_bps)
    datasets = chain.contract("DatasetRegistry", registry).functions
    chain.send(datasets.allowMarket(market, True))
    chain.send(datasets.setStorefront(storefront))
    return Deployment(chain.chain_id, registry, market, token, fees)


def verify(chain: Chain, registry: str, market: str) -> Deployment:
    """Check that both, the storefront, the node registry and the datatoken template carry the
    committed code; what the market says of itself, which that code makes true.

    Immutables aside. Registry, market and storefront must name each other. Raises BankError for
    whatever does not fit.
    """
    registry, market = address("registry", registry), address("market", market)
    check_code(chain, "DatasetRegistry", registry)
    check_code(chain, "Market", market)
    datasets = chain.contract("DatasetRegistry", registry).functions
    check_code(chain, "Datatoken", chain.read(datasets.datatokenTemplate()))
    check_code(chain, "NodeRegistry", chain.read(datasets.nodes()))
    named = chain.read(chain.contract("Market", market).functions.registry())
    named_market = chain.read(datasets.market())
    if (named, named_market) != (registry, market):
        raise BankError(f"market {market} and registry {registry} do not name each other")
    storefront = chain.read(datasets.storefront())
    check_code(chain, "Storefront", storefront)
    if chain.read(chain.contract("Storefront", storefront).functions.registry()) != registry:
        raise BankError(f"storefront {storefront} does not name the registry {registry}")
    itself = chain.contract("Market", market).functions
    token, fees = (
        str(chain.read(value)) for value in (itself.paymentToken(), itself.feeRecipient())
    )
    return Deployment(chain.chain_id, registry, market, token, fees)


def check(chain: Chain, expected: Deployment) -> None:
    """Raises BankError unless the chain holds exactly `expected`: the chain, the code at both
    addresses, and every value that the market was constructed with.
    """
    if chain.chain_id != expected.chain_id:
        raise BankError(f"{chain.host} is chain {chain.chain_id}, not chain {expected.chain_id}")
    found = verify(chain, expected.registry, expected.market)
    for name, value in asdict(expected).items():
        if getattr(found, name) != value:
            raise BankError(
                f"the market {expected.market} has the {name} {getattr(found, name)}, not {value}"
            )


def check_code(chain: Chain, name: str, where: str) -> None:
    """Raises BankError unless the committed contract `name` is at `where`, immutables aside."""
    item = artifact(name)
    expected = bytearray.fromhex(item["deployedBytecode"].removeprefix("0x"))
    found = bytearray(chain.code(where))
    if not found:
        raise BankError(f"there is no contract at {where} on chain {chain.chain_id}")
    if len(found) == len(expected):
        for place in item["immutableReferences"]:
            for code in (expected, found):
                code[place["start"] : place["start"] + place["length"]] = bytes(place["length"])
    if expected != found:
        raise BankError(f"{where} does not carry the {name} of this version of datahub")
