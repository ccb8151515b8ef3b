"""Messages in memory: to whom they go, how often, and what happens to what nobody waits for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from fl_server import mailbox
from fl_server.mailbox import Letter, Mailbox

NEVER: Callable[[int], bool] = lambda node: False  # noqa: E731


def letter(name: str, node: int = 1, run: int = 9) -> Letter:
    return Letter(name, run, "bundle", node, name.encode())


def answered_by(box: Mailbox, node: int, replies: dict[str, bytes]) -> threading.Thread:
    """A node in a thread of its own, which answers these letters as they come."""

    async def turns() -> None:
        while replies:
            found = await box.next(node, 2)
            assert found is not None
            box.answer(node, found.id, replies.pop(found.id))

    thread = threading.Thread(target=lambda: asyncio.run(turns()))
    thread.start()
    return thread


def test_collect__every_node_answers__at_once_and_each_its_own() -> None:
    box = Mailbox()
    nodes = [answered_by(box, n, {f"to {n}": b"%d" % n}) for n in (1, 2, 3)]
    time.sleep(0.05)
    begun = time.monotonic()
    box.post([letter(f"to {n}", n) for n in (1, 2, 3)])
    found = box.collect([f"to {n}" for n in (1, 2, 3)], 5, NEVER)
    assert found == {"to 1": b"1", "to 2": b"2", "to 3": b"3"}
    assert time.monotonic() - begun < 2  # nobody polls
    for node in nodes:
        node.join()


def test_answer__of_another_node_twice_or_of_nothing__is_dropped() -> None:
    box = Mailbox()
    box.post([letter("a", 1)])
    box.answer(2, "a", b"forged")
    box.answer(1, "b", b"to nothing")
    box.answer(1, "a", b"mine")
    box.answer(1, "a", b"again")
    assert box.collect(["a"], 0, NEVER) == {"a": b"mine"}
    box.answer(1, "a", b"late")
    assert box.collect(["a"], 0, NEVER) == {}
    assert not box._open and not box._replies


def test_next__a_letter_that_was_lost_on_the_way__comes_again_a_few_times() -> None:
    box = Mailbox()
    box.post([letter("a"), letter("b")])

    async def turns() -> list[str]:
        return [found.id if (found := await box.next(1, 0)) else "" for _ in range(12)]

    assert asyncio.run(turns()) == ["a"] * 5 + ["b"] * 5 + [""] * 2


def test_collect__time_is_over__what_was_not_answered_is_dropped() -> None:
    box = Mailbox()
    box.post([letter("a"), letter("b", 2)])
    box.answer(2, "b", b"b")
    assert box.collect(["a", "b"], 0.05, NEVER) == {"b": b"b"}
    assert asyncio.run(box.next(1, 0)) is None


def test_collect__the_only_node_left_is_lost__is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mailbox, "LOOK_S", 0.01)
    box = Mailbox()
    box.post([letter("a"), letter("b", 2)])
    box.answer(2, "b", b"b")
    assert box.collect(["a", "b"], 3600, lambda node: node == 1) == {"b": b"b"}


def test_collect__lost_raises__the_letters_are_dropped() -> None:
    box = Mailbox()
    box.post([letter("a"), letter("b", 2)])
    box.answer(2, "b", b"b")

    def stopped(node: int) -> bool:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        box.collect(["a", "b"], 3600, stopped)
    assert not box._open and not box._replies


def test_room__of_a_reply__is_what_was_asked_and_an_envelope_or_none() -> None:
    box = Mailbox()
    box.post([letter("a")])
    assert box.room(1, "a") == 1 + mailbox.ENVELOPE_BYTES
    assert box.room(2, "a") is None and box.room(1, "b") is None and box.room(1, "") is None
    box.answer(1, "a", b"")
    assert box.room(1, "a") is None


def test_next__a_client_that_went_away__leaves_nothing_waiting() -> None:
    box = Mailbox()

    async def gone() -> None:
        turn = asyncio.create_task(box.next(1, 10))
        await asyncio.sleep(0.02)
        turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await turn

    asyncio.run(gone())
    assert not box._waiting


def test_next__many_letters_and_many_nodes__each_gets_its_own_and_none_is_lost() -> None:
    box = Mailbox()
    names = {node: [f"{node}.{i}" for i in range(50)] for node in range(8)}
    nodes = [
        answered_by(box, node, {name: name.encode() for name in mine})
        for node, mine in names.items()
    ]
    for node, mine in names.items():
        box.post([letter(name, node) for name in mine])
    every = [name for mine in names.values() for name in mine]
    assert box.collect(every, 20, NEVER) == {name: name.encode() for name in every}
    for one in nodes:
        one.join()
