"""What every client of the API may count on: problem documents, pages of lists, ETags, a request
that is named and sent again, a limit for each client.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import select

from datahub.market import repeats
from datahub.market.tables import EntryRow, QuoteRow, RepeatRow
from datahub.web import rates
from datahub.web.api import create_app
from datahub.web.rates import Rate, client_of
from tests.clocks import clock
from tests.datahub.fixtures import serving
from tests.datahub.hub_world import HubWorld


@pytest.mark.parametrize(
    ("method", "path", "status", "title"),
    [
        ("GET", "/api/v1/datasets/99", 404, "Not Found"),
        ("GET", "/api/v1/nothing", 404, "Not Found"),
        ("DELETE", "/api/v1/jobs", 405, "Method Not Allowed"),
        ("POST", "/api/v1/quotes", 422, "Unprocessable Content"),
        ("GET", "/api/v1/jobs?limit=0", 422, "Unprocessable Content"),
        ("GET", "/api/v1/datasets?colour=red", 422, "Unprocessable Content"),
        ("GET", "/api/v1/datasets?after=x", 422, "Unprocessable Content"),
    ],
)
def test_errors__are_problem_documents(
    hub_url: str, method: str, path: str, status: int, title: str
) -> None:
    answer = httpx.request(method, hub_url + path, json={} if method == "POST" else None)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    said = answer.json()
    assert (said["type"], said["status"]) == ("about:blank", status)
    assert said["title"].startswith(title.split()[0]) and said["detail"]


# -- lists -----------------------------------------------------------------------------------------


def walked(url: str, path: str) -> list[list[Any]]:
    """Each page of a list, by the header Link."""
    pages: list[list[Any]] = []
    with httpx.Client(base_url=url) as client:
        following = path
        while following:
            answer = client.get(following)
            assert answer.status_code == 200, answer.text
            pages.append(answer.json())
            following = answer.links.get("next", {}).get("url", "")
            assert len(pages) < 100
    return pages


@pytest.mark.parametrize("sort", ["name", "price", "size", "epsilon", "newest"])
def test_datasets__in_pages__each_once_and_in_order(hub: HubWorld, hub_url: str, sort: str) -> None:
    with hub.desk.session() as session:
        first = session.get(EntryRow, 1)
        assert first is not None
        for i in range(1, 12):  # many of one name, price and size: only their ids tell them apart
            here = {"dataset_id": 1, "title": "table 1"}
            session.merge(EntryRow(**(first.model_dump() | here)))
            copy = {"dataset_id": i, "persons": 100 * (i // 4), "price_rank": i // 3}
            session.merge(EntryRow(**(first.model_dump() | copy)))
        session.commit()
    whole = walked(hub_url, f"/api/v1/datasets?sort={sort}&limit=200")
    pages = walked(hub_url, f"/api/v1/datasets?sort={sort}&limit=2")
    ids = [row["dataset_id"] for page in pages for row in page]
    assert ids == [row["dataset_id"] for row in whole[0]] and len(ids) == len(set(ids))
    assert {1, 2, 3} <= set(ids)


def test_jobs__in_pages__newest_first_each_once(hub: HubWorld, hub_url: str) -> None:
    ids = [hub.job()[0].job_id for _ in range(5)]
    pages = walked(hub_url, "/api/v1/jobs?limit=2")
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [row["job_id"] for page in pages for row in page] == ids[::-1]


# -- what a client has already ---------------------------------------------------------------------


def test_etag__named_by_the_client__no_body_until_it_changes(hub: HubWorld, hub_url: str) -> None:
    row, _ = hub.job()
    url = f"{hub_url}/api/v1/jobs/{row.job_id}"
    first = httpx.get(url)
    tag = {"if-none-match": first.headers["etag"]}
    again = httpx.get(url, headers=tag)
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert httpx.get(url, headers={"if-none-match": '"other"'}).status_code == 200
    with hub.desk.session() as session:
        row.reason = "something has happened"
        session.merge(row)
        session.commit()
    assert httpx.get(url, headers=tag).json()["reason"] == "something has happened"


def test_etag__an_error_and_a_stream__have_none(hub: HubWorld, hub_url: str) -> None:
    assert "etag" not in httpx.get(f"{hub_url}/api/v1/datasets/99").headers
    row, _ = hub.job()
    with httpx.stream("GET", f"{hub_url}/api/v1/jobs/{row.job_id}/events") as answer:
        assert "etag" not in answer.headers
        assert next(answer.iter_lines()) == "event: job"  # as it comes, and not held back


# -- a request that is named -----------------------------------------------------------------------


def test_quote__named_and_sent_again__is_the_first_one(hub: HubWorld, hub_url: str) -> None:
    body = hub.order().body()
    named = {"idempotency-key": "order 7"}
    with httpx.Client(base_url=hub_url) as client:
        first = client.post("/api/v1/quotes", json=body, headers=named)
        again = client.post("/api/v1/quotes", json=body, headers=named)
        assert first.status_code == again.status_code == 200 and first.json() == again.json()
        unnamed = client.post("/api/v1/quotes", json=body).json()
        assert unnamed["job_id"] != first.json()["job_id"]
        other = client.post("/api/v1/quotes", json=body | {"epsilon": 1.0}, headers=named)
        assert other.status_code == 422 and "another request" in other.json()["detail"]
        wrong = client.post(
            "/api/v1/quotes", json=body | {"datasets": [99]}, headers={"idempotency-key": "order 8"}
        )
        assert wrong.status_code == 404
        right = client.post("/api/v1/quotes", json=body, headers={"idempotency-key": "order 8"})
        assert right.status_code == 200, "an error is not kept"
    with hub.desk.session() as session:
        assert session.get(QuoteRow, first.json()["job_id"]) is not None


def test_quote__named_and_sent_many_times_at_once__is_one_answer(
    hub: HubWorld, hub_url: str
) -> None:
    body = hub.order().body()

    def ask(_: int) -> str:
        answer = httpx.post(
            f"{hub_url}/api/v1/quotes", json=body, headers={"idempotency-key": "x"}, timeout=60
        )
        return str(answer.json()["job_id"])

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(ask, range(6)))) == 1


def test_quotes_that_are_named__by_the_thousand__push_out_the_oldest(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "MOST", 3)
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"number": len(made)}

    for n in range(8):
        repeats.once(hub.desk, f"name {n}", {}, make)
    with hub.desk.session() as session:
        assert len(session.exec(select(RepeatRow)).all()) == 3
    assert repeats.once(hub.desk, "name 7", {}, make) == {"number": 8}, "the newest is kept"
    assert repeats.once(hub.desk, "name 0", {}, make) == {"number": 9}, "the oldest is asked anew"


# -- limits ----------------------------------------------------------------------------------------


def test_rate__so_many_at_once_then_so_many_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    clock(monkeypatch, rates, monotonic=lambda: now[0])
    rate = Rate(2.0, 3)
    assert [rate.wait_s("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert rate.wait_s("b") == 0.0
    now[0] = 0.5
    assert [rate.wait_s("a"), rate.wait_s("a")] == [0.0, 0.5]
    now[0] = 1000.0
    assert [rate.wait_s("a") for _ in range(4)][-1] == 0.5, "no more than the burst is saved up"


def test_rate__many_clients__are_forgotten_and_memory_has_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rates, "MOST_CLIENTS", 10)
    rate = Rate(1.0, 1)
    for i in range(1000):
        rate.wait_s(str(i))
    assert len(rate._left) == 10


@given(st.text(max_size=60), st.none() | st.text(max_size=80))
def test_client_of__whatever_is_written__is_a_short_name(
    address: str, forwarded: str | None
) -> None:
    found = client_of(address, forwarded)
    assert found is None or 0 < len(found) <= 60


@pytest.mark.parametrize(
    ("address", "forwarded", "client"),
    [
        ("203.0.113.9", None, "203.0.113.9"),
        ("127.0.0.1", None, None),
        ("::1", None, None),
        ("127.0.0.1", "198.51.100.1", "198.51.100.1"),
        # what a client wrote itself stands first, what the operator's proxy wrote last
        ("127.0.0.1", "127.0.0.1, 198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("203.0.113.9", "", "nobody"),
        ("2001:db8:0:1:aaaa::1", None, "2001:db8:0:1::/64"),
        ("2001:db8:0:1:bbbb::2", None, "2001:db8:0:1::/64"),
        ("::ffff:203.0.113.9", None, "203.0.113.9"),
    ],
)
def test_client_of__who_asks(address: str, forwarded: str | None, client: str | None) -> None:
    assert client_of(address, forwarded) == client


def test_limit__one_client_asks_too_often__it_alone_is_told_when_to_come_again(
    hub: HubWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, rates, monotonic=lambda: 0.0)  # however long they take on a busy machine
    object.__setattr__(hub.desk, "config", replace(hub.desk.config, behind_proxy=True))
    with serving(create_app(hub.desk, drive=False)) as url, httpx.Client(base_url=url) as client:
        one, other = ({"x-forwarded-for": at} for at in ("198.51.100.1", "198.51.100.2"))
        answers = [client.post("/api/v1/nothing", headers=one) for _ in range(110)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused and refused[0] is answers[100]
        assert int(refused[0].headers["retry-after"]) >= 1
        assert refused[0].headers["content-type"] == "application/problem+json"
        assert "too many requests from one client" in refused[0].json()["detail"]
        assert client.get("/api/v1/jobs", headers=one).status_code == 200, "looking has its own"
        assert client.post("/api/v1/nothing", headers=other).status_code == 404
        # a header that the client writes itself changes nothing
        forged = {"x-forwarded-for": "10.0.0.7, 198.51.100.1"}
        assert client.post("/api/v1/nothing", headers=forged).status_code == 429
