"""The host of servicers, with a fake ASGI server: each event that it sends, and how it handles failures."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from service.wire.envoy.browsers import Browsers
from service.wire.envoy.call import Event
from service.wire.envoy.frames import framed
from service.wire.envoy.host import Host
from tests.waiting import turns, until

Behaviour = Callable[[Any, Any], Awaitable[Any]]
ONE = framed(b"")
STATUS_OK = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")], "more_trailers": False}


class ClientDisconnectedError(Exception):
    """Has the name of the exception that pyvoy raises."""


class Open(grpc.aio.ServerInterceptor):
    """Passes every call on unchanged, or raises `error`."""

    error: Exception | None = None

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        if self.error is not None:
            raise self.error
        return await continuation(handler_call_details)


class Asgi:
    """One request as an ASGI server passes it on. sent: the events that the host has sent."""

    def __init__(self, *events: Event, path: str = "/s/Stream", headers: dict[bytes, bytes] | None = None) -> None:
        own = {b"host": b"localhost", b"content-type": b"application/grpc", b"te": b"trailers"}
        self.scope: Event = {
            "type": "http",
            "http_version": "2",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": list({**own, **(headers or {})}.items()),
            "client": ("127.0.0.1", 40_000),
        }
        self.sent: list[Event] = []
        self.takes = asyncio.Event()
        self.takes.set()
        self.has_body = asyncio.Event()
        self.has_left = False
        self.is_slow = False
        """Whether the client stops reading after the first piece of the body, until `takes` is set."""
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        for event in events:
            self.put(event)

    def put(self, event: Event) -> None:
        """Adds the client's next event."""
        self._events.put_nowait(event)

    @property
    def num_left(self) -> int:
        """Number of the client's events that were not received yet."""
        return self._events.qsize()

    async def receive(self) -> Event:
        """Returns the client's next event, as ASGI's `receive` does."""
        return await self._events.get()

    def send(self, event: Event) -> Awaitable[None]:
        """Takes an event at once, as pyvoy does. The returned awaitable waits until there is room for more."""
        has_left = self.has_left
        if not has_left:
            self.sent.append(event)
            if event["type"] == "http.response.body":
                self.has_body.set()
                if self.is_slow:
                    self.takes.clear()
                    self.is_slow = False

        async def wait() -> None:
            if has_left:
                raise ClientDisconnectedError
            await self.takes.wait()

        return wait()

    @property
    def bodies(self) -> list[bytes]:
        """The pieces of the body, as they were sent."""
        return [event["body"] for event in self.sent if event["type"] == "http.response.body"]

    def status(self) -> tuple[int, str]:
        """Returns the code and the message of the status with which the call ended."""
        headers = [pair for event in self.sent for pair in event.get("headers", ())]
        found = {name: value.decode() for name, value in headers}
        return int(found[b"grpc-status"]), found.get(b"grpc-message", "")


def piece(body: bytes = b"", *, is_last: bool = False) -> Event:
    """Returns an event with a piece of the client's body."""
    return {"type": "http.request", "body": body, "more_body": not is_last}


def host_of(behaviour: Behaviour, interceptor: Open | None = None) -> Host:
    """Returns a host with one service, whose methods `Stream` and `Unary` are `behaviour`."""
    made = Host(
        interceptor or Open(),
        Browsers("127.0.0.1", (), None),
        None,
        max_message_bytes=100_000,
        max_metadata_bytes=2000,
        has_client_certificates=False,
    )
    codec = (Struct.FromString, Struct.SerializeToString)
    made.add_registered_method_handlers(
        "s",
        {
            "Stream": grpc.stream_stream_rpc_method_handler(behaviour, *codec),
            "Unary": grpc.unary_unary_rpc_method_handler(behaviour, *codec),
        },
    )
    return made


async def served(behaviour: Behaviour, asgi: Asgi) -> Asgi:
    """Runs a request to its end. Returns it."""
    async with asyncio.timeout(10):
        await host_of(behaviour).serve(asgi.scope, asgi.receive, asgi.send)
    return asgi


async def echo(requests: Any, context: Any) -> None:
    """Answers each request with itself."""
    async for request in requests:
        await context.write(request)


async def test_an_answer_is_headers_messages_and_trailers_in_this_order() -> None:
    asgi = await served(echo, Asgi(piece(ONE), piece(ONE), piece(is_last=True)))
    kinds = [event["type"].rpartition(".")[2] for event in asgi.sent]
    assert (kinds[0], set(kinds[1:-1]), kinds[-1]) == ("start", {"body"}, "trailers")
    assert asgi.sent[0]["trailers"]
    assert b"".join(asgi.bodies) == ONE * 2
    assert [event["more_body"] for event in asgi.sent[1:-1]] == [*[True] * (len(kinds) - 3), False]
    assert asgi.sent[-1] == STATUS_OK


async def test_a_call_that_fails_before_it_has_answered_is_trailers_alone() -> None:
    async def fail(request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "ñ", (("k", "v"),))

    asgi = await served(fail, Asgi(piece(ONE, is_last=True)))
    start, body = asgi.sent
    assert dict(start["headers"]) | {b"grpc-status": b"5", b"grpc-message": b"%C3%B1", b"k": b"v"} == dict(
        start["headers"]
    )
    assert body == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_responses_that_wait_go_together() -> None:
    """The handler waits when too many bytes of responses are unsent."""
    written = 0

    async def flood(requests: Any, context: Any) -> None:
        nonlocal written
        message = Struct()
        message.update({"padding": "x" * 900})
        for _ in range(200):
            await context.write(message)
            written += 1

    asgi = Asgi(piece(is_last=True))
    host = host_of(flood)
    running = asyncio.create_task(host.serve(asgi.scope, asgi.receive, asgi.send))
    asgi.is_slow = True
    await asgi.has_body.wait()
    await turns(100)
    assert 10 < written < 25
    assert len(asgi.bodies) == 1
    asgi.takes.set()
    async with asyncio.timeout(10):
        await running
    assert written == 200
    assert len(asgi.bodies) < 60
    assert asgi.sent[-1] == STATUS_OK


async def test_responses_are_written_at_once_after_the_first_while_few_are_unsent() -> None:
    written: list[bool] = []
    asgi = Asgi(piece(is_last=True))
    asgi.is_slow = True
    large = Struct()
    large["a"] = "x" * 20_000

    async def answer(requests: Any, context: Any) -> None:
        written.append(context.write_at_once(Struct()))
        await context.write(Struct())
        written.extend(context.write_at_once(message) for message in (Struct(), large, Struct()))
        asgi.takes.set()
        await turns(5)
        written.append(context.write_at_once(Struct()))

    await served(answer, asgi)
    assert written == [False, True, True, False, True]
    assert b"".join(asgi.bodies) == ONE * 2 + framed(large.SerializeToString()) + ONE
    assert asgi.sent[-1] == STATUS_OK


async def test_nothing_is_written_at_once_when_the_call_has_ended_or_its_client_has_left() -> None:
    contexts: list[Any] = []

    async def answer(requests: Any, context: Any) -> None:
        contexts.append(context)
        await context.write(Struct())
        async for _ in requests:
            pass

    asgis = [Asgi(piece(is_last=True)), Asgi({"type": "http.disconnect"})]
    for asgi in asgis:
        await asyncio.wait([asyncio.create_task(served(answer, asgi))])
    for context, asgi in zip(contexts, asgis, strict=True):
        num_sent = len(asgi.sent)
        assert not context.write_at_once(Struct())
        assert len(asgi.sent) == num_sent


async def test_many_messages_at_once_do_not_block_the_event_loop() -> None:
    num_turns: list[int] = []

    async def count(requests: Any, context: Any) -> None:
        num = 0

        def turn() -> None:
            nonlocal num
            num += 1
            asyncio.get_running_loop().call_soon(turn)

        turn()
        async for _ in requests:
            num_turns.append(num)

    await served(count, Asgi(piece(ONE * 50), piece(is_last=True)))
    assert num_turns == sorted(set(num_turns)), "some came in one turn"
    assert len(num_turns) == 50


async def test_a_client_that_leaves_cancels_the_handler_and_gets_nothing_more() -> None:
    ended: list[str] = []

    async def wait(requests: Any, context: Any) -> None:
        try:
            await anext(aiter(requests))
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    asgi = await served(wait, Asgi(piece(ONE), {"type": "http.disconnect"}))
    assert (ended, asgi.sent) == (["cancelled"], [])


async def test_requests_that_arrive_before_the_handler_reads_are_kept() -> None:
    seen: list[Any] = []

    async def slow(requests: Any, context: Any) -> None:
        await until(lambda: asgi.num_left == 3)  # the host looks whether the client leaves, and takes a piece
        seen.extend([request async for request in requests])

    asgi = Asgi(piece(ONE), piece(ONE[:2]), piece(ONE[2:]), piece(is_last=True))
    await served(slow, asgi)
    assert (len(seen), asgi.sent[-1]) == (2, STATUS_OK)


async def test_a_write_to_a_client_that_has_left_raises() -> None:
    raised: list[BaseException] = []
    asgi = Asgi(piece(ONE))

    async def write(requests: Any, context: Any) -> None:
        await anext(aiter(requests))
        await context.write(Struct())
        asgi.has_left = True
        try:
            while True:
                await context.write(Struct())
                await turns()
        except BaseException as error:
            raised.append(error)
            raise

    await served(write, asgi)
    assert isinstance(raised[0], grpc.aio.InternalError | asyncio.CancelledError)


async def test_a_client_that_has_left_before_the_status_is_no_error() -> None:
    asgi = Asgi(piece(ONE, is_last=True), path="/s/Unary")

    async def answer(request: Any, context: Any) -> Any:
        asgi.has_left = True
        return request

    await served(answer, asgi)
    assert asgi.sent == []


@pytest.mark.parametrize(("size", "is_held_up"), [(100, True), (50_000, False)])
async def test_large_json_does_not_block_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, size: int, *, is_held_up: bool
) -> None:
    """Another thread than the event loop's parses and writes large JSON."""
    threads: list[threading.Thread] = []

    def watched(convert: Callable[..., Any]) -> Callable[..., Any]:
        def convert_here(*arguments: Any, **options: Any) -> Any:
            threads.append(threading.current_thread())
            return convert(*arguments, **options)

        return convert_here

    for name in ("ParseDict", "MessageToJson"):
        monkeypatch.setattr(json_format, name, watched(getattr(json_format, name)))
    body = json.dumps({"padding": "x" * size}).encode()
    asgi = Asgi(piece(framed(body), is_last=True), headers={b"content-type": b"application/grpc+json"})
    await served(echo, asgi)
    assert (b"".join(asgi.bodies)[5:], asgi.sent[-1]) == (body, STATUS_OK)
    assert [thread is threading.main_thread() for thread in threads] == [is_held_up] * 2


@pytest.mark.parametrize("error", [ValueError("secret"), KeyError("secret")])
async def test_a_failure_of_the_host_is_internal_and_never_ok(error: Exception) -> None:
    interceptor = Open()
    interceptor.error = error
    asgi = Asgi(piece(ONE, is_last=True))
    await host_of(echo, interceptor).serve(asgi.scope, asgi.receive, asgi.send)
    assert asgi.status() == (13, "internal error: see the server's log")


async def test_a_handlers_exception_is_not_sent_to_the_client() -> None:
    async def fail(request: Any, context: Any) -> None:
        raise ValueError("secret")

    asgi = await served(fail, Asgi(piece(ONE, is_last=True)))
    assert asgi.status() == (2, "internal error: see the server's log")


async def test_metadata_that_cannot_travel_is_the_handlers_error() -> None:
    async def fail(request: Any, context: Any) -> None:
        context.set_trailing_metadata((("k", "a\nb"),))

    asgi = await served(fail, Asgi(piece(ONE, is_last=True)))
    assert asgi.status()[0] == 2


@pytest.mark.parametrize(
    ("scope", "headers", "status"),
    [
        ({"method": "GET"}, {}, 404),
        ({"method": "HEAD"}, {}, 404),
        ({}, {b"content-type": b"text/plain"}, 415),
        ({}, {b"content-type": b"application/grpc-web+json"}, 415),
        ({"method": "GET", "http_version": "1.1"}, {b"host": b"evil.example"}, 403),
        ({"method": "GET"}, {b"origin": b"http://["}, 403),
    ],
)
async def test_a_request_that_is_not_a_call_gets_an_http_status(
    scope: dict[str, Any], headers: dict[bytes, bytes], status: int
) -> None:
    asgi = Asgi(piece(is_last=True), headers=headers)
    asgi.scope.update(scope)
    await served(echo, asgi)
    assert asgi.sent[0]["status"] == status
    assert bool(b"".join(asgi.bodies)) == (scope.get("method") != "HEAD")


@pytest.mark.parametrize(
    ("headers", "code", "words"),
    [
        ({b"te": b""}, 13, "the header te must contain trailers"),
        ({b"k": b"v" * 2000}, 8, "the limit is 2000 (max_metadata_bytes)"),
        ({b"grpc-timeout": b"soon"}, 13, "grpc-timeout is 'soon'"),
        ({b"origin": b"http://["}, 7, "is not allowed"),
    ],
)
async def test_a_forbidden_call_is_refused_before_its_handler_runs(
    headers: dict[bytes, bytes], code: int, words: str
) -> None:
    async def never(request: Any, context: Any) -> None:
        raise AssertionError

    asgi = await served(never, Asgi(piece(ONE, is_last=True), headers=headers))
    assert asgi.status()[0] == code
    assert words in asgi.status()[1]


@pytest.mark.parametrize(
    ("raw_path", "query"), [(b"/s/Str%65am", b""), (b"/s/Stream", b"x"), (b"/s/stream", b""), (b"s/Stream", b"")]
)
async def test_a_method_has_one_spelling(raw_path: bytes, query: bytes) -> None:
    asgi = Asgi(piece(ONE, is_last=True))
    asgi.scope.update(raw_path=raw_path, query_string=query)
    await served(echo, asgi)
    assert asgi.status()[0] == 12


async def test_a_host_that_stops_refuses_new_calls_and_cancels_the_others() -> None:
    async def wait(requests: Any, context: Any) -> None:
        await context.write(Struct())
        await asyncio.get_running_loop().create_future()

    host, asgi, late = host_of(wait), Asgi(), Asgi()
    running = asyncio.create_task(host.serve(asgi.scope, asgi.receive, asgi.send))
    await asgi.has_body.wait()
    stopping = asyncio.create_task(host.stop(0.1))
    await turns()
    await host.serve(late.scope, late.receive, late.send)
    assert late.status() == (14, "the server is shutting down")
    async with asyncio.timeout(10):
        await asyncio.gather(running, stopping)
    assert asgi.status()[0] == 1


async def test_a_call_that_is_reset_sends_its_status_and_nothing_that_was_unsent() -> None:
    message = Struct()
    message.update({"padding": "x" * 20_000})

    async def stall(requests: Any, context: Any) -> None:
        await context.write(message)
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                while True:
                    await context.write(message)
        context.reset()
        asgi.takes.set()
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    asgi = Asgi(piece(is_last=True))
    asgi.is_slow = True
    await served(stall, asgi)
    assert b"".join(asgi.bodies) == framed(message.SerializeToString())
    assert asgi.status() == (8, "full")
