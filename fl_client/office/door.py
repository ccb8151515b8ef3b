"""Who may come in: the local page is for whoever was given its link on this machine, once.

A link's token opens one session, by a cookie; after that the token is void. A session has a place
in the page's addresses that nobody can guess, and its cookie is for that place alone: a browser
sends cookies to every port of a machine, and other ports are other users'. Requests must name this
machine and port as their host (a page elsewhere cannot have its own name point here), must not come
through a proxy, and may change something only with the session's own word in the form and from this
very origin. Knows nothing of what is shown.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

COOKIE = "datahub_node"
IDLE_S = 8 * 3600.0
FORWARDED = ("x-forwarded-for", "forwarded", "x-real-ip", "via")


@dataclass
class Session:
    """Somebody who came in: where the page is for them (a path), the word that forms must carry,
    and when they were last seen.
    """

    place: str = field(default_factory=lambda: f"/{secrets.token_urlsafe(32)}/")
    word: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    seen: float = field(default_factory=time.monotonic)


class Door:
    """The door of one page at `port`. `token` is in the one link."""

    def __init__(self, port: int):
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self.token: str | None = secrets.token_urlsafe(32)
        self._sessions: dict[str, Session] = {}

    def stranger(self, headers: Mapping[str, str]) -> bool:
        """Whether a request names another host, or has come through somebody."""
        return headers.get("host", "") not in self.hosts or any(n in headers for n in FORWARDED)

    def enter(self, token: str) -> tuple[str, Session] | None:
        """A new session and its cookie for the token of the link, which is void then; None for
        another one.
        """
        if self.token is None or not hmac.compare_digest(token.encode(), self.token.encode()):
            return None
        self.token = None
        cookie = secrets.token_urlsafe(32)
        session = Session()
        self._sessions = {cookie: session}
        return cookie, session

    def session(self, cookies: Mapping[str, str], path: str) -> Session | None:
        """Whose request it is; None for nobody's, for another place than theirs, or for somebody
        who was away for hours.
        """
        found = self._sessions.get(cookies.get(COOKIE, ""))
        if found is None or found.seen < time.monotonic() - IDLE_S:
            return None
        if not hmac.compare_digest(path.encode()[: len(found.place)], found.place.encode()):
            return None
        found.seen = time.monotonic()
        return found

    def may_change(self, session: Session, headers: Mapping[str, str], word: str) -> bool:
        """Whether a form was sent from this very page."""
        origin = headers.get("origin", "")
        ours = {f"http://{host}" for host in self.hosts}
        return origin in ours and hmac.compare_digest(word.encode(), session.word.encode())
