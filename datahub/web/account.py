"""What is somebody's own: signing in with a wallet, their jobs and datasets on one page, a webhook;
and the operator's view of the hub. A session shows things and sets the webhook; money needs the
wallet each time.

The cookie is sent by this hub's own pages alone (SameSite), and whatever changes something must
come from one of them (Origin).
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import Field

from datahub.errors import Forbidden
from datahub.market import catalogue, jobs, overview, sessions, webhooks
from datahub.market.desk import Desk
from datahub.web import pages
from datahub.web.bodies import Body

COOKIE = "session"
router = APIRouter()
page_router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


class AccountIn(Body):
    """Who wants to sign in."""

    account: str


class SignedIn(Body):
    """The text that this hub made, and the wallet's signature over it (EIP-191)."""

    message: str = Field(max_length=2000)
    signature: str = Field(max_length=132)


class WebhookIn(Body):
    """Where changes of one's jobs are told: https, a public address."""

    url: str = Field(max_length=webhooks.LONGEST_URL)


def origin(request: Request) -> str:
    """scheme://host of this hub as the browser sees it. Raises Forbidden where that is neither this
    machine nor one of hub.toml's: whoever signs in must know where.
    """
    config, found = pages.desk_of(request).config, pages.address_of(request)
    if pages.is_here(urlsplit(found).hostname or "") or found in config.origins:
        return found
    raise Forbidden(
        f"{found[:80]} is not an address of this hub that people sign in at; its operator names "
        "them in hub.toml: origins"
    )


def _from_own_page(request: Request) -> str:
    """The hub's origin. Raises Forbidden for what comes from another site's page."""
    own = origin(request)
    if request.headers.get("origin") != own:
        raise Forbidden("this request does not come from a page of this hub")
    return own


def account_of(request: Request) -> str | None:
    """Who is signed in."""
    return sessions.account_of(pages.desk_of(request), request.cookies.get(COOKIE, ""))


def _mine(request: Request) -> str:
    account = account_of(request)
    if account is None:
        raise Forbidden("sign in first")
    return account


@router.post("/api/v1/session/message")
def session_message(request: Request, body: AccountIn) -> dict[str, str]:
    """The text that a wallet signs to sign in (EIP-4361)."""
    own = _from_own_page(request)
    text = sessions.ask(pages.desk_of(request), body.account, urlsplit(own).netloc, own)
    return {"message": text}


@router.post("/api/v1/session")
def begin_session(request: Request, response: Response, body: SignedIn) -> dict[str, str]:
    """Sign in: the answer sets a cookie for twelve hours."""
    own = _from_own_page(request)
    token, account = sessions.begin(pages.desk_of(request), body.message, body.signature)
    response.set_cookie(
        COOKIE,
        token,
        max_age=sessions.LIVES_S,
        httponly=True,
        samesite="strict",
        secure=own.startswith("https://"),
    )
    return {"account": account}


@router.delete("/api/v1/session")
def end_session(request: Request, response: Response) -> dict[str, str]:
    """Sign out."""
    _from_own_page(request)
    sessions.end(pages.desk_of(request), request.cookies.get(COOKIE, ""))
    response.delete_cookie(COOKIE)
    return {}


@router.get("/api/v1/session")
def who_am_i(request: Request) -> dict[str, str]:
    """Who is signed in, and what is told of their jobs."""
    account = _mine(request)
    return {"account": account, "webhook": webhooks.url_of(pages.desk_of(request), account)}


@router.put("/api/v1/session/webhook")
def put_webhook(request: Request, body: WebhookIn) -> dict[str, str]:
    """Tell an address when a job of mine is in another state; the answer has the secret that signs
    what is sent, this once.
    """
    _from_own_page(request)
    secret = webhooks.put(pages.desk_of(request), _mine(request), body.url)
    return {"url": body.url, "secret": secret}


@router.delete("/api/v1/session/webhook")
def drop_webhook(request: Request) -> dict[str, str]:
    """Tell nobody any more."""
    _from_own_page(request)
    webhooks.drop(pages.desk_of(request), _mine(request))
    return {}


@page_router.get("/account")
def account_page(request: Request) -> HTMLResponse:
    """What is mine, or how to sign in."""
    desk, account = pages.desk_of(request), account_of(request)
    facts: dict[str, Any] = {"account": account}
    if account is not None:
        facts |= {
            "jobs": jobs.recent(desk, 50, buyer=account)[0],
            "datasets": catalogue.owned_by(desk, account),
            "webhook": webhooks.url_of(desk, account),
            "operator": account == desk.chain.address,
        }
    return pages.page(request, "account.html", **facts)


@page_router.get("/operator")
def operator_page(request: Request) -> Response:
    """The hub as its operator sees it: signed in with the key that pays its gas."""
    desk: Desk = pages.desk_of(request)
    account = account_of(request)
    if account is None:
        return RedirectResponse("/account")
    if account != desk.chain.address:
        raise Forbidden(f"{account} is not this hub's operator")
    return pages.page(request, "operator.html", **overview.facts(desk))
