"""One connection to an EVM chain: read, simulate, sign, send, wait, decode. Knows nothing of what the contracts mean.

Works unchanged on the embedded chain, on anvil and on any JSON-RPC endpoint. Every send is simulated first, so that
a refusal costs no gas and comes back as a sentence. The only place (with the bindings beside it) that imports web3.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import requests
from eth_abi.abi import decode as abi_decode
from eth_abi.exceptions import DecodingError
from eth_account import Account
from eth_utils.crypto import keccak
from web3 import HTTPProvider, Web3
from web3.contract import Contract
from web3.exceptions import (
    ContractCustomError,
    ContractLogicError,
    TimeExhausted,
    TransactionNotFound,
    Web3Exception,
    Web3RPCError,
)

from datatokens.errors import BankError, ChainUnreachable, TransactionRefused

ARTIFACTS = Path(__file__).parent / "artifacts"
WAIT_S = 180.0
LOG_RANGE = 2000
GAS_MARGIN = 1.15
FEE_CAP_WEI = 500 * 10**9  # a fee above this is a mistake or a trap; refuse rather than pay

# What a person reads when a contract refuses; {fields} are the custom error's arguments.
SENTENCES = {
    "NotBuyer": "only the buyer {buyer} can pay for this job, not {caller}",
    "JobExists": "this job has been paid for already",
    "WrongStatus": "the job is {status}, so this cannot be done",
    "BadDatasetCount": "a job has 1 to 64 datasets, not {count}",
    "BadQuorum": "quorum={quorum} must be from 1 to {datasets}",
    "BadDeadline": "deadline={deadline} must be 10 minutes to 365 days after {nowSeconds}",
    "NodesNotAscending": "the datasets of a job must be in ascending order of their node keys, each key once",
    "PriceMismatch": "dataset {datasetId} costs {listed} units now, not {given}; ask for a new quote",
    "NodeMismatch": "dataset {datasetId} has the node key {registered} now, not {given}; ask for a new quote",
    "FeeTooHigh": "fee_units={feeUnits} is more than the {maxUnits} that are allowed",
    "DeadlinePassed": "the deadline {deadline} has passed (it is {nowSeconds})",
    "DeadlineNotPassed": "the deadline {deadline} has not passed yet (it is {nowSeconds})",
    "BadSignature": "signature {index} was not made by the node {expected} of this job over exactly this content",
    "QuorumNotMet": "{signatures} signatures or hospitals are too few; {needed} are needed",
    "BadPayouts": "the payout list has {given} entries for {datasets} datasets",
    "RewardWithoutWork": "dataset {index} of the job did not work, so it can neither sign nor be paid",
    "RewardsExceedPool": "the rewards sum to {sum} units; the pool has {pool}",
    "NothingToWithdraw": "{account} has no credit to withdraw",
    "BadProof": "the proof does not show that {account} has weight {weight} in dataset {datasetId}, epoch {epoch}",
    "NothingToClaim": "{account} has nothing left to claim from dataset {datasetId}, epoch {epoch}",
    "NoContributors": "dataset {datasetId} has no contributor list for epoch {epoch}",
    "ClaimsExceedCredits": "dataset {datasetId}, epoch {epoch}: the claims would exceed what was credited",
    "NotDatasetOwner": "{caller} does not own dataset {datasetId}",
    "UnknownDataset": "dataset {datasetId} is not listed",
    "BadContributorBps": "contributor_bps={contributorBps} must be from 0 to 10000",
    "ERC20InsufficientBalance": "{sender} has {balance} units and needs {needed}",
    "ERC20InsufficientAllowance": "{spender} may take {allowance} units and needs {needed}",
}
STATUS_NAMES = {0: "unpaid", 1: "funded", 2: "settled", 3: "refunded"}


@cache
def artifact(contract: str) -> Mapping[str, Any]:
    """The committed artifact of a contract: abi, bytecode, deployedBytecode, immutableReferences."""
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
        given = {i["name"]: value for i, value in zip(item["inputs"], values, strict=False)}
        shown = {k: STATUS_NAMES.get(v, v) if k == "status" else v for k, v in given.items()}
        shown = {k: "0x" + v.hex() if isinstance(v, bytes) else v for k, v in shown.items()}
        name = item["name"]
        try:
            sentence = SENTENCES[name].format(**shown)
        except KeyError:
            sentence = f"{name}({', '.join(f'{k}={v}' for k, v in shown.items())})"
        return TransactionRefused(sentence, name, given)
    if data[:4] == keccak(text="Error(string)")[:4]:
        try:
            return TransactionRefused(str(abi_decode(["string"], data[4:])[0]))
        except DecodingError:
            pass
    return TransactionRefused("the contract refused without a reason" if not data else f"the contract refused: 0x{data.hex()}")


class Chain:
    """A connection, with a key for sending or without one for looking. Safe to share between threads."""

    def __init__(self, url: str, key: str | None):
        self.url = url
        self._key = key
        session = requests.Session()
        session.trust_env = False  # a node's chain connection must not go through a proxy by accident
        self._web3 = Web3(HTTPProvider(url, session=session, request_kwargs={"timeout": 30}))
        self.address: str | None = str(Account.from_key(key).address) if key else None
        self.chain_id = int(self._ask(lambda: self._web3.eth.chain_id))

    def _ask(self, question: Any) -> Any:
        try:
            return question()
        except (requests.RequestException, OSError) as error:
            raise ChainUnreachable(f"no chain answers at {self.url}: {type(error).__name__}") from error

    def contract(self, name: str, address: str) -> Contract:
        """The contract `name` (an artifact) at `address`."""
        return self._web3.eth.contract(address=Web3.to_checksum_address(address), abi=artifact(name)["abi"])

    def now(self) -> int:
        """Unix seconds that a transaction sent now would see, at least: the clock, or the last block if it is ahead."""
        return max(int(time.time()), int(self._ask(lambda: self._web3.eth.get_block("latest"))["timestamp"]))

    def block_number(self) -> int:
        """Number of the newest block."""
        return int(self._ask(lambda: self._web3.eth.block_number))

    def balance_wei(self, address: str) -> int:
        """Gas coin of an account."""
        return int(self._ask(lambda: self._web3.eth.get_balance(Web3.to_checksum_address(address))))

    def code(self, address: str) -> bytes:
        """Deployed code at an address."""
        return bytes(self._ask(lambda: self._web3.eth.get_code(Web3.to_checksum_address(address))))

    def read(self, function: Any) -> Any:
        """The value of a view function. Raises TransactionRefused if it reverts."""
        return self._ask(lambda: self._decoding(lambda: function.call()))

    def send(self, function: Any) -> Mapping[str, Any]:
        """Simulate, sign, send, wait; the receipt. Raises TransactionRefused with the contract's reason."""
        return self._transact(lambda options: function.build_transaction(options), function)

    def deploy(self, name: str, *arguments: Any) -> str:
        """Deploy an artifact; the new address."""
        item = artifact(name)
        constructor = self._web3.eth.contract(abi=item["abi"], bytecode=item["bytecode"]).constructor(*arguments)
        receipt = self._transact(lambda options: constructor.build_transaction(options), None)
        return str(receipt["contractAddress"])

    def _decoding(self, action: Any) -> Any:
        try:
            return action()
        except (ContractCustomError, ContractLogicError) as error:
            data = error.data
            raise decode_revert(bytes.fromhex(data.removeprefix("0x")) if isinstance(data, str) else b"") from error

    def _transact(self, build: Any, function: Any) -> Mapping[str, Any]:
        if self._key is None or self.address is None:
            raise BankError(f"sending to the chain at {self.url} needs a key; this connection has none")
        if function is not None:  # "pending": the clock of the block that this would be in
            self._ask(lambda: self._decoding(lambda: function.call({"from": self.address}, "pending")))
        fee = self._fees()
        gas = None
        for attempt in range(20):
            nonce = self._ask(lambda: self._web3.eth.get_transaction_count(self.address, "pending"))  # type: ignore[arg-type]
            options = {"from": self.address, "nonce": nonce, "chainId": self.chain_id, **fee}
            if gas is not None:
                options["gas"] = gas
            transaction = self._ask(lambda: self._decoding(lambda: build(options)))  # noqa: B023 called at once
            if gas is None:
                gas = int(transaction["gas"] * GAS_MARGIN)
                transaction["gas"] = gas
            raw = Account.sign_transaction(transaction, self._key).raw_transaction
            try:
                sent = self._ask(lambda: self._web3.eth.send_raw_transaction(raw))  # noqa: B023
            except Web3RPCError as error:
                # another process of ours has used this nonce meanwhile: look again
                if any(word in str(error).lower() for word in ("nonce", "already known", "underpriced")) and attempt < 19:
                    time.sleep(0.05 * (attempt + 1))
                    continue
                raise BankError(f"the chain at {self.url} did not take the transaction: {error.message}") from error
            return self._receipt(sent, function)
        raise BankError(f"the chain at {self.url} refused twenty nonces in a row; is another program using this key?")

    def _fees(self) -> dict[str, int]:
        def ask() -> dict[str, int]:
            base = self._web3.eth.get_block("pending").get("baseFeePerGas") or 0
            tip = self._web3.eth.max_priority_fee
            return {"maxPriorityFeePerGas": tip, "maxFeePerGas": 2 * base + tip}

        fee: dict[str, int] = self._ask(ask)
        if fee["maxFeePerGas"] > FEE_CAP_WEI:
            raise BankError(f"gas costs {fee['maxFeePerGas'] // 10**9} gwei now; more than {FEE_CAP_WEI // 10**9} is not paid")
        return fee

    def _receipt(self, sent: Any, function: Any) -> Mapping[str, Any]:
        end, pause = time.monotonic() + WAIT_S, 0.02
        while time.monotonic() < end:
            try:
                receipt: Mapping[str, Any] = self._ask(lambda: self._web3.eth.get_transaction_receipt(sent))
            except TransactionNotFound:
                time.sleep(pause)
                pause = min(0.5, pause * 1.5)
                continue
            if receipt["status"] != 1:
                if function is not None:  # say why, if it still refuses
                    self._decoding(lambda: function.call({"from": self.address}, "pending"))
                raise TransactionRefused(f"transaction 0x{bytes(sent).hex()} failed")
            return receipt
        raise TimeExhausted(f"transaction 0x{bytes(sent).hex()} is not in a block after {WAIT_S:.0f} s")

    def events(self, event: Any, from_block: int = 0, **filters: Any) -> Iterator[Mapping[str, Any]]:
        """Decoded events, oldest first, asked for in ranges that public nodes accept."""
        last = self.block_number()
        for first in range(from_block, last + 1, LOG_RANGE):
            until = min(first + LOG_RANGE - 1, last)
            yield from self._ask(
                lambda: event.get_logs(from_block=first, to_block=until, argument_filters=filters)  # noqa: B023
            )

    def rpc(self, method: str, *params: Any) -> Any:
        """A raw JSON-RPC call (time travel in tests)."""
        return self._ask(lambda: self._web3.provider.make_request(method, list(params)))


def connect(url: str, key: str | bytes | None = None) -> Chain:
    """Connect to the JSON-RPC endpoint at `url`; raises ChainUnreachable. `key` is a private key, hexadecimal or bytes."""
    if isinstance(key, bytes):
        key = "0x" + key.hex()
    try:
        return Chain(url, key)
    except Web3Exception as error:
        raise ChainUnreachable(f"no chain answers at {url}: {error}") from error
