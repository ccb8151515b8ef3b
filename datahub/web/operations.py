"""What an operator's machines ask a hub: whether it lives, whether it is of use, its figures.

The figures tell what an operator earns, so that an address alone never opens them: behind a proxy
on the same machine every stranger comes from loopback. They need the token that is kept in the
hub's folder, and come to this machine's own callers unless hub.toml says metrics = "anywhere".
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import secrets
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel

from datahub.market.desk import Desk
from datahub.market.readiness import Readiness
from datahub.web.counted import Counted, Counts
from datahub.web.exposition import CONTENT_TYPE, text
from datahub.web.figures import Figures
from fl_client.errors import ConfigError
from fl_client.node.config import write_private

TOKEN_FILE = "metrics.token"  # noqa: S105 the file's name, not a secret
FORWARDED = ("x-forwarded-for", "x-forwarded-host", "forwarded", "x-real-ip", "via")

router = APIRouter(tags=["operations"])


class Alive(BaseModel):
    """The process answers; nothing else was asked."""

    status: str = "ok"


class Ready(BaseModel):
    """`missing`: one sentence for each thing that is, none for a hub that is ready."""

    ready: bool
    missing: list[str]


class Operations:
    """What is kept for the answers here, of one application."""

    def __init__(self, app: FastAPI, desk: Desk):
        self.counts = Counts()
        self.readiness = Readiness(desk, lambda: getattr(app.state, "loops", []))
        self.figures = Figures(desk, lambda: getattr(app.state, "loops", []), self.counts)
        self.token = metrics_token(desk.config.folder)
        self.anywhere = desk.config.metrics == "anywhere"


def _operations(request: Request) -> Operations:
    found: Operations = request.app.state.operations
    return found


OperationsDep = Annotated[Operations, Depends(_operations)]


def install(app: FastAPI, desk: Desk) -> None:
    """Add the routes, and what counts every request: after all other middleware."""
    app.state.operations = Operations(app, desk)
    app.include_router(router)
    app.add_middleware(Counted, counts=app.state.operations.counts)


def metrics_token(folder: Path) -> str:
    """The token that opens /metrics, made on first use, kept in `folder`/metrics.token (0600)."""
    path = folder / TOKEN_FILE
    with contextlib.suppress(ConfigError):  # it is there
        write_private(path, secrets.token_hex(32).encode())
    return path.read_text().strip()


@router.get("/healthz")
async def healthz() -> Alive:
    """Whether the process lives: neither chain nor database is asked."""
    return Alive()


@router.get("/readyz", responses={503: {"model": Ready, "description": "something is missing"}})
def readyz(operations: OperationsDep) -> Ready:
    """Whether the hub is of use now: database, chain, index, SuperLink and its own loops."""
    missing = operations.readiness.missing()
    answer = Ready(ready=not missing, missing=missing)
    if missing:
        return JSONResponse(answer.model_dump(), status_code=503)  # type: ignore[return-value]
    return answer


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request, operations: OperationsDep) -> Response:
    """Figures in Prometheus' text format, for whoever has the token."""
    if not operations.anywhere and not _is_local(request):
        return _refused("is for callers on this machine; hub.toml says who else may ask")
    given = request.headers.get("authorization", "").encode()
    if not operations.token or not hmac.compare_digest(
        given, b"Bearer " + operations.token.encode()
    ):
        return _refused(f"needs the header Authorization: Bearer and what is in {TOKEN_FILE}")
    return Response(text(operations.figures.families()), media_type=CONTENT_TYPE)


def _refused(why: str) -> Response:
    return PlainTextResponse(f"/metrics {why}\n", status_code=403)


def _is_local(request: Request) -> bool:
    """Whether a caller of this machine asks, by no proxy that says so."""
    try:
        local = ipaddress.ip_address(request.client.host if request.client else "").is_loopback
    except ValueError:
        return False
    return local and not any(name in request.headers for name in FORWARDED)
