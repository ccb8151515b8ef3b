"""A job's changes as server-sent events (WHATWG HTML, section 9.2). Looks at what the hub keeps;
knows nothing of how a job is shown.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool

from datahub.market import jobs
from datahub.market.desk import Desk
from datahub.market.domain import FINAL, JobState

# of one event, as JSON Schema; `data` is the job as /api/v1/jobs/ID has it, {} at the end
EVENT = {
    "type": "object",
    "properties": {"event": {"enum": ["job", "end"]}, "data": {"type": "string"}},
}
LOOK_S = 0.5
LIVES_S = 600.0  # then the browser asks again
MOST_WATCHERS, AGAIN_MS = 200, 15_000
SOON_MS = 1000  # when this process ends
_watching: set[object] = set()
QUIET_S = 15.0  # after so long a line that says nothing, or something between would hang up


def watchers() -> int:
    """How many streams this process sends now."""
    return len(_watching)


async def changes(desk: Desk, job_id: str) -> AsyncIterator[str]:
    """The job whenever it has changed, the first time at once; ends with the job. Of MOST_WATCHERS
    in all at a time: one more is told to come again.
    """
    if len(_watching) >= MOST_WATCHERS:
        yield f"retry: {AGAIN_MS}\n\n"
        return
    me = object()
    _watching.add(me)
    try:
        async for one in _changes(desk, job_id):
            yield one
    finally:
        _watching.discard(me)


async def _changes(desk: Desk, job_id: str) -> AsyncIterator[str]:
    last, said, end = "", time.monotonic(), time.monotonic() + LIVES_S
    while time.monotonic() < end:
        if desk.stopping.is_set():  # the browser asks again, the next process or another one
            yield f"retry: {SOON_MS}\n\n"
            return
        job = await run_in_threadpool(lambda: jobs.describe(desk, jobs.job_row(desk, job_id)))
        text = json.dumps(job, default=str)
        if text != last:
            last, said = text, time.monotonic()
            yield f"event: job\ndata: {text}\n\n"
        elif time.monotonic() > said + QUIET_S:
            said = time.monotonic()
            yield ": still here\n\n"
        if JobState(job["state"]) in FINAL:
            yield "event: end\ndata: {}\n\n"
            return
        await asyncio.sleep(LOOK_S)
