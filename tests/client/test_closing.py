"""Closed sessions and clients: what waits ends, later calls say why, and closing again does not wait."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from carousel import AsyncClient, Client, FailedPreconditionError, InvalidArgumentError, SessionClosedError
from carousel.v1 import inference_pb2 as pb

from .fake_server import Event, FakeServer

CALLS = ("feed", "generate", "score", "cancel", "rewind")


class ServerThatDoesNotEndStreams(FakeServer):
    """Ends a stream, after the client has ended its side, only when `may_end` is set."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        super().__init__()

    def _read(self, requests: Iterator[pb.StreamRequest], events: queue.SimpleQueue[Event]) -> None:
        super()._read(self._slowly(requests), events)

    def _slowly(self, requests: Iterator[pb.StreamRequest]) -> Iterator[pb.StreamRequest]:
        yield from requests
        self.may_end.wait(30)


def calls(session: Any, first: Callable[[Any], object]) -> dict[str, Callable[[], Any]]:
    """Returns the calls of a session of either client. first: returns the first item of an iterator."""
    return {
        "feed": lambda: session.feed("A"),
        "generate": lambda: first(session.generate()),
        "score": lambda: session.score(["A"]),
        "cancel": session.cancel,
        "rewind": lambda: session.rewind(0),
    }


@pytest.fixture
def slow_server() -> Iterator[ServerThatDoesNotEndStreams]:
    with ServerThatDoesNotEndStreams() as server:
        yield server
        server.may_end.set()


async def test_queued_feeds_of_a_session_that_is_closed_say_that_it_is_closed(server: FakeServer) -> None:
    async with AsyncClient(server.target) as client:
        session = await client.session("toy", "ab", on_disconnect="free")
        server.mute()
        feeds = [asyncio.create_task(session.feed("A")) for _ in range(3)]
        await asyncio.sleep(0)
        await session.close(timeout=0.05)
        for error in await asyncio.gather(*feeds, return_exceptions=True):
            assert isinstance(error, SessionClosedError)
        with pytest.raises(SessionClosedError) as closed:
            await session.feed("A")
        assert closed.value.position is None
        assert session.closed


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
async def test_closing_a_session_that_the_server_has_closed_does_not_wait_for_its_stream(
    slow_server: ServerThatDoesNotEndStreams, kind: str
) -> None:
    if kind == "blocking":
        with Client(slow_server.target) as client:
            session = client.session("toy", "ab", on_disconnect="free")
            slow_server.evict()
            with pytest.raises(SessionClosedError):
                session.feed("A")
            await asyncio.wait_for(asyncio.to_thread(session.close, 60), 10)
        return
    async with AsyncClient(slow_server.target) as other:
        there = await other.session("toy", "ab", on_disconnect="free")
        slow_server.evict()
        with pytest.raises(SessionClosedError):
            await there.feed("A")
        await asyncio.wait_for(there.close(60), 10)


@pytest.mark.parametrize("call", CALLS)
def test_calls_of_a_session_after_its_client_was_closed_are_refused(server: FakeServer, call: str) -> None:
    client = Client(server.target)
    session = client.session("toy", "ab", on_disconnect="free")
    client.close()
    with pytest.raises(FailedPreconditionError) as refused:
        calls(session, next)[call]()
    assert refused.value.reason == "CLIENT_CLOSED"
    session.close()


@pytest.mark.parametrize("call", CALLS)
async def test_asyncio_calls_of_a_session_after_its_client_was_closed_are_refused(
    server: FakeServer, call: str
) -> None:
    client = AsyncClient(server.target)
    session = await client.session("toy", "ab", on_disconnect="free")
    await client.close()
    with pytest.raises(FailedPreconditionError) as refused:
        await calls(session, anext)[call]()
    assert refused.value.reason == "CLIENT_CLOSED"
    await session.close()


def test_a_forecast_of_a_model_of_tokens_is_refused_before_it_moves_the_session(server: FakeServer) -> None:
    with Client(server.target) as client, client.session("toy", "ab", on_disconnect="free") as session:
        session.feed("A")
        before = session.position
        with pytest.raises(InvalidArgumentError, match="this model reads and generates tokens, not numbers"):
            session.forecast(3)
        assert session.position == before
        assert session.feed("A").position == before + 1
