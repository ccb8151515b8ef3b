"""What can go wrong with money and the chain.

* BankError
  - TermsError          job terms that are not well formed
  - ChainUnreachable    no node answers at the URL
  - NodeRefused         the node answered a JSON-RPC call with an error that is not a contract's
  - TransactionRefused  the contract said no; carries the custom error's name and arguments
  - SignatureError      a signature was not made by whom it should be
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class BankError(Exception):
    """Anything that this room refuses; the message is one sentence for a person."""


class TermsError(BankError):
    """A field of job terms is missing, unknown or outside its range."""


class ChainUnreachable(BankError):
    """The JSON-RPC endpoint did not answer."""


class NodeRefused(BankError):
    """The JSON-RPC endpoint answered with an error of its own: a bad nonce, too little ether, an
    unknown block.
    """


class SignatureError(BankError):
    """A signature does not recover to the expected address."""


class TransactionRefused(BankError):
    """A contract reverted; `name` is its custom error, `args_by_name` the error's arguments."""

    def __init__(
        self, sentence: str, name: str = "", args_by_name: Mapping[str, Any] | None = None
    ):
        super().__init__(sentence)
        self.name = name
        self.args_by_name = dict(args_by_name or {})
