"""One connection to an EVM chain: read, simulate, sign, send, wait, decode. Knows nothing of what
the contracts mean.

Works unchanged on the embedded chain, on anvil and on any JSON-RPC endpoint. Every send is
simulated first, so that a refusal costs no gas and comes back as a sentence. The only place (with
the bindings beside it) that imports web3.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

import requests
from eth_abi.abi import decode as abi_decode
from eth_abi.exceptions import DecodingError
from eth_account import Account
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from web3 import HTTPProvider, Web3
from web3.contract import Contract
from web3.exceptions import (
    BadFunctionCallOutput,
    BadResponseFormat,
    ContractCustomError,
    ContractLogicError,
    TransactionNotFound,
    Web3RPCError,
)
from web3.types import RPCEndpoint

from datatokens.errors import BankError, ChainUnreachable, NodeRefused, TransactionRefused

log = logging.getLogger("datahub.chain")

ARTIFACTS = Path(__file__).parents[1] / "artifacts"
WAIT_S = 180.0
SETTINGS = {
    "confirmations": (0, 0, 1000),
    "log_range": (2000, 1, 1_000_000),
}  # name: default, least, most
GAS_MARGIN = 1.15
NONCE_TRIES = 20
SUBMIT_TRIES = 5
SILENCE_S = 30.0  # how long a node may be away while a receipt is waited for
# how long a spent nonce must stay without our transaction before we believe that another took it
REPLACED_S = 5.0
FEE_CAP_WEI = 500 * 10**9  # a fee above this is a mistake or a trap; refuse rather than pay

# What a person reads when a contract refuses; {fields} are the custom error's arguments.
SENTENCES = {
    "NotBuyer": "only the buyer {buyer} can pay for this job, not {caller}",
    "JobExists": "this job has been paid for already",
    "WrongStatus": "the job is {status}, so this cannot be done",
    "BadDatasetCount": "a job has 1 to 64 datasets, not {count}",
    "BadQuorum": "quorum={quorum} must be from 1 to {datasets}",
    "BadDeadline": "deadline={deadline} must be 10 minutes to 365 days after {nowSeconds}",
    "NodesNotAscending": "the datasets of a job must be in ascending order of their node keys, "
    "each key once",
    "NodeMismatch": "dataset {datasetId} has the node key {registered} now, not {given}; ask for a "
    "new quote",
    "FeeTooHigh": "fee_units={feeUnits} is more than the {maxUnits} that are allowed",
    "DeadlinePassed": "the deadline {deadline} has passed (it is {nowSeconds})",
    "DeadlineNotPassed": "the deadline {deadline} has not passed yet (it is {nowSeconds})",
    "BadSignature": "signature {index} was not made by the node {expected} of this job over "
    "exactly this content",
    "QuorumNotMet": "{signatures} signatures or hospitals are too few; {needed} are needed",
    "BadOutcomes": "the result has {given} outcomes for {datasets} datasets",
    "AlreadyAccepted": "dataset {index} of the job has accepted already",
    "NotAccepted": "the datasets {worked} (bits) are not all among {accepted}",
    "PayWithoutWork": "dataset {index} of the job did not work, so it cannot be paid",
    "ComputeAboveCap": "dataset {index} of the job asks {computeUnits} units for compute; the cap "
    "is {capUnits}",
    "PaymentsExceedAmount": "the payments sum to {units} units; the job holds {amountUnits}",
    "AmountTooLow": "amount_units={amountUnits} must be at least the reward pool and the fee, "
    "{neededUnits}",
    "BadDispute": "a dispute window is 0 without an arbiter or up to 30 days with one, silent_bps "
    "at most 10000; not "
    "{disputeWindow} s, {arbiter}, {silentBps}",
    "OtherResult": "this is not the result that was attested",
    "WindowOpen": "this has to wait until {until} (it is {nowSeconds})",
    "WindowClosed": "the time for this ended at {until} (it is {nowSeconds})",
    "NotParty": "{caller} is neither the buyer nor a node of this job",
    "NotArbiter": "only the arbiter {arbiter} can rule on this, not {caller}",
    "BadRuling": "paid_bps={paidBps} must be from 0 to 10000",
    "NotGuardian": "only the guardian {guardian} can do this, not {caller}",
    "NodeKeyNotActive": "the node key {node} is {state} in the node registry, so it cannot "
    "accept jobs",
    "NodeKeyNotRevoked": "the node key {node} is not revoked, so what it accepted stands",
    "NotHospitalOwner": "{caller} does not own hospital {hospitalId}",
    "UnknownHospital": "hospital {hospitalId} is not registered",
    "KeyUsedBefore": "the key {key} was registered before, for hospital {hospitalId}; a key serves "
    "once, so make a new one",
    "NoConsent": "the key {key} has not signed this for hospital {hospitalId}",
    "BadValidity": "a key cannot be valid from {validFrom} until {validUntil} (it is {nowSeconds})",
    "KeyNotActive": "the node key {key} is {state}, so this cannot be done with it",
    "BadPublicKey": "a public key of {length} bytes is not the uncompressed point of a P-256, "
    "P-384 or P-521 key",
    "HardwareTooLong": "the hardware is described in at most 256 bytes, not {length}",
    "ReservedMetadataKey": "the metadata key {metadataKey} is reserved by ERC-8004",
    "ERC721NonexistentToken": "there is no dataset or hospital {tokenId}",
    "OtherMarket": "dataset {datasetId} is sold in the market {market}",
    "BuyerNotServed": "dataset {datasetId} is paused or retired, or does not serve {buyer}",
    "BadPause": "until={until} must be at most {maxUntil}",
    "NewJobsArePaused": "new jobs are paused until {until}; those that are paid go on",
    "RewardsExceedPool": "the rewards sum to {sum} units; the pool has {pool}",
    "PoolFull": "the pool of dataset {datasetId} has counted as much as it can",
    "NothingToWithdraw": "{account} has nothing to withdraw",
    "BadProof": "the proof does not show that {account} has weight {weight} in dataset "
    "{datasetId}, epoch {epoch}",
    "NothingToClaim": "{account} has nothing left to claim here",
    "NoContributors": "dataset {datasetId} has no contributor list for epoch {epoch}",
    "ClaimsExceedCredits": "dataset {datasetId}, epoch {epoch}: the claims would exceed what was "
    "credited",
    "WeightsOverflow": "the weights on this proof sum to {sum}, more than any list may have",
    "ClaimExpired": "the signed claim was good until {deadline} (it is {nowSeconds})",
    "BadClaimSignature": "the signature is not that of {account} over exactly these claims with "
    "nonce {nonce}",
    "NothingPaid": "a payment of 0 units into dataset {datasetId} is none",
    "NothingPending": "dataset {datasetId} has no contributor list that waits",
    "AnotherRootPending": "dataset {datasetId} has the contributor list {pending} waiting, not "
    "{given}",
    "DisputeWindowOpen": "the contributor list of dataset {datasetId} may still be disputed until "
    "{until}",
    "DisputeWindowClosed": "the contributor list of dataset {datasetId} could be disputed until "
    "{since}",
    "AlreadyInDispute": "the contributor list of dataset {datasetId} is in dispute",
    "NotInDispute": "the contributor list of dataset {datasetId} is not in dispute",
    "ArbiterHasTime": "the arbiter may still rule on dataset {datasetId} until {until}",
    "NotDatasetOwner": "{caller} does not own dataset {datasetId}",
    "UnknownDataset": "dataset {datasetId} is not listed",
    "ZeroNodeKey": "the node key must not be the zero address",
    "ZeroWeight": "the weights of a contributor list must not sum to 0",
    "NotMinter": "{caller} neither owns dataset {datasetId} nor sells it, so it cannot mint "
    "datatokens",
    "RoleMissing": "{caller} has a role for dataset {datasetId}, but not role {role} that this "
    "needs",
    "UnknownRole": "roles={roles} must be 0, 1 (manager), 2 (publisher) or 3 (both)",
    "UnknownTier": "dataset {datasetId} has no tier {tierId}",
    "TooManyTiers": "dataset {datasetId} has 16 tiers, the most there can be",
    "TierIsClosed": "tier {tierId} of dataset {datasetId} is closed: no more of its datatokens "
    "are made",
    "MaxSupplyExceeded": "tier {tierId} of dataset {datasetId} may have {maxSupply} units of "
    "datatoken ever, not {minted}",
    "NotForSale": "tier {tierId} of dataset {datasetId} has no price, so the market cannot sell it",
    "NotActive": "dataset {datasetId} is {state}, so nothing of it is sold or ordered",
    "RetiredIsFinal": "dataset {datasetId} is retired for good",
    "NotPaused": "dataset {datasetId} is {state}; its market changes only while it is paused",
    "BudgetMayOnlyFall": "dataset {datasetId} has a stated budget of {epsilonMicro} (1e-6) epsilon "
    "and {deltaAtto} (1e-18) "
    "delta, which may only fall",
    "BadPrivacyBudget": "a budget of {epsilonMicro} (1e-6) epsilon and {deltaAtto} (1e-18) delta "
    "says nothing or has delta >= 1",
    "MarketNotAllowed": "the guardian has not allowed the market {market}",
    "BadPaymentToken": "the market {market} names {paymentToken} as its payment token, which "
    "cannot be",
    "StorefrontAlreadySet": "the registry has its storefront already: {storefront}",
    "ZeroCount": "a count of 0 datatokens cannot be bought or dispensed",
    "NothingToBuy": "tier {tierId} of dataset {datasetId} has no price; ask its dispenser",
    "CostsMore": "this costs {units} units now, more than the {maxUnits} agreed to; ask for a new "
    "quote",
    "MarketChanged": "dataset {datasetId} sells in the market {found} now, not {quoted}; ask for a "
    "new quote",
    "MayNotConsume": "{account} may not consume dataset {datasetId} now: its lists or its state "
    "forbid it",
    "NoMarket": "the market of dataset {datasetId} is not allowed (any more)",
    "NotOrdered": "tier {tierId} of dataset {datasetId} is a one-job voucher; it opens no time of "
    "access",
    "NotManager": "{caller} neither owns dataset {datasetId} nor manages it",
    "DispenserOff": "the dispenser of tier {tierId} of dataset {datasetId} is off",
    "NotAllowListed": "{account} is not on the allow list of dataset {datasetId}, which its "
    "dispenser asks for",
    "OverLimit": "tier {tierId} of dataset {datasetId} leaves {left} datatokens here, not {asked}",
    "BadPublishFee": "a publish fee is 1 to 1000 bps for somebody, not {bps} bps for {recipient}",
    "PublishFeeAlreadySet": "dataset {datasetId} has its publish fee already",
    "BadPlatform": "the platform takes 0 to 500 bps for somebody, not {bps} bps for {platform}",
    "ConsumeFeeTooHigh": "the front-end asks for {units} units; {maxUnits} are allowed here",
    "WrongUnits": "{found} units of {paymentToken} moved where {expected} were due",
    "NoFees": "{account} has no fees in {paymentToken} to withdraw",
    "BadContributorBps": "contributor_bps={contributorBps} must be from 0 to 10000",
    "ERC20InsufficientBalance": "{sender} has {balance} units and needs {needed}",
    "ERC20InsufficientAllowance": "{spender} may take {allowance} units and needs {needed}",
}
STATUS_NAMES = {0: "unpaid", 1: "funded", 2: "settled", 3: "refunded", 4: "proposed", 5: "disputed"}
STATE_NAMES = {0: "active", 1: "paused", 2: "retired"}
KEY_STATE_NAMES = {0: "unknown", 1: "not valid yet", 2: "active", 3: "expired", 4: "revoked"}
ENUM_NAMES: Mapping[str, Mapping[int, str]] = {
    "enum IJobEscrow.Status": STATUS_NAMES,
    "enum IDatasetRegistry.State": STATE_NAMES,
    "enum INodeRegistry.KeyState": KEY_STATE_NAMES,
}


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
        enums = {i["name"]: ENUM_NAMES.get(i.get("internalType", ""), {}) for i in item["inputs"]}
        shown = {k: enums[k].get(v, v) for k, v in given.items()}
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
            return TransactionRefused(f"the contract refused: 0x{data.hex()}")
    if not data:
        return TransactionRefused("the contract refused without a reason")
    return TransactionRefused(f"the contract refused: 0x{data.hex()}")


class Chain:
    """A connection, with a key for sending or without one for looking. Safe to share between
    threads.
    """

    def __init__(self, url: str, key: str | None):
        self.url, fragment = urldefrag(url)
        settings = _settings(fragment)
        self.confirmations, self.log_range = settings["confirmations"], settings["log_range"]
        self._key = key
        session = requests.Session()
        session.trust_env = (
            False  # a node's chain connection must not go through a proxy by accident
        )
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
                f"no chain answers at {self.url}: its chain id is {str(found)[:40]!r}"
            )
        return found

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The answer to a question to the node; every way it can fail as one of this room's
        errors.
        """
        try:
            return question()
        except (ContractCustomError, ContractLogicError) as error:
            data = error.data
            raise decode_revert(
                bytes.fromhex(data.removeprefix("0x")) if isinstance(data, str) else b""
            ) from error
        except BadFunctionCallOutput as error:
            raise BankError(
                f"the chain at {self.url} has no such contract at this address"
            ) from error
        except TransactionNotFound:
            raise  # a Web3RPCError too, but an answer: not mined yet
        except Web3RPCError as error:
            said = (error.rpc_response or {}).get("error")
            raise NodeRefused(
                f"the chain at {self.url} refused: {said['message'] if said else error}"
            ) from error
        except (
            requests.RequestException,
            OSError,
            BadResponseFormat,
            json.JSONDecodeError,
        ) as error:
            raise ChainUnreachable(
                f"no chain answers at {self.url}: {type(error).__name__}"
            ) from error

    def contract(self, name: str, address: str) -> Contract:
        """The contract `name` (an artifact) at `address`."""
        return self._web3.eth.contract(
            address=Web3.to_checksum_address(address), abi=artifact(name)["abi"]
        )

    def now(self) -> int:
        """Unix seconds that a transaction sent now would see, at least: the clock, or the last
        block if it is ahead.
        """
        return max(
            int(time.time()),
            int(self._ask(lambda: self._web3.eth.get_block("latest"))["timestamp"]),
        )

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
                f"sending to the chain at {self.url} needs a key; this connection has none"
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
            gas = int(estimate() * GAS_MARGIN)
            options = {"from": sender, "nonce": nonce, "chainId": self.chain_id, "gas": gas, **fees}
            signed = Account.sign_transaction(self._ask(lambda: build(options)), self._key)  # noqa: B023 called at once
            try:
                self._submit(signed)
            except NodeRefused as error:
                said = str(error).lower()
                if not any(
                    word in said
                    for word in ("already known", "already imported", "known transaction")
                ):
                    if not any(word in said for word in ("nonce", "underpriced")):
                        raise
                    if not self._knows(signed.hash):
                        time.sleep(0.02 * (attempt + 1) * (1 + secrets.randbelow(100) / 100))
                        continue
            receipt = self._receipt(signed, nonce)
            if receipt is not None:
                return receipt
        raise BankError(
            f"the chain at {self.url} refused {NONCE_TRIES} nonces; is another program using "
            "this key?"
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

    def rpc(self, method: str, *params: Any) -> Any:
        """The result of a raw JSON-RPC call (time travel in tests). Raises NodeRefused."""
        answer = self._ask(
            lambda: self._web3.provider.make_request(RPCEndpoint(method), list(params))
        )
        if "error" in answer:
            raise NodeRefused(f"the chain at {self.url} refused: {answer['error'].get('message')}")
        return answer.get("result")


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


def connect(url: str, key: str | bytes | None = None) -> Chain:
    """Connect to the JSON-RPC endpoint at `url`. `key` is a private key, hexadecimal or bytes;
    without it: look only.

    What differs between chains stands behind a # and is never sent:
    `https://rpc.example/#confirmations=3&log_range=500`
    counts a block once three more are on top, and asks for events of 500 blocks at a time.
    Raises ChainUnreachable if nothing answers there, BankError for a key or a setting that is none.
    """
    return Chain(url, "0x" + key.hex() if isinstance(key, bytes) else key)
