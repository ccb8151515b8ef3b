"""The local page: who may come in, what it shows, what a click does; in a real browser, too."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import uvicorn

from fl_client.node import inbox
from fl_client.node.admission import admit
from fl_client.node.job_folder import JobFolder
from fl_client.node.rounds import ask
from fl_client.office import door
from fl_client.office.door import COOKIE, IDLE_S, Door, Session
from fl_client.office.drawing import drawing
from fl_client.office.page import Page, open_socket
from fl_client.protocol import Refused, Signed, Waiting
from tests.clinic import FOR_EVERYBODY, GRAPH, WEIGHTS, Clinic
from tests.clocks import clock

CHROMIUM = shutil.which("chromium")


class Open:
    """A page that runs: its address, its link."""

    def __init__(self, folder: Path, measured: bool = False):
        listening = open_socket(0)
        port = listening.getsockname()[1]
        self.door = Door(port)
        self.url = f"http://127.0.0.1:{port}"
        self.link = f"{self.url}/enter?token={self.door.token}"
        page = Page(folder, self.door, measured)
        settings = uvicorn.Config(page.app, log_level="warning")
        self.server = uvicorn.Server(settings)
        serve = threading.Thread(
            target=self.server.run, kwargs={"sockets": [listening]}, daemon=True
        )
        serve.start()
        while not self.server.started:
            time.sleep(0.02)

    @contextmanager
    def inside(self) -> Iterator[httpx.Client]:
        """Somebody who came in by the link."""
        with httpx.Client(base_url=self.url, headers={"origin": self.url}) as client:
            answer = client.get(self.link)
            assert answer.status_code == 303
            client.base_url = f"{self.url}{answer.headers['location']}"
            yield client


@pytest.fixture
def opened(clinic: Clinic) -> Iterator[Open]:
    toml = clinic.folder / "node.toml"
    toml.write_text(toml.read_text().replace(FOR_EVERYBODY, ""))
    page = Open(clinic.folder)
    yield page
    page.server.should_exit = True


def waits(clinic: Clinic) -> str:
    terms = clinic.paid()
    assert isinstance(admit(clinic.room(), terms.to_json(), GRAPH, WEIGHTS), Waiting)
    return terms.job_id.hex()


def form_of(client: httpx.Client, job: str) -> dict[str, str]:
    word = re.search(r'name="word" value="([^"]+)"', client.get(f"/jobs/{job}").text)
    assert word
    return {"word": word[1], "by": "Dr. Specht"}


def test_page__without_the_link_or_with_it_twice__is_closed(opened: Open, clinic: Clinic) -> None:
    job = waits(clinic)
    for path in ("/", "/log", f"/jobs/{job}"):
        answer = httpx.get(opened.url + path)
        assert answer.status_code == 403 and job[:12] not in answer.text
    assert httpx.get(opened.url + "/enter?token=guess").status_code == 403
    assert httpx.get(opened.url + "/enter").status_code == 403
    with opened.inside() as client:
        assert job[:12] in client.get("/").text
        assert httpx.get(opened.link).status_code == 403, "a link works once"
        assert client.get("/").status_code == 200, "and the one who came in stays in"
    assert httpx.post(f"{opened.url}/jobs/{job}/decide", data={"answer": "yes"}).status_code == 403


@pytest.mark.parametrize(
    "headers", [{"host": "evil.example"}, {"x-forwarded-for": "1.2.3.4"}, {"host": "127.0.0.1"}]
)
def test_page__by_another_name_or_through_a_proxy__is_refused(
    opened: Open, headers: dict[str, str]
) -> None:
    """A page elsewhere can have its own name point to 127.0.0.1 and be same-origin with it."""
    with opened.inside() as client:
        assert client.get("/", headers=headers).status_code == 403


@contextmanager
def another_port() -> Iterator[tuple[str, list[str]]]:
    """A server of another user of this machine: its address, the cookies that it was given."""
    given: list[str] = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given.append(self.headers.get("cookie", ""))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", given
        server.shutdown()


def test_session__another_port_of_this_machine__is_given_no_cookie(
    opened: Open, clinic: Clinic
) -> None:
    """Browsers send a cookie to every port of the host that has set it (RFC 6265, 8.5)."""
    job = waits(clinic)
    with another_port() as (url, given), opened.inside() as client:
        assert client.get(f"{url}/jobs/{job}").status_code == 200
        cookie = client.cookies[COOKIE]
    assert given == [""]
    for path in ("/", f"/jobs/{job}", f"/{'x' * 43}/"):
        answer = httpx.get(opened.url + path, headers={"cookie": f"{COOKIE}={cookie}"})
        assert answer.status_code == 403, "nor is the cookie alone of any use"


@pytest.mark.parametrize(
    ("headers", "changes"),
    [
        ({"origin": "https://evil.example"}, {}),
        ({"origin": "null"}, {}),
        ({}, {"word": "guess"}),
        ({}, {"word": ""}),
    ],
)
def test_decide__from_another_page__is_refused_and_nothing_written(
    opened: Open, clinic: Clinic, headers: dict[str, str], changes: dict[str, str]
) -> None:
    job = waits(clinic)
    with opened.inside() as client:
        form = form_of(client, job) | {"answer": "yes"} | changes
        answer = client.post(f"/jobs/{job}/decide", data=form, headers=headers)
    assert answer.status_code == 403 and inbox.waiting(clinic.folder)[0].decisions == ()


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({"answer": "maybe"}, 400),
        ({"answer": "no", "reason": ""}, 422),
        ({"answer": "yes", "by": ""}, 422),
        ({"answer": "yes", "by": "x" * 81}, 422),
        ({"answer": "no", "reason": "x" * 20_000}, 413),
        ({"answer": "release"}, 409),
    ],
)
def test_decide__nonsense__is_a_sentence_and_nothing_written(
    opened: Open, clinic: Clinic, form: dict[str, str], status: int
) -> None:
    job = waits(clinic)
    with opened.inside() as client:
        answer = client.post(f"/jobs/{job}/decide", data=form_of(client, job) | form)
    assert answer.status_code == status and inbox.waiting(clinic.folder)[0].decisions == ()


def test_page__loads_nothing_from_elsewhere_and_runs_no_script(
    opened: Open, clinic: Clinic
) -> None:
    job = waits(clinic)
    with opened.inside() as client:
        for path in ("/", "/log", f"/jobs/{job}", f"{opened.url}/style.css"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-security-policy"].startswith("default-src 'none'")
            assert answer.headers["cache-control"] == "no-store"
            assert not re.search(r'(src|href|url\()="?(https?:)?//', answer.text)
            assert "<script" not in answer.text and "style=" not in answer.text


def test_page__a_buyer_who_writes_markup__is_shown_as_text(opened: Open, clinic: Clinic) -> None:
    terms = clinic.paid(clinic.spec(purpose="<script>alert(1)</script>"))
    admit(clinic.room(), terms.to_json(), GRAPH, WEIGHTS)
    with opened.inside() as client:
        text = client.get(f"/jobs/{terms.job_id.hex()}").text + client.get("/").text
    assert "<script>" not in text and "&lt;script&gt;" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [("request.json", "{"), ("request.json", '{"dataset_id": 1, "at": 1}'), ("held.json", "{}")],
)
def test_page__a_file_of_one_job_is_damaged__the_others_are_shown(
    opened: Open, clinic: Clinic, name: str, content: str
) -> None:
    bad, good = waits(clinic), waits(clinic)
    (clinic.folder / "jobs" / bad / name).write_text(content)
    with opened.inside() as client:
        text = client.get("/").text
        assert f"Job {good[:12]}" in text and f"{name} " in text and "is damaged" in text
        assert client.get(f"/jobs/{bad}").status_code in (200, 409)
        assert client.get(f"/jobs/{good}").status_code == 200
        assert client.get("/status").status_code == 200


def test_decide__disk_is_full__is_a_sentence(
    opened: Open, clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = waits(clinic)

    def full(self: JobFolder, *_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(JobFolder, "decide", full)
    with opened.inside() as client:
        answer = client.post(f"/jobs/{job}/decide", data=form_of(client, job) | {"answer": "yes"})
    assert answer.status_code == 409 and "No space left" in answer.text
    assert inbox.waiting(clinic.folder)[0].decisions == ()


def test_status__meters_contacts_and_earnings__and_nothing_to_strangers(
    opened: Open, clinic: Clinic
) -> None:
    with opened.inside() as client:
        text = client.get("/status").text
        assert "Not running" in text and "of 3 at delta 1e-05" in text and "0 jobs paid" in text
        assert client.get("/metrics").status_code == 404, "on request alone"
    assert httpx.get(f"{opened.url}/status").status_code == 403


def test_metrics__on_request__are_for_this_machine_alone(clinic: Clinic) -> None:
    page = Open(clinic.folder, measured=True)
    text = httpx.get(f"{page.url}/metrics").text
    assert f'datahub_epsilon_lifetime{{dataset="{clinic.dataset_id}",name="T"}} 3' in text
    assert httpx.get(f"{page.url}/metrics", headers={"host": "evil.example"}).status_code == 403
    assert httpx.get(f"{page.url}/").status_code == 403
    page.server.should_exit = True


def test_session__away_for_hours__is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Door(1)
    cookie, session = one.enter(one.token or "") or ("", Session())
    assert one.session({COOKIE: cookie}, f"{session.place}log") is session
    assert one.session({COOKIE: cookie}, "/log") is None
    now = time.monotonic()
    clock(monkeypatch, door, monotonic=lambda: now + IDLE_S + 1)
    assert one.session({COOKIE: cookie}, session.place) is None


def test_drawing__steps_and_skips__are_boxes_and_lines() -> None:
    made = drawing([["a", "[1]", [-1]], ["b", "[1]", [0]], ["sum", "[1]", [0, 1]]], "one record")
    assert [box.name for box in made.boxes] == ["input", "a", "b", "sum"]
    assert sum(" H " in line for line in made.lines) == 1 and len(made.lines) == 4


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: make tools")
@pytest.mark.parametrize("width", [1440, 375])
def test_page_in_chromium__approve_and_refuse__by_hand_and_nothing_is_wider_than_the_screen(
    opened: Open, clinic: Clinic, width: int
) -> None:
    from playwright.sync_api import sync_playwright

    yes, no = waits(clinic), waits(clinic)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(opened.link)
        home = page.url
        assert "token" not in home, "the token does not stay in the address"
        for job in (yes, no):
            page.get_by_role("link", name=f"Job {job[:12]}").click()
            for text in ("What leaves this house", "lifetime", "3 numbers", "linear layer"):
                assert page.get_by_text(text).first.is_visible(), text
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            if job == yes:
                page.get_by_label("Your name, for the record").first.fill("Dr. Specht")
                page.get_by_role("button", name="Approve this job").click()
            else:
                page.get_by_label("Why; the buyer reads it").fill("not our field")
                page.get_by_role("button", name="Refuse this job").click()
            page.wait_for_url(home)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    there = clinic.room()
    assert isinstance(ask(there, yes), Signed)
    assert there.folder(yes).answered_by()[0] == "Dr. Specht"
    said = ask(there, no)
    assert isinstance(said, Refused) and said.reason == "not our field"
