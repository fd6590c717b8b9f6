"""Calls that one side ends first: half-closed calls, clients that leave, and handlers and servers that end early."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from examples.local_service import LocalService
from tests.services import local_service
from tests.waiting import wait_until
from tests.wire.conformance.calls import client, framed, path, read, recorded
from tests.wire.conformance.conftest import COMMAND
from tests.wire.conformance.http2 import Connection, call_headers
from tests.wire.conformance.leaving import WAYS
from tests.wire.conformance.servicer import METHODS, struct

IGNORED_BYTES = 200_000


async def send_all(call: Any, count: int) -> None:
    """Sends `count` numbered requests and half-closes the call."""
    for number in range(count):
        await call.write(struct(number=number))
    await call.done_writing()


async def test_a_client_that_has_sent_its_last_request_still_gets_its_answers(service: LocalService) -> None:
    async with client(service.target) as one:
        call = one.stream()
        await send_all(call, 3)
        assert [read(response)["number"] async for response in call] == [0, 1, 2]
        assert await call.code() is grpc.StatusCode.OK


async def test_a_handler_sees_the_last_request_and_then_the_end(service: LocalService) -> None:
    async with client(service.target) as one:
        call = one.client_stream()
        await send_all(call, 40)
        assert read(await call) == {"count": 40.0}


@pytest.mark.parametrize("method", ["ClientStream", "Stream"])
def test_a_handler_may_end_before_the_client_does(service: LocalService, method: str) -> None:
    """The server ignores what the client sends afterwards, and the connection stays usable."""
    with Connection(service.target) as one:
        stream = one.start(call_headers(path("Stream")))
        one.data(stream, framed(do="end", code=9, details="enough"))
        answer = one.answer(stream)
        assert (answer.status, answer.message) == (9, "enough")
        one.data(stream, framed(number=1))
        one.ping()
        stream = one.start(call_headers(path("Stream")))
        one.data(stream, framed(do="end", code=9, details="enough"))
        one.data_in_turn(stream, framed(padding="x" * IGNORED_BYTES))  # some of it is on its way when the handler ends
        assert one.answer(stream).status == 9
        assert one.ask(call_headers(path(method)), framed(number=2)).status == 0


@pytest.mark.parametrize("stream", [*METHODS, "Unary, open", "ServerStream, open", "Stream, open"])
@pytest.mark.parametrize("way", WAYS)
def test_a_handler_is_cancelled_when_its_client_leaves(service: LocalService, way: str, stream: str) -> None:
    """It does not matter whether the client half-closed the call. No handler of this test reads further requests."""
    name, method, is_last = f"leaves {way} {stream}", stream.partition(",")[0], "open" not in stream
    with Connection(service.target) as one:
        number = one.start(call_headers(path(method)))
        one.data(number, framed(do="wait", name=name), is_last=is_last)
        wait_until(lambda: recorded(service, name) == "waiting")
        WAYS[way](one, number)
        wait_until(lambda: recorded(service, name) == "cancelled")


@pytest.mark.parametrize("way", WAYS)
def test_a_handler_that_writes_notices_that_its_client_has_left(service: LocalService, way: str) -> None:
    name = f"floods {way}"
    with Connection(service.target, window_bytes=20_000) as one:
        stream = one.start(call_headers(path("ServerStream")))
        one.data(stream, framed(do="flood", name=name, size=1000, count=10**6), is_last=True)
        one.wait_for_data(stream, 2000)
        WAYS[way](one, stream)
        wait_until(lambda: isinstance(recorded(service, name), str))


def test_a_stream_that_is_reset_leaves_its_neighbours_alone(service: LocalService) -> None:
    with Connection(service.target) as one:
        streams = [one.start(call_headers(path("Stream"))) for _ in range(20)]
        for stream in streams:
            one.data(stream, framed(number=stream))
        for stream in streams[::2]:
            one.reset(stream)
        for stream in streams[1::2]:
            one.data(stream, framed(number=-stream), is_last=True)
            answer = one.answer(stream)
            assert ([read(message)["number"] for message in answer.messages], answer.status) == ([stream, -stream], 0)


async def test_a_call_that_grpcio_cancels_is_cancelled(service: LocalService) -> None:
    name = "cancelled by grpcio"
    async with client(service.target) as one:
        call = one.unary(struct(do="wait", name=name))
        await asyncio.to_thread(wait_until, lambda: recorded(service, name) == "waiting")
        call.cancel()
        assert await call.code() is grpc.StatusCode.CANCELLED
        await asyncio.to_thread(wait_until, lambda: recorded(service, name) == "cancelled")


def test_a_handler_may_cancel_itself(envoy_service: LocalService) -> None:
    """grpcio sends no status in this case, so the client waits for its deadline."""
    with Connection(envoy_service.target) as one:
        assert one.ask(call_headers(path("Unary")), framed(do="cancel")).status == 1


def test_a_stopping_server_refuses_new_calls_and_ends_the_others(wire: str) -> None:
    """Calls that end within the grace time still get their responses."""
    flags = {"wire": wire, "shutdown-grace-s": 1}
    with local_service(None, flags, command=COMMAND) as service, Connection(service.target) as one:
        stalled = one.start(call_headers(path("Stream")))
        one.data(stalled, framed(do="wait", name="stalled"))
        lively = one.start(call_headers(path("Stream")))
        one.data(lively, framed(number=1))
        one.wait_for_data(lively, 1)
        wait_until(lambda: recorded(service, "stalled") == "waiting")
        service.process.terminate()
        late = one.start(call_headers(path("Unary")))
        one.data(late, framed(number=3), is_last=True)
        one.data(lively, framed(number=2), is_last=True)
        answer = one.answer(lively)
        assert ([read(message)["number"] for message in answer.messages], answer.status) == ([1, 2], 0)
        answer = one.answer(stalled)
        assert answer.status in (1, 14) or answer.reset is not None or one.is_closed
        assert service.process.wait(30) == 0
        assert not [line for line in service.log if line["level"] in ("warning", "error")]
