"""The committed artifacts of the contracts, and what the bytes of a revert say by their ABIs.

Knows nothing of connections; the sentences are those of datatokens/refusals.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from eth_abi.abi import decode as abi_decode
from eth_abi.exceptions import DecodingError
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from datatokens.errors import TransactionRefused
from datatokens.refusals import sentence

ARTIFACTS = Path(__file__).parents[1] / "artifacts"


@cache
def artifact(contract: str) -> Mapping[str, Any]:
    """The committed artifact of a contract: abi, bytecode, deployedBytecode,
    immutableReferences.
    """
    value: Mapping[str, Any] = json.loads((ARTIFACTS / f"{contract}.json").read_text())
    return value


@cache
def _custom_errors() -> Mapping[bytes, Mapping[str, Any]]:
    found = {}
    for path in ARTIFACTS.glob("*.json"):
        for item in artifact(path.stem)["abi"]:
            if item["type"] == "error":
                types = ",".join(i["type"] for i in item["inputs"])
                found[keccak(text=f"{item['name']}({types})")[:4]] = item
    return found


def decode_revert(data: bytes) -> TransactionRefused:
    """The refusal in a revert's bytes: a sentence, the custom error's name and its arguments."""
    item = _custom_errors().get(data[:4])
    if item is not None:
        try:
            values = abi_decode([i["type"] for i in item["inputs"]], data[4:])
        except DecodingError:
            values = ()
        given: dict[str, Any] = {
            i["name"]: to_checksum_address(value) if i["type"] == "address" else value
            for i, value in zip(item["inputs"], values, strict=False)
        }
        kinds = {i["name"]: i.get("internalType", "") for i in item["inputs"]}
        return TransactionRefused(sentence(item["name"], given, kinds), item["name"], given)
    if data[:4] == keccak(text="Error(string)")[:4]:
        try:
            return TransactionRefused(str(abi_decode(["string"], data[4:])[0]))
        except DecodingError:
            return TransactionRefused(f"the contract refused: 0x{data.hex()}")
    if not data:
        return TransactionRefused("the contract refused without a reason")
    return TransactionRefused(f"the contract refused: 0x{data.hex()}")
