"""A visitor with a wallet, in a real browser on the running marketplace: order, watch, open the
model, claim. The wallet is the embedded chain's, which really signs.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from datahub.buyer.jobs import Job
from datahub.buyer.sdk import Market
from datahub.demo.stack import BUYER, FEE_BPS, FIRST_CONTRIBUTOR
from datatokens.bindings.registry import Token
from fl_client.model.weights import from_safetensors, model_hash
from tests.e2e.conftest import CHROMIUM, Marketplace

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (make tools)"),
]
AXE = (
    Path(__file__).parents[2] / "datatokens" / "node_modules" / "axe-core" / "axe.min.js"
)  # make tools
WALLET = "d47a4b00-0000-4000-8000-000000000000"


def choose(page: Any, account: str) -> None:
    page.wait_for_selector(f"#wallets option[value='{WALLET}']", state="attached")
    page.select_option("#wallets", WALLET)
    page.wait_for_selector(f"#accounts option[value='{account}']", state="attached")
    page.select_option("#accounts", account)


def settled(m: Marketplace) -> Job:
    """A small job, bought from Python."""
    job = m.buyer.quote(m.ids[:1], epsilon=0.2, purpose="research", rounds=1).order()
    job.wait()
    return job


def test_order__in_the_browser__to_an_opened_model(
    marketplace: Marketplace,
    page: Any,
    tmp_path: Any,
) -> None:
    stack = marketplace.stack
    account = stack.accounts[BUYER][0]
    before, rows = marketplace.balance(), marketplace.buyer.hub.get("/api/v1/datasets")
    prices = sum(r["price_units"] for r in rows if r["dataset_id"] in marketplace.ids[:2])
    page.goto(f"{stack.hub_url}/order")
    page.click("a.button >> nth=0")
    page.wait_for_url("**/order?dataset=*")
    for box in page.locator("input[name=dataset]").all():
        box.set_checked(int(box.get_attribute("value")) in marketplace.ids[:2])
    page.fill("input[name=purpose]", "research: in the browser")
    page.evaluate("document.querySelector('#epsilon').value = -1")
    page.dispatch_event("#epsilon", "input")
    choose(page, account)
    page.wait_for_selector("#quote:not([hidden])", timeout=60_000)
    shown = page.inner_text("#quote")
    amount = prices + prices * FEE_BPS // 10_000
    assert f"In escrow, all together\t{amount / 1e6:.2f} tUSD" in shown
    assert "at most 62 % sure" in page.inner_text("#epsilon-words")
    page.click("#sign:not([disabled])")
    page.wait_for_url("**/jobs/*", timeout=60_000)
    job = page.url.rsplit("/", 1)[1]
    page.wait_for_selector(".state.settled", timeout=60_000)
    page.wait_for_selector("#download", timeout=10_000)
    assert "Where the money went" in page.inner_text("main")
    choose(page, account)
    with page.expect_download() as opened:
        page.click("#download:not([disabled])")
    opened.value.save_as(tmp_path / "job.zip")
    with zipfile.ZipFile(tmp_path / "job.zip") as archive:
        assert set(archive.namelist()) >= {"model.safetensors", "graph.json", "report.json"}
        arrays = from_safetensors(archive.read("model.safetensors"))
    # the shell opens what the browser ordered, and both have what was attested
    market: Market = marketplace.buyer
    assert model_hash(market.job(job).result().arrays) == model_hash(arrays)
    assert before - marketplace.balance() == amount
    assert page.complaints == []


def test_open__by_another_wallet__says_so(marketplace: Marketplace, page: Any) -> None:
    job = settled(marketplace)
    page.goto(f"{marketplace.stack.hub_url}/jobs/{job.id}")
    choose(page, marketplace.stack.accounts[BUYER + 1][0])
    page.click("#download:not([disabled])")
    page.wait_for_selector("#steps .failed")
    assert "sealed to another one" in page.inner_text("#steps")


def test_claim__in_the_browser__everything_in_one_transaction(
    marketplace: Marketplace,
    page: Any,
) -> None:
    stack = marketplace.stack
    account = stack.accounts[FIRST_CONTRIBUTOR][0]
    token = Token(marketplace.buyer.chain, stack.deployment.payment_token)
    settled(marketplace)
    before = token.balance_units(account)
    page.goto(f"{stack.hub_url}/claims")
    choose(page, account)
    page.click("#mine:not([disabled])")
    page.wait_for_url(f"**/claims?account={account}")
    assert page.locator("tbody tr").count() >= 4  # other tests list more
    choose(page, account)
    page.click("#claim button:not([disabled])")
    page.wait_for_selector("#claim button[disabled]:has-text('Take 0.00 tUSD')", timeout=30_000)
    assert token.balance_units(account) > before
    assert page.complaints == []


def test_claim__nothing_of_mine__is_a_sentence(marketplace: Marketplace, page: Any) -> None:
    stranger = "0x" + "12" * 20
    page.goto(f"{marketplace.stack.hub_url}/claims?account={stranger}")
    assert "on no contributor list that this hub knows" in page.inner_text("main")
    page.goto(f"{marketplace.stack.hub_url}/claims?account=0x1234")
    assert "must be an address" in page.inner_text("main")


@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page__on_a_phone_and_a_desk__is_no_wider_than_the_screen(
    marketplace: Marketplace,
    page: Any,
    width: int,
    scheme: str,
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    hub = marketplace.stack.hub_url
    job = marketplace.buyer.hub.get("/api/v1/jobs")[-1]["job_id"]
    node = marketplace.buyer.hub.get("/api/v1/datasets")[0]["node"]
    ids = "&".join(f"dataset={one}" for one in marketplace.ids)
    account = marketplace.stack.accounts[FIRST_CONTRIBUTOR][0]
    paths = ["", "datasets", "datasets?q=nothing+fits", f"datasets/{marketplace.ids[0]}", "order"]
    paths += [f"order?{ids}", "jobs", f"jobs/{job}", f"claims?account={account}", "words"]
    axe = AXE.read_text() if AXE.exists() else ""
    for path in [*paths, f"hospitals/{node}"]:
        page.goto(f"{hub}/{path}")
        if axe:
            page.evaluate(axe)
            found = page.evaluate("axe.run()")["violations"]
            assert [(one["id"], one["nodes"][0]["target"]) for one in found] == [], path
        assert page.evaluate(
            "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        ), path
    assert page.complaints == []
