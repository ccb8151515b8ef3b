"""A buyer's own address is told when a job of theirs is in another state: written down with the
state, sent until it is taken, signed so that the receiver knows whose word it is (Standard
Webhooks: HMAC-SHA256 over id, time and body).

A hub that calls addresses which strangers name must not call into its own network: only public
addresses are called, over TLS, by the very address that was looked up, and no redirect is followed;
an operator names other networks in hub.toml. Knows nothing of what a job is.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import logging
import secrets
import socket
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx
from sqlmodel import Session, col, select

from datahub.errors import BadRequest
from datahub.market.desk import Desk
from datahub.market.tables import DeliveryRow, JobRow, WebhookRow

LONGEST_URL = 300
AGAIN_S = (5, 60, 600, 3600, 6 * 3600)  # after each try that was not taken; then no more
PATIENCE_S = 10.0
AT_ONCE = 20  # deliveries of one turn
SECRET = "whsec_"  # noqa: S105 the prefix that Standard Webhooks gives secrets

log = logging.getLogger("datahub.hub")


def put(desk: Desk, account: str, url: str) -> str:
    """Tell `url` of the jobs of `account` from now on; the secret that signs. Raises BadRequest for
    an address that may not be called.
    """
    _place(desk, url)
    secret = SECRET + base64.b64encode(secrets.token_bytes(32)).decode()
    with desk.session() as session:
        session.merge(WebhookRow(account=account, url=url, secret=secret))
        session.commit()
    return secret


def url_of(desk: Desk, account: str) -> str:
    """What is told of the jobs of `account`; "" for nothing."""
    with desk.session() as session:
        row = session.get(WebhookRow, account)
    return row.url if row else ""


def drop(desk: Desk, account: str) -> None:
    """Tell nobody any more."""
    with desk.session() as session:
        if row := session.get(WebhookRow, account):
            session.delete(row)
            session.commit()


def note(session: Session, job: JobRow) -> None:
    """A job is in another state: write down whom to tell, in the transaction that says so."""
    if session.get(WebhookRow, job.buyer) is not None:
        now = time.time()
        said = {"job_id": job.job_id, "state": job.state, "reason": job.reason}
        body = json.dumps({"type": "job.state", "timestamp": int(now), "data": said})
        session.add(DeliveryRow(account=job.buyer, body=body, tries=0, due=now))


def deliver(desk: Desk) -> int:
    """Send what is due; how many were taken."""
    with desk.session() as session:
        due = select(DeliveryRow).where(col(DeliveryRow.due) <= time.time())
        rows = session.exec(due.order_by(col(DeliveryRow.due)).limit(AT_ONCE)).all()
        hooks = {row.account: session.get(WebhookRow, row.account) for row in rows}
    taken = 0
    for row in rows:
        hook = hooks[row.account]
        problem = _send(desk, hook, row) if hook is not None else None
        taken += hook is not None and problem is None
        with desk.session() as session:
            kept = session.get(DeliveryRow, row.number)
            if kept is None:
                continue
            if problem is None or kept.tries >= len(AGAIN_S):
                session.delete(kept)
            else:
                kept.due = time.time() + AGAIN_S[kept.tries]
                kept.tries += 1
            session.commit()
        if problem is not None:
            log.info("a webhook of %s: %s", row.account, problem)
    return taken


def _send(desk: Desk, hook: WebhookRow, row: DeliveryRow) -> str | None:
    """Why it was not taken; None where it was."""
    try:
        scheme, host, port, path, there = _place(desk, hook.url)
        headers = signed(hook.secret, f"msg_{row.number}", int(time.time()), row.body)
        shown = f"[{there}]" if ":" in there else there
        with (
            httpx.Client(timeout=PATIENCE_S, trust_env=False) as client,
            client.stream(
                "POST",
                f"{scheme}://{shown}:{port}{path}",
                content=row.body,
                headers={"host": host, "content-type": "application/json", **headers},
                extensions={"sni_hostname": host},
            ) as answer,
        ):
            return None if answer.is_success else f"it answered {answer.status_code}"
    except (BadRequest, httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


def signed(secret: str, name: str, at: int, body: str) -> dict[str, str]:
    """The headers by which a receiver knows the sender (standardwebhooks.com, version 1)."""
    key = base64.b64decode(secret.removeprefix(SECRET))
    mac = hmac.new(key, f"{name}.{at}.{body}".encode(), hashlib.sha256).digest()
    return {
        "webhook-id": name,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
    }


def _place(desk: Desk, url: str) -> tuple[str, str, int, str, str]:
    """(scheme, host, port, path, address to call) of a webhook. Raises BadRequest."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise BadRequest(f"url={url[:80]!r}: {error}") from error
    plain = len(url) <= LONGEST_URL and url.isascii() and url.isprintable() and " " not in url
    if not plain or not host or parts.username is not None or parts.fragment:
        raise BadRequest(
            f"url={url[:80]!r} must be https://host/path, of at most {LONGEST_URL} letters"
        )
    try:
        found = {str(one[4][0]) for one in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise BadRequest(f"url: {host[:80]!r} is no host that this hub knows") from error
    own = [ipaddress.ip_network(one) for one in desk.config.webhook_networks]
    inside = all(_within(one, own) for one in found)
    if not inside and not all(_public(one) for one in found):
        raise BadRequest(f"url: {host[:80]!r} is not in the public network")
    if parts.scheme != "https" and not (inside and parts.scheme == "http"):
        raise BadRequest(f"url={url[:80]!r} must begin with https://")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.scheme, host, port or (443 if parts.scheme == "https" else 80), path, min(found)


def _within(text: str, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    return any(ipaddress.ip_address(text) in network for network in networks)


def _public(text: str) -> bool:
    """Whether anybody's: also by what an IPv6 address stands for (a mapped or a 6to4 one)."""
    found = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        for meant in (found.ipv4_mapped, found.sixtofour, (found.teredo or (None, None))[1]):
            if meant is not None and not meant.is_global:
                return False
        if found in ipaddress.ip_network("64:ff9b::/96"):  # NAT64, RFC 6052
            return ipaddress.IPv4Address(int(found) & 0xFFFFFFFF).is_global
    return found.is_global and not found.is_multicast
