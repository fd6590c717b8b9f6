"""Early exits from loops, tasks and `with` blocks, in each client."""

from __future__ import annotations

import asyncio

import pytest

from carousel import (
    AsyncClient,
    Client,
    InvalidArgumentError,
    NotFoundError,
    PositionMismatchError,
    RequestCancelledError,
)

from .fake_server import FakeServer


def test_leaving_a_loop_cancels_its_generation(server: FakeServer) -> None:
    with Client(server.target) as client, client.session("toy", "stall", on_disconnect="free") as session:
        generation = session.generate()
        for token in generation:
            assert token.text == "A"
            break
        assert not server.session.is_generating
        assert session.position == 3
        assert list(generation) == []
        assert session.feed("A").position == 4


async def test_leaving_an_async_loop_cancels_its_generation_before_the_next_call(server: FakeServer) -> None:
    async with AsyncClient(server.target) as client, client.session("toy", "stall", on_disconnect="free") as session:
        async for token in session.generate():
            assert token.text == "A"
            break
        assert (await session.feed("A")).position == 4
        assert not server.session.is_generating


def test_a_loop_over_a_call_that_is_broken_off_cancels_it(server: FakeServer) -> None:
    with Client(server.target) as client:
        for token in client.generate("toy", "stall"):
            assert token.text == "A"
            break
        assert server.cancelled.wait(5)


async def test_a_loop_over_a_call_that_is_broken_off_cancels_it_soon(server: FakeServer) -> None:
    async with AsyncClient(server.target) as client:
        async for token in client.generate("toy", "stall"):
            assert token.text == "A"
            break
        assert await asyncio.to_thread(server.cancelled.wait, 5)


def test_a_generation_in_a_with_block_ends_with_it(server: FakeServer) -> None:
    with Client(server.target) as client, client.session("toy", "stall", on_disconnect="free") as session:
        with session.generate() as generation:
            assert next(generation).text == "A"
        assert session.position == 3


def test_leaving_a_loop_is_silent_when_the_server_is_gone(server: FakeServer) -> None:
    with Client(server.target) as client, client.session("toy", "stall", on_disconnect="free") as session:
        for _ in session.generate():
            server.kill()
            break


def test_a_session_closes_with_its_block_even_when_the_block_fails(server: FakeServer) -> None:
    with Client(server.target) as client:
        with pytest.raises(InvalidArgumentError), client.session("toy", on_disconnect="free") as session:
            session.feed("X")
        assert session.closed
        assert server.stream_ended.wait(5)


async def test_an_async_session_closes_with_its_block_even_when_the_block_fails(server: FakeServer) -> None:
    async with AsyncClient(server.target) as client:
        with pytest.raises(InvalidArgumentError):
            async with client.session("toy", on_disconnect="free") as session:
                await session.feed("X")
        assert session.closed
        assert await asyncio.to_thread(server.stream_ended.wait, 5)


async def test_an_opening_that_fails_leaves_no_task(server: FakeServer) -> None:
    async with AsyncClient(server.target) as client:
        before = asyncio.all_tasks()
        with pytest.raises(NotFoundError):
            await client.session("none", on_disconnect="free")
        assert not {task for task in asyncio.all_tasks() - before if task.get_name() == "carousel-stream"}


@pytest.mark.parametrize("on_disconnect", ["free", "hold"])
async def test_an_unanswered_cancelled_feed_is_reported_later(
    server: FakeServer, on_disconnect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carousel._async_reconnecting_stream.ABANDON_S", 0.05)
    async with AsyncClient(server.target) as client, client.session("toy", on_disconnect=on_disconnect) as session:
        server.requests.get()
        server.mute()
        task = asyncio.create_task(session.feed("A"))
        await asyncio.to_thread(server.requests.get)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.unmute()
        with pytest.raises(PositionMismatchError, match="moved it"):
            await session.feed("B")
        assert (await session.feed("B")).position == 2
        assert server.session.num_applied == 2


async def test_an_awaited_session_closes_with_its_block_too(server: FakeServer) -> None:
    async with AsyncClient(server.target) as client:
        opening = client.session("toy", on_disconnect="free")
        async with await opening as session:
            assert await opening is session
            await session.feed("A")
        assert session.closed


async def test_concurrent_feeds_of_one_session_take_turns(server: FakeServer) -> None:
    async with AsyncClient(server.target) as client, client.session("toy", on_disconnect="free") as session:
        steps = await asyncio.gather(*(session.feed(2 + i % 4) for i in range(20)))
        assert [step.position for step in steps] == list(range(1, 21))
        assert server.session.consumed == [2 + i % 4 for i in range(20)]


async def test_calls_under_way_end_when_the_client_is_closed(server: FakeServer) -> None:
    client = AsyncClient(server.target)
    generation = client.generate("toy", "stall")
    assert [(await anext(generation)).text for _ in range(3)] == ["A", "B", "C"]
    rest = asyncio.create_task(anext(generation))
    session = await client.session("toy", "stall", on_disconnect="free")
    server.mute()
    feed = asyncio.create_task(session.feed("A"))
    while server.requests.get().WhichOneof("request") != "open":
        pass
    await asyncio.to_thread(server.requests.get)
    await client.close()
    for call in (rest, feed):
        with pytest.raises(RequestCancelledError, match="the client was closed"):
            await call
    await session.close()
