"""Every refusal of a contract is a sentence, whatever its bytes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak

import datatokens
from datatokens.chain.artifacts import artifact, decode_revert
from datatokens.chain.rpc_server import accounts
from datatokens.refusals import SENTENCES, sentence

INTERFACES = Path(datatokens.__file__).parent / "contracts" / "interfaces"
CONTRACTS = ["DatasetRegistry", "Datatoken", "Market", "NodeRegistry", "Storefront", "TestUSD"]


def errors_of(contract: str) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in artifact(contract)["abi"] if item["type"] == "error"}


def test_sentences__every_error_of_the_interfaces__has_one() -> None:
    sources = [path.read_text() for path in INTERFACES.glob("*.sol")]
    declared = {
        name for source in sources for name in re.findall(r"^\s*error (\w+)", source, re.MULTILINE)
    }
    assert len(declared) > 20
    assert declared - set(SENTENCES) == set()


@pytest.mark.parametrize("name", sorted(SENTENCES))
def test_sentences__filled_with_the_errors_own_arguments__leave_nothing_open(name: str) -> None:
    (item,) = {
        json.dumps(errors_of(c)[name]): errors_of(c)[name]
        for c in CONTRACTS
        if name in errors_of(c)
    }.values()
    types = [i["type"] for i in item["inputs"]]
    example: dict[str, Any] = {
        "address": accounts()[0][0],
        "bytes32": b"\x01" * 32,
        "string": "word",
    }
    values = [example.get(t, 1) for t in types]
    data = keccak(text=f"{name}({','.join(types)})")[:4] + encode(types, values)
    refused = decode_revert(data)
    assert refused.name == name
    assert list(refused.args_by_name.values()) == values
    assert not str(refused).startswith(f"{name}(")  # that would be the fallback
    assert "{" not in str(refused)


def test_decode__no_data_text_unknown_or_cut_short__still_a_sentence() -> None:
    assert str(decode_revert(b"")) == "the contract refused without a reason"
    assert (
        str(decode_revert(keccak(text="Error(string)")[:4] + encode(["string"], ["too late"])))
        == "too late"
    )
    assert str(decode_revert(b"\x01\x02\x03\x04")) == "the contract refused: 0x01020304"
    cut = decode_revert(keccak(text="NotBuyer(address,address)")[:4] + b"\x00" * 10)
    assert (cut.name, cut.args_by_name) == ("NotBuyer", {})


def test_sentence__enums_by_their_names_and_bytes_in_hexadecimal() -> None:
    found = sentence(
        "WrongStatus", {"jobId": b"\x01", "status": 3}, {"status": "enum IJobEscrow.Status"}
    )
    assert found == "the job is refunded, so this cannot be done"


def test_sentence__an_error_that_is_not_ours__as_it_came() -> None:
    assert sentence("Odd", {"a": 1, "b": b"\xff"}, {}) == "Odd(a=1, b=0xff)"
