"""The embedded chain's funded accounts as a wallet that signs whatever it is asked to: for browsers
in demos and tests. Their keys are public, so nothing is given away. Knows nothing of contracts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from eth_account import Account
from eth_account.messages import encode_defunct, encode_typed_data

from datatokens.chain.devchain import CHAIN_ID, DevChain, RpcError, accounts
from datatokens.errors import TermsError
from datatokens.wire import parse

GAS_SPARE = 1.2  # of what was estimated: another transaction may come first
USED = ("from", "to", "data", "input", "value", "gas")


class TestWallet:
    """Answers what a wallet answers (EIP-1193's methods for accounts and signatures) for the test
    accounts, and passes everything else on to the chain.
    """

    __test__ = False  # pytest collects no class of this name

    def __init__(self, chain: DevChain):
        self.chain = chain
        self._keys = dict(accounts())
        self._sending = threading.Lock()  # from a count of transactions to the next one
        self._methods: dict[str, Callable[..., Any]] = {
            "eth_accounts": lambda: list(self._keys),
            "eth_requestAccounts": lambda: list(self._keys),
            "eth_sendTransaction": self._send,
            "personal_sign": lambda text, who: self._sign(who, encode_defunct(hexstr=text)),
            "eth_signTypedData_v4": lambda who, typed: self._sign(
                who, encode_typed_data(full_message=parse(typed.encode()))
            ),
        }

    def request(self, method: str, params: list[Any]) -> Any:
        """One call. Raises RpcError."""
        if method not in self._methods:
            return self.chain.request(method, params)
        try:
            return self._methods[method](*params)
        except RpcError:
            raise
        except (TypeError, ValueError, KeyError, AttributeError, TermsError) as error:
            raise RpcError(-32602, f"{method}: {str(error)[:200] or 'bad parameters'}") from error

    def _key(self, account: Any) -> str:
        known = {one.lower(): key for one, key in self._keys.items()}
        if str(account).lower() not in known:
            raise RpcError(-32000, f"from={str(account)[:50]} is none of the test accounts")
        return known[str(account).lower()]

    def _sign(self, account: Any, message: Any) -> str:
        signed = Account.sign_message(message, self._key(account))
        return "0x" + bytes(signed.signature).hex()

    def _send(self, asked: dict[str, Any]) -> str:
        with self._sending:
            return self._sent(asked)

    def _sent(self, asked: dict[str, Any]) -> str:
        key, ask = self._key(asked["from"]), self.chain.request
        call = {name: asked[name] for name in USED if asked.get(name) is not None}
        gas = asked.get("gas") or hex(int(GAS_SPARE * int(ask("eth_estimateGas", [call]), 16)))
        tip = int(ask("eth_maxPriorityFeePerGas", []), 16)
        made: dict[str, Any] = {
            "chainId": CHAIN_ID,
            "nonce": int(ask("eth_getTransactionCount", [asked["from"], "pending"]), 16),
            "to": asked["to"],
            "data": asked.get("data") or asked.get("input") or "0x",
            "value": int(asked.get("value") or "0x0", 16),
            "gas": int(gas, 16),
            "maxPriorityFeePerGas": tip,
            "maxFeePerGas": 2 * int(ask("eth_gasPrice", []), 16) + tip,
        }
        raw = Account.sign_transaction(made, key).raw_transaction
        return str(ask("eth_sendRawTransaction", ["0x" + bytes(raw).hex()]))
