"""The embedded chain by its JSON-RPC alone: blocks and time, persistence, hostile requests."""

from __future__ import annotations

import http.client
import json
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_utils.abi import function_signature_to_4byte_selector
from hypothesis import given, settings
from hypothesis import strategies as st

from datatokens.chain.artifacts import artifact
from datatokens.chain.devchain import CHAIN_ID, DevChain, RpcError
from datatokens.chain.rpc_server import MAX_BODY_BYTES, accounts, running_devchain, serve

ALICE, ALICE_KEY = accounts()[0]
BOB = accounts()[1][0]
GWEI = 10**9
ZERO_ADDRESS = "0x" + "00" * 20


def signed(chain: DevChain | None, nonce: int, key: str = ALICE_KEY, **changes: Any) -> str:
    transaction = {
        "type": 2,
        "chainId": CHAIN_ID,
        "nonce": nonce,
        "to": BOB,
        "value": 1,
        "gas": 21_000,
        "maxFeePerGas": 10 * GWEI,
        "maxPriorityFeePerGas": GWEI,
    } | changes
    given = {name: value for name, value in transaction.items() if value is not None}
    return "0x" + Account.sign_transaction(given, key).raw_transaction.hex()


def head(chain: DevChain) -> dict[str, Any]:
    block: dict[str, Any] = chain.request("eth_getBlockByNumber", ["latest", False])
    return block


@pytest.fixture
def chain() -> DevChain:
    return DevChain(None)


# -- blocks and time -------------------------------------------------------------------------------


def test_accounts__well_known_mnemonic__well_known_addresses_with_funds(chain: DevChain) -> None:
    assert ALICE == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
    assert len(accounts()) == 20
    assert {chain.request("eth_getBalance", [address, "latest"]) for address, _ in accounts()} == {
        hex(10_000 * 10**18)
    }


def test_mining__idle_chain__at_once(chain: DevChain) -> None:
    sent = chain.request("eth_sendRawTransaction", [signed(chain, 0)])
    assert chain.request("eth_getTransactionReceipt", [sent])["status"] == "0x1"
    assert head(chain)["transactions"] == [sent]


def test_mining__burst__one_block_a_second_and_never_ahead_of_the_clock(chain: DevChain) -> None:
    hashes = [
        chain.request("eth_sendRawTransaction", [signed(chain, nonce)]) for nonce in range(30)
    ]
    assert chain.request("eth_getTransactionCount", [ALICE, "pending"]) == "0x1e"
    for _ in range(60):
        chain.mine_if_due()
        if chain.request("eth_getTransactionReceipt", [hashes[-1]]):
            break
        time.sleep(0.05)
    receipts = [chain.request("eth_getTransactionReceipt", [h]) for h in hashes]
    assert all(r["status"] == "0x1" for r in receipts)
    assert int(head(chain)["number"], 16) <= 4
    assert int(head(chain)["timestamp"], 16) <= time.time()
    last_block = [r for r in receipts if r["blockNumber"] == receipts[-1]["blockNumber"]]
    assert [int(r["transactionIndex"], 16) for r in last_block] == list(range(len(last_block)))
    assert sum(int(r["gasUsed"], 16) for r in last_block) == int(head(chain)["gasUsed"], 16)


def test_time__travel__moves_calls_and_blocks(chain: DevChain) -> None:
    chain.request("evm_increaseTime", [1000])
    chain.request("evm_mine", [])
    assert 995 <= int(head(chain)["timestamp"], 16) - time.time() <= 1005
    wanted = int(time.time()) + 5000
    chain.request("evm_setNextBlockTimestamp", [wanted])
    assert chain.request("eth_getBlockByNumber", ["pending", False])["timestamp"] == hex(wanted)
    chain.request("evm_mine", [])
    assert head(chain)["timestamp"] == hex(wanted)
    assert (
        int(chain.request("eth_getBlockByNumber", ["pending", False])["timestamp"], 16) - wanted
        <= 2
    )
    with pytest.raises(RpcError, match="must be later"):
        chain.request("evm_setNextBlockTimestamp", [wanted])


def test_time__travelled_chain_reopened__does_not_wait_for_the_clock(tmp_path: Path) -> None:
    first = DevChain(tmp_path / "chain.sqlite")
    first.request("evm_increaseTime", [100_000])
    first.request("evm_mine", [])
    first._db.close()
    second = DevChain(tmp_path / "chain.sqlite")
    sent = second.request("eth_sendRawTransaction", [signed(second, 0)])
    for _ in range(60):
        second.mine_if_due()
        if second.request("eth_getTransactionReceipt", [sent]):
            break
        time.sleep(0.05)
    assert second.request("eth_getTransactionReceipt", [sent])["status"] == "0x1"


# -- transactions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nonce": 5}, "nonce too high"),
        ({"chainId": 1}, "invalid chain id"),
        ({"gas": 30_000_001}, "exceeds the block gas limit"),
        ({"gas": 20_000}, "intrinsic gas too low: gas 20000 is under 21000"),
        ({"value": 10**24}, "insufficient funds"),
        ({"maxFeePerGas": 1, "maxPriorityFeePerGas": 1}, "max fee per gas 1 is under"),
    ],
)
def test_send__transaction_that_cannot_run__refused_with_a_sentence(
    chain: DevChain, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RpcError, match=said):
        chain.request("eth_sendRawTransaction", [signed(chain, changes.pop("nonce", 0), **changes)])
    chain.request("eth_sendRawTransaction", [signed(chain, 0)])  # and the chain lives on


def test_send__same_again_or_old_nonce__refused(chain: DevChain) -> None:
    chain.instant = True
    raw = signed(chain, 0)
    chain.request("eth_sendRawTransaction", [raw])
    with pytest.raises(RpcError, match="already known"):
        chain.request("eth_sendRawTransaction", [raw])
    with pytest.raises(RpcError, match="nonce too low: next nonce 1, tx nonce 0"):
        chain.request("eth_sendRawTransaction", [signed(chain, 0, value=2)])
    chain.instant = False
    waiting = signed(chain, 1)
    chain.request("eth_sendRawTransaction", [waiting])
    with pytest.raises(RpcError, match="already known"):
        chain.request("eth_sendRawTransaction", [waiting])


@pytest.mark.parametrize("kind", [0, 1])
def test_send__older_transaction_kinds__mined_and_shown(chain: DevChain, kind: int) -> None:
    raw = signed(
        chain,
        0,
        type=kind or None,
        gasPrice=10 * GWEI,
        gas=60_000,
        maxFeePerGas=None,
        maxPriorityFeePerGas=None,
        accessList=[{"address": BOB, "storageKeys": ["0x" + "01" * 32]}] if kind else None,
    )
    sent = chain.request("eth_sendRawTransaction", [raw])
    shown = chain.request("eth_getTransactionByHash", [sent])
    assert (shown["type"], shown["gasPrice"], shown["from"]) == (hex(kind), hex(10 * GWEI), ALICE)
    assert [entry["address"] for entry in shown["accessList"]] == [BOB] * kind


def test_mine__full_block__the_rest_keeps_its_order(chain: DevChain) -> None:
    bob_key = accounts()[1][1]
    chain.request("evm_mine", [])  # so that the block of this second is taken
    many, few = 29_990_000, 21_000  # what is used is always 21,000, but what is reserved must fit
    hashes = [
        chain.request("eth_sendRawTransaction", [signed(chain, nonce, key, gas=gas)])
        for nonce, key, gas in [
            (0, ALICE_KEY, many),
            (0, bob_key, many),
            (1, bob_key, few),
            (1, ALICE_KEY, few),
        ]
    ]
    for _ in range(2):
        chain.request("evm_mine", [])
    blocks = [
        int(chain.request("eth_getTransactionReceipt", [h])["blockNumber"], 16) for h in hashes
    ]
    assert [b - blocks[0] for b in blocks] == [0, 1, 1, 1]


def test_mine__sender_cannot_pay_for_all__the_others_are_mined(chain: DevChain) -> None:
    chain.request("evm_mine", [])
    most = 9_999 * 10**18
    spent = [
        chain.request("eth_sendRawTransaction", [signed(chain, nonce, value=most)])
        for nonce in range(3)
    ]
    other = chain.request("eth_sendRawTransaction", [signed(chain, 0, accounts()[1][1])])
    chain.request("evm_mine", [])
    receipts = [chain.request("eth_getTransactionReceipt", [h]) for h in [*spent, other]]
    assert [r is not None for r in receipts] == [True, False, False, True]
    assert chain.request("eth_getTransactionCount", [ALICE, "pending"]) == "0x1"
    assert chain.request("eth_getBalance", [ZERO_ADDRESS, "latest"]) == hex(
        sum(tip(chain, r) for r in receipts if r)
    )


def tip(chain: DevChain, receipt: dict[str, Any]) -> int:
    base = int(
        chain.request("eth_getBlockByNumber", [receipt["blockNumber"], False])["baseFeePerGas"], 16
    )
    return int(receipt["gasUsed"], 16) * (int(receipt["effectiveGasPrice"], 16) - base)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_send__arbitrary_bytes__are_refused(raw: bytes) -> None:
    with pytest.raises(RpcError):
        HOSTILE.request("eth_sendRawTransaction", ["0x" + raw.hex()])


HOSTILE = DevChain(None)
WORDS = ["0x", "0x1", "latest", ALICE, "0x" + "00" * 32]
FIELDS = ["to", "from", "data", "gas", "value", "topics", "address", "fromBlock", "blockHash"]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(set(HOSTILE._methods) - {"evm_increaseTime", "evm_mine"})),
    st.lists(JSON, max_size=3),
)
def test_request__arbitrary_parameters__answer_or_rpc_error(method: str, params: list[Any]) -> None:
    try:
        json.dumps(HOSTILE.request(method, params))
    except RpcError as error:
        assert error.code in (-32602, -32000, -32005, 3), error


def deployed(chain: DevChain, name: str, nonce: int) -> str:
    data = artifact(name)["bytecode"] + 2 * ALICE[2:].rjust(64, "0")  # guardian and node registry
    raw = signed(chain, nonce, to=None, value=0, gas=8_000_000, data=data)
    return created(chain, raw)


def created(chain: DevChain, raw: str) -> str:
    sent = chain.request("eth_sendRawTransaction", [raw])
    address: str = chain.request("eth_getTransactionReceipt", [sent])["contractAddress"]
    return address


def test_call__custom_error__comes_in_error_data(chain: DevChain) -> None:
    chain.instant = True
    registry = deployed(chain, "DatasetRegistry", 0)
    price_of_7 = function_signature_to_4byte_selector("setPrice(uint256,uint96)").hex()
    price_of_7 = "0x" + price_of_7 + (7).to_bytes(32, "big").hex() + (1).to_bytes(32, "big").hex()
    for method in ("eth_call", "eth_estimateGas"):
        with pytest.raises(RpcError) as caught:
            chain.request(method, [{"from": ALICE, "to": registry, "data": price_of_7}])
        assert (caught.value.code, str(caught.value)) == (3, "execution reverted")
        assert caught.value.data is not None
        assert int(caught.value.data[10:74], 16) == 7
    assert chain.request("eth_getTransactionCount", [ALICE, "latest"]) == "0x1"


def test_estimate__what_it_says__is_enough_and_not_much_more(chain: DevChain) -> None:
    chain.instant = True
    code = artifact("TestUSD")["bytecode"]
    estimate = int(chain.request("eth_estimateGas", [{"from": ALICE, "data": code}]), 16)
    raw = signed(chain, 0, to=None, value=0, gas=estimate, data=code)
    receipt = chain.request(
        "eth_getTransactionReceipt", [chain.request("eth_sendRawTransaction", [raw])]
    )
    assert receipt["status"] == "0x1"
    assert estimate <= int(receipt["gasUsed"], 16) * 1.2
    assert chain.request("eth_getCode", [receipt["contractAddress"], "latest"]).startswith("0x60")
    assert (
        int(chain.request("eth_estimateGas", [{"from": ALICE, "to": BOB, "value": "0x1"}]), 16)
        < 22_100
    )


def test_state__asked_at_an_old_block__is_the_old_one(chain: DevChain) -> None:
    chain.instant = True
    for nonce in range(3):
        chain.request("eth_sendRawTransaction", [signed(chain, nonce, value=10**18)])
    balances = [int(chain.request("eth_getBalance", [BOB, hex(n)]), 16) for n in range(4)]
    assert [(b - balances[0]) // 10**18 for b in balances] == [0, 1, 2, 3]
    with pytest.raises(RpcError, match="no such block"):
        chain.request("eth_getBalance", [BOB, "0x63"])


# -- logs ------------------------------------------------------------------------------------------


def test_logs__thousand_in_the_index__filters_agree_with_receipts(chain: DevChain) -> None:
    # a contract of 7 bytes that logs its call's first word as the only topic
    chain.instant = True
    code = "0x66" + "5f3560205fa100" + "5f5260076019f3"
    contract = created(chain, signed(chain, 0, to=None, value=0, gas=200_000, data=code))
    chain.instant = False
    for n in range(1000):
        data = "0x" + (n % 10).to_bytes(32, "big").hex()
        chain.request(
            "eth_sendRawTransaction",
            [signed(chain, n + 1, to=contract, value=0, gas=30_000, data=data)],
        )
    while chain._waiting:
        chain.request("evm_mine", [])
    everything = chain.request(
        "eth_getLogs", [{"fromBlock": "0x0", "toBlock": "latest", "address": contract}]
    )
    assert len(everything) == 1000
    seven = "0x" + (7).to_bytes(32, "big").hex()
    some = chain.request(
        "eth_getLogs", [{"fromBlock": "0x0", "toBlock": "latest", "topics": [[seven]]}]
    )
    assert some == [entry for entry in everything if entry["topics"] == [seven]]
    assert len(some) == 100
    number = everything[-1]["blockNumber"]
    there = chain.request("eth_getLogs", [{"fromBlock": number, "toBlock": number}])
    assert [int(entry["logIndex"], 16) for entry in there] == list(range(len(there)))
    receipt = chain.request("eth_getTransactionReceipt", [everything[-1]["transactionHash"]])
    assert receipt["logs"] == [everything[-1]]
    assert chain.request("eth_getLogs", [{"blockHash": everything[-1]["blockHash"]}]) == there
    assert chain.request("eth_getLogs", [{"fromBlock": "0xffff", "toBlock": "0xffff"}]) == []


# -- the file --------------------------------------------------------------------------------------


def test_reopen__same_file__same_chain(tmp_path: Path) -> None:
    state = tmp_path / "chain.sqlite"
    first = DevChain(state, instant=True)
    registry = deployed(first, "DatasetRegistry", 0)
    sent = first.request("eth_sendRawTransaction", [signed(first, 1, value=5)])
    asked = [
        ("eth_getBlockByNumber", ["latest", True]),
        ("eth_getTransactionReceipt", [sent]),
        ("eth_getCode", [registry, "latest"]),
        ("eth_getBalance", [BOB, "latest"]),
        ("eth_getTransactionCount", [ALICE, "latest"]),
        ("eth_getLogs", [{"fromBlock": "0x0"}]),
    ]
    before = [first.request(*question) for question in asked]
    first._db.close()
    second = DevChain(state, instant=True)
    assert [second.request(*question) for question in asked] == before
    second.request("eth_sendRawTransaction", [signed(second, 2)])
    assert second.request("eth_blockNumber", []) == "0x3"


def test_open__file_in_use__refused(tmp_path: Path) -> None:
    first = DevChain(tmp_path / "chain.sqlite")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        DevChain(tmp_path / "chain.sqlite")
    first._db.close()


def test_mine__disk_refuses__chain_stops_and_reopens_at_the_last_block(tmp_path: Path) -> None:
    chain = DevChain(tmp_path / "chain.sqlite", instant=True)
    chain.request("eth_sendRawTransaction", [signed(chain, 0)])
    chain._db.execute(
        "CREATE TRIGGER full BEFORE INSERT ON block BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    )
    with pytest.raises(RpcError, match="block 2 could not be written"):
        chain.request("eth_sendRawTransaction", [signed(chain, 1)])
    with pytest.raises(RpcError, match="start it again"):
        chain.request("eth_blockNumber", [])
    chain._db.execute("DROP TRIGGER full")
    chain._db.close()
    again = DevChain(tmp_path / "chain.sqlite", instant=True)
    assert again.request("eth_blockNumber", []) == "0x1"
    again.request("eth_sendRawTransaction", [signed(again, 1)])


def rpc(port: int, method: str, *params: Any) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        connection.request("POST", "/", body, {"content-type": "application/json"})
        return json.loads(connection.getresponse().read())["result"]
    finally:
        connection.close()


def test_kill__in_the_middle_of_sending__every_receipt_given_is_kept(tmp_path: Path) -> None:
    state, seen = tmp_path / "chain.sqlite", []
    command = [
        sys.executable,
        "-m",
        "datatokens.chain.rpc_server",
        "--port",
        "0",
        "--instant",
        "--state",
        str(state),
    ]
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        for sent in seen:
            assert rpc(port, "eth_getTransactionReceipt", sent) is not None
        nonce = int(rpc(port, "eth_getTransactionCount", ALICE, "latest"), 16)
        assert nonce >= len(seen)
        killer = threading.Timer(random.uniform(0.05, 0.4), process.kill)
        killer.start()
        try:
            while True:
                sent = rpc(port, "eth_sendRawTransaction", signed(None, nonce))
                if rpc(port, "eth_getTransactionReceipt", sent):
                    seen.append(sent)
                nonce += 1
        except (OSError, http.client.HTTPException):
            assert process.wait(10) == -9
        process.stdout.close()
    with running_devchain(state) as url:
        port = int(url.rsplit(":", 1)[1])
        number = int(rpc(port, "eth_blockNumber"), 16)
        blocks = [rpc(port, "eth_getBlockByNumber", hex(n), False) for n in range(number + 1)]
        assert all(b["parentHash"] == a["hash"] for a, b in pairwise(blocks))
        nonce = int(rpc(port, "eth_getTransactionCount", ALICE, "latest"), 16)
        assert sum(len(b["transactions"]) for b in blocks) == nonce
        assert seen


# -- HTTP ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = serve(DevChain(None, instant=True), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def post(port: int, body: bytes, content_type: str = "application/json", **headers: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", "/", body, {"content-type": content_type} | headers)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"\xff\xfe", -32700),
        (b"[" * 50_000, -32700),
        (b"[]", -32600),
        (b"7", -32600),
        (b'{"id":1,"method":7}', -32600),
        (b'{"id":1,"method":"eth_chainId","params":{}}', -32602),
        (b'{"id":1,"method":"eth_sign","params":[]}', -32601),
        (b'{"id":1,"method":"eth_chainId","params":[1,2]}', -32602),
        (b'{"id":1,"method":"eth_getBlockByNumber","params":[1e999,false]}', -32700),
        (b"[" + b",".join([b"{}"] * 1001) + b"]", -32600),
    ],
)
def test_http__malformed_request__error_code_and_no_trace(
    port: int, body: bytes, code: int
) -> None:
    answer = post(port, body)
    assert answer["error"]["code"] == code
    assert "Traceback" not in answer["error"]["message"]


def test_http__unknown_method__named(port: int) -> None:
    assert (
        "debug_traceCall"
        in post(port, b'{"id":1,"method":"debug_traceCall","params":[]}')["error"]["message"]
    )


def test_http__batch_on_one_connection__answers_in_order(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for _ in range(3):
        methods = ["eth_chainId", "nonsense", "net_version"]
        body = json.dumps(
            [{"jsonrpc": "2.0", "id": i, "method": method} for i, method in enumerate(methods)]
        )
        connection.request("POST", "/", body, {"content-type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        assert [item["id"] for item in answer] == [0, 1, 2]
        assert (answer[0]["result"], answer[2]["result"]) == ("0x7a69", "31337")
    connection.close()


def test_http__body_too_large_or_not_json_typed__refused_unread(port: int) -> None:
    assert (
        "content-length"
        in post(port, b"", **{"content-length": str(MAX_BODY_BYTES + 1)})["error"]["message"]
    )
    # what a web page can send to loopback without being asked for permission
    assert (
        "content-type"
        in post(port, b'{"id":1,"method":"evm_mine","params":[]}', "text/plain")["error"]["message"]
    )


def test_http__page_of_this_machine__may_ask_and_no_other(port: int) -> None:
    def asked(origin: str) -> tuple[int, str | None, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("OPTIONS", "/", headers={"origin": origin})
        said = connection.getresponse()
        said.read()
        body = b'{"id":1,"method":"eth_chainId","params":[]}'
        return (
            said.status,
            said.getheader("access-control-allow-origin"),
            post(port, body, origin=origin),
        )

    for origin in ("http://127.0.0.1:8000", "http://localhost:3000", "http://[::1]:80"):
        status, allowed, answer = asked(origin)
        assert (status, allowed, answer["result"]) == (204, origin, "0x7a69")
    for origin in ("https://evil.example", "http://127.0.0.1.evil.example", "null", "file://"):
        status, allowed, answer = asked(origin)
        assert (status, allowed) == (403, None) and "other machines" in answer["error"]["message"]


def test_wallet__sends_and_signs_for_its_own_accounts_only(port: int) -> None:
    def ask(method: str, *params: Any) -> Any:
        body = {"id": 1, "method": method, "params": params}
        return post(port, json.dumps(body).encode())

    assert ask("eth_requestAccounts")["result"] == [one for one, _ in accounts()]
    sent = ask("eth_sendTransaction", {"from": ALICE.lower(), "to": BOB, "value": "0x5"})["result"]
    receipt = ask("eth_getTransactionReceipt", sent)["result"]
    assert receipt["status"] == "0x1" and receipt["from"].lower() == ALICE.lower()
    text = b"a page asks"
    signature = ask("personal_sign", "0x" + text.hex(), ALICE)["result"]
    assert Account.recover_message(encode_defunct(text), signature=signature) == ALICE
    stranger = ask("eth_sendTransaction", {"from": ZERO_ADDRESS, "to": BOB})
    assert "none of the test accounts" in stranger["error"]["message"]
    for params in ([], [{}], [7], [{"from": ALICE, "to": BOB, "value": "five"}]):
        assert ask("eth_sendTransaction", *params)["error"]["code"] in (-32602, -32000)
    assert ask("eth_signTypedData_v4", ALICE, "{")["error"]["code"] == -32602


def test_serve__public_host__refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a loopback address"):
        serve(DevChain(None), "0.0.0.0", 0)
    command = [sys.executable, "-m", "datatokens.chain.rpc_server", "--port", "0"]
    done = subprocess.run(
        [*command, "--host", "0.0.0.0"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "must be a loopback address" in done.stderr
    (tmp_path / "text").write_text(
        "this is not a chain's file, it is a long enough text to be none " * 20
    )
    done = subprocess.run(
        [*command, "--state", str(tmp_path / "text")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "not a chain's file" in done.stderr
    assert "Traceback" not in done.stderr
