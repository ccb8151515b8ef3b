"""Every page in a real browser: it shows what the chain says and logs no error."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import Marketplace

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (make tools)"),
]


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        one = browser.new_page()
        one.complaints = []
        one.on("pageerror", lambda error: one.complaints.append(str(error)))
        one.on(
            "console",
            lambda message: (
                one.complaints.append(message.text) if message.type == "error" else None
            ),
        )
        yield one
        browser.close()


def test_catalogue__shows_every_dataset_with_a_noised_count(
    marketplace: Marketplace, page: Any
) -> None:
    page.goto(marketplace.stack.hub_url)
    assert page.locator("article").count() == len(marketplace.buyer.hub.get("/api/datasets")) >= 4
    assert "(noised)" in page.locator("article").first.inner_text()
    assert page.complaints == []


def test_job__live_page__reaches_its_end_without_a_reload_by_hand(
    marketplace: Marketplace, page: Any
) -> None:
    job = marketplace.buyer.order(marketplace.ids[:2], epsilon=0.3, purpose="research", rounds=2)
    page.goto(f"{marketplace.stack.hub_url}/jobs/{job.id}")
    page.wait_for_selector(".state.settled", timeout=60_000)
    assert "Rounds 2 of 2" in page.inner_text("main")
    assert "Model (SHA-256, attested)" in page.inner_text("main")
    assert "this job costs epsilon 0." in page.inner_text("main")
    assert page.complaints == []


def test_claims__contributors_address__shows_weight_and_money(
    marketplace: Marketplace, page: Any
) -> None:
    page.goto(f"{marketplace.stack.hub_url}/claims")
    page.fill("input[name=account]", marketplace.stack.accounts[7][0])
    page.click("button")
    assert page.locator("tbody tr").count() == 4
    assert page.complaints == []


def test_pages__unknown_job_and_bad_address__are_sentences_on_a_page(
    marketplace: Marketplace, page: Any
) -> None:
    page.goto(f"{marketplace.stack.hub_url}/jobs/nothing")
    assert "job_id=nothing is not known here" in page.inner_text("main")
    page.goto(f"{marketplace.stack.hub_url}/claims?account=<script>alert(1)</script>")
    assert "must be an address" in page.inner_text("main")
    page.complaints.clear()  # the 404 itself is in the console
