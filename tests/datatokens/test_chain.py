"""The connection: fees, nonces between processes, answers lost on the way, logs in ranges."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from bank_world import World
from eth_account import Account

from datatokens.bindings.registry import Token
from datatokens.chain import connection as chain_module
from datatokens.chain.connection import connect
from datatokens.chain.rpc_server import accounts, anvil_binary, running_anvil
from datatokens.errors import BankError, ChainUnreachable, NodeRefused, TransactionRefused

# -- connecting ------------------------------------------------------------------------------------


@contextmanager
def answering(answer: Callable[[bytes], bytes | None]) -> Iterator[str]:
    """A server that answers each POST with what `answer` makes of its body; None hangs up."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = answer(self.rfile.read(int(self.headers["content-length"])))
            if raw is None:
                self.close_connection = True
                return
            self.send_response(200)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_connect__nobody_there_or_not_a_chain__names_the_url() -> None:
    with pytest.raises(
        ChainUnreachable, match=r"no chain answers at http://127\.0\.0\.1:9: ConnectionError"
    ):
        connect("http://127.0.0.1:9")
    for answer in (b"<html>hello</html>", b"[]", b'{"jsonrpc":"2.0","id":0,"result":null}', b"{}"):
        with (
            answering(lambda _, answer=answer: answer) as url,
            pytest.raises(BankError, match=re.escape(url)),
        ):
            connect(url)


@pytest.mark.parametrize("key", ["0x12", "zz", b"\x01", "0x" + "00" * 32])
def test_connect__key_that_is_none__refused_without_showing_it(
    world: World, key: str | bytes
) -> None:
    with pytest.raises(BankError, match=r"^the private key must be"):
        connect(world.url, key)


def test_connect__key_as_bytes_or_text__same_account(world: World) -> None:
    address, key = accounts()[3]
    assert (
        connect(world.url, bytes.fromhex(key[2:])).address
        == connect(world.url, key).address
        == address
    )
    assert connect(world.url).address is None


def test_read__no_contract_there__says_so(world: World) -> None:
    with pytest.raises(BankError, match="no such contract at this address"):
        Token(world.buyer, accounts()[0][0]).balance_units(accounts()[0][0])


def test_now__is_the_clock_or_the_last_block(world: World) -> None:
    world.travel(500)
    last = int(world.operator.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
    assert world.operator.now() >= last


def test_rpc__unknown_method__refused_by_name(world: World) -> None:
    with pytest.raises(
        NodeRefused, match=r"nonsense|Method not found"
    ):  # ours names it, anvil does not
        world.operator.rpc("eth_nonsense")


# -- sending ---------------------------------------------------------------------------------------


def test_send__account_without_ether__refused_with_the_nodes_words(world: World) -> None:
    poor = connect(world.url, Account.create().key.hex())
    with pytest.raises(BankError, match=r"(?i)insufficient|enough"):
        world.money(poor).approve(accounts()[0][0], 1)


def test_send__fees_above_the_cap__not_paid(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_module, "FEE_CAP_WEI", 0)
    nonce = world.buyer.rpc("eth_getTransactionCount", world.buyer.address, "pending")
    with pytest.raises(BankError, match="gwei now; more than 0 is not paid"):
        world.money(world.buyer).approve(accounts()[0][0], 1)
    assert world.buyer.rpc("eth_getTransactionCount", world.buyer.address, "pending") == nonce


def test_send__refused__costs_no_nonce_and_no_gas(world: World) -> None:
    nonce = world.buyer.rpc("eth_getTransactionCount", world.buyer.address, "pending")
    wei = world.buyer.balance_wei(str(world.buyer.address))
    with pytest.raises(TransactionRefused, match="does not own dataset"):
        world.registry(world.buyer).set_price(world.dataset_ids[0], 1)
    assert world.buyer.rpc("eth_getTransactionCount", world.buyer.address, "pending") == nonce
    assert world.buyer.balance_wei(str(world.buyer.address)) == wei


SENDER = """
import sys
from datatokens.chain.connection import connect
from datatokens.bindings.registry import Token
url, key, token, to = sys.argv[1:]
mine = Token(connect(url, key), token)
for _ in range(8):
    mine.mint(to, 7)
"""


def test_send__three_processes_with_one_key__every_transaction_counts_once(world: World) -> None:
    to, (address, key) = Account.create().address, accounts()[0]
    nonce = int(world.operator.rpc("eth_getTransactionCount", address, "latest"), 16)
    command = [sys.executable, "-c", SENDER, world.url, key, world.deployment.payment_token, to]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert world.money(world.operator).balance_units(to) == 3 * 8 * 7
    assert (
        int(world.operator.rpc("eth_getTransactionCount", address, "latest"), 16) == nonce + 3 * 8
    )


@pytest.fixture
def own_anvil() -> Iterator[str]:
    if anvil_binary() is None:
        pytest.skip("anvil is not installed: make tools")
    with running_anvil() as url:
        yield url


def test_send__pushed_out_of_the_pool_by_another_program__sent_again_and_counts_once(
    own_anvil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a wallet with the same key outbids the waiting transaction: its nonce is spent, its receipt
    # never comes
    anvil = own_anvil
    monkeypatch.setattr("datatokens.chain.connection.REPLACED_S", 1.0)
    address, key = accounts()[0]
    to, third = Account.create().address, Account.create().address
    chain = connect(anvil, key)
    token = Token(chain, chain.deploy("TestUSD"))
    nonce = int(chain.rpc("eth_getTransactionCount", address, "latest"), 16)
    chain.rpc("evm_setAutomine", False)
    try:
        with ThreadPoolExecutor(1) as pool:
            minting = pool.submit(token.mint, to, 7)
            while int(chain.rpc("eth_getTransactionCount", address, "pending"), 16) == nonce:
                time.sleep(0.02)
            price = {"maxFeePerGas": 400 * 10**9, "maxPriorityFeePerGas": 100 * 10**9}
            rival = {
                "to": third,
                "value": 1,
                "nonce": nonce,
                "gas": 21_000,
                "chainId": chain.chain_id,
                **price,
            }
            raw = Account.sign_transaction(rival, key).raw_transaction
            chain.rpc("eth_sendRawTransaction", "0x" + bytes(raw).hex())
            chain.rpc("evm_mine")
            chain.rpc("evm_setAutomine", True)
            minting.result(timeout=60)
    finally:
        chain.rpc("evm_setAutomine", True)
    assert token.balance_units(to) == 7
    assert chain.balance_wei(third) == 1
    assert int(chain.rpc("eth_getTransactionCount", address, "latest"), 16) == nonce + 2


def test_send__answer_lost_after_the_node_took_it__not_sent_twice(world: World) -> None:
    lost: list[bytes] = []
    upstream = urlsplit(world.url)

    def forward(body: bytes) -> bytes | None:
        connection = http.client.HTTPConnection(str(upstream.hostname), upstream.port, timeout=10)
        connection.request("POST", "/", body, {"content-type": "application/json"})
        answer = connection.getresponse().read()
        connection.close()
        if b"eth_sendRawTransaction" in body and not lost:
            lost.append(answer)
            return None
        return answer

    to = Account.create().address
    with answering(forward) as url:
        Token(connect(url, accounts()[0][1]), world.deployment.payment_token).mint(to, 11)
    assert "result" in json.loads(lost[0])
    assert world.money(world.buyer).balance_units(to) == 11


def test_send__reverts_on_the_chain_only__refused_with_the_reason(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # another transaction came between simulation and block: here the simulation is taken away
    registry = world.registry(world.buyer)
    function = registry.contract.functions.setPrice(world.dataset_ids[0], 1)
    calls: list[Any] = []
    real_call = type(function).call

    def blind_once(self: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        return None if len(calls) == 1 else real_call(self, *arguments, **named)

    monkeypatch.setattr(type(function), "call", blind_once)
    monkeypatch.setattr(type(function), "estimate_gas", lambda *_: 100_000)
    with pytest.raises(TransactionRefused, match=f"{world.buyer.address} does not own dataset"):
        world.buyer.send(function)
    assert len(calls) == 2


# -- logs ------------------------------------------------------------------------------------------


def test_logs__any_chunk__same_events_in_order_and_never_a_larger_range(world: World) -> None:
    token, to = world.money(world.operator), Account.create().address
    first = world.operator.block_number()
    for units in range(1, 8):
        token.mint(to, units)
    transfer = token.contract.events.Transfer()
    for chunk in (1, 2, 3, 1000):
        chain = connect(f"{world.url}#log_range={chunk}")
        found = [e["args"]["value"] for e in chain.logs(transfer, first, to=to)]
        assert found == [1, 2, 3, 4, 5, 6, 7]
        newest = chain.newest_log(transfer, to=to)
        assert newest is not None
        assert newest["args"]["value"] == 7
    last = world.operator.block_number() - 1
    assert [e["args"]["value"] for e in world.operator.logs(transfer, first, last, to=to)] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    assert world.operator.newest_log(transfer, to=Account.create().address) is None


# -- settings behind the # -------------------------------------------------------------------------


def test_connect__confirmations__a_block_counts_once_others_are_on_top(own_anvil: str) -> None:
    key = accounts()[0][1]
    quick, careful = (
        connect(own_anvil, key),
        connect(f"{own_anvil}#confirmations=2&log_range=1", key),
    )
    token = Token(quick, quick.deploy("TestUSD"))
    slow = Token(careful, token.contract.address)
    quick.rpc("anvil_mine", "0x2")
    to = Account.create().address
    with ThreadPoolExecutor(1) as pool:
        minting = pool.submit(slow.mint, to, 7)
        while token.balance_units(to) == 0:
            time.sleep(0.02)
        assert slow.balance_units(to) == 0
        assert careful.newest_log(slow.contract.events.Transfer(), to=to) is None
        time.sleep(0.3)
        assert not minting.done()
        quick.rpc("anvil_mine", "0x2")
        minting.result(timeout=30)
    assert slow.balance_units(to) == 7
    found = careful.newest_log(slow.contract.events.Transfer(), to=to)
    assert found is not None and found["args"]["value"] == 7


def test_connect__reorganised_away__is_sent_again_and_counts_once(own_anvil: str) -> None:
    key = accounts()[0][1]
    quick, careful = connect(own_anvil, key), connect(f"{own_anvil}#confirmations=3", key)
    token = Token(quick, quick.deploy("TestUSD"))
    quick.rpc("anvil_mine", "0x3")
    to = Account.create().address
    with ThreadPoolExecutor(1) as pool:
        minting = pool.submit(Token(careful, token.contract.address).mint, to, 7)
        while token.balance_units(to) == 0:
            time.sleep(0.02)
        quick.rpc("anvil_reorg", 1, [])
        for _ in range(200):
            if minting.done():
                break
            quick.rpc("anvil_mine", "0x1")
            time.sleep(0.05)
        minting.result(timeout=5)
    assert token.balance_units(to) == 7


@pytest.mark.parametrize(
    ("fragment", "said"),
    [
        ("confirmations=-1", "confirmations='-1' must be a whole number from 0 to 1000"),
        ("log_range=0", "log_range='0' must be a whole number from 1"),
        ("log_range=", "log_range='' must be"),
        ("confirmation=3", "'confirmation=3' after # must be one of confirmations, log_range"),
    ],
)
def test_connect__setting_that_is_none__named(fragment: str, said: str) -> None:
    with pytest.raises(BankError, match=re.escape(said)):
        connect(f"http://127.0.0.1:9/#{fragment}")
