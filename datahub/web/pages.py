"""The hub's pages: what this is, catalogue, one dataset, an order, jobs, one job live, a hospital,
earnings, words. Server-rendered; the browser needs no wallet to look.
"""

from __future__ import annotations

import csv
import io
import ipaddress
import time
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import Annotated, Any
from urllib.parse import urlencode, urlsplit

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.templating import Jinja2Templates

from datahub import comparison
from datahub.errors import BadRequest, Conflict, HubError
from datahub.market import catalogue, hospitals, jobs
from datahub.market.catalogue import MOST_ID
from datahub.market.claims import claims_of, earned
from datahub.market.desk import Desk
from datahub.market.domain import FINAL, JobState
from datahub.market.entries import SORTS, Asked
from datahub.synthetic import made_up
from datahub.web import charts, glossary
from datatokens.money import money
from datatokens.wire import parse
from fl_client.data import words
from fl_client.data.cells import as_number
from fl_client.data.schemas import Schema
from fl_client.errors import DatasetError
from fl_client.node.policy import BUILT_IN
from fl_client.node.purposes import INTENTS
from fl_server.results import KEY_MESSAGE

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
templates = Jinja2Templates(directory=FilePath(__file__).parent / "templates")

templates.env.filters["money"] = money
templates.env.filters["utc"] = lambda at: f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"

DatasetId = Annotated[int, Path(ge=1, le=MOST_ID)]
EXAMPLES = 3  # made-up records on a dataset's page
SHOWN = 8  # columns of them
MOST_COMPARED = 6  # jobs side by side
RECORDS = 500  # in the table that can be downloaded,
MOST_INPUTS = 100_000  # or fewer where a record is wide: part of a second's work
TEST_CHAIN = 31337  # of the embedded chain


def page(request: Request, name: str, **facts: Any) -> HTMLResponse:
    """A page of this hub."""
    return templates.TemplateResponse(
        request, name, {"demo_chain": demo_chain(desk_of(request)), **facts}
    )


def error(request: Request, sentence: str, status: int) -> HTMLResponse:
    """A page that says what went wrong."""
    facts = {"sentence": sentence, "demo_chain": ""}
    return templates.TemplateResponse(request, "error.html", facts, status_code=status)


def desk_of(request: Request) -> Desk:
    """The hub's open connections."""
    desk: Desk = request.app.state.desk
    return desk


def address_of(request: Request) -> str:
    """scheme://host under which a browser or a program has asked this hub."""
    scheme, host = request.url.scheme, request.headers.get("host", request.url.netloc)
    if desk_of(request).config.behind_proxy:
        scheme = request.headers.get("x-forwarded-proto", scheme).rsplit(",", 1)[-1].strip()
    return f"{scheme if scheme in ('http', 'https') else 'http'}://{host}"


def is_here(host: str) -> bool:
    """Whether a host's name is this machine's for itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def demo_chain(desk: Desk) -> str:
    """The chain's URL where it is the embedded one on this machine, whose test accounts sign for
    anybody; else "".
    """
    here = is_here(urlsplit(desk.config.chain).hostname or "")
    return desk.config.chain if here and desk.config.chain_id == TEST_CHAIN else ""


@router.get("/")
def home_page(request: Request) -> HTMLResponse:
    desk = desk_of(request)
    return page(
        request,
        "home.html",
        **desk.figures(),
        online=len(catalogue.online_nodes(desk)),
        hub=address_of(request),
    )


@router.get("/datasets")
def catalogue_page(
    request: Request,
    schema: str = "",
    q: str = "",
    kind: str = "",
    unit: str = "",
    country: str = "",
    condition: str = "",
    online: bool = False,
    most: str = "",
    patients: str = "",
    epsilon: str = "",
    sort: str = "name",
    all: bool = False,
    after: str = "",
) -> HTMLResponse:
    desk = desk_of(request)
    sort = sort if sort in SORTS else "name"
    wanted = Asked(
        text=q[:200],
        schema=schema[:64],
        kind=kind,
        unit=unit,
        country=country[:2],
        condition=condition[:200],
        most_units=10**6 * _amount("most", most) + 0.5 if most else None,
        persons=_amount("patients", patients) if patients else None,
        epsilon=_amount("epsilon", epsilon) if epsilon else None,
        nodes=frozenset(catalogue.online_nodes(desk)) if online else None,
        all=all,
        sort=sort,
        after=after[:300],
    )
    shown, more = catalogue.page(desk, wanted)
    asked = {"q": q[:200], "kind": kind, "unit": unit, "online": "true" if online else ""}
    asked |= {"patients": patients[:20], "epsilon": epsilon[:20], "most": most[:20]}
    asked |= {"country": country[:2].upper(), "condition": condition[:200]}
    asked |= {"all": "true" if all else "", "schema": schema[:64]}
    given = {name: value for name, value in asked.items() if value} | {"sort": sort}
    return page(
        request,
        "catalogue.html",
        datasets=shown,
        sharing=desk.shared(),
        schema_hash=schema[:64],
        asked=asked | {"sort": sort},
        sorts=[*SORTS],
        filtered=any(asked.values()),
        next="?" + urlencode(given | {"after": more}) if more else "",
        first="?" + urlencode(given) if after else "",
    )


def _amount(name: str, text: str) -> float:
    """What somebody has typed. Raises BadRequest."""
    found = as_number(text.strip())
    if found is None:
        raise BadRequest(f"{name}={text[:40]!r} must be a number like 2.5")
    return found


@router.get("/datasets/{dataset_id}")
def dataset_page(request: Request, dataset_id: DatasetId) -> HTMLResponse:
    desk = desk_of(request)
    row = catalogue.dataset(desk, dataset_id)
    facts: dict[str, Any] = {"sharing": [], "columns": [], "example": []}
    if row["manifest"] is not None:
        schema = Schema.from_dict(row["manifest"]["schema"])
        facts = {
            "sharing": catalogue.sharing(desk, row["schema_hash"]),
            "columns": list(map(words.column, schema.features)),
            "outcome": schema.target.words,
            "names": schema.names,
            "inputs": schema.width,
            "example": [_cut(row) for row in made_up(schema, EXAMPLES)] if schema.features else [],
        }
    return page(request, "dataset.html", d=row, hub=address_of(request), **facts)


@router.get("/datasets/{dataset_id}/made-up.csv")
def made_up_table(request: Request, dataset_id: DatasetId) -> Response:
    """Made-up records by the dataset's schema, as many as are quickly made."""
    schema = Schema.from_dict(parse(catalogue.schema_of(desk_of(request), dataset_id)))
    text = io.StringIO()
    try:
        rows = made_up(schema, max(1, min(RECORDS, MOST_INPUTS // schema.width)))
        csv.writer(text).writerows(rows)
    except DatasetError as error:
        raise Conflict(str(error)) from error
    name = f"made-up-{dataset_id}.csv"
    return Response(
        text.getvalue(),
        media_type="text/csv; charset=utf-8",
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )


def _cut(row: list[str]) -> list[str]:
    """The first columns and the last, and their first digits: more does not fit a page."""
    shown = row if len(row) <= SHOWN else [*row[: SHOWN - 1], row[-1]]
    return [f"{number:.4g}" if (number := as_number(one)) is not None else one for one in shown]


@router.get("/order")
def order_page(
    request: Request, dataset: Annotated[list[int] | None, Query(max_length=64)] = None
) -> HTMLResponse:
    """One order, from what to train on to a signature. Without a dataset: those that can be
    ordered, by schema.
    """
    desk = desk_of(request)
    if not dataset:
        return page(request, "order_what.html", groups=catalogue.groups(desk))
    chosen = [row for row in catalogue.listing(desk, dataset) if row["manifest"]]
    first = next((row for row in chosen if row["dataset_id"] == dataset[0]), None)
    if first is None:
        raise BadRequest(f"dataset={dataset[0]} is not listed here with a manifest")
    others = catalogue.listing(desk, catalogue.sharing(desk, first["schema_hash"]))
    fitting = {
        row["dataset_id"]: row
        for row in (*chosen, *others)
        if row["schema_hash"] == first["schema_hash"]
    }
    rows = [fitting[number] for number in sorted(fitting)]
    schema = Schema.from_dict(first["manifest"]["schema"])
    return page(
        request,
        "order.html",
        rows=rows,
        chosen=set(dataset),
        target=schema.target,
        losses=list(schema.losses),
        models=list(BUILT_IN) if first["manifest"]["schema"].get("picture") is None else [],
        inputs=schema.inputs(next(iter(schema.losses))),
        delta=min(row["manifest"]["delta"] for row in rows),
        codes=INTENTS,
        network=desk.config,
        message=KEY_MESSAGE,
    )


@router.get("/jobs")
def jobs_page(request: Request, after: str = "") -> HTMLResponse:
    shown, more = jobs.recent(desk_of(request), after=after[:300])
    following = "?" + urlencode({"after": more}) if more else ""
    return page(request, "jobs.html", jobs=shown, next=following, first=bool(after))


@router.get("/jobs/{job_id}")
def job_page(request: Request, job_id: str, part: bool = False) -> HTMLResponse:
    """One job; with `part` what changes of it alone, for job.js."""
    desk = desk_of(request)
    row = jobs.job_row(desk, job_id)
    job = jobs.describe(desk, row)
    ordered = [line["dataset_id"] for line in job["datasets"]]
    names = {row["dataset_id"]: row for row in catalogue.listing(desk, ordered)}
    return page(
        request,
        "job_part.html" if part else "job.html",
        job=job,
        datasets=names,
        curve=charts.loss_curve(job["rounds"]) if job["loss"] != "output" else None,
        box=(charts.WIDTH, charts.HEIGHT),
        money_bar=charts.bar(_where_it_went(job)),
        final=JobState(row.state) in FINAL,
        due=JobState(row.state) not in FINAL and time.time() > job["deadline"],
        message=KEY_MESSAGE,
    )


@router.get("/compare")
def compare_page(
    request: Request, job: Annotated[list[str] | None, Query(max_length=MOST_COMPARED)] = None
) -> HTMLResponse:
    """Some jobs side by side."""
    desk = desk_of(request)
    if not job or len(set(job)) < 2:
        raise BadRequest(f"job: choose 2 to {MOST_COMPARED} different jobs to compare")
    found = [jobs.describe(desk, jobs.job_row(desk, one)) for one in dict.fromkeys(job)]
    return page(
        request,
        "compare.html",
        jobs=found,
        rows=comparison.rows([comparison.facts(one) for one in found]),
        curves=[
            charts.loss_curve(one["rounds"]) if one["loss"] != "output" else None for one in found
        ],
        box=(charts.WIDTH, charts.HEIGHT),
    )


def _where_it_went(job: dict[str, Any]) -> list[tuple[str, int]]:
    if job["settlement"] is None:
        return []
    paid, change = job["settlement"]["paid_units"], job["settlement"]["change_units"]
    rest = job["amount_units"] - paid - change
    return [("hospitals and contributors", paid), ("the hub's fee", rest), ("back", change)]


@router.get("/hospitals/{node}")
def hospital_page(request: Request, node: str) -> HTMLResponse:
    """A hospital by the key that its node signs with."""
    desk = desk_of(request)
    card = hospitals.hospital(desk, node)
    rows = catalogue.of_node(desk, card["node"])
    return page(request, "hospital.html", card=card, rows=rows)


@router.get("/claims")
def claims_page(request: Request, account: str = "") -> HTMLResponse:
    desk, claims, jobs_, sentence = desk_of(request), [], [], ""
    if account:
        try:
            claims = claims_of(desk, account.strip())
            jobs_ = earned(desk, account.strip())
        except HubError as refused:
            sentence = str(refused)
    names = {
        row["dataset_id"]: row["manifest"]["name"]
        for row in catalogue.listing(desk, [claim.dataset_id for claim in claims])
        if row["manifest"]
    }
    return page(
        request,
        "claims.html",
        account=account.strip(),
        claims=claims,
        earned=jobs_,
        names=names,
        error=sentence,
        claimable=sum(claim.claimable_units for claim in claims),
        claimed=sum(claim.claimed_units for claim in claims),
    )


@router.get("/words")
def words_page(request: Request) -> HTMLResponse:
    return page(request, "words.html", words=glossary.WORDS)
