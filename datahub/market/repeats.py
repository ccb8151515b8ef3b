"""The same request again, after an answer that got lost: a client that names its request is
answered as the first time (the header Idempotency-Key). Knows nothing of what is asked.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlmodel import col, delete, select

from datahub.errors import BadRequest
from datahub.market.desk import Desk
from datahub.market.tables import RepeatRow
from datatokens.wire import parse

KEPT_S = 3600.0
MOST = 10_000  # that are kept; one more pushes out the oldest, as with quotes
LONGEST_KEY = 200


def once(desk: Desk, key: str, asked: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` answered the first time that `asked` came under this key within the last hour.
    Raises BadRequest for a key that another request has, and what `make` raises: an error is not
    kept.
    """
    if not key:
        return make()
    if len(key) > LONGEST_KEY or not key.isprintable():
        raise BadRequest(f"Idempotency-Key: 1 to {LONGEST_KEY} letters, not {key[:40]!r}")
    name = hashlib.sha256(key.encode()).hexdigest()
    content = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    if (found := _kept(desk, name, content)) is not None:
        return found
    answer = make()
    with desk.session() as session:
        session.add(RepeatRow(name=name, asked=content, answer=json.dumps(answer), at=time.time()))
        try:
            session.flush()
            newest = select(RepeatRow.at).order_by(col(RepeatRow.at).desc()).offset(MOST).limit(1)
            if (oldest := session.exec(newest).first()) is not None:
                session.exec(delete(RepeatRow).where(col(RepeatRow.at) <= oldest))
            session.commit()
        except IntegrityError:  # the same request at the same moment: both get the first answer
            session.rollback()
            return _kept(desk, name, content) or answer
    return answer


def _kept(desk: Desk, name: str, content: str) -> dict[str, Any] | None:
    with desk.session() as session:
        row = session.get(RepeatRow, name)
    if row is None or row.at < time.time() - KEPT_S:
        return None
    if row.asked != content:
        raise BadRequest("Idempotency-Key: it was used for another request; take a new one")
    answer: dict[str, Any] = parse(row.answer.encode())
    return answer


def forget(desk: Desk) -> None:
    """Drop what is older than an hour."""
    with desk.session() as session:
        session.exec(delete(RepeatRow).where(col(RepeatRow.at) < time.time() - KEPT_S))
        session.commit()
