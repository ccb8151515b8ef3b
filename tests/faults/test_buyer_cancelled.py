"""A buyer's program cancels an order (datahub/aio.py) at each of its awaits, and while the thread
of a step is around each change of the world: nothing moves afterwards, the same quote goes on, and
so does one named command in another process, to a result that opens, paid once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from datahub.aio import Job, Market, Quote
from datahub.buyer import job_store, networks
from datatokens.bindings.registry import Token
from tests.faults.crashes import Place, around, begin, places, run
from tests.faults.test_buyer_crashes import (
    DEADLINE_S,
    RESULT,
    Stage,
    Wallet,
    done,
    gone_on,
    stage,
    tried,
)

__all__ = ["stage"]  # a fixture of this module, too
# hospitals may be done before the command that goes on has looked
ENDS = {f"{RESULT} by resume", f"{RESULT} by result"}
AWAITS = 3  # of an order: kept, paid, handed over
DELIVERED_S = 0.1


@dataclass
class CancelledAt(Awaitable[Any]):
    """What `work` gives; its task is cancelled as it begins to wait for the `number`th time."""

    work: Awaitable[Any]
    number: int
    waits: int = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self.work.__await__()
        thrown: BaseException | None = None
        while True:
            try:
                waited_for = inner.send(None) if thrown is None else inner.throw(thrown)
            except StopIteration as ended:
                return ended.value
            task = asyncio.current_task()
            if self.waits == self.number and task is not None:
                task.cancel()
            self.waits += 1
            thrown = None
            try:
                yield waited_for
            except asyncio.CancelledError as error:
                thrown = error


async def quoted(wallet: Wallet) -> Quote:
    """As Wallet.buy asks for it."""
    network = networks.by_name("")
    market = await Market.open(network.hub, chain=network.chain, key=wallet.key.read_text())
    return await market.quote(
        [1, 2, 3], epsilon=2.0, purpose="research", rounds=2, deadline_s=DEADLINE_S
    )


def moved(quote: Quote) -> tuple[int, int, int, int]:
    """What an order moves, of its wallet: money, approval, payments; jobs on the disk."""
    market = quote.market.sync
    made = market.network.deployment
    token = Token(market.chain, made.payment_token)
    return (
        token.balance_units(market.address),
        token.allowance_units(market.address, made.market),
        len(market.escrow.created_by(market.address)),
        len(job_store.kept_jobs()),
    )


async def left_alone(quote: Quote) -> None:
    """Nothing moves after the cancellation has come."""
    before = moved(quote)
    await asyncio.sleep(0.5)
    assert moved(quote) == before


def order_again(wallet: Wallet, number: int) -> None:
    """Cancel an order at an await, look, and order the same quote again."""

    async def purchase() -> None:
        quote = await quoted(wallet)
        work = CancelledAt(quote.order(), number)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(_of(work))
        assert work.waits > number
        await left_alone(quote)
        job = await quote.order()
        assert job.id == quote.terms.job_id.hex() and moved(quote)[1:] == (0, 1, 1)

    asyncio.run(purchase())


async def _of(work: Awaitable[Any]) -> Any:
    return await work


def test_an_order__has_as_many_awaits_as_are_cancelled_here(stage: Stage) -> None:
    wallet = stage.wallet()

    async def purchase() -> None:
        work = CancelledAt((await quoted(wallet)).order(), -1)
        assert isinstance(await work, Job) and work.waits == AWAITS

    asyncio.run(purchase())


@pytest.mark.parametrize("number", range(AWAITS))
def test_an_order_cancelled_at_an_await__the_same_quote_goes_on(stage: Stage, number: int) -> None:
    wallet = stage.wallet()
    done(run(lambda: order_again(wallet, number), wallet.folder))
    assert gone_on(wallet) in ENDS


def test_an_order_that_waits_for_another__cancelled__is_kept_and_not_paid(stage: Stage) -> None:
    wallet = stage.wallet()

    async def purchases() -> None:
        quote = await quoted(wallet)
        async with quote.market.paying:
            waiting = asyncio.create_task(quote.order())
            while not job_store.kept_jobs():
                await asyncio.sleep(0.01)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await waiting
        await left_alone(quote)
        assert moved(quote)[1:] == (0, 0, 1)

    asyncio.run(purchases())
    assert gone_on(wallet) == f"{RESULT} by resume"


@dataclass
class Purchase:
    """One that is cancelled while the thread of a step is at a place."""

    wallet: Wallet
    cancel: Callable[[], object] = lambda: None
    place: Place | None = None

    def met(self, place: Place) -> None:
        if place == self.place:
            self.cancel()
            time.sleep(DELIVERED_S)

    def buy(self) -> None:
        """Print whether it was cancelled."""

        async def purchase() -> None:
            quote = await quoted(self.wallet)
            task = asyncio.create_task(quote.order())
            loop = asyncio.get_running_loop()
            self.cancel = partial(loop.call_soon_threadsafe, task.cancel)
            try:
                await task
            except asyncio.CancelledError:
                print("cancelled")
                await left_alone(quote)

        asyncio.run(purchase())


def after_a_cancellation(stage: Stage, place: Place) -> str:
    """Cancel a purchase at `place`, and go on in another process; what it ended in."""
    purchase = Purchase(stage.wallet(), place=place)
    wallet = purchase.wallet
    said = done(begin(purchase.buy, wallet.folder / "output.txt", purchase.met).wait())
    assert "cancelled" in said
    return gone_on(wallet)


def test_an_order_cancelled_around_every_change__ends_in_a_result(stage: Stage) -> None:
    wallet = stage.wallet()
    met = places(Purchase(wallet).buy, wallet.folder)
    assert gone_on(wallet) in ENDS
    sent = around(met, "send_raw_transaction(")
    told = around(met, "._client.request(")[-2:]
    written = [place for place in around(met, ".replace(path)") if place not in sent]
    # before the quote there is no order to cancel
    chosen = [*written[::3], *sent, *told]
    assert len(sent) >= 4 and len(chosen) >= 8
    ended = tried(chosen, lambda place: after_a_cancellation(stage, place))
    assert set(ended.values()) <= ENDS
