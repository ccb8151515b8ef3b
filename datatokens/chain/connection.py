"""One connection to an EVM chain: read, simulate, sign, send, wait, decode. Knows nothing of what
the contracts mean.

Works unchanged on the embedded chain, on anvil and on any JSON-RPC endpoint. Every send is
simulated first, so that a refusal costs no gas and comes back as a sentence
(datatokens/refusals.py).
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urldefrag, urlsplit

import requests
from eth_account import Account
from web3 import HTTPProvider, Web3
from web3.contract import Contract
from web3.exceptions import (
    BadFunctionCallOutput,
    BadResponseFormat,
    BlockNotFound,
    ContractCustomError,
    ContractLogicError,
    TransactionNotFound,
    Web3RPCError,
)
from web3.types import RPCEndpoint

from datatokens.chain.artifacts import artifact, decode_revert
from datatokens.errors import BankError, ChainUnreachable, NodeRefused, TransactionRefused

log = logging.getLogger("datahub.chain")

WAIT_S = 180.0
# name: default, least, most
SETTINGS = {"confirmations": (0, 0, 1000), "log_range": (2000, 1, 1_000_000)}
GAS_MARGIN = 1.15
# as geth and anvil say it, as hardhat does, as py-evm does
TOO_POOR = ("insufficient funds", "enough funds", "enough balance")
NONCE_TRIES = 20
SUBMIT_TRIES = 5
SILENCE_S = 30.0  # how long a node may be away while a receipt is waited for
# how long a spent nonce must stay without our transaction before we believe that another took it
REPLACED_S = 5.0
FEE_CAP_WEI = 500 * 10**9  # a fee above this is a mistake or a trap; refuse rather than pay


class Chain:
    """A connection, with a key for sending or without one for looking. Safe to share between
    threads.
    """

    def __init__(self, url: str, key: str | None):
        self.url, fragment = urldefrag(url)
        self.host = shown(url)
        settings = _settings(fragment)
        self.confirmations, self.log_range = settings["confirmations"], settings["log_range"]
        self.answered_at = 0.0  # unix seconds of the last answer that was no error
        self._key = key
        session = requests.Session()
        # a node's chain connection must not go through a proxy by accident
        session.trust_env = False
        self._web3 = Web3(HTTPProvider(self.url, session=session, request_kwargs={"timeout": 30}))
        try:
            self.address: str | None = str(Account.from_key(key).address) if key else None
        except (ValueError, TypeError) as error:  # binascii.Error is a ValueError
            raise BankError("the private key must be 32 bytes, as 64 hexadecimal digits") from error
        self.chain_id = self._ask(self._whole_chain_id)

    def _whole_chain_id(self) -> int:
        found = self._web3.eth.chain_id
        if type(found) is not int:  # web3 passes on whatever came where a number should be
            raise ChainUnreachable(
                f"no chain answers at {self.host}: its chain id is {str(found)[:40]!r}"
            )
        return found

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The answer to a question to the node; every way it can fail as one of this room's
        errors.
        """
        try:
            answer = question()
        except (ContractCustomError, ContractLogicError) as error:
            data = error.data
            raise decode_revert(
                bytes.fromhex(data.removeprefix("0x")) if isinstance(data, str) else b""
            ) from error
        except BadFunctionCallOutput as error:
            raise BankError(
                f"the chain at {self.host} has no such contract at this address"
            ) from error
        except TransactionNotFound:
            raise  # a Web3RPCError too, but an answer: not mined yet
        except Web3RPCError as error:
            said = (error.rpc_response or {}).get("error")
            raise NodeRefused(
                f"the chain at {self.host} refused: {said['message'] if said else error}"
            ) from error
        except (
            requests.RequestException,
            OSError,
            BadResponseFormat,
            json.JSONDecodeError,
        ) as error:
            raise ChainUnreachable(
                f"no chain answers at {self.host}: {type(error).__name__}"
            ) from error
        self.answered_at = time.time()
        return answer

    def contract(self, name: str, address: str) -> Contract:
        """The contract `name` (an artifact) at `address`."""
        return self._web3.eth.contract(
            address=Web3.to_checksum_address(address), abi=artifact(name)["abi"]
        )

    def now(self) -> int:
        """Unix seconds that a transaction sent now would see, at least: the clock, or the last
        block if it is ahead.
        """
        return max(int(time.time()), self.newest_block_time())

    def newest_block_time(self) -> int:
        """Unix seconds of the newest block: no right clock is far behind it."""
        return int(self._ask(lambda: self._web3.eth.get_block("latest"))["timestamp"])

    def block_number(self) -> int:
        """Number of the newest block that counts: the head, less the confirmations."""
        return max(0, int(self._ask(lambda: self._web3.eth.block_number)) - self.confirmations)

    def balance_wei(self, address: str) -> int:
        """Gas coin of an account."""
        return int(self._ask(lambda: self._web3.eth.get_balance(Web3.to_checksum_address(address))))

    def code(self, address: str) -> bytes:
        """Deployed code at an address."""
        return bytes(self._ask(lambda: self._web3.eth.get_code(Web3.to_checksum_address(address))))

    def read(self, function: Any, asker: str | None = None) -> Any:
        """The value of a view function, at the newest block that counts, as `asker` sees it (an
        address).

        Raises TransactionRefused if it reverts.
        """
        block = self.block_number() if self.confirmations else "latest"
        call = {"from": asker} if asker else {}
        return self._ask(lambda: function.call(call, block_identifier=block))

    def send(self, function: Any) -> Mapping[str, Any]:
        """Simulate, sign, send, wait; the receipt. Raises TransactionRefused with the contract's
        reason.
        """
        sender = self._sender()
        # "pending": the clock of the block that this would be in; an idle chain's last block may be
        # old
        receipt = self._transact(
            lambda: self._ask(lambda: function.call({"from": sender}, "pending")),
            lambda: int(self._ask(lambda: function.estimate_gas({"from": sender}, "pending"))),
            lambda options: function.build_transaction(options),
        )
        if receipt["status"] != 1:
            self._ask(
                lambda: function.call({"from": sender}, receipt["blockNumber"])
            )  # says why, if it still refuses
            raise TransactionRefused(
                f"transaction 0x{bytes(receipt['transactionHash']).hex()} failed on the chain"
            )
        return receipt

    def transfer(self, to: str, wei: int) -> None:
        """Send gas coin to an account. Raises NodeRefused where there is too little."""
        what: Any = {"from": self._sender(), "to": Web3.to_checksum_address(to), "value": wei}
        self._transact(
            lambda: None,
            lambda: int(self._ask(lambda: self._web3.eth.estimate_gas(what))),
            lambda options: options | what,
        )

    def deploy(self, name: str, *arguments: Any) -> str:
        """Deploy an artifact; the new address. Raises TransactionRefused."""
        item, sender = artifact(name), self._sender()
        constructor = self._web3.eth.contract(
            abi=item["abi"], bytecode=item["bytecode"]
        ).constructor(*arguments)
        receipt = self._transact(
            lambda: None,  # estimating runs it just as well
            lambda: int(self._ask(lambda: constructor.estimate_gas({"from": sender}, "pending"))),
            lambda options: constructor.build_transaction(options),
        )
        if receipt["status"] != 1:
            raise TransactionRefused(
                f"{name} could not be deployed: its constructor failed on the chain"
            )
        return str(receipt["contractAddress"])

    def _sender(self) -> Any:
        if self.address is None:
            raise BankError(
                f"sending to the chain at {self.host} needs a key; this connection has none"
            )
        return self.address

    def _transact(
        self,
        simulate: Callable[[], Any],
        estimate: Callable[[], int],
        build: Callable[[Any], Any],
    ) -> Mapping[str, Any]:
        """Sign and send under the next free nonce, and wait for the receipt.

        Two processes may send with one key at once: who comes second to a nonce starts again from
        the simulation.
        """
        sender = self._sender()
        for attempt in range(NONCE_TRIES):
            simulate()
            nonce = self._ask(lambda: self._web3.eth.get_transaction_count(sender, "pending"))
            fees = self._fees()
            # The odd cap, which costs nothing, makes this transaction unlike that of any other
            # process with the same key, nonce and call. So a node that already knows it has it from
            # us, by a resend after a lost answer. It stays far below the tenth more that would let
            # it push another process's transaction out of the pool.
            fees["maxFeePerGas"] += secrets.randbelow(max(2, fees["maxFeePerGas"] // 50))
            try:
                gas = int(estimate() * GAS_MARGIN)
            except NodeRefused as error:
                raise self._poor(error) from error
            options = {"from": sender, "nonce": nonce, "chainId": self.chain_id, "gas": gas, **fees}
            signed = Account.sign_transaction(self._ask(lambda: build(options)), self._key)  # noqa: B023 called at once
            try:
                self._submit(signed)
            except NodeRefused as error:
                error = self._poor(error, gas * fees["maxFeePerGas"])
                said = str(error).lower()
                if not any(
                    word in said
                    for word in ("already known", "already imported", "known transaction")
                ):
                    if not any(word in said for word in ("nonce", "underpriced")):
                        raise error
                    if not self._knows(signed.hash):
                        time.sleep(0.02 * (attempt + 1) * (1 + secrets.randbelow(100) / 100))
                        continue
            receipt = self._receipt(signed, nonce)
            if receipt is not None:
                return receipt
        raise BankError(
            f"the chain at {self.host} refused {NONCE_TRIES} nonces; is another program using "
            "this key?"
        )

    def _poor(self, error: NodeRefused, needed_wei: int | None = None) -> NodeRefused:
        """`error`, or where it says that funds are insufficient: whose, how much there is, and how
        much is short for gas that may cost `needed_wei`.
        """
        said = str(error).lower()
        if not any(words in said for words in TOO_POOR):
            return error
        has = self.balance_wei(self._sender())
        short = (
            "" if needed_wei is None else f"; {_coins(max(0, needed_wei - has))} more are needed"
        )
        return NodeRefused(
            f"insufficient funds: {self.address} has {_coins(has)} of the chain's coin to pay gas "
            f"with{short}; send some to that address"
        )

    def _submit(self, signed: Any) -> None:
        """Hand over a signed transaction; the same bytes again if no answer comes, as that cannot
        pay twice.
        """
        for attempt in range(SUBMIT_TRIES):
            try:
                self._ask(lambda: self._web3.eth.send_raw_transaction(signed.raw_transaction))
                return
            except ChainUnreachable as error:
                if attempt + 1 == SUBMIT_TRIES:
                    sent = f"transaction 0x{bytes(signed.hash).hex()}"
                    raise ChainUnreachable(
                        f"{error}; it is not known whether {sent} was taken"
                    ) from error
                time.sleep(0.2 * 2**attempt)

    def _knows(self, transaction_hash: Any) -> bool:
        try:
            self._ask(lambda: self._web3.eth.get_transaction(transaction_hash))
        except TransactionNotFound:
            return False
        return True

    def _fees(self) -> dict[str, int]:
        def ask() -> dict[str, int]:
            base = self._web3.eth.get_block("pending").get("baseFeePerGas") or 0
            tip = self._web3.eth.max_priority_fee
            return {"maxPriorityFeePerGas": tip, "maxFeePerGas": 2 * base + tip}

        fee: dict[str, int] = self._ask(ask)
        gwei, cap_gwei = fee["maxFeePerGas"] // 10**9, FEE_CAP_WEI // 10**9
        if gwei > cap_gwei:
            raise BankError(f"gas costs {gwei} gwei now; more than {cap_gwei} is not paid")
        return fee

    def _receipt(self, signed: Any, nonce: int) -> Mapping[str, Any] | None:
        """The receipt; None if the nonce went to another transaction of this key, so that this one
        can never count.
        """
        sent = f"transaction 0x{bytes(signed.hash).hex()}"
        answered_at, pause = time.monotonic(), 0.05
        end, gone_at = answered_at + WAIT_S, None
        while time.monotonic() < end:
            try:
                receipt, gone = self._looked_up(signed, nonce)
                # looked up again until it is deep enough: a reorganisation may take it away
                if receipt is not None and (
                    not self.confirmations or receipt["blockNumber"] <= self.block_number()
                ):
                    return receipt
                answered_at = time.monotonic()
                gone_at = (gone_at or answered_at) if gone else None
                if gone_at is not None and answered_at - gone_at > REPLACED_S:
                    return None
            except ChainUnreachable as error:
                if time.monotonic() - answered_at > SILENCE_S:
                    raise ChainUnreachable(
                        f"{error}; {sent} was sent and may be in a block"
                    ) from error
            time.sleep(pause)
            pause = min(0.5, pause * 1.5)
        raise BankError(f"{sent} is not in a block after {WAIT_S:.0f} s; it may still be mined")

    def _looked_up(self, signed: Any, nonce: int) -> tuple[Mapping[str, Any] | None, bool]:
        """The receipt, if there is one; and whether the transaction is gone: nonce spent,
        transaction unknown.

        Unknown while its nonce is free, it was forgotten (a reorganisation, a full pool): the same
        bytes go out again.
        """
        try:
            return self._ask(lambda: self._web3.eth.get_transaction_receipt(signed.hash)), False
        except TransactionNotFound:
            spent = (
                self._ask(lambda: self._web3.eth.get_transaction_count(self._sender(), "latest"))
                > nonce
            )
            known = self._knows(signed.hash)
            if not spent and not known:
                try:
                    self._submit(signed)
                except (
                    NodeRefused
                ) as error:  # another process took the nonce in between: seen at the next look
                    log.info("sending again: %s", error)
            return None, spent and not known

    def logs(
        self, event: Any, from_block: int = 0, to_block: int | None = None, **filters: Any
    ) -> Iterator[Mapping[str, Any]]:
        """Decoded events, oldest first, asked for in ranges of `log_range` blocks, as public nodes
        demand.

        `filters` are values of indexed arguments; `to_block` None is the newest block.
        """
        chunk = self.log_range
        last = self.block_number() if to_block is None else to_block
        for first in range(from_block, last + 1, chunk):
            yield from self._range(event, first, min(first + chunk - 1, last), filters)

    def newest_log(self, event: Any, **filters: Any) -> Mapping[str, Any] | None:
        """The newest event that fits, searched from the newest block backwards; None if there never
        was one.
        """
        chunk = self.log_range
        for last in range(self.block_number(), -1, -chunk):
            if found := self._range(event, max(0, last - chunk + 1), last, filters):
                return found[-1]
        return None

    def _range(
        self, event: Any, first: int, last: int, filters: Mapping[str, Any]
    ) -> list[Mapping[str, Any]]:
        return list(
            self._ask(
                lambda: event.get_logs(
                    from_block=first, to_block=last, argument_filters=dict(filters)
                )
            )
        )

    def raw_logs(
        self, addresses: Sequence[str], from_block: int, to_block: int
    ) -> list[Mapping[str, Any]]:
        """Every event of these contracts in these blocks, undecoded, oldest first."""
        chunk, found = self.log_range, []
        for first in range(from_block, to_block + 1, chunk):
            last = min(first + chunk - 1, to_block)
            asked: Any = {"address": list(addresses), "fromBlock": first, "toBlock": last}
            found += self._ask(lambda: self._web3.eth.get_logs(asked))  # noqa: B023 called at once
        return found

    def block_hash(self, number: int) -> bytes | None:
        """The hash of a block; None where there is no such block."""
        try:
            return bytes(self._ask(lambda: self._web3.eth.get_block(number))["hash"])
        except NodeRefused as error:
            if isinstance(error.__cause__, BlockNotFound):
                return None
            raise

    def calldata(self, transaction_hash: Any) -> bytes:
        """A transaction's input. Raises BankError where the node has lost it."""
        try:
            found = self._ask(lambda: self._web3.eth.get_transaction(transaction_hash))
        except TransactionNotFound as error:
            raise BankError(
                f"the chain at {self.host} has lost transaction 0x{bytes(transaction_hash).hex()}"
            ) from error
        return bytes(found["input"])

    def rpc(self, method: str, *params: Any) -> Any:
        """The result of a raw JSON-RPC call (time travel in tests). Raises NodeRefused."""
        answer = self._ask(
            lambda: self._web3.provider.make_request(RPCEndpoint(method), list(params))
        )
        if "error" in answer:
            raise NodeRefused(f"the chain at {self.host} refused: {answer['error'].get('message')}")
        return answer.get("result")


def _coins(wei: int) -> str:
    """Wei as coins, rounded up to 1e-9."""
    return f"{-(-wei // 10**9) / 10**9:.9f}".rstrip("0").rstrip(".")


def _settings(fragment: str) -> dict[str, int]:
    found = {name: default for name, (default, _, _) in SETTINGS.items()}
    for part in fragment.split("&") if fragment else []:
        name, _, value = part.partition("=")
        if name not in SETTINGS:
            raise BankError(
                f"chain: {part!r} after # must be one of {', '.join(SETTINGS)} with a number"
            )
        _, least, most = SETTINGS[name]
        if not value.isdecimal() or not value.isascii() or not least <= int(value) <= most:
            raise BankError(
                f"chain: {name}={value!r} must be a whole number from {least} to {most}"
            )
        found[name] = int(value)
    return found


def shown(url: str) -> str:
    """What of an endpoint may stand in a sentence that anybody reads: scheme, host and port. A
    provider's key is in the path, a password before the host.
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def connect(url: str, key: str | bytes | None = None) -> Chain:
    """Connect to the JSON-RPC endpoint at `url`. `key` is a private key, hexadecimal or bytes;
    without it: look only.

    What differs between chains stands behind a # and is never sent:
    `https://rpc.example/#confirmations=3&log_range=500`
    counts a block once three more are on top, and asks for events of 500 blocks at a time.
    Raises ChainUnreachable if nothing answers there, BankError for a key or a setting that is none.
    """
    return Chain(url, "0x" + key.hex() if isinstance(key, bytes) else key)
