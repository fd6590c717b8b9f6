"""A session whose request is cancelled has a known position and continues from there."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from carousel import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    PositionMismatchError,
    RequestCancelledError,
    SessionState,
    Token,
)
from carousel.v1 import inference_pb2 as pb
from examples.local_service import LocalService
from tests.end_to_end.wire import wire
from tests.services import local_service
from tests.waiting import until, wait_until

LONG = [1] * 100_000
"""Tokens for which the server needs many seconds."""

both = pytest.mark.parametrize("on_disconnect", ["free", "hold"])


class InThread:
    """A call in its own thread. results: what the call returned or raised."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.results: list[object] = []
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def result(self) -> object:
        self._thread.join(30)
        return self.results[0]

    def _run(self) -> None:
        try:
            self.results.append(self._call())
        except Exception as error:
            self.results.append(error)


async def is_busy(client: AsyncClient, session_id: str) -> bool:
    return (await client.sessions.get(session_id)).state is SessionState.BUSY


@both
def test_cancel_ends_the_feed_that_another_thread_waits_for(shipped_service: LocalService, on_disconnect: str) -> None:
    with (
        Client(shipped_service.target) as client,
        client.session("pychar-en", on_disconnect=on_disconnect, durability="none") as session,
    ):
        feeding = InThread(lambda: session.feed(LONG, outputs=False))
        wait_until(lambda: client.sessions.get(session.id).state is SessionState.BUSY)
        position = session.cancel()
        assert isinstance(feeding.result(), RequestCancelledError)
        assert position == session.position == client.sessions.get(session.id).position < len(LONG)
        assert session.feed(["a"]).position == position + 1
        assert session.cancel() == position + 1  # nothing is in flight


@both
def test_cancel_ends_a_feed_whose_message_is_still_being_made(tiny_service: LocalService, on_disconnect: str) -> None:
    """The message has many tokens, so making it takes a while. Nothing has been sent yet."""
    being_made, is_asked = threading.Event(), threading.Event()

    class Slow(list[int]):
        def __iter__(self) -> Iterator[int]:
            being_made.set()
            assert is_asked.wait(20)
            time.sleep(0.1)  # `cancel` begins before the message is made; nothing tells that it has begun
            return super().__iter__()

    with Client(tiny_service.target) as client, client.session("tiny-endless", on_disconnect=on_disconnect) as session:
        feeding = InThread(lambda: session.feed(Slow([1] * 20_000), outputs=False))
        assert being_made.wait(20)
        is_asked.set()
        position = session.cancel()
        assert isinstance(feeding.result(), RequestCancelledError)
        assert position == session.position < 20_000


@both
def test_cancel_ends_the_generation_that_another_thread_iterates_over(
    tiny_service: LocalService, on_disconnect: str
) -> None:
    with Client(tiny_service.target) as client, client.session("tiny-endless", on_disconnect=on_disconnect) as session:
        taken: list[Token] = []
        begun = threading.Event()

        def iterate() -> None:
            for token in session.generate(max_tokens=60_000):
                taken.append(token)
                begun.set()

        iterating = InThread(iterate)
        assert begun.wait(20)
        position = session.cancel()
        assert isinstance(iterating.result(), RequestCancelledError)
        assert len(taken) <= position == session.position == client.sessions.get(session.id).position < 60_000
        assert session.feed([2]).position == position + 1


@both
async def test_cancel_ends_the_feed_that_another_task_waits_for(
    shipped_service: LocalService, on_disconnect: str
) -> None:
    async with (
        AsyncClient(shipped_service.target) as client,
        client.session("pychar-en", on_disconnect=on_disconnect, durability="none") as session,
    ):
        feeding = asyncio.create_task(session.feed(LONG, outputs=False))
        await until(lambda: is_busy(client, session.id))
        position = await session.cancel()
        with pytest.raises(RequestCancelledError):
            await feeding
        assert position == session.position == (await client.sessions.get(session.id)).position < len(LONG)
        assert (await session.feed(["a"])).position == position + 1


@both
async def test_a_feed_whose_task_is_cancelled_leaves_a_session_that_knows_its_position(
    shipped_service: LocalService, on_disconnect: str
) -> None:
    async with (
        AsyncClient(shipped_service.target) as client,
        client.session("pychar-en", on_disconnect=on_disconnect, durability="none") as session,
    ):
        feeding = asyncio.create_task(session.feed(LONG, outputs=False))
        await until(lambda: is_busy(client, session.id))
        feeding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await feeding
        position = session.position
        assert position == (await client.sessions.get(session.id)).position < len(LONG)
        assert (await session.feed(["a"])).position == position + 1
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.feed(LONG, outputs=False), 0.2)
        assert position < session.position < len(LONG)
        position = session.position
        assert (await session.feed(["a"])).position == position + 1
        async with asyncio.timeout(5):
            assert len(await session.score([["a", "b"]])) == 1


def test_another_feed_after_a_timed_out_feed_gets_a_position_mismatch(shipped_service: LocalService) -> None:
    """The timeout of a feed does not cancel it: the feed may be sent again, and another feed in its place is
    refused."""
    with Client(shipped_service.target) as client, client.session("pychar-en", on_disconnect="free") as session:
        with pytest.raises(DeadlineExceededError):
            session.feed(LONG, outputs=False, timeout=0.3)
        with pytest.raises(PositionMismatchError):
            session.feed(["a"])
        position = session.position
        assert session.feed(["a"]).position == position + 1


FEED = pb.Feed(token_ids=[2] * 7)
GENERATE = pb.Generate(decoding=pb.Decoding(max_tokens=7))
LONG_FEED = pb.Feed(token_ids=LONG, outputs=pb.OutputSpec(kind=pb.OUTPUT_KIND_NONE))
LONG_GENERATE = pb.Generate(decoding=pb.Decoding(max_tokens=60_000))


async def test_requests_behind_a_cancel_run_after_it_and_do_not_count_in_its_position(
    tiny_repository: Path, tmp_path: Path
) -> None:
    firsts: list[dict[str, Any]] = [{"feed": LONG_FEED}, {"generate": LONG_GENERATE}]
    nexts: list[list[dict[str, Any]]] = [[{"feed": FEED}, {"feed": FEED}], [{"generate": GENERATE}]]
    kinds = (pb.DURABILITY_NONE, pb.DURABILITY_STRICT)
    with local_service(tiny_repository, {"store": "lmdb", "data-folder": tmp_path}) as service:
        for durability, long, behind in itertools.product(kinds, firsts, nexts):
            async with wire(service.target) as stream:
                hold = pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_HOLD)
                await stream.ask(open=pb.Open(model="tiny-endless", durability=durability, on_disconnect=hold))
                position = 0
                for _ in range(3):
                    cancelled = [await stream.send(**long), await stream.send(cancel=pb.Cancel())]
                    followers = [await stream.send(**one) for one in behind]
                    ends: dict[int, tuple[str, int]] = {}
                    while len(ends) < len([*cancelled, *followers]):
                        response = await stream.read()
                        if response.WhichOneof("response") != "generated" or response.generated.finish_reason:
                            name = response.error.reason or str(response.WhichOneof("response"))
                            ends[response.request_id] = name, response.position
                    start, position = position, ends[cancelled[0]][1]
                    assert start <= position
                    assert list(ends) == [*cancelled, *followers], "answered in order"
                    assert [ends[one] for one in cancelled] == [("CANCELLED", position), ("cancelled", position)]
                    assert [ends[one][1] for one in followers] == [position + 7, position + 14][: len(followers)]
                    position = ends[followers[-1]][1]
                await stream.ask(close=pb.Close())
