"""Signing in with a wallet: a text of this hub's, once, at this hub's address, from its own page;
and what a session shows to whom.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from datahub.market import sessions
from datahub.web.api import create_app
from datatokens.chain.rpc_server import accounts
from datatokens.terms import sign_text
from tests.clocks import clock
from tests.datahub.fixtures import serving
from tests.datahub.hub_world import HubWorld

BUYER, KEY = accounts()[1]
OPERATOR, OPERATOR_KEY = accounts()[0]


@pytest.fixture
def browser(hub_url: str) -> Iterator[httpx.Client]:
    """A page of the hub's own, as far as headers go."""
    with httpx.Client(base_url=hub_url, headers={"origin": hub_url}, timeout=30) as client:
        yield client


def sign_in(browser: httpx.Client, account: str = BUYER, key: str = KEY) -> httpx.Response:
    asked = browser.post("/api/v1/session/message", json={"account": account})
    assert asked.status_code == 200, asked.text
    text = asked.json()["message"]
    signed = {"message": text, "signature": "0x" + sign_text(text, key).hex()}
    return browser.post("/api/v1/session", json=signed)


def test_sign_in__the_text_says_where_and_what_for__as_eip_4361_wants(
    hub: HubWorld, browser: httpx.Client
) -> None:
    text = browser.post("/api/v1/session/message", json={"account": BUYER.lower()}).json()[
        "message"
    ]
    host = str(browser.base_url).split("//")[1]
    assert re.fullmatch(
        rf"{host} wants you to sign in with your Ethereum account:\n{BUYER}\n\n"
        r"Sign in to this hub\. This costs nothing[^\n]*\n\n"
        rf"URI: http://{host}\nVersion: 1\nChain ID: {hub.desk.config.chain_id}\n"
        r"Nonce: [0-9a-f]{32}\nIssued At: \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\n"
        r"Expiration Time: \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
        text,
    )


def test_sign_in__with_the_wallets_signature__is_a_session_until_signed_out(
    browser: httpx.Client,
) -> None:
    assert browser.get("/api/v1/session").status_code == 403
    done = sign_in(browser)
    assert done.json() == {"account": BUYER}
    cookie = done.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert browser.get("/api/v1/session").json() == {"account": BUYER, "webhook": ""}
    assert BUYER in browser.get("/account").text
    assert browser.delete("/api/v1/session").status_code == 200
    assert browser.get("/api/v1/session").status_code == 403
    assert "Sign in with your wallet" in browser.get("/account").text


def test_sign_in__another_key_a_text_of_ones_own_or_one_used_before__is_refused(
    browser: httpx.Client,
) -> None:
    other = sign_in(browser, BUYER, OPERATOR_KEY)
    assert other.status_code == 422 and "was made by" in other.json()["detail"]
    mine = "example.com wants you to sign in with your Ethereum account:\n" + BUYER
    signed = {"message": mine, "signature": sign_text(mine, KEY).hex()}
    answer = browser.post("/api/v1/session", json=signed)
    assert answer.status_code == 422 and "none of this hub's" in answer.json()["detail"]
    text = browser.post("/api/v1/session/message", json={"account": BUYER}).json()["message"]
    good = {"message": text, "signature": sign_text(text, KEY).hex()}
    assert browser.post("/api/v1/session", json=good | {"signature": "zz"}).status_code == 422
    again = browser.post("/api/v1/session", json=good)
    assert again.status_code == 422, "the text was spent by the bad signature"
    assert browser.get("/api/v1/session").status_code == 403
    assert browser.post("/api/v1/session/message", json={"account": "me"}).status_code == 422


def test_sign_in__later_than_its_time__is_refused_and_a_session_ends(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_800_000_000.0]
    clock(monkeypatch, sessions, time=lambda: now[0])
    text = sessions.ask(hub.desk, BUYER, "hub.example", "https://hub.example")
    now[0] += sessions.ASKED_S + 1
    signature = sign_text(text, KEY).hex()
    with pytest.raises(sessions.BadRequest, match="too old"):
        sessions.begin(hub.desk, text, signature)
    text = sessions.ask(hub.desk, BUYER, "hub.example", "https://hub.example")
    token, account = sessions.begin(hub.desk, text, sign_text(text, KEY).hex())
    assert account == BUYER == sessions.account_of(hub.desk, token)
    now[0] += sessions.LIVES_S + 1
    assert sessions.account_of(hub.desk, token) is None


def test_sign_in__texts_that_nobody_signs__have_a_bound(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MOST_ASKED", 3)
    for _ in range(3):
        sessions.ask(hub.desk, BUYER, "h", "https://h")
    with pytest.raises(sessions.Busy, match="too many people"):
        sessions.ask(hub.desk, BUYER, "h", "https://h")


@pytest.mark.parametrize("elsewhere", [None, "null", "https://evil.example", "http://127.0.0.1:1"])
def test_session__asked_from_another_sites_page__is_refused(
    browser: httpx.Client, elsewhere: str | None
) -> None:
    sign_in(browser)
    headers = {"origin": elsewhere} if elsewhere else {}
    plain = httpx.Client(base_url=browser.base_url, cookies=browser.cookies, headers=headers)
    with plain:
        for method, path, body in (
            ("DELETE", "/api/v1/session", None),
            ("PUT", "/api/v1/session/webhook", {"url": "https://evil.example/x"}),
            ("DELETE", "/api/v1/session/webhook", None),
            ("POST", "/api/v1/session/message", {"account": BUYER}),
        ):
            answer = plain.request(method, path, json=body)
            assert answer.status_code == 403, (method, path, answer.text)
    assert browser.get("/api/v1/session").json()["account"] == BUYER


def test_session__at_an_address_that_is_not_the_hubs__is_refused(
    hub: HubWorld, hub_url: str
) -> None:
    """A site that passes everything on to the hub cannot let people sign in at its own name."""
    at = {"host": "evil.example", "origin": "http://evil.example"}
    answer = httpx.post(f"{hub_url}/api/v1/session/message", json={"account": BUYER}, headers=at)
    assert answer.status_code == 403 and "hub.toml: origins" in answer.json()["detail"]


def test_session__behind_a_proxy_with_tls__is_for_that_origin_and_its_cookie_secure(
    hub: HubWorld,
) -> None:
    named = replace(hub.desk.config, behind_proxy=True, origins=("https://hub.example",))
    object.__setattr__(hub.desk, "config", named)
    at = {
        "host": "hub.example",
        "origin": "https://hub.example",
        "x-forwarded-proto": "https",
        "x-forwarded-for": "198.51.100.1",
    }
    with serving(create_app(hub.desk, drive=False)) as url:
        with httpx.Client(base_url=url, headers=at) as client:
            done = sign_in(client)
        assert done.status_code == 200 and "Secure" in done.headers["set-cookie"]


def test_account__shows_what_is_mine_and_no_more(hub: HubWorld, browser: httpx.Client) -> None:
    row, _ = hub.job()
    sign_in(browser)
    assert row.job_id[:12] in browser.get("/account").text
    stranger, key = accounts()[7]
    sign_in(browser, stranger, key)
    shown = browser.get("/account").text
    assert row.job_id[:12] not in shown and "This hub, for its operator" not in shown
    owner = next(one for one in accounts() if one[0] == hub.bank.hospitals[0].address)
    sign_in(browser, *owner)
    assert "Table 1" in browser.get("/account").text


def test_operator__signed_in_with_the_hubs_key__sees_what_waits(
    hub: HubWorld, browser: httpx.Client
) -> None:
    assert browser.get("/operator").headers["location"] == "/account"
    sign_in(browser)
    refused = browser.get("/operator")
    assert refused.status_code == 403 and "is not this hub" in refused.text
    row, _ = hub.job()
    sign_in(browser, OPERATOR, OPERATOR_KEY)
    shown = browser.get("/operator").text
    assert row.job_id[:12] in shown and "of fees to withdraw" in shown and "indexed" in shown
