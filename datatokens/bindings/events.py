"""Everything that the market's contracts have said, in the order in which they said it.

Knows nothing of what an event means, and keeps nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eth_utils.abi import event_abi_to_log_topic

from datatokens.bindings.nodes import NodeRegistry
from datatokens.chain.connection import Chain

Plain = int | str | bool | list["Plain"] | dict[str, "Plain"]


@dataclass(frozen=True)
class Event:
    """One event: where it stands (block, index in the block), which contract's, its name and
    arguments as JSON has them: bytes are hexadecimal digits without 0x, amounts whole numbers.
    """

    block: int
    position: int
    contract: str  # registry, market or nodes
    name: str
    args: dict[str, Any]


class Events:
    """The events of a registry, its market and its node registry."""

    def __init__(self, chain: Chain, registry: str, market: str):
        self.chain = chain
        nodes = NodeRegistry(chain, registry).contract
        contracts = {
            "registry": chain.contract("DatasetRegistry", registry),
            "market": chain.contract("Market", market),
            "nodes": nodes,
        }
        self.nodes = str(nodes.address)
        self.addresses = [contract.address for contract in contracts.values()]
        self._known: dict[tuple[str, bytes], tuple[str, str, Any]] = {}
        for name, contract in contracts.items():
            for abi in contract.abi:
                if abi["type"] == "event":
                    topic = event_abi_to_log_topic(abi)
                    event = contract.events[abi["name"]]()
                    self._known[contract.address, topic] = name, abi["name"], event

    def between(self, first: int, last: int) -> list[Event]:
        """The events of these blocks, oldest first. Raises ChainUnreachable."""
        found = []
        for log in self.chain.raw_logs(self.addresses, first, last):
            topic = bytes(log["topics"][0]) if log["topics"] else b""
            if known := self._known.get((log["address"], topic)):
                contract, name, event = known
                args = {str(k): _plain(v) for k, v in event.process_log(log)["args"].items()}
                found.append(Event(log["blockNumber"], log["logIndex"], contract, name, args))
        return sorted(found, key=lambda one: (one.block, one.position))


def _plain(value: Any) -> Plain:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "items"):
        return {str(name): _plain(one) for name, one in value.items()}
    assert isinstance(value, int | str)
    return value
