"""The hub's HTTP door: JSON under /api, pages elsewhere. Maps errors to statuses; decides nothing.

Every answer to a user's mistake is one sentence in a problem document (RFC 9457). Amounts travel
as integers in base units.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from starlette.exceptions import HTTPException

from datahub.errors import BadRequest, HubError
from datahub.market import (
    catalogue,
    claims,
    contributors,
    hospitals,
    jobs,
    offers,
    orders,
    reconcile,
    repeats,
    wallets,
)
from datahub.market.catalogue import MOST_ID
from datahub.market.desk import Desk
from datahub.market.entries import Asked
from datahub.order import Order
from datahub.web import account, live, metadata, operations, pages, problems
from datahub.web.bodies import Body
from datahub.web.bounds import Bounds
from datahub.web.etags import ETags
from datahub.web.pages import DatasetId
from datatokens.errors import BankError, TermsError
from datatokens.terms import USUAL_DEADLINE_S, DisputeTerms
from fl_client.protocol import MAX_CODES
from fl_server.errors import TheatreError


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


DeskDep = Annotated[Desk, Depends(_desk)]


# what any route may answer beside what was asked for
REFUSALS = problems.described(
    {
        304: "the client has it: If-None-Match named it",
        400: "no HTTP request of this kind",
        403: "not signed in, or not from this hub's own page",
        404: "no such thing",
        405: "no such method here",
        408: "the body came too slowly",
        409: "the thing is in another state than this needs",
        413: "the body is too large",
        422: "a field is missing, unknown or out of range",
        429: "too much at once; ask again after as many seconds as Retry-After says",
        503: "chain or SuperLink does not answer; ask again",
    }
)


class NodeIn(Body):
    """A node key and its SuperNode's public key, which the node registry must have bound to each
    other.
    """

    node: str
    supernode_public_key: str = Field(max_length=2000)


class ContributorsIn(Body):
    """A dataset's contributor list for one epoch: [[account, weight], ...] in the order of the
    tree's leaves.
    """

    epoch: int = Field(ge=1, le=2**63 - 1)  # the database's whole numbers end there
    entries: list[Annotated[tuple[str, StrictInt], Field(strict=False)]]  # JSON has lists only


class OfferIn(Body):
    """What a node will refuse (fl_client.node.offer): canonical JSON, the node key's signature."""

    offer: str = Field(max_length=64 * 1024)
    signature: str = Field(max_length=132)


class DisputeIn(Body):
    """How a disagreement is decided; see datatokens.terms.DisputeTerms."""

    window_s: int
    arbiter: str
    bond_units: int
    silent_bps: int


class OrderIn(Body):
    """What a buyer wants. Graph and weights are base64 (fl_client.model.export.export_model makes
    them). `model` names the built-in model that the graph is; what is left out of rounds, steps and
    momentum then follows from it (fl_client.privacy.defaults). Without a graph the hub makes that
    model's, and without a loss the first that fits the target.
    """

    buyer: str
    buyer_public_key: str
    datasets: list[int] = Field(min_length=1, max_length=64)
    vouchers: list[int] = Field(default=[], max_length=64)
    # dataset -> tier, 0 where left out; names in JSON are text
    tiers: dict[Annotated[int, Field(strict=False)], int] = Field(default={}, max_length=64)
    compute_minutes: int = Field(default=10, ge=1, le=10_000)
    dispute: DisputeIn | None = None
    graph: str = ""
    weights: str = ""
    loss: str = ""
    epsilon: float = Field(gt=0, le=100)
    delta: float = Field(gt=0, le=0.01)
    model: str | None = None
    rounds: int | None = None
    local_steps: int | None = None
    learning_rate: float | None = None
    clip_norm: float | None = None
    server_momentum: float | None = None
    server_rates: dict[str, float] | None = None
    reward_units: int = 0
    purpose: str
    purpose_codes: list[str] = Field(default=[], max_length=MAX_CODES)
    deadline_s: int = USUAL_DEADLINE_S
    answer_s: int | None = None
    quorum: int | None = None


class PageIn(BaseModel):
    """One page of a list; `after`: the cursor that the page before named."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=100, ge=1, le=200)
    after: str = Field(default="", max_length=300)


class DatasetsIn(PageIn):
    """What of the catalogue: see datahub.market.entries.Asked; or those of `id` alone."""

    id: list[Annotated[int, Field(ge=1, le=MOST_ID)]] = Field(default=[], max_length=64)
    q: str = Field(default="", max_length=200)
    schema_hash: str = Field(default="", max_length=64)
    kind: Literal["", "table", "pictures"] = ""
    unit: Literal["", "patient", "record"] = ""
    country: str = Field(default="", max_length=2)
    condition: str = Field(default="", max_length=200)
    most_units: int | None = Field(default=None, ge=0, le=2**63 - 1)
    persons: int | None = Field(default=None, ge=0, le=2**63 - 1)
    epsilon: float | None = Field(default=None, ge=0, le=1e9)
    online: bool = False
    all: bool = False
    sort: Literal["name", "price", "size", "epsilon", "newest"] = "name"


class TermsIn(Body):
    """The exact terms document of a quote."""

    terms: str


class ClaimIn(Body):
    """Who claims, and where to (left out: to themselves)."""

    account: str
    to: str = ""


class JobIn(Body):
    """The exact terms document that was paid for; with the model's files (base64) for a hub that no
    longer has them.
    """

    terms: str
    graph: str = ""
    weights: str = ""


def _dispute(given: DisputeIn | None) -> DisputeTerms | None:
    try:
        return DisputeTerms(**given.model_dump()) if given else None
    except TermsError as error:
        raise BadRequest(str(error)) from error


def _next(request: Request, response: Response, cursor: str) -> None:
    """Name the next page, if there is one."""
    if cursor:
        url = request.url.include_query_params(after=cursor)
        response.headers["link"] = f'<{url.path}?{url.query}>; rel="next"'


def _base64(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"{name} must be base64") from error


def _say(request: Request, sentence: str, status: int) -> Response:
    """An error as JSON under /api, as a page elsewhere."""
    if request.url.path.startswith("/api/"):
        return Response(problems.document(status, sentence), status, media_type=problems.MEDIA_TYPE)
    return pages.error(request, sentence, status)


def create_app(desk: Desk, *, drive: bool = True) -> FastAPI:
    """The application over open connections; with `drive` it also drives jobs."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        desk.index.catch_up()
        app.state.loops = reconcile.loops(desk, drive=drive)
        for loop in app.state.loops:
            loop.start()
        yield
        reconcile.stop(desk, app.state.loops)

    app = FastAPI(
        title="datahub",
        version="0.1.0",
        description="Buy one training job over many hospitals; raw data never leaves them.",
        # Swagger's page loads scripts from elsewhere; /openapi.json is the document itself
        docs_url=None,
        redoc_url=None,
        responses=REFUSALS,
        lifespan=lifespan,
    )
    app.state.desk = desk
    # the embedded chain's test accounts sign on the chain itself (demo_wallet.js)
    elsewhere = f"; connect-src 'self' {desk.config.chain}" if pages.demo_chain(desk) else ""
    policy = f"default-src 'self'; frame-ancestors 'none'; form-action 'self'{elsewhere}"
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    app.include_router(pages.router)
    app.include_router(account.router)
    app.include_router(account.page_router)
    app.include_router(metadata.router)

    @app.exception_handler(HubError)
    async def _hub_error(request: Request, error: HubError) -> Response:
        return _say(request, str(error), error.status)

    @app.exception_handler(BankError)
    @app.exception_handler(TheatreError)
    async def _outside_error(request: Request, error: Exception) -> Response:
        return _say(request, str(error), 503)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        given = first.get("input")
        shown = "" if isinstance(given, dict | list) else f"={str(given)[:80]!r}"
        return _say(request, f"{where}{shown}: {first['msg']}", 422)

    @app.middleware("http")
    async def _headers(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-content-type-options"] = "nosniff"
        response.headers["referrer-policy"] = "no-referrer"
        response.headers["content-security-policy"] = policy
        return response

    app.add_middleware(ETags)
    app.add_middleware(Bounds, behind_proxy=desk.config.behind_proxy)
    operations.install(app, desk)

    @app.exception_handler(HTTPException)
    async def _elsewhere(request: Request, error: HTTPException) -> Response:
        return _say(
            request, f"{request.method} {request.url.path[:80]}: {error.detail}", error.status_code
        )

    @app.get("/api/v1/network")
    def network(desk: DeskDep) -> dict[str, Any]:
        """What a node or a buyer needs to connect; compare the addresses with those in your
        contract.
        """
        config = desk.config
        return {
            "chain_id": config.chain_id,
            "registry": config.registry,
            "market": config.market,
            "payment_token": config.payment_token,
            "superlink": config.superlink,
            "ca_certificate": (config.superlink_folder / "ca.crt").read_text(),
            "fee_bps": config.fee_bps,
        }

    @app.get("/api/v1/datasets")
    def datasets(
        desk: DeskDep,
        request: Request,
        response: Response,
        asked: Annotated[DatasetsIn, Query()],
    ) -> list[dict[str, Any]]:
        """The catalogue, a page at a time: the header Link names the next one (RFC 8288)."""
        if asked.id:
            return catalogue.listing(desk, asked.id)
        nodes = frozenset(catalogue.online_nodes(desk)) if asked.online else None
        wanted = Asked(
            text=asked.q,
            schema=asked.schema_hash,
            kind=asked.kind,
            unit=asked.unit,
            country=asked.country,
            condition=asked.condition,
            most_units=asked.most_units,
            persons=asked.persons,
            epsilon=asked.epsilon,
            nodes=nodes,
            all=asked.all,
            sort=asked.sort,
            after=asked.after,
        )
        rows, more = catalogue.page(desk, wanted, asked.limit)
        _next(request, response, more)
        return rows

    @app.get("/api/v1/datasets/{dataset_id}")
    def dataset(dataset_id: DatasetId, desk: DeskDep) -> dict[str, Any]:
        """One dataset, with what of its lifetime epsilon its node has attested as spent."""
        return catalogue.dataset(desk, dataset_id)

    @app.put("/api/v1/datasets/{dataset_id}/manifest")
    def put_manifest(
        dataset_id: DatasetId, document: dict[str, Any], desk: DeskDep
    ) -> dict[str, Any]:
        catalogue.put_manifest(desk, dataset_id, document)
        return {"dataset_id": dataset_id}

    @app.put("/api/v1/datasets/{dataset_id}/contributors")
    def put_contributors(
        dataset_id: DatasetId, body: ContributorsIn, desk: DeskDep
    ) -> dict[str, Any]:
        contributors.put_contributors(desk, dataset_id, body.epoch, body.entries)
        return {"dataset_id": dataset_id, "epoch": body.epoch, "contributors": len(body.entries)}

    @app.put("/api/v1/datasets/{dataset_id}/offer")
    def put_offer(dataset_id: DatasetId, body: OfferIn, desk: DeskDep) -> dict[str, Any]:
        offers.put_offer(desk, dataset_id, body.offer, body.signature)
        return {"dataset_id": dataset_id}

    @app.get("/api/v1/schemas/{schema_hash}")
    def schema(schema_hash: str, desk: DeskDep) -> Response:
        """The canonical JSON whose SHA-256 this is: what another hospital lists its table by, so
        that both fit one order.
        """
        return Response(catalogue.schema(desk, schema_hash), media_type="application/json")

    @app.get("/api/v1/hospitals/{node}")
    def hospital(node: str, desk: DeskDep) -> dict[str, Any]:
        return hospitals.hospital(desk, node)

    @app.post("/api/v1/nodes")
    def register_node(body: NodeIn, desk: DeskDep) -> dict[str, Any]:
        supernode_id = hospitals.register_node(desk, body.node, body.supernode_public_key)
        return {"supernode_id": str(supernode_id)}

    @app.post("/api/v1/quotes")
    def quote(
        body: OrderIn,
        desk: DeskDep,
        idempotency_key: Annotated[str, Header(max_length=repeats.LONGEST_KEY)] = "",
    ) -> dict[str, Any]:
        """Terms with a price. A client that names its request (Idempotency-Key) gets the same terms
        again within the hour, where the first answer got lost.
        """
        given = body.model_dump() | {
            "datasets": tuple(body.datasets),
            "vouchers": tuple(body.vouchers),
            "purpose_codes": tuple(body.purpose_codes),
            "dispute": _dispute(body.dispute),
            "graph": _base64("graph", body.graph),
            "weights": _base64("weights", body.weights),
        }
        return repeats.once(
            desk,
            idempotency_key,
            body.model_dump(),
            lambda: orders.as_json(*orders.quote(desk, Order(**given))),
        )

    @app.get(
        "/api/v1/jobs/{job_id}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"schema": live.EVENT}}}},
    )
    def events(job_id: str, desk: DeskDep) -> StreamingResponse:
        """The job whenever it changes, as server-sent events, until it has ended."""
        jobs.job_row(desk, job_id)
        return StreamingResponse(
            live.changes(desk, job_id),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )

    @app.post("/api/v1/jobs", status_code=201)
    def submit(body: JobIn, desk: DeskDep) -> dict[str, Any]:
        return jobs.describe(
            desk,
            jobs.submit(
                desk,
                body.terms.encode(),
                (_base64("graph", body.graph), _base64("weights", body.weights)),
            ),
        )

    @app.post("/api/v1/transactions/payment")
    def payment(body: TermsIn, desk: DeskDep) -> dict[str, Any]:
        """What a buyer's own wallet signs to pay for quoted terms."""
        return wallets.payment(desk, body.terms.encode())

    @app.post("/api/v1/transactions/claim")
    def claim(body: ClaimIn, desk: DeskDep) -> dict[str, Any]:
        """What a contributor's own wallet signs to be paid everything at once."""
        return wallets.claim(desk, body.account, body.to)

    @app.post("/api/v1/transactions/refund/{job_id}")
    def refund(job_id: str, desk: DeskDep) -> dict[str, Any]:
        """What anybody's wallet signs to give an unsettled job's money back after its deadline."""
        return wallets.refund(desk, job_id)

    @app.get("/api/v1/jobs")
    def list_jobs(
        desk: DeskDep, request: Request, response: Response, asked: Annotated[PageIn, Query()]
    ) -> list[dict[str, Any]]:
        """The newest jobs, a page at a time: the header Link names the next one (RFC 8288)."""
        rows, more = jobs.recent(desk, asked.limit, asked.after)
        _next(request, response, more)
        return rows

    @app.get("/api/v1/jobs/{job_id}")
    def job(job_id: str, desk: DeskDep) -> dict[str, Any]:
        return jobs.describe(desk, jobs.job_row(desk, job_id))

    @app.get("/api/v1/jobs/{job_id}/terms")
    def job_terms(job_id: str, desk: DeskDep) -> Response:
        """The canonical JSON whose hash the job's id is; whoever has it can refund, dispute or
        settle.
        """
        return Response(jobs.job_row(desk, job_id).terms, media_type="application/json")

    @app.get("/api/v1/jobs/{job_id}/report")
    def report(job_id: str, desk: DeskDep) -> Response:
        """The canonical JSON whose SHA-256 is on-chain."""
        raw = jobs.result(desk, jobs.job_row(desk, job_id)).report
        return Response(raw, media_type="application/json")

    @app.get("/api/v1/jobs/{job_id}/result")
    def result(job_id: str, desk: DeskDep) -> Response:
        """Model and report, sealed to the buyer's key: of no use to anybody else."""
        raw = jobs.result(desk, jobs.job_row(desk, job_id)).sealed
        return Response(raw, media_type="application/octet-stream")

    @app.get("/api/v1/claims/{account}")
    def claims_of(account: str, desk: DeskDep) -> list[dict[str, Any]]:
        return [asdict(claim) for claim in claims.claims_of(desk, account)]

    @app.get("/api/v1/claims/{account}/jobs")
    def earned(account: str, desk: DeskDep) -> list[dict[str, Any]]:
        """What each settled job has earned an account, the newest hundred."""
        return [asdict(one) for one in claims.earned(desk, account)]

    return app
