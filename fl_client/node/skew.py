"""Is this machine's clock right? Compared with what the SuperLink's HTTP server and the chain say
of the time. Knows nothing of jobs; decides nothing.

A SuperLink lets nobody in whose signed time is more than 5 s ahead of its own or 305 s behind, and
says no more than that it refuses; so the hospital's log has to name it.
"""

from __future__ import annotations

import http.client
import ssl
import time
from datetime import UTC
from email.utils import parsedate_to_datetime

OFF_S = 4.0  # more than this is worth a sentence: a Date header has whole seconds
TIMEOUT_S = 3.0


def clock_problem(superlink: str, newest_block: int | None = None) -> str | None:
    """What is wrong with this machine's clock, in a sentence; None if nothing is known to be.

    `superlink` is host:port; `newest_block` the time of the chain's newest block, which no right
    clock is behind of.
    """
    before = time.time()
    theirs = _date_of(superlink)
    if theirs is not None:
        return sentence((before + time.time()) / 2 - theirs - 0.5, "the SuperLink's")
    if newest_block is not None:
        return sentence(min(0.0, time.time() - newest_block), "the chain's newest block")
    return None


def sentence(ahead_s: float, whose: str) -> str | None:
    """`ahead_s` seconds of this clock before `whose`; None where they are few."""
    if abs(ahead_s) <= OFF_S:
        return None
    way = "ahead of" if ahead_s > 0 else "behind"
    return f"this machine's clock is {abs(ahead_s):.0f} s {way} {whose}; set it (NTP)"


def _date_of(superlink: str) -> float | None:
    """Unix seconds in the Date header of whoever answers there; None if nobody says."""
    host, _, port = superlink.rpartition(":")
    # a hint for the log, taken from anybody: with a wrong clock no certificate would be valid
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(
        host.strip("[]"), int(port), timeout=TIMEOUT_S, context=context
    )
    try:
        connection.request("HEAD", "/")
        given = connection.getresponse().getheader("Date")
        found = parsedate_to_datetime(given) if given else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    if found is None:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
