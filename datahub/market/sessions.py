"""Who somebody is, by a wallet's signature (EIP-4361, "Sign-In with Ethereum"): a text that this
hub has made, good once and for minutes, and then a token that the browser keeps. No password, and
nothing secret is kept here.

Knows nothing of HTTP, and gives nobody any right: money moves by wallets' own transactions alone.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from datetime import UTC, datetime

from sqlmodel import col, delete, func, select

from datahub.errors import BadRequest, Busy
from datahub.market.desk import Desk
from datahub.market.tables import SessionRow, SignInRow
from datatokens.errors import SignatureError, TermsError
from datatokens.terms import address, check_text

ASKED_S = 600  # how long a text may wait for its signature
LIVES_S = 12 * 3600  # of a session
MOST_ASKED = 10_000  # texts that wait
STATEMENT = "Sign in to this hub. This costs nothing, moves no money and allows nothing to."


def ask(desk: Desk, account: str, domain: str, uri: str) -> str:
    """The text that `account` signs to sign in at `domain` (host and port) of `uri`. Raises
    BadRequest for no address, Busy where too many wait.
    """
    account, now = _account(account), time.time()
    nonce = secrets.token_hex(16)
    text = (
        f"{domain} wants you to sign in with your Ethereum account:\n{account}\n\n{STATEMENT}\n\n"
        f"URI: {uri}\nVersion: 1\nChain ID: {desk.config.chain_id}\nNonce: {nonce}\n"
        f"Issued At: {_utc(now)}\nExpiration Time: {_utc(now + ASKED_S)}"
    )
    with desk.session() as session:
        session.exec(delete(SignInRow).where(col(SignInRow.ends) < now))
        if session.exec(select(func.count()).select_from(SignInRow)).one() >= MOST_ASKED:
            raise Busy("too many people are signing in at once; try again in some minutes")
        session.add(SignInRow(text_hash=_hash(text), account=account, ends=now + ASKED_S))
        session.commit()
    return text


def begin(desk: Desk, text: str, signature: str) -> tuple[str, str]:
    """(token of a new session, its account) for a signed text, once. Raises BadRequest."""
    with desk.session() as session:
        asked = session.get(SignInRow, _hash(text))
        if asked is None or asked.ends < time.time():
            raise BadRequest("message: it is none of this hub's, was used, or is too old: ask anew")
        session.delete(asked)  # whatever comes of it: a text is good once
        session.commit()
    signer = asked.account
    try:
        check_text(text, bytes.fromhex(signature.removeprefix("0x")), signer)
    except (SignatureError, ValueError) as error:
        raise BadRequest(f"signature: {error}") from error
    token = secrets.token_urlsafe(32)
    with desk.session() as session:
        session.exec(delete(SessionRow).where(col(SessionRow.ends) < time.time()))
        session.add(SessionRow(token_hash=_hash(token), account=signer, ends=time.time() + LIVES_S))
        session.commit()
    return token, signer


def account_of(desk: Desk, token: str) -> str | None:
    """Whose session a token is; None for none that lives."""
    if not token:
        return None
    with desk.session() as session:
        row = session.get(SessionRow, _hash(token))
    return row.account if row is not None and row.ends > time.time() else None


def end(desk: Desk, token: str) -> None:
    """No longer anybody's."""
    with desk.session() as session:
        session.exec(delete(SessionRow).where(col(SessionRow.token_hash) == _hash(token)))
        session.commit()


def _account(text: str) -> str:
    try:
        return address("account", text)
    except TermsError as error:
        raise BadRequest(str(error)) from error


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _utc(at: float) -> str:
    return f"{datetime.fromtimestamp(int(at), UTC):%Y-%m-%dT%H:%M:%SZ}"
