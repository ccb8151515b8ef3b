"""The files of buyers' models, named by their SHA-256, for as long as a waiting quote or an open
job names them. Knows nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlmodel import Session, col, select

from datahub.market.desk import Desk
from datahub.market.domain import FINAL
from datahub.market.tables import JobRow, QuoteRow
from datatokens.terms import JobTerms
from fl_client.node.job_folder import write_whole
from fl_client.protocol import sha256_hex

NAMES = ("graph_hash", "weights_hash")


def put(desk: Desk, contents: Iterable[bytes]) -> None:
    """Write files under their hashes. `desk.models()` must be held until a row names them."""
    for content in contents:
        path = desk.config.models_folder / sha256_hex(content)
        if not path.exists():
            write_whole(path, content)


def sweep(desk: Desk, session: Session) -> None:
    """Delete the files that nothing names. `desk.models()` must be held."""
    named: set[str] = set()
    for hashes in session.exec(select(QuoteRow.graph_hash, QuoteRow.weights_hash)).all():
        named.update(hashes)
    ended = [str(state) for state in FINAL]
    for terms in session.exec(select(JobRow.terms).where(col(JobRow.state).not_in(ended))).all():
        spec = JobTerms.from_json(terms.encode()).spec
        named.update(spec[name] for name in NAMES)
    for path in desk.config.models_folder.glob("*"):
        if path.name not in named:
            path.unlink(missing_ok=True)
