"""The hub's pages: catalogue, jobs, one job live, claims. Server-rendered; the browser needs no
wallet to look.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from fastapi.templating import Jinja2Templates

from datahub.errors import HubError
from datahub.market import catalogue, jobs
from datahub.market.claims import claims_of
from datahub.market.desk import Desk
from datahub.money import money

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
templates = Jinja2Templates(directory=Path(__file__).parent / "templates")

templates.env.filters["money"] = money


def _page(request: Request, name: str, **facts: Any) -> HTMLResponse:
    return templates.TemplateResponse(request, name, facts)


def error(request: Request, sentence: str, status: int) -> HTMLResponse:
    """A page that says what went wrong."""
    return templates.TemplateResponse(
        request, "error.html", {"sentence": sentence}, status_code=status
    )


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


@router.get("/")
def catalogue_page(request: Request) -> HTMLResponse:
    desk = _desk(request)
    catalogue.fresh(desk)
    return _page(request, "catalogue.html", datasets=catalogue.listing(desk))


@router.get("/jobs")
def jobs_page(request: Request) -> HTMLResponse:
    return _page(request, "jobs.html", jobs=jobs.recent(_desk(request)))


@router.get("/jobs/{job_id}")
def job_page(request: Request, job_id: str) -> HTMLResponse:
    desk = _desk(request)
    job = jobs.describe(desk, jobs.job_row(desk, job_id))
    ordered = [line["dataset_id"] for line in job["datasets"]]
    names = {row["dataset_id"]: row for row in catalogue.listing(desk, ordered)}
    return _page(request, "job.html", job=job, datasets=names)


@router.get("/claims")
def claims_page(request: Request, account: str = "") -> HTMLResponse:
    claims, sentence = [], ""
    if account:
        try:
            claims = claims_of(_desk(request), account.strip())
        except HubError as refused:
            sentence = str(refused)
    return _page(request, "claims.html", account=account, claims=claims, error=sentence)
