"""The chain inside the embedded chain: py-evm, its waiting transactions and its SQLite file, in
JSON-RPC values.

Knows nothing of HTTP (rpc_server.py serves it) and nothing of contracts. What a caller was told is
on disk before the caller is told: a block, its receipts and its logs are one SQLite transaction.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import rlp
from eth.chains.base import MiningChain
from eth.constants import (
    BLANK_ROOT_HASH,
    POST_MERGE_DIFFICULTY,
    POST_MERGE_MIX_HASH,
    POST_MERGE_NONCE,
)
from eth.db.atomic import AtomicDB
from eth.db.backends.memory import MemoryDB
from eth.exceptions import HeaderNotFound, Revert, VMError
from eth.vm.forks.prague import PragueVM
from eth.vm.spoof import SpoofTransaction
from eth_account import Account
from eth_utils.address import to_checksum_address
from eth_utils.exceptions import ValidationError

CHAIN_ID = 31337
MNEMONIC = "test test test test test test test test test test test junk"
ACCOUNTS = 20
FUNDS_WEI = 10_000 * 10**18
GAS_LIMIT = 30_000_000
PRIORITY_FEE_WEI = 10**9
ZERO = b"\x00" * 20
PREVRANDAO = b"\x01" * 32  # nothing here draws lots
LOG = logging.getLogger("datahub.chain")
MAX_WAITING = 5000
MAX_LOGS = 20_000
BLOB_TRANSACTION = 3

TABLES = """
CREATE TABLE IF NOT EXISTS kv (key BLOB PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS block (number INTEGER PRIMARY KEY, hash TEXT UNIQUE NOT NULL,
  content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS tx (hash TEXT PRIMARY KEY, content TEXT NOT NULL, receipt TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS log (
  block INTEGER NOT NULL, position INTEGER NOT NULL, address TEXT NOT NULL, topic0 TEXT,
  content TEXT NOT NULL,
  PRIMARY KEY (block, position));
CREATE INDEX IF NOT EXISTS log_of ON log (address, topic0, block);
"""


class RpcError(Exception):
    """An error as JSON-RPC has it; `data` carries a revert's bytes."""

    def __init__(self, code: int, message: str, data: str | None = None):
        super().__init__(message)
        self.code = code
        self.data = data


class _Store(MemoryDB):  # type: ignore[misc]
    """py-evm's key-value store in memory; remembers what a block has changed."""

    def __init__(self, content: dict[bytes, bytes]):
        super().__init__(content)
        self.changed: set[bytes] = set()

    def __setitem__(self, key: bytes, value: bytes) -> None:
        super().__setitem__(key, value)
        self.changed.add(key)

    def __delitem__(self, key: bytes) -> None:
        super().__delitem__(key)
        self.changed.add(key)


class _Evm(MiningChain):  # type: ignore[misc]
    chain_id = CHAIN_ID
    vm_configuration = ((0, PragueVM),)

    def create_header_from_parent(self, parent_header: Any, **fields: Any) -> Any:
        return super().create_header_from_parent(
            parent_header, **{**fields, "gas_limit": parent_header.gas_limit}
        )


def accounts() -> list[tuple[str, str]]:
    """(address, private key) of the funded accounts, as every Ethereum developer knows them."""
    Account.enable_unaudited_hdwallet_features()
    made = [
        Account.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{i}") for i in range(ACCOUNTS)
    ]
    return [(account.address, "0x" + account.key.hex().removeprefix("0x")) for account in made]


class DevChain:
    """The chain itself; every public method takes and gives JSON-RPC values. One lock around
    everything.
    """

    def __init__(self, state: Path | None, *, instant: bool = False):
        self.instant = instant
        self._lock = threading.RLock()
        self._stopped = ""
        self._db = sqlite3.connect(
            state or ":memory:", timeout=1, check_same_thread=False, isolation_level=None
        )
        # one process only: two chains that write one file would each overwrite the other's blocks
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")  # a receipt, once given, survives a power cut
        self._db.executescript(f"BEGIN EXCLUSIVE; {TABLES} COMMIT;")
        self._store = _Store(
            {bytes(k): bytes(v) for k, v in self._db.execute("SELECT key, value FROM kv")}
        )
        self._clock_offset = 0
        self._next_timestamp: int | None = None
        # hash -> (sender, transaction), in order of arrival
        self._waiting: dict[bytes, tuple[bytes, Any]] = {}
        if self._store.kv_store:
            self._evm = _Evm(AtomicDB(self._store))
            self._clock_offset = max(0, self._latest().timestamp - int(time.time()))
        else:
            self._evm = _Evm.from_genesis(AtomicDB(self._store), _genesis(), _genesis_state())
            with self._transaction():
                self._save(self._evm.get_canonical_block_by_number(0), [], [])
            self._store.changed.clear()
        self._methods: dict[str, Callable[..., Any]] = {
            "eth_chainId": lambda: hex(CHAIN_ID),
            "net_version": lambda: str(CHAIN_ID),
            "web3_clientVersion": lambda: "datahub-devchain/py-evm",
            "eth_syncing": lambda: False,
            "eth_accounts": lambda: [],
            "eth_blockNumber": lambda: hex(self._latest().block_number),
            "eth_gasPrice": lambda: hex(self._base_fee() + PRIORITY_FEE_WEI),
            "eth_maxPriorityFeePerGas": lambda: hex(PRIORITY_FEE_WEI),
            "eth_feeHistory": self._fee_history,
            "eth_getBalance": lambda who, at="latest": hex(
                self._state(at).get_balance(_address(who))
            ),
            "eth_getCode": lambda who, at="latest": (
                "0x" + self._state(at).get_code(_address(who)).hex()
            ),
            "eth_getStorageAt": lambda who, slot, at="latest": (
                "0x"
                + self._state(at)
                .get_storage(_address(who), _integer(slot))
                .to_bytes(32, "big")
                .hex()
            ),
            "eth_getTransactionCount": self._transaction_count,
            "eth_call": self._call,
            "eth_estimateGas": self._estimate,
            "eth_sendRawTransaction": self._send,
            "eth_getTransactionByHash": lambda h: self._row(
                "SELECT content FROM tx WHERE hash=?", _hash(h)
            ),
            "eth_getTransactionReceipt": lambda h: self._row(
                "SELECT receipt FROM tx WHERE hash=?", _hash(h)
            ),
            "eth_getBlockByHash": lambda h, full=False: self._block(
                "SELECT content FROM block WHERE hash=?", _hash(h), full
            ),
            "eth_getBlockByNumber": self._block_by_number,
            "eth_getLogs": self._logs,
            "evm_increaseTime": self._increase_time,
            "evm_setNextBlockTimestamp": self._set_next_timestamp,
            "evm_mine": self._mine_now,
        }

    def request(self, method: str, params: list[Any]) -> Any:
        """One call. Raises RpcError."""
        if method not in self._methods:
            raise RpcError(-32601, f"the method {method[:80]} does not exist here")
        with self._lock:
            self._check_running()
            try:
                return self._methods[method](*params)
            except RpcError:
                raise
            except HeaderNotFound as error:
                raise RpcError(-32000, "header not found: there is no such block") from error
            except (
                TypeError,
                ValueError,
                OverflowError,
                KeyError,
                IndexError,
                AttributeError,
            ) as error:
                raise RpcError(
                    -32602, f"{method}: the parameters are not understood ({error})"
                ) from error
            except Exception as error:
                LOG.exception("%s failed", method)
                raise RpcError(
                    -32603, f"{method}: internal error, {type(error).__name__}"
                ) from error

    def mine_if_due(self) -> None:
        """Mine what waits, if the last block is at least a second old. Called by the server's
        ticker.

        Raises RpcError once a block could not be written: then the chain stands still until it is
        opened again.
        """
        with self._lock:
            self._check_running()
            if self._waiting and (self.instant or self._now() > self._latest().timestamp):
                self._mine()

    def _check_running(self) -> None:
        if self._stopped:
            raise RpcError(-32603, self._stopped)

    # -- time and heads ----------------------------------------------------------------------------

    def _now(self) -> int:
        return int(time.time()) + self._clock_offset

    def _latest(self) -> Any:
        return self._evm.get_canonical_head()

    def _pending(self) -> Any:
        """The header that a transaction sent now would run under."""
        latest = self._latest()
        header = self._evm.create_header_from_parent(latest)
        return header.copy(timestamp=self._next_timestamp or max(latest.timestamp + 1, self._now()))

    def _base_fee(self) -> int:
        return int(self._pending().base_fee_per_gas)

    def _header(self, at: Any) -> Any:
        if at == "pending":
            return self._pending()
        if at in ("latest", "safe", "finalized"):
            return self._latest()
        number = 0 if at == "earliest" else _integer(at)
        return self._evm.get_canonical_block_header_by_number(number)

    def _state(self, at: Any) -> Any:
        return self._evm.get_vm(self._header(at)).state

    def _increase_time(self, seconds: Any) -> str:
        self._clock_offset += _integer(seconds)
        return hex(self._clock_offset)

    def _set_next_timestamp(self, timestamp: Any) -> None:
        wanted, latest = _integer(timestamp), self._latest().timestamp
        if wanted <= latest:
            raise RpcError(
                -32602, f"timestamp={wanted} must be later than the latest block's {latest}"
            )
        self._next_timestamp = wanted

    def _mine_now(self) -> str:
        self._mine()
        return "0x0"

    # -- calls -------------------------------------------------------------------------------------

    def _spoofed(self, request: dict[str, Any], gas: int, state: Any, fee: int) -> Any:
        sender = _address(request["from"]) if request.get("from") else ZERO
        unsigned = (
            self._evm.get_vm()
            .get_transaction_builder()
            .new_unsigned_dynamic_fee_transaction(
                chain_id=CHAIN_ID,
                nonce=state.get_nonce(sender),
                max_priority_fee_per_gas=0,
                max_fee_per_gas=fee,
                gas=gas,
                to=_address(request["to"]) if request.get("to") else b"",
                value=_integer(request.get("value", "0x0")),
                data=_bytes(request.get("data") or request.get("input") or "0x"),
                access_list=(),
            )
        )
        return SpoofTransaction(unsigned, from_=sender)

    def _run(self, request: dict[str, Any], at: Any, gas: int) -> Any:
        header = self._header(at)
        state = self._evm.get_vm(header.copy(gas_used=0)).state
        snapshot = state.snapshot()
        try:
            transaction = self._spoofed(request, gas, state, header.base_fee_per_gas)
            # a caller without ether may still ask: the fee is lent for this simulation
            fee_wei = gas * header.base_fee_per_gas
            state.set_balance(transaction.sender, state.get_balance(transaction.sender) + fee_wei)
            computation = state.apply_transaction(transaction)
        except ValidationError as error:
            raise RpcError(-32000, f"the call cannot run: {error}") from error
        finally:
            state.revert(snapshot)
        if computation.is_error:
            raise _reverted(computation.error)
        return computation

    def _call(self, request: dict[str, Any], at: Any = "latest", *_: Any) -> str:
        gas = min(_integer(request.get("gas", hex(GAS_LIMIT))), GAS_LIMIT)
        output: bytes = self._run(request, at, gas).output
        return "0x" + output.hex()

    def _estimate(self, request: dict[str, Any], *_: Any) -> str:
        high = GAS_LIMIT
        used = self._run(request, "pending", high)
        low = used.get_gas_used() - 1
        # most calls need little more than they use
        guess = low + 1 + (low + 1) // 8 + used.get_gas_refund()
        if self._fits(request, guess):
            high = guess
        while high - low > max(1000, high // 100):
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits(request, middle) else (middle, high)
        return hex(high)

    def _fits(self, request: dict[str, Any], gas: int) -> bool:
        try:
            self._run(request, "pending", gas)
        except RpcError:
            return False
        return True

    def _fee_history(
        self, count: Any, newest: Any = "latest", percentiles: Any = ()
    ) -> dict[str, Any]:
        last = self._header("latest" if newest == "pending" else newest).block_number
        first = max(0, last - min(_integer(count), 1024) + 1)
        headers = [
            self._evm.get_canonical_block_header_by_number(n) for n in range(first, last + 1)
        ]
        return {
            "oldestBlock": hex(first),
            "baseFeePerGas": [hex(h.base_fee_per_gas) for h in headers] + [hex(self._base_fee())],
            "gasUsedRatio": [h.gas_used / h.gas_limit for h in headers],
            "reward": [[hex(PRIORITY_FEE_WEI) for _ in percentiles or ()] for _ in headers],
        }

    # -- transactions ------------------------------------------------------------------------------

    def _transaction_count(self, who: str, at: Any = "latest") -> str:
        count = self._state("latest" if at == "pending" else at).get_nonce(_address(who))
        if at == "pending":
            count += self._waiting_of(_address(who))
        return hex(count)

    def _waiting_of(self, sender: bytes) -> int:
        return sum(one == sender for one, _ in self._waiting.values())

    def _send(self, raw: str) -> str:
        content = _bytes(raw)
        try:
            transaction = self._evm.get_vm().get_transaction_builder().decode(content)
            transaction.validate()
            sender = transaction.sender
        except (
            Exception
        ) as error:  # hostile bytes fail in many ways between rlp, py-evm and the curve
            raise RpcError(-32000, f"not a valid transaction: {type(error).__name__}") from error
        if getattr(transaction, "type_id", None) == BLOB_TRANSACTION:
            raise RpcError(-32000, "blob transactions are not taken here")
        state = self._state("latest")
        expected = state.get_nonce(sender) + self._waiting_of(sender)
        name = f"0x{transaction.hash.hex()}"
        if transaction.hash in self._waiting or self._row(
            "SELECT receipt FROM tx WHERE hash=?", name
        ):
            raise RpcError(-32000, "already known")
        if len(self._waiting) >= MAX_WAITING:
            raise RpcError(-32000, f"txpool is full: {MAX_WAITING} transactions wait already")
        if transaction.gas > GAS_LIMIT:
            raise RpcError(-32000, f"gas {transaction.gas} exceeds the block gas limit {GAS_LIMIT}")
        if transaction.gas < transaction.intrinsic_gas:
            raise RpcError(
                -32000,
                f"intrinsic gas too low: gas {transaction.gas} is under "
                f"{transaction.intrinsic_gas}",
            )
        if transaction.nonce < expected:
            raise RpcError(
                -32000, f"nonce too low: next nonce {expected}, tx nonce {transaction.nonce}"
            )
        if transaction.nonce > expected:
            raise RpcError(
                -32000, f"nonce too high: next nonce {expected}, tx nonce {transaction.nonce}"
            )
        if getattr(transaction, "chain_id", CHAIN_ID) != CHAIN_ID:
            raise RpcError(-32000, f"invalid chain id: {transaction.chain_id} is not {CHAIN_ID}")
        if transaction.max_fee_per_gas < self._base_fee():
            raise RpcError(
                -32000, f"max fee per gas {transaction.max_fee_per_gas} is under {self._base_fee()}"
            )
        if (
            state.get_balance(sender)
            < transaction.value + transaction.gas * transaction.max_fee_per_gas
        ):
            raise RpcError(-32000, "insufficient funds for gas * price + value")
        self._waiting[transaction.hash] = (sender, transaction)
        self.mine_if_due()
        return name

    def _mine(self) -> None:
        """One block with everything that waits and fits, on disk in one transaction before anybody
        sees it.
        """
        while (built := self._build()) is None:
            pass
        block, done, receipts = built
        try:
            with self._transaction():
                self._save(block, done, receipts)
        except (
            Exception
        ) as error:  # memory is ahead of the file now: nobody may be told what the file lacks
            self._stopped = (
                f"the chain stopped: block {block.number} could not be written ({error}); "
                "start it again"
            )
            LOG.exception("block %d could not be written", block.number)
            raise RpcError(-32603, self._stopped) from error
        self._store.changed.clear()
        for transaction, _ in done:
            del self._waiting[transaction.hash]
        if self._next_timestamp is not None:
            self._next_timestamp = None
            self._clock_offset = block.header.timestamp - int(time.time())

    def _build(self) -> tuple[Any, list[tuple[Any, Any]], list[Any]] | None:
        """The next block with what was done in it; None if a transaction had to be dropped, then
        build again.

        A failure leaves py-evm's state half changed, so the whole machine is thrown away with it.
        """
        evm, header = self._evm, self._pending().copy(coinbase=ZERO, mix_hash=PREVRANDAO)
        machine = evm.get_vm(header)
        done, receipts = [], []
        for sender, transaction in self._waiting.values():
            if header.gas_used + transaction.gas > header.gas_limit:
                break  # and all behind it: a later nonce must not overtake
            try:
                receipt, computation = machine.apply_transaction(header, transaction)
            except Exception as error:  # noqa: BLE001 whatever it breaks, it must not wait for ever at the head
                LOG.warning(
                    "dropped 0x%s and what follows from its sender: %r",
                    transaction.hash.hex(),
                    error,
                )
                nonce = transaction.nonce
                behind = [
                    h
                    for h, (who, tx) in self._waiting.items()
                    if who == sender and tx.nonce >= nonce
                ]
                for transaction_hash in behind:
                    del self._waiting[transaction_hash]
                return None
            header = machine.add_receipt_to_header(header, receipt)
            done.append((transaction, computation))
            receipts.append(receipt)
        transactions = [transaction for transaction, _ in done]
        filled = machine.set_block_transactions_and_withdrawals(
            machine.get_block(), header, transactions, receipts
        )
        block = machine.mine_block(filled).block
        evm.validate_block(block)
        evm.chaindb.persist_block(block)
        evm.header = evm.create_header_from_parent(block.header)
        return block, done, receipts

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _save(self, block: Any, done: list[tuple[Any, Any]], receipts: list[Any]) -> None:
        for key in self._store.changed:
            if key in self._store.kv_store:
                self._db.execute(
                    "INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, self._store.kv_store[key])
                )
            else:
                self._db.execute("DELETE FROM kv WHERE key=?", (key,))
        header = block.header
        where = {"blockHash": "0x" + header.hash.hex(), "blockNumber": hex(header.block_number)}
        before, position = 0, 0
        for index, ((transaction, computation), receipt) in enumerate(
            zip(done, receipts, strict=True)
        ):
            content = (
                _transaction_json(transaction, header) | where | {"transactionIndex": hex(index)}
            )
            logs = []
            for entry in receipt.logs:
                logs.append(
                    {
                        "address": to_checksum_address(entry.address),
                        "topics": [
                            "0x" + topic.to_bytes(32, "big").hex() for topic in entry.topics
                        ],
                        "data": "0x" + entry.data.hex(),
                        "logIndex": hex(position),
                        "transactionIndex": hex(index),
                        "transactionHash": content["hash"],
                        "removed": False,
                    }
                    | where
                )
                position += 1
            contract = (
                to_checksum_address(computation.msg.storage_address) if not transaction.to else None
            )
            receipt_json = {
                "transactionHash": content["hash"],
                "transactionIndex": hex(index),
                "from": content["from"],
                "to": content["to"],
                "cumulativeGasUsed": hex(receipt.gas_used),
                "gasUsed": hex(receipt.gas_used - before),
                "effectiveGasPrice": content["gasPrice"],
                "contractAddress": contract,
                "logs": logs,
                "logsBloom": "0x" + receipt.bloom.to_bytes(256, "big").hex(),
                "status": hex(int(not computation.is_error)),
                "type": content["type"],
            } | where
            before = receipt.gas_used
            self._db.execute(
                "INSERT INTO tx VALUES (?, ?, ?)",
                (content["hash"], json.dumps(content), json.dumps(receipt_json)),
            )
            self._db.executemany(
                "INSERT INTO log VALUES (?, ?, ?, ?, ?)",
                [
                    (
                        header.block_number,
                        int(e["logIndex"], 16),
                        e["address"].lower(),
                        (e["topics"] or [None])[0],
                        json.dumps(e),
                    )
                    for e in logs
                ],
            )
        hashes = ["0x" + transaction.hash.hex() for transaction, _ in done]
        self._db.execute(
            "INSERT INTO block VALUES (?, ?, ?)",
            (header.block_number, where["blockHash"], json.dumps(_block_json(header, hashes))),
        )

    # -- looking up --------------------------------------------------------------------------------

    def _row(self, query: str, value: Any) -> Any:
        row = self._db.execute(query, (value,)).fetchone()
        return json.loads(row[0]) if row else None

    def _block(self, query: str, value: Any, full: bool) -> Any:
        block = self._row(query, value)
        if block and full:
            block["transactions"] = [
                self._row("SELECT content FROM tx WHERE hash=?", h) for h in block["transactions"]
            ]
        return block

    def _block_by_number(self, at: Any, full: bool = False) -> Any:
        if at == "pending":
            return _block_json(self._pending(), []) | {"hash": None, "nonce": None}
        if at in ("latest", "safe", "finalized"):
            number = self._latest().block_number
        else:
            number = 0 if at == "earliest" else _integer(at)
        return self._block("SELECT content FROM block WHERE number=?", number, full)

    def _logs(self, query: dict[str, Any]) -> list[Any]:
        if query.get("blockHash"):
            block = self._row("SELECT content FROM block WHERE hash=?", _hash(query["blockHash"]))
            if block is None:
                raise RpcError(-32000, "unknown block")
            first = last = int(block["number"], 16)
        else:
            first = self._header_number(query.get("fromBlock") or "latest")
            last = min(
                self._header_number(query.get("toBlock") or "latest"), self._latest().block_number
            )
        conditions = ["block BETWEEN ? AND ?"]
        values: list[Any] = [first, last]
        wanted = query.get("address")
        if wanted:
            many = wanted if isinstance(wanted, list) else [wanted]
            conditions.append(f"address IN ({','.join('?' * len(many))})")
            values += [str(a).lower() for a in many]
        topics = query.get("topics") or []
        if topics and topics[0]:
            many = topics[0] if isinstance(topics[0], list) else [topics[0]]
            conditions.append(f"topic0 IN ({','.join('?' * len(many))})")
            values += [str(t).lower() for t in many]
        found = []
        sql = f"SELECT content FROM log WHERE {' AND '.join(conditions)} ORDER BY block, position"  # noqa: S608
        for (content,) in self._db.execute(sql, values):
            entry = json.loads(content)
            if _topics_match(entry["topics"], topics):
                found.append(entry)
            if len(found) > MAX_LOGS:
                raise RpcError(-32005, f"more than {MAX_LOGS} logs; ask for fewer blocks")
        return found

    def _header_number(self, at: Any) -> int:
        if at in ("latest", "pending", "safe", "finalized"):
            return int(self._latest().block_number)
        return 0 if at == "earliest" else _integer(at)


def _genesis() -> dict[str, Any]:
    return {
        "coinbase": ZERO,
        "difficulty": POST_MERGE_DIFFICULTY,
        "extra_data": b"datahub",
        "gas_limit": GAS_LIMIT,
        "mix_hash": POST_MERGE_MIX_HASH,
        "nonce": POST_MERGE_NONCE,
        "receipt_root": BLANK_ROOT_HASH,
        "timestamp": int(time.time()) - 2,  # the first transaction need not wait
        "transaction_root": BLANK_ROOT_HASH,
    }


def _genesis_state() -> dict[bytes, dict[str, Any]]:
    empty = {"balance": FUNDS_WEI, "nonce": 0, "code": b"", "storage": {}}
    return {_address(address): dict(empty) for address, _ in accounts()}


def _reverted(error: VMError) -> RpcError:
    if isinstance(error, Revert):
        data = error.args[0] if error.args and isinstance(error.args[0], bytes) else b""
        return RpcError(3, "execution reverted", "0x" + data.hex())
    return RpcError(-32000, f"the call failed: {type(error).__name__}")


def _address(text: Any) -> bytes:
    raw = _bytes(text)
    if len(raw) != 20:
        raise RpcError(-32602, f"{str(text)[:60]} is not an address")
    return raw


def _bytes(text: Any) -> bytes:
    if not isinstance(text, str) or not text.startswith("0x"):
        raise RpcError(-32602, f"{str(text)[:60]} must be hexadecimal text that begins with 0x")
    try:
        return bytes.fromhex(text[2:])
    except ValueError as error:
        raise RpcError(-32602, f"{text[:60]} is not hexadecimal") from error


def _hash(text: Any) -> str:
    raw = _bytes(text)
    if len(raw) != 32:
        raise RpcError(-32602, f"{str(text)[:80]} is not a hash of 32 bytes")
    return "0x" + raw.hex()


def _integer(value: Any) -> int:
    number = int(value, 16) if isinstance(value, str) else int(value)
    if number < 0:
        raise RpcError(-32602, f"{value} must not be negative")
    return number


def _topics_match(have: list[str], wanted: list[Any]) -> bool:
    for i, want in enumerate(wanted):
        if want is None:
            continue
        many = want if isinstance(want, list) else [want]
        if i >= len(have) or have[i] not in [str(w).lower() for w in many]:
            return False
    return True


def _transaction_json(transaction: Any, header: Any) -> dict[str, Any]:
    kind = getattr(transaction, "type_id", None) or 0
    price = min(
        transaction.max_fee_per_gas, header.base_fee_per_gas + transaction.max_priority_fee_per_gas
    )
    return {
        "hash": "0x" + transaction.hash.hex(),
        "type": hex(kind),
        "chainId": hex(CHAIN_ID),
        "nonce": hex(transaction.nonce),
        "from": to_checksum_address(transaction.sender),
        "to": to_checksum_address(transaction.to) if transaction.to else None,
        "value": hex(transaction.value),
        "gas": hex(transaction.gas),
        "gasPrice": hex(price),
        "maxFeePerGas": hex(transaction.max_fee_per_gas),
        "maxPriorityFeePerGas": hex(transaction.max_priority_fee_per_gas),
        "input": "0x" + transaction.data.hex(),
        "accessList": [
            {
                "address": to_checksum_address(who),
                "storageKeys": ["0x" + key.to_bytes(32, "big").hex() for key in keys],
            }
            for who, keys in (transaction.access_list if kind else ())
        ],
        "r": hex(transaction.r),
        "s": hex(transaction.s),
        "v": hex(transaction.v if kind == 0 else transaction.y_parity),
        "yParity": hex(transaction.y_parity),
    }


def _block_json(header: Any, hashes: list[str]) -> dict[str, Any]:
    return {
        "number": hex(header.block_number),
        "hash": "0x" + header.hash.hex(),
        "parentHash": "0x" + header.parent_hash.hex(),
        "nonce": "0x" + header.nonce.hex(),
        "sha3Uncles": "0x" + header.uncles_hash.hex(),
        "logsBloom": "0x" + header.bloom.to_bytes(256, "big").hex(),
        "transactionsRoot": "0x" + header.transaction_root.hex(),
        "stateRoot": "0x" + header.state_root.hex(),
        "receiptsRoot": "0x" + header.receipt_root.hex(),
        "miner": to_checksum_address(header.coinbase),
        "difficulty": hex(header.difficulty),
        "extraData": "0x" + header.extra_data.hex(),
        "size": hex(len(rlp.encode(header))),
        "gasLimit": hex(header.gas_limit),
        "gasUsed": hex(header.gas_used),
        "baseFeePerGas": hex(header.base_fee_per_gas),
        "timestamp": hex(header.timestamp),
        "mixHash": "0x" + header.mix_hash.hex(),
        "transactions": hashes,
        "uncles": [],
    }
