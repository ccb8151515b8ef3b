"""A hub's log: lines for people, or one JSON object a line, each with the request or job that it is
about. What is secret never reaches it.

Knows nothing of what is logged. A record learns its request and job from where it was made: a
context variable that web/counted.py and market/ set.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

request_id: ContextVar[str] = ContextVar("request_id", default="")
job_id: ContextVar[str] = ContextVar("job_id", default="")

PLAIN = "%(asctime)s %(name)s %(levelname)s %(message)s"
HIDDEN = "[secret]"
LEAST_SECRET = 8  # characters; shorter ones stand in ordinary words, and protect nothing


@contextmanager
def about(job: str) -> Iterator[None]:
    """What is logged inside is about this job."""
    before = job_id.set(job)
    try:
        yield
    finally:
        job_id.reset(before)


class _Lines(logging.Formatter):
    def __init__(self, secrets: Collection[str]):
        super().__init__(PLAIN)
        # the longest first: one may hold another
        self._secrets = sorted({s for s in secrets if len(s) >= LEAST_SECRET}, key=len)[::-1]

    def format(self, record: logging.LogRecord) -> str:
        line = self.line(record)
        for secret in self._secrets:
            line = line.replace(secret, HIDDEN)
        return line

    def line(self, record: logging.LogRecord) -> str:
        """One record for people; the request at the end of its first line."""
        text = super().format(record)
        request = request_id.get()
        if not request:
            return text
        first, end, rest = text.partition("\n")
        return f"{first} [request {request}]{end}{rest}"


class _Json(_Lines):
    def line(self, record: logging.LogRecord) -> str:
        """One record as a JSON object without a line break."""
        shown = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in (("job_id", job_id.get()), ("request_id", request_id.get())):
            if value:
                shown[name] = value
        if record.exc_info:
            shown["exception"] = self.formatException(record.exc_info)
        return json.dumps(shown)


def set_up(*, as_json: bool, secrets: Collection[str], stream: TextIO | None = None) -> None:
    """Log to `stream` (stderr) from INFO on; whatever of `secrets` a line holds is left out."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter((_Json if as_json else _Lines)(secrets))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
