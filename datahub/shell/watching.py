"""A job as its hub sees it, for whoever knows its id: found by its first digits, looked at again
and again. Needs no key; what the hub says here moves no money.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from datahub.buyer.hub_client import Hub
from datahub.errors import HubError, NotFound, NotSettled

POLL_S = 0.25
QUIET_S = 5.0  # between looks while the hub does not answer
ENDED = ("settled", "refunded")
WHOLE = 64  # digits of a job's id


def whole_id(hub: Hub, start: str) -> str:
    """The id that begins with `start`: of jobs that are kept here, else of the hub's newest. Raises
    NotFound.
    """
    from datahub.buyer import job_store

    name = start.lower().removeprefix("0x")
    if len(name) == WHOLE:
        return name
    try:
        return job_store.whole_id(name, [one.id for one in job_store.kept_jobs()])
    except NotFound:
        return job_store.whole_id(name, [row["job_id"] for row in hub.get("/api/v1/jobs")])


def status(hub: Hub, job_id: str) -> dict[str, Any]:
    """What the hub says of a job now. Raises NotFound for one that it has not been told of."""
    try:
        found: dict[str, Any] = hub.get(f"/api/v1/jobs/{job_id}")
    except NotFound as error:
        raise NotFound(
            f"{error}; if you have ordered it, datahub job list shows what the chain says of it"
        ) from error
    return found


def statuses(
    hub: Hub, job_id: str, for_s: float | None, complain: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """The status, again and again until the job has ended. A hub that stops to answer is asked
    again. Raises NotSettled after `for_s` seconds; what the first question raises.
    """
    end = None if for_s is None else time.monotonic() + for_s
    found, quiet = status(hub, job_id), False
    while True:
        yield found
        if found["state"] in ENDED:
            return
        if end is not None and time.monotonic() >= end:
            raise NotSettled(
                f"job {job_id[:12]} is {found['state']} after {for_s:g} s of watching; look again "
                f"with: datahub job watch {job_id[:12]}"
            )
        time.sleep(QUIET_S if quiet else POLL_S)
        try:
            found, quiet = status(hub, job_id), False
        except HubError as error:
            if not quiet:
                complain(f"{error}; it is asked again, and Ctrl-C ends this (the job goes on)")
            quiet = True
