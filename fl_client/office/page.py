"""The local page of a node: the jobs that wait, each with its brief, and what the node is doing.
Shows and takes down decisions; decides nothing, and holds no key: it reads the node's folder, and
writes what a person says, as the commands do. Listens on this machine alone; loads nothing from
elsewhere.
"""

from __future__ import annotations

import asyncio
import getpass
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from jinja2 import Environment, FileSystemLoader, select_autoescape
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from datatokens.errors import BankError
from fl_client.errors import NodeError
from fl_client.node import config as node_config
from fl_client.node import inbox
from fl_client.node.audit_log import AuditLog, Line, LogError
from fl_client.node.contacts import PARTIES
from fl_client.node.job_folder import DECISIONS, RELEASES
from fl_client.office.brief import brief, briefs, utc
from fl_client.office.door import COOKIE, Door, Session
from fl_client.office.drawing import drawing
from fl_client.office.state import State, look, metrics

HERE = Path(__file__).parent
MOST_FORM = 16 * 1024
SHOWN_LINES = 200
FRESH_S = 15.0
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "referrer-policy": "same-origin",  # with none at all a browser sends forms without an origin
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
}
GONE = "This link has been used, or is another one. Start the page again: datahub node page FOLDER"

pages = Environment(
    loader=FileSystemLoader(HERE / "templates"), autoescape=select_autoescape(["html"])
)
pages.filters["utc"] = utc
pages.filters["left"] = lambda seconds: (
    f"{seconds // 86400} d {seconds % 86400 // 3600} h" if seconds >= 86400
    else f"{seconds // 3600} h {seconds % 3600 // 60} min"
)  # fmt: skip
pages.filters["units"] = lambda units: f"{units / 1e6:,.2f}"

Handler = Callable[[Request], Awaitable[Response]]


class Page:
    """The page of the node in `folder`, behind `door`. With `measured`, whoever is on this machine
    may read the metrics without a session.
    """

    def __init__(self, folder: Path, door: Door, measured: bool = False):
        self.folder, self.door = folder, door
        self._state: tuple[float, State] | None = None
        self._looking = asyncio.Lock()
        extra = [Route("/metrics", self._guarded(self.metrics, anybody=True))] if measured else []
        self.app = Starlette(
            routes=[
                Route("/enter", self._guarded(self.enter, anybody=True)),
                Route("/style.css", self._guarded(self.style, anybody=True)),
                *extra,
                Route("/{place}/", self._guarded(self.jobs)),
                Route("/{place}/jobs/{job}", self._guarded(self.job)),
                Route("/{place}/jobs/{job}/decide", self._guarded(self.decide), methods=["POST"]),
                Route("/{place}/log", self._guarded(self.log)),
                Route("/{place}/status", self._guarded(self.status)),
                Route("/{rest:path}", self._guarded(self.nothing), methods=["GET", "POST"]),
            ]
        )

    def _guarded(self, handler: Handler, anybody: bool = False) -> Handler:
        async def guarded(request: Request) -> Response:
            path = request.scope["path"]
            session = None if anybody else self.door.session(request.cookies, path)
            if self.door.stranger(request.headers):
                answer: Response = PlainTextResponse("refused", 403)
            elif session is None and not anybody:
                answer = self._page("closed.html", 403, sentence=GONE)
            else:
                request.state.session = session
                try:
                    answer = await handler(request)
                except (NodeError, BankError, OSError) as error:
                    home = session.place if session else ""
                    answer = self._page("closed.html", 409, sentence=str(error), home=home)
            answer.headers.update(HEADERS)
            return answer

        return guarded

    def _page(self, name: str, status: int = 200, **facts: Any) -> HTMLResponse:
        return HTMLResponse(pages.get_template(name).render(**facts), status)

    async def enter(self, request: Request) -> Response:
        """The one link: its token becomes a cookie."""
        entered = self.door.enter(request.query_params.get("token", ""))
        if entered is None:
            return self._page("closed.html", 403, sentence=GONE)
        cookie, session = entered
        answer = RedirectResponse(session.place, 303)
        answer.set_cookie(COOKIE, cookie, httponly=True, samesite="strict", path=session.place)
        return answer

    async def nothing(self, request: Request) -> Response:
        """There is no such page."""
        home = request.state.session.place
        return self._page("closed.html", 404, sentence="There is no such page.", home=home)

    async def style(self, _: Request) -> Response:
        """How it looks."""
        return Response((HERE / "static" / "style.css").read_bytes(), media_type="text/css")

    async def jobs(self, request: Request) -> Response:
        """What waits, and what the node has answered last."""
        session: Session = request.state.session
        config = node_config.read(self.folder)
        held, damaged = briefs(config, inbox.waiting(self.folder))
        results = [
            {"job_id": one.job_id, "dataset_id": one.facts["dataset_id"]}
            for one in inbox.held(self.folder)
        ]
        lines, broken = _lines(self.folder)
        return self._page(
            "jobs.html",
            home=session.place,
            node=config,
            jobs=held,
            damaged=[*inbox.damaged(self.folder), *damaged],
            results=results,
            lines=lines[:12],
            broken=broken,
            word=session.word,
            by=getpass.getuser(),
        )

    async def job(self, request: Request) -> Response:
        """The brief of one job."""
        return self._job(request.path_params["job"], request)

    def _job(self, job: str, request: Request, wrong: str = "", status: int = 200) -> Response:
        session: Session = request.state.session
        config = node_config.read(self.folder)
        facts = brief(config, inbox.find(self.folder, job))
        picture = drawing(facts["model"]["steps"], f"one {facts['cohort']['unit'] or 'record'}")
        return self._page(
            "job.html",
            status,
            home=session.place,
            node=config,
            job=facts,
            word=session.word,
            by=getpass.getuser(),
            picture=picture,
            wrong=wrong,
            bar=_bar(facts["privacy"]),
        )

    async def decide(self, request: Request) -> Response:
        """Yes or no, or that a result may go."""
        session: Session = request.state.session
        body = await request.body()
        if len(body) > MOST_FORM:
            return PlainTextResponse("too much", 413)
        try:
            form = {k: v[0] for k, v in parse_qs(body.decode(), max_num_fields=10).items()}
        except ValueError:
            return PlainTextResponse("this is no form", 400)
        if not self.door.may_change(session, request.headers, form.get("word", "")):
            return PlainTextResponse("refused: this form is not from this page", 403)
        job, answer = request.path_params["job"], form.get("answer", "")
        if answer not in ("yes", "no", "release"):
            return PlainTextResponse("answer must be yes, no or release", 400)
        policy_of = node_config.read(self.folder).policy_of
        about = RELEASES if answer == "release" else DECISIONS
        reason = form.get("reason", "") if answer == "no" else ""
        said = (form.get("by", ""), answer != "no", reason)
        try:
            inbox.decide(self.folder, policy_of, job, *said, about)
        except NodeError as error:
            if about == RELEASES:
                raise
            return self._job(job, request, str(error), 422)
        return RedirectResponse(session.place, 303)

    async def _look(self) -> State:
        """How the node stands, or stood some seconds ago: a look asks the chain."""
        async with self._looking:
            if self._state is None or self._state[0] < time.monotonic() - FRESH_S:
                found = await run_in_threadpool(look, node_config.read(self.folder))
                self._state = time.monotonic(), found
            return self._state[1]

    async def status(self, request: Request) -> Response:
        """Online or not, epsilon meters, jobs, earnings, walls, last contacts."""
        state = await self._look()
        bars = {
            line["dataset_id"]: _bar(
                {
                    "lifetime": line["epsilon_lifetime"],
                    "lifetime_before": line["epsilon_spent"],
                    "lifetime_after": line["epsilon_committed"],
                }
            )
            for line in state.datasets
        }
        config = node_config.read(self.folder)
        home = request.state.session.place
        return self._page(
            "status.html", home=home, node=config, state=state, bars=bars, parties=PARTIES
        )

    async def metrics(self, _: Request) -> Response:
        """The same for Prometheus."""
        return PlainTextResponse(metrics(await self._look()))

    async def log(self, request: Request) -> Response:
        """The newest lines of the audit log."""
        config = node_config.read(self.folder)
        lines, broken = _lines(self.folder)
        home = request.state.session.place
        return self._page(
            "log.html", home=home, node=config, lines=lines[:SHOWN_LINES], broken=broken
        )


def _lines(folder: Path) -> tuple[list[Line], str]:
    """(the newest lines first, what is wrong with the log)."""
    log, found = AuditLog(folder), list[Line]()
    try:
        return log.newest(SHOWN_LINES), ""
    except LogError as error:
        wrong = str(error)
    try:
        for line in log.lines():
            found.append(line)
    except LogError as error:
        wrong = str(error)
    return found[::-1], wrong


def _bar(privacy: dict[str, float]) -> dict[str, float]:
    """The lifetime's epsilon as parts of a bar of 100."""
    whole = max(privacy["lifetime"], privacy["lifetime_after"], 1e-9)
    before = 100 * privacy["lifetime_before"] / whole
    after = 100 * privacy["lifetime_after"] / whole
    return {"before": round(before, 2), "job": round(max(0.0, after - before), 2)}


def open_socket(port: int) -> socket.socket:
    """A socket of this machine alone, at `port`, or any that is free. Raises OSError."""
    return socket.create_server(("127.0.0.1", port))


def serve(folder: Path, listening: socket.socket, door: Door, measured: bool) -> None:
    """Serve until stopped."""
    page = Page(folder, door, measured)
    settings = uvicorn.Config(page.app, log_level="warning", access_log=False)
    settings.server_header = False
    uvicorn.Server(settings).run(sockets=[listening])
