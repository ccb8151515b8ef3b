"""Every page in a real browser: it shows what the chain says and logs no error."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.conftest import CHROMIUM, Marketplace

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (make tools)"),
]


def test_catalogue__shows_every_dataset_with_a_noised_count(
    marketplace: Marketplace, page: Any
) -> None:
    page.goto(f"{marketplace.stack.hub_url}/datasets")
    assert (
        page.locator("article").count() == len(marketplace.buyer.hub.get("/api/v1/datasets")) >= 4
    )
    assert "(noised)" in page.locator("article").first.inner_text()
    assert page.complaints == []


@pytest.mark.parametrize("width", [375, 1440])
def test_dataset__from_the_catalogue_by_keyboard__says_what_is_spent_and_fits(
    marketplace: Marketplace, page: Any, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{marketplace.stack.hub_url}/datasets")
    page.locator("article h2 a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/datasets/*")
    assert "as its node has attested" in page.inner_text("main")
    assert "nothing here is anybody's data" in page.inner_text("main")
    main = "document.querySelector('main')"
    assert page.evaluate(f"{main}.scrollWidth <= {main}.clientWidth")
    with page.expect_download() as made_up:
        page.click("a[download]")
    assert made_up.value.suggested_filename.startswith("made-up-")
    assert page.complaints == []


def test_job__live_page__reaches_its_end_without_a_reload_by_hand(
    marketplace: Marketplace, page: Any
) -> None:
    job = marketplace.buyer.quote(
        marketplace.ids[:2], epsilon=0.3, purpose="research", rounds=2
    ).order()
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
    by_dataset = page.get_by_role("region", name="By dataset")
    assert by_dataset.locator("tbody tr").count() >= 4  # other tests list more
    assert page.complaints == []


def test_pages__unknown_job_and_bad_address__are_sentences_on_a_page(
    marketplace: Marketplace, page: Any
) -> None:
    page.goto(f"{marketplace.stack.hub_url}/jobs/nothing")
    assert "job_id=nothing is not known here" in page.inner_text("main")
    page.goto(f"{marketplace.stack.hub_url}/claims?account=<script>alert(1)</script>")
    assert "must be an address" in page.inner_text("main")
    page.complaints.clear()  # the 404 itself is in the console
