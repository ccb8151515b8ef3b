"""Put the contracts on a chain, and check that what is there is what this repository compiles to."""

from __future__ import annotations

from dataclasses import dataclass

from datatokens.chain import Chain, artifact
from datatokens.errors import BankError


@dataclass(frozen=True)
class Deployment:
    """Where the contracts are."""

    chain_id: int
    registry: str
    market: str
    payment_token: str


def deploy(chain: Chain, payment_token: str | None = None) -> Deployment:
    """Deploy registry and market from the connection's account, which also receives the fee.

    Without `payment_token` (an existing ERC-20) a test stablecoin is deployed too.
    """
    token = payment_token or chain.deploy("TestUSD")
    registry = chain.deploy("DatasetRegistry")
    market = chain.deploy("Market", registry, token, chain.address)
    chain.send(chain.contract("DatasetRegistry", registry).functions.setMarket(market))
    return Deployment(chain.chain_id, registry, market, token)


def verify(chain: Chain, registry: str, market: str) -> None:
    """Raises BankError unless both addresses carry exactly the committed code (immutables aside) and name each other."""
    for name, address in (("DatasetRegistry", registry), ("Market", market)):
        item = artifact(name)
        expected = bytearray.fromhex(item["deployedBytecode"].removeprefix("0x"))
        found = bytearray(chain.code(address))
        for place in item["immutableReferences"]:
            for code in (expected, found):
                code[place["start"] : place["start"] + place["length"]] = bytes(place["length"])
        if expected != found:
            raise BankError(f"{address} does not carry the {name} of this version of datahub")
    named = chain.read(chain.contract("Market", market).functions.registry())
    named_market = chain.read(chain.contract("DatasetRegistry", registry).functions.market())
    if (named, named_market) != (registry, market):
        raise BankError(f"market {market} and registry {registry} do not name each other")
