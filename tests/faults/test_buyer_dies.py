"""A buyer's process that is killed between two steps: one named command ends the job in a result or
with the money back.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from datahub.buyer import job_store, networks
from datahub.buyer.jobs import Job
from datahub.buyer.sdk import Market, Quote
from datahub.errors import HubError, NotFound, OrderRefused
from datahub.market.jobs import job_row
from datatokens.chain.rpc_server import accounts
from tests.datahub.hub_world import FEE_BPS, HubWorld


@pytest.fixture
def buyer(hub: HubWorld, hub_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Market:
    monkeypatch.setenv("DATAHUB_HOME", str(tmp_path / "home"))
    made = hub.bank.deployment
    networks.pin(networks.Network("here", hub_url, hub.bank.url, FEE_BPS, made))
    return Market(hub_url, chain=hub.bank.url, key=accounts()[1][1])


def killed_after(step: Callable[[], object]) -> None:
    """Run `step` in a child process that is then killed as by kill -9."""
    if (child := os.fork()) == 0:
        try:
            step()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


@contextmanager
def dropping(hub_url: str) -> Iterator[str]:
    """A proxy to the hub that hangs up on POST /api/v1/jobs."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if (self.command, self.path) == ("POST", "/api/v1/jobs"):
                self.close_connection = True
                return
            kind = {"content-type": self.headers.get("content-type", "")}
            answer = httpx.request(self.command, hub_url + self.path, content=body, headers=kind)
            self.send_response(answer.status_code)
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def quoted(buyer: Market) -> Quote:
    return buyer.quote([1, 2, 3], epsilon=2.0, purpose="research", rounds=2)


def balance(buyer: Market) -> int:
    return buyer.escrow._payment_token().balance_units(buyer.address)


def paid_and_killed(buyer: Market) -> tuple[Quote, Job]:
    quote = quoted(buyer)
    killed_after(lambda: quote.keep().pay())
    return quote, buyer.job(quote.terms.job_id.hex()[:12])


def test_killed_before_the_payment__nothing_was_taken_and_resume_can_pay(buyer: Market) -> None:
    quote, before = quoted(buyer), balance(buyer)
    killed_after(lambda: quote.keep())
    job = buyer.job(quote.terms.job_id.hex()[:12])
    assert balance(buyer) == before and job.on_chain == "none"
    assert job.standing(quote.terms.deadline)["next"] == "not paid: nothing was taken"
    job.pay()
    job.pay()  # once is enough
    assert before - balance(buyer) == quote.amount_units and job.on_chain == "funded"


def test_killed_between_payment_and_hand_over__the_folder_tells_the_hub(
    hub: HubWorld, buyer: Market
) -> None:
    quote, job = paid_and_killed(buyer)
    with pytest.raises(HubError, match="not known"):
        job.status()
    shutil.rmtree(hub.desk.config.models_folder)  # the hub has lost the model too
    job.hand_over()
    assert job.status()["state"] == "funded"
    assert job_row(hub.desk, job.id).terms == quote.terms.to_json().decode()
    job.hand_over()


def test_killed_and_the_disk_lost__the_key_and_the_chain_give_the_money_back(
    hub: HubWorld, buyer: Market
) -> None:
    before = balance(buyer)
    quote, job = paid_and_killed(buyer)
    shutil.rmtree(job_store.jobs_folder())
    job = buyer.job(job.id[:8])
    with pytest.raises(OrderRefused, match="left until its deadline"):
        job.refund()
    hub.bank.travel(quote.terms.deadline - buyer.chain.now() + 900)
    assert [r["next"] for r in buyer.jobs() if r["job_id"] == job.id] == [
        f"datahub job refund {job.id[:12]}"
    ]
    job.refund()
    assert balance(buyer) == before
    with pytest.raises(OrderRefused, match="is refunded: there is nothing to take back"):
        job.refund()


def test_a_proxy_drops_the_terms__the_job_is_paid_and_resume_tells_the_hub_itself(
    hub: HubWorld, hub_url: str, buyer: Market
) -> None:
    """Whoever sits between buyer and hub can keep the terms from the hub, and no money."""
    with dropping(hub_url) as proxied:
        through = Market(proxied, chain=hub.bank.url, key=accounts()[1][1], network=buyer.network)
        quote = quoted(through)
        with pytest.raises(HubError, match="does not answer"):
            quote.order()
    job = buyer.job(quote.terms.job_id.hex())
    assert job.on_chain == "funded"
    with pytest.raises(HubError, match="not known"):
        job.status()
    job.hand_over()
    assert job.status()["state"] == "funded"


def test_what_is_kept_of_a_job__is_this_users_alone_and_whole(buyer: Market) -> None:
    quote = quoted(buyer)
    job = quote.keep()
    kept = job_store.kept(job.id)
    assert kept and kept.terms == quote.terms and kept.model_files == (quote.graph, quote.weights)
    for path in [networks.home(), *networks.home().rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
    with pytest.raises(NotFound, match="at least 6 digits"):
        buyer.job(job.id[:5])
    with pytest.raises(NotFound, match="no such job is known"):
        buyer.job("ab" * 32)
