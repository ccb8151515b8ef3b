"""The SDK for event loops, on the real embedded chain and a served hub: orders and searches at
once, a loop that goes on, a job watched by what the hub sends and by asking. What is cancelled is
in tests/faults/test_buyer_cancelled.py.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import datahub
from datahub import aio
from datahub.aio import Job, Market, Quote
from datahub.buyer import jobs, networks
from datahub.errors import NotSettled, OrderRefused, Refunded
from datahub.web import live
from datatokens.chain.rpc_server import accounts
from tests.datahub.hub_world import FEE_BPS, HubWorld
from tests.faults.crashes import hospitals_work

TICK_S = 0.005
MOST_S = 0.1  # on the average: a loop of one's own, two slow cores and three programs on them
ORDER: dict[str, Any] = {"epsilon": 2.0, "purpose": "research", "rounds": 2}


@pytest.fixture
def pinned(hub: HubWorld, hub_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The served hub's URL, pinned by a buyer with a home of its own."""
    monkeypatch.setenv("DATAHUB_HOME", str(tmp_path / "home"))
    networks.pin(networks.Network("here", hub_url, hub.bank.url, FEE_BPS, hub.bank.deployment))
    return hub_url


def opened(hub: HubWorld, url: str) -> Awaitable[Market]:
    return Market.open(url, chain=hub.bank.url, key=accounts()[1][1])


@dataclass
class Ticks:
    """When the loop came round to a task that only sleeps."""

    at: list[float] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            self.at.append(time.monotonic())
            await asyncio.sleep(TICK_S)


async def beside(work: Awaitable[Any]) -> tuple[Any, list[float], float]:
    """What `work` gives, the pauses between ticks of its loop meanwhile, and how long it took."""
    ticks, begun = Ticks(), time.monotonic()
    ticking = asyncio.create_task(ticks.run())
    found = await work
    ticking.cancel()
    took = time.monotonic() - begun
    pauses = [after - before for before, after in pairwise([*ticks.at, begun + took])]
    return found, pauses, took


def test_two_orders_and_a_search__at_once__are_done_while_the_loop_goes_on(
    hub: HubWorld, pinned: str
) -> None:
    import torch

    async def order(market: Market, datasets: list[int]) -> Job:
        quote = await market.quote(datasets, **ORDER)
        assert isinstance(quote, Quote) and 0 < quote.epsilon <= 2.0001
        return await quote.order()

    async def at_once() -> None:
        market = await opened(hub, pinned)
        work = asyncio.gather(order(market, [1, 2, 3]), order(market, [2]), market.search("table"))
        (one, other, found), pauses, took = await beside(work)
        assert [d.id for d in found] == hub.bank.dataset_ids
        assert {one.id, other.id} <= {row["job_id"] for row in await market.jobs()}
        for job in (one, other):
            assert (await job.status())["state"] == "funded"
            assert (await market.job(job.id[:10])).id == job.id
        print(f"{took:.2f} s, {len(pauses)} ticks, longest pause {1000 * max(pauses):.0f} ms")
        assert len(pauses) >= took / MOST_S

    assert torch.__version__  # is loaded before: that holds the whole interpreter, whoever does it
    asyncio.run(at_once())


def settle(hub: HubWorld) -> None:
    """The job is taken in; some time later the hospitals have worked."""
    time.sleep(0.5)
    hospitals_work(hub)


async def watched(hub: HubWorld, url: str) -> tuple[Job, list[dict[str, Any]]]:
    """A new job of all three datasets, and what its watcher saw until its end."""
    market = await opened(hub, url)
    job = await (await market.quote([1, 2, 3], **ORDER)).order()
    with pytest.raises(NotSettled, match="not settled: no result yet"):
        await job.result()
    working = asyncio.create_task(asyncio.to_thread(settle, hub))
    seen = [status async for status in job.watch()]
    await working
    return job, seen


def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The jobs whose status was asked for, as it is."""
    asked: list[str] = []
    real = jobs.Job.status

    def status(self: jobs.Job) -> dict[str, Any]:
        asked.append(self.id)
        return real(self)

    monkeypatch.setattr(jobs.Job, "status", status)
    return asked


def test_watch__a_hub_that_sends_events__gives_each_change_and_asks_nothing(
    hub: HubWorld, pinned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asked_for(monkeypatch)
    job, seen = asyncio.run(watched(hub, pinned))
    assert [one["state"] for one in (seen[0], seen[-1])] == ["funded", "settled"]
    assert all(one != following for one, following in pairwise(seen))
    assert asked == []
    result = asyncio.run(job.wait())
    assert isinstance(result, datahub.Result) and asyncio.run(job.result()).report == result.report


@pytest.mark.parametrize(
    ("what", "value"),
    [("MOST_WATCHERS", 0), ("LIVES_S", 0.2)],
    ids=["too_many_watchers", "cut_off_again_and_again"],
)
def test_watch__a_hub_that_sends_none_or_stops__is_asked(
    hub: HubWorld, pinned: str, monkeypatch: pytest.MonkeyPatch, what: str, value: float
) -> None:
    monkeypatch.setattr(live, what, value)
    monkeypatch.setattr(aio, "AGAIN_S", 0.05)
    asked = asked_for(monkeypatch)
    _, seen = asyncio.run(watched(hub, pinned))
    assert [one["state"] for one in (seen[0], seen[-1])] == ["funded", "settled"] and asked


def test_watch__left_in_the_middle__lets_the_hub_go(hub: HubWorld, pinned: str) -> None:
    async def leave() -> None:
        market = await opened(hub, pinned)
        job = await (await market.quote([1], **ORDER)).order()
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await job.wait()
        async with asyncio.timeout(5):
            while live._watching:  # the hub notices at its next look
                await asyncio.sleep(0.05)

    asyncio.run(leave())


def test_wait__a_job_whose_money_came_back__raises_refunded(hub: HubWorld, pinned: str) -> None:
    async def late() -> None:
        market = await opened(hub, pinned)
        quote = await market.quote([1], deadline_s=700, **ORDER)
        job = await quote.order()
        with pytest.raises(OrderRefused, match="s left until its deadline"):
            await job.refund()
        await asyncio.to_thread(hub.bank.travel, 900)
        await job.refund()
        with pytest.raises(Refunded, match="was refunded, so there is no result"):
            await job.result()

    asyncio.run(late())


def test_market__refusals_of_a_thread__come_as_they_are(hub: HubWorld, pinned: str) -> None:
    async def refused() -> None:
        looking = await Market.open(pinned)
        assert await looking.search("nobody has this") == []
        with pytest.raises(OrderRefused, match="opened without a key, to search"):
            await looking.quote([1], **ORDER)
        market = await opened(hub, pinned)
        with pytest.raises(OrderRefused, match="name each dataset once"):
            await market.quote([1, 1], **ORDER)
        with pytest.raises(OrderRefused, match="must begin with"):
            await market.ask([1], "whatever", epsilon=1.0, purpose="research")

    asyncio.run(refused())


def test_public_names__are_those_of_the_synchronous_ones_and_documented() -> None:
    for mine, other in ((Market, datahub.Market), (Job, jobs.Job)):
        for name, method in inspect.getmembers(mine, inspect.isfunction):
            if not name.startswith("_") and name != "resume":
                assert inspect.getdoc(method), name
                assert inspect.iscoroutinefunction(method) or name == "watch", name
                theirs = inspect.signature(getattr(other, name)).parameters
                assert set(inspect.signature(method).parameters) <= set(theirs), name
