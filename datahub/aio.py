"""The buyer's SDK for programs with an event loop: what datahub/buyer does, each step of it in a
thread. Works out, checks and pays nothing by itself.

Whoever is cancelled while a payment or a refund is under way is so when that has ended: nothing
moves afterwards. A job is on the disk before its money moves, so that the same quote can be
ordered again, or `Job.resume` goes on. Everything else is left at once.
Time limits are asyncio's: `asyncio.timeout`.

The first quote loads torch, for which Python stops every thread for half a second: a program whose
loop must not stop then says `import torch` before it begins.

>>> from datahub.aio import Market  # doctest: +SKIP
>>> market = await Market.open(hub, chain=chain, key=my_key)  # doctest: +SKIP
>>> quote = await market.quote(await market.search("heart"), epsilon=4.0, purpose="research")
... # doctest: +SKIP
>>> job = await quote.order()  # doctest: +SKIP
>>> async for status in job.watch():  # doctest: +SKIP
...     print(status["state"], len(status["rounds"]))
>>> (await job.result()).predict(dataframe)  # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx

from datahub.buyer import jobs, sdk
from datahub.buyer.networks import Network
from datahub.buyer.results import Result
from datahub.buyer.search import Dataset
from datatokens.errors import TermsError
from datatokens.terms import JobTerms
from datatokens.wire import parse

FINAL = ("settled", "refunded")
QUIET_S = 40.0  # a hub that says nothing for so long is asked: it says every 15 s that it is there
AGAIN_S = 1.0  # between two questions
LAST_S = 60.0  # for the hub to say once more how a job has ended
P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


async def _to_its_end(step: Callable[[], T]) -> T:
    """Do `step` in a thread. Whoever is cancelled meanwhile is so once it has ended."""
    context = contextvars.copy_context()
    # a future and no task, which the end of the loop would cancel
    running = asyncio.get_running_loop().run_in_executor(None, context.run, step)
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from running.exception()
    return running.result()


def _asked(
    of: Callable[Concatenate[sdk.Market, P], T], made: Callable[[Market, T], R]
) -> Callable[Concatenate[Market, P], Coroutine[Any, Any, R]]:
    """A method of the synchronous market in a thread, with its parameters; what comes of it."""

    @wraps(of)
    async def asked(self: Market, /, *args: P.args, **given: P.kwargs) -> R:
        return made(self, await asyncio.to_thread(of, self.sync, *args, **given))

    return asked


class Market:
    """A hub's datasets, quotes and jobs, as datahub.Market has them. `sync` is that one, for what
    is not here: `await asyncio.to_thread(market.sync.buy_access, 1)`.

    Payments of one market wait for each other, as an approval is for one payment.
    """

    def __init__(self, sync: sdk.Market):
        self.sync = sync
        self.paying = asyncio.Lock()  # waited for here, and not by a thread

    @classmethod
    async def open(
        cls, hub: str, *, chain: str = "", key: str = "", network: Network | None = None
    ) -> Market:
        """As datahub.Market is made: without chain and key, to search. Raises OrderRefused,
        BankError.
        """
        opened = await asyncio.to_thread(sdk.Market, hub, chain=chain, key=key, network=network)
        return cls(opened)

    search = _asked(sdk.Market.search, lambda _, found: found)
    quote = _asked(sdk.Market.quote, lambda market, one: Quote(market, one))
    repeat = _asked(sdk.Market.repeat, lambda market, one: Quote(market, one))
    job = _asked(sdk.Market.job, lambda market, one: Job(market, one))
    jobs = _asked(sdk.Market.jobs, lambda _, found: found)

    async def ask(self, datasets: Sequence[int | Dataset], question: str, **settings: Any) -> Quote:
        """As datahub.Market.ask: terms of a job that answers `question`."""
        asked = partial(self.sync.ask, datasets, question, **settings)
        return Quote(self, await asyncio.to_thread(asked))

    @property
    def address(self) -> str:
        """The wallet's address."""
        return self.sync.address


@dataclass(frozen=True)
class Quote:
    """Checked terms and what they cost, as datahub.buyer.sdk.Quote has them."""

    market: Market
    sync: sdk.Quote

    @property
    def terms(self) -> JobTerms:
        """What is paid for."""
        return self.sync.terms

    @property
    def amount_units(self) -> int:
        """Base units of the payment token."""
        return self.sync.amount_units

    @property
    def epsilon(self) -> float:
        """Of each hospital's patients, at the delta asked for."""
        return self.sync.epsilon

    @property
    def interval95(self) -> Mapping[str, float]:
        """How wide the intervals of the report's accuracy and AUC must be expected to be."""
        return self.sync.interval95

    async def order(self) -> Job:
        """Keep the job, escrow exactly its price, hand the terms to the hub. The same quote again
        goes on with the same job, whatever was cancelled. Raises TransactionRefused, HubError.
        """
        job = Job(self.market, await _to_its_end(self.sync.keep))
        await job.resume()
        return job


@dataclass(frozen=True)
class Job:
    """A job of a wallet, as datahub.buyer.jobs.Job has it: quoted, paid or ended."""

    market: Market
    sync: jobs.Job

    @property
    def id(self) -> str:
        """Job id, 64 hexadecimal digits."""
        return self.sync.id

    async def resume(self) -> None:
        """Pay, if that is not done, and hand the terms to the hub. Any number of times."""
        async with self.market.paying:
            await _to_its_end(self.sync.pay)
        await asyncio.to_thread(self.sync.hand_over)

    async def status(self) -> dict[str, Any]:
        """The hub's view: state, reason, rounds so far. Raises HubError."""
        return await asyncio.to_thread(self.sync.status)

    async def watch(self) -> AsyncGenerator[dict[str, Any], None]:
        """The status whenever it has changed, the first time at once, until it is final; as the hub
        sends it, or by asking where it does not. Raises HubError.
        """
        last: dict[str, Any] = {}
        sends = True
        while True:
            if sends:
                sends = False
                async with aclosing(self._sent()) as sent:
                    async for status in sent:
                        sends = True
                        if status != last:
                            yield (last := status)
            else:
                await asyncio.sleep(AGAIN_S)
            if last.get("state") in FINAL:
                return
            if (status := await self.status()) != last:
                yield (last := status)
            if last["state"] in FINAL:
                return

    async def _sent(self) -> AsyncGenerator[dict[str, Any], None]:
        """The statuses that the hub sends by itself (server-sent events), for as long as it
        does.
        """
        # loads certificates, which takes its time
        client = await asyncio.to_thread(
            httpx.AsyncClient, base_url=self.market.sync.hub.url, timeout=QUIET_S
        )
        event, data = "", ""
        try:
            async with client, client.stream("GET", f"/api/v1/jobs/{self.id}/events") as answer:
                if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                    return
                async for line in answer.aiter_lines():
                    name, _, value = line.partition(":")
                    if name == "event":
                        event = value.strip()
                    elif name == "data":
                        data += value
                    elif not line:
                        if event == "job":
                            yield dict(parse(data.encode()))
                        event, data = "", ""
        except (httpx.HTTPError, TermsError, TypeError, ValueError):
            return  # whoever asks is told what is wrong

    async def wait(self) -> Result:
        """Wait for settlement and open the result. Raises Refunded where the money came back
        instead, HubError where only the hub says so.
        """
        async with aclosing(self.watch()) as statuses:
            async for _ in statuses:
                pass
        return await asyncio.to_thread(self.sync.wait, None, LAST_S)

    async def result(self) -> Result:
        """The model with its report, terms and schema, checked. Raises NotSettled, Refunded."""
        return await asyncio.to_thread(self.sync.result)

    async def refund(self) -> None:
        """After the deadline: every unit back. Raises OrderRefused."""
        async with self.market.paying:
            await _to_its_end(self.sync.refund)
