"""Test money for an address: gas coins and test tokens, on a chain whose rich keys are public.

Refuses on every other chain, and for a token that is not the test token of this version.
"""

from __future__ import annotations

from dataclasses import dataclass

from datatokens.bindings.registry import Token
from datatokens.chain.connection import Chain, connect
from datatokens.chain.devchain import CHAIN_ID, accounts
from datatokens.deploy import Deployment, check_code
from datatokens.errors import BankError
from datatokens.terms import address

UNITS = 10**6  # in one test dollar
WEI = 10**18  # in one coin


@dataclass(frozen=True)
class Purse:
    """What an address has: wei, and units of the test token (None where none was asked for)."""

    address: str
    units: int | None
    wei: int


def give(
    url: str, to: str, *, wei: int, made: Deployment | None, units: int, key: str = ""
) -> Purse:
    """Send `wei` of gas coin to `to`, and mint `units` of the test token of the market `made`; what
    the address has then. `key` is the deployer's, where that is no public test account.

    Raises BankError on a chain that is no test chain, for a token that cannot be minted.
    """
    to, chain = address("address", to), connect(url)
    if chain.chain_id != CHAIN_ID:
        raise BankError(
            f"{url} is chain {chain.chain_id}, where money may be real: test money is given on the "
            f"embedded chain alone (chain {CHAIN_ID}, datahub chain start)"
        )
    public = dict(accounts())
    token = _mintable(chain, made, units, public, key) if made and units else None
    if wei:
        connect(url, list(public.values())[-1]).transfer(to, wei)
    if token:
        token.mint(to, units)
    return Purse(to, token.balance_units(to) if token else None, chain.balance_wei(to))


def _mintable(
    chain: Chain, made: Deployment, units: int, public: dict[str, str], key: str
) -> Token:
    """The market's token, in the hands of its minter."""
    where = made.payment_token
    if chain.chain_id != made.chain_id:
        raise BankError(f"{chain.url} is chain {chain.chain_id}; the market is on {made.chain_id}")
    try:
        check_code(chain, "TestUSD", where)
    except BankError as error:
        raise BankError(
            f"the payment token {where} is not this version's test token, so nobody can mint it "
            f"here ({error})"
        ) from error
    minter = str(chain.read(chain.contract("TestUSD", where).functions.minter()))
    mine = connect(chain.url, key or public.get(minter) or None)
    if mine.address != minter:
        raise BankError(
            f"only {minter}, who deployed the test token {where}, can mint it, and that is no "
            "public test account: give the file with its key as --key-file"
        )
    return Token(mine, where)
