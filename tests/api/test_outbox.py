"""An outbox keeps the order of its responses and loses no wake-up, in any interleaving of its users."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.outbox import Outbox
from tests.waiting import turns


async def test_responses_keep_their_order() -> None:
    outbox: Outbox[int] = Outbox(10)
    for number in range(5):
        outbox.put(number)
    assert [await outbox.next() for _ in range(5)] == [(number, None) for number in range(5)]


async def test_a_response_has_its_callback_for_when_it_is_written() -> None:
    outbox: Outbox[str] = Outbox(10)
    called: list[str] = []
    outbox.put_later(lambda: "a", lambda: called.append("a"))
    taken = await outbox.next()
    assert taken is not None
    response, on_written = taken
    assert (response, called) == ("a", [])
    assert on_written is not None
    on_written()
    assert called == ["a"]


async def test_a_response_wakes_the_waiting_writer() -> None:
    outbox: Outbox[int] = Outbox(10)
    waiting = asyncio.create_task(outbox.next())
    await turns(5)
    assert not waiting.done()
    outbox.put(1)
    outbox.put(2)
    assert await waiting == (1, None)
    assert await outbox.next() == (2, None)


async def test_a_closed_outbox_returns_the_rest_and_then_none() -> None:
    outbox: Outbox[int] = Outbox(10)
    outbox.put(1)
    outbox.close()
    assert await outbox.next() == (1, None)
    assert await outbox.next() is None
    assert await outbox.next() is None


async def test_closing_wakes_the_waiting_writer() -> None:
    outbox: Outbox[int] = Outbox(10)
    waiting = asyncio.create_task(outbox.next())
    await turns(5)
    outbox.close()
    outbox.close()
    assert await waiting is None


async def test_a_response_put_after_closing_is_still_given() -> None:
    """A notice may be put between the last response and the end."""
    outbox: Outbox[int] = Outbox(10)
    outbox.close()
    outbox.put(1)
    assert await outbox.next() == (1, None)
    assert await outbox.next() is None


async def test_a_full_outbox_accepts_responses_and_reports_that_it_is_full() -> None:
    outbox: Outbox[int] = Outbox(2)
    fullness = []
    for number in range(4):
        fullness.append(outbox.is_full)
        outbox.put(number)
    assert fullness == [False, False, True, True]
    taken = [await outbox.next() for _ in range(4)]
    assert [response for response, _ in filter(None, taken)] == [0, 1, 2, 3]
    assert not outbox.is_full


async def test_room_returns_at_once_if_the_outbox_is_not_full() -> None:
    outbox: Outbox[int] = Outbox(1)
    await outbox.room()


async def test_room_waits_until_the_outbox_is_no_longer_full() -> None:
    outbox: Outbox[int] = Outbox(2)
    for number in range(4):
        outbox.put(number)
    waiting = asyncio.create_task(outbox.room())
    for _ in range(2):
        await outbox.next()
        await turns(5)
        assert not waiting.done()
    await outbox.next()
    await waiting


async def test_room_waits_again_if_the_outbox_filled_before_it_woke() -> None:
    outbox: Outbox[int] = Outbox(1)
    outbox.put(1)
    waiting = asyncio.create_task(outbox.room())
    await turns(5)
    await outbox.next()
    outbox.put(2)
    await turns(5)
    assert not waiting.done()
    await outbox.next()
    await waiting


async def test_a_response_can_be_made_lazily() -> None:
    outbox: Outbox[str] = Outbox(10)
    parts = ["a"]
    outbox.put("first")
    outbox.put_later(lambda: "".join(parts), parts.clear)
    assert await outbox.next() == ("first", None)
    parts.append("b")
    taken = await outbox.next()
    assert taken is not None
    response, on_written = taken
    assert response == "ab"
    assert on_written is not None
    on_written()
    assert parts == []


async def test_a_holder_takes_responses_without_waking_the_writer() -> None:
    outbox: Outbox[int] = Outbox(10)
    waiting = asyncio.create_task(outbox.next())
    await turns(5)
    assert outbox.hold()
    outbox.put(1)
    outbox.put(2)
    await turns(5)
    assert not waiting.done()
    assert outbox.take() == (1, None)
    outbox.end_hold()
    assert await waiting == (2, None)


async def test_hold_needs_an_empty_outbox_and_a_waiting_writer() -> None:
    outbox: Outbox[int] = Outbox(10)
    assert not outbox.hold(), "nobody waits"
    waiting = asyncio.create_task(outbox.next())
    await turns(5)
    outbox.put(1)
    assert not outbox.hold(), "it has been woken"
    outbox.end_hold()
    assert await waiting == (1, None)
    waiting = asyncio.create_task(outbox.next())
    await turns(5)
    outbox.close()
    assert not outbox.hold(), "it has been woken to end"
    assert await waiting is None


async def test_release_of_an_empty_outbox_does_not_wake_the_writer() -> None:
    outbox: Outbox[int] = Outbox(10)
    waiting = asyncio.create_task(outbox.next())
    await turns(5)
    assert outbox.hold()
    assert not outbox.waiting
    outbox.end_hold()
    await turns(5)
    assert not waiting.done()
    outbox.put(1)
    assert await waiting == (1, None)


async def test_closing_during_a_hold_ends_the_writer_at_the_release() -> None:
    outbox: Outbox[int] = Outbox(10)
    waiting = asyncio.create_task(outbox.next())
    await turns(5)
    assert outbox.hold()
    outbox.close()
    await turns(5)
    assert not waiting.done()
    outbox.end_hold()
    assert await waiting is None


async def test_a_response_is_written_at_once_while_the_writer_waits() -> None:
    written: list[int] = []

    def write(response: int) -> bool:
        written.append(response)
        return True

    outbox: Outbox[int] = Outbox(1, write)
    outbox.put(0)  # nobody waits yet
    assert not written
    assert await outbox.next() == (0, None)
    waiting = asyncio.create_task(outbox.next())
    await turns(5)
    outbox.put(1)
    outbox.put(2)
    assert (written, waiting.done()) == ([1, 2], False)
    outbox.abandon()
    outbox.put(3)
    assert written == [1, 2]
    waiting.cancel()


@pytest.mark.parametrize("wait", [Outbox.next, Outbox.room])
async def test_a_cancelled_wait_leaves_the_outbox_intact(wait: Callable[[Outbox[int]], Awaitable[Any]]) -> None:
    outbox: Outbox[int] = Outbox(1)
    if wait is Outbox.room:
        outbox.put(0)
    waiting = asyncio.ensure_future(wait(outbox))
    await turns(5)
    waiting.cancel()
    await turns(5)
    assert waiting.cancelled()
    outbox.put(1)
    outbox.close()
    taken = []
    while (response := await outbox.next()) is not None:
        taken.append(response[0])
    assert taken[-1] == 1
    await outbox.room()


@given(
    st.integers(1, 3),
    st.lists(st.sampled_from(["put", "put", "yield", "read", "seek"]), max_size=60),
    st.none() | st.lists(st.booleans()),
)
@settings(max_examples=200, deadline=None)
def test_no_wake_up_is_lost(limit: int, steps: list[str], takes: list[bool] | None) -> None:
    """A reader waits only while the outbox is empty, and a seeker of room only while it is full. All responses are read
    in order, also those that are written at once.

    takes: whether `write` accepts a response, from the last item to the first; None without `write`.
    """

    async def play() -> None:
        taken: list[int] = []
        num_put = 0

        def write(response: int) -> bool:
            is_taken = takes is not None and bool(takes) and takes.pop()
            if is_taken:
                taken.append(response)
            return is_taken

        outbox: Outbox[int] = Outbox(limit, None if takes is None else write)
        allowed = asyncio.Semaphore(0)

        async def read() -> None:
            while (response := await outbox.next()) is not None:
                taken.append(response[0])
                await allowed.acquire()

        reader = asyncio.create_task(read())
        seeker: asyncio.Task[None] | None = None
        for step in steps:
            if step == "put":
                outbox.put(num_put)
                num_put += 1
            elif step == "read":
                allowed.release()
            elif step == "seek" and (seeker is None or seeker.done()):
                seeker = asyncio.create_task(outbox.room())
            else:
                await turns(5)
                if seeker is not None:
                    assert seeker.done() or outbox.is_full
        outbox.close()
        for _ in range(num_put + 1):
            allowed.release()
            await turns(5)
        assert reader.done(), "closed, and everything taken"
        assert seeker is None or seeker.done(), "empty, and still somebody waits for room"
        assert taken == list(range(num_put))

    asyncio.run(play())
