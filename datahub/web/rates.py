"""How often one client may ask: so many requests at once, then so many a second. Knows nothing of
what is asked.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict

MOST_CLIENTS = 50_000  # that are remembered; the one that asked longest ago is forgotten


class Rate:
    """A bucket of `burst` requests for each client, which fills at `per_s` a second."""

    def __init__(self, per_s: float, burst: int):
        self.per_s, self.burst = per_s, burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> (left, at)

    def wait_s(self, client: str) -> float:
        """0.0, and the request counts; or how many seconds until one more may come."""
        now = time.monotonic()
        left, at = self._left.pop(client, (float(self.burst), now))
        left = min(float(self.burst), left + (now - at) * self.per_s)
        taken = left >= 1.0
        self._left[client] = (left - 1.0 if taken else left, now)
        if len(self._left) > MOST_CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if taken else (1.0 - left) / self.per_s


def client_of(address: str, forwarded: str | None) -> str | None:
    """Who asks, as far as limits go; None for somebody on this machine, who is its operator's.

    `address` is the other end of the connection, `forwarded` what the hub's own proxy has written
    last into X-Forwarded-For; None where there is no proxy. An IPv6 network is one client: whoever
    has an address there has 2**64.
    """
    said = address if forwarded is None else forwarded.rsplit(",", 1)[-1].strip()
    try:
        found = ipaddress.ip_address(said)
    except ValueError:
        return said[:60] or "nobody"
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        elif not found.is_loopback:
            return str(ipaddress.ip_network((found, 64), strict=False))
    return None if found.is_loopback and forwarded is None else str(found)
