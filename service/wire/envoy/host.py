"""Serves generated gRPC servicers over ASGI: finds the method, runs its handler, and ends the call with a status."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError

from service.errors import INTERNAL, quoted
from service.wire.codec import STREAMS, codec_of, is_json
from service.wire.envoy.browsers import Browsers
from service.wire.envoy.call import Call, Event, Receive, Send, send_whole
from service.wire.envoy.frames import Frames
from service.wire.envoy.headers import (
    CERTIFICATE,
    Headers,
    Metadata,
    metadata_of,
    seconds_of,
    size_of,
    status_headers,
)
from service.wire.envoy.page import Page
from service.wire.marks import CONNECT, UNARY

log = structlog.get_logger()

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(slots=True)
class _Details:
    """What an interceptor is told of a call."""

    method: str
    invocation_metadata: Metadata


class Host:
    """The methods and their calls. Generated `add_...Servicer_to_server` take it as their server. Event loop only.

    interceptor: surrounds every call; browsers: which web pages may call; page: the server's own, if it has one;
    max_message_bytes: of one request; max_metadata_bytes: of a request's headers; has_client_certificates: whether
    Envoy verifies some, and tells of them.
    """

    def __init__(
        self,
        interceptor: grpc.aio.ServerInterceptor,
        browsers: Browsers,
        page: Page | None,
        *,
        max_message_bytes: int,
        max_metadata_bytes: int,
        has_client_certificates: bool,
    ) -> None:
        self._interceptor = interceptor
        self._browsers = browsers
        self._page = page
        self._max_message_bytes = max_message_bytes
        self._max_metadata_bytes = max_metadata_bytes
        self._has_client_certificates = has_client_certificates
        self._handlers: dict[str, Handler] = {}
        self._calls: set[Call] = set()
        self._is_stopping = False
        self._empty = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._looking: asyncio.TimerHandle | None = None

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Registers the methods of a service: what generated code calls."""
        for name, handler in handlers.items():
            self._handlers[f"/{service}/{name}"] = handler

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """What generated code calls besides, with the same methods again."""

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls from here on, and cancels those that have not ended after `grace_s` seconds."""
        self._is_stopping = True
        if self._calls:
            self._empty.clear()
            for step_s in (grace_s, 1.0):  # what is cancelled gets a moment to end in good order
                try:
                    await asyncio.wait_for(self._empty.wait(), step_s)
                    break
                except TimeoutError:
                    for call in list(self._calls):
                        call.cancel()

    async def serve(self, scope: Event, receive: Receive, send: Send) -> None:
        """One request: an ASGI application for the scope `http`."""
        try:
            await self._serve_and_settle(scope, receive, send)
        except Exception as error:
            if type(error).__name__ == _CLIENT_HAS_LEFT:
                return
            log.error("wire.call_crashed", method=scope["path"], exc_info=error)
            # or Envoy would end the call with OK; where an answer has begun this raises, which resets the stream
            await _refuse(send, b"application/grpc", grpc.StatusCode.INTERNAL, INTERNAL)

    async def _serve_and_settle(self, scope: Event, receive: Receive, send: Send) -> None:
        """Ends without being cancelled, whatever the call was: pyvoy 1.3.0 panics on a task that is."""
        task = asyncio.current_task()
        try:
            await self._serve(scope, receive, send)
            if task is not None and task.cancelling():
                await asyncio.sleep(0)  # a cancellation that came too late for the handler comes here
        except asyncio.CancelledError:
            pass

    async def _serve(self, scope: Event, receive: Receive, send: Send) -> None:
        raw = scope["headers"]
        headers = dict(raw)
        content_type = headers.get(b"content-type", b"")
        has_json = is_json(content_type)
        host, origin = headers.get(b"host", b"").decode("latin-1"), headers.get(b"origin")
        reason = self._browsers.reason_against(
            scope["http_version"], host, None if origin is None else origin.decode("latin-1")
        )
        if scope["method"] != "POST" or has_json is None:
            await self._answer_no_call(scope, headers, reason, send)
            return
        if reason is not None:
            await _refuse(send, content_type, grpc.StatusCode.PERMISSION_DENIED, reason)
            return
        refusal = self._refusal(raw, headers)
        if refusal is not None:
            await _refuse(send, content_type, *refusal)
            return
        metadata, method = metadata_of(raw), _method(scope)
        handler = await self._interceptor.intercept_service(self._find, _Details(method, metadata))
        if handler is None:
            await _refuse(send, content_type, grpc.StatusCode.UNIMPLEMENTED, f"{method[:200]}: no such method")
            return
        is_whole = UNARY.encode() in headers
        if is_whole and (handler.request_streaming or handler.response_streaming):
            await _refuse(send, content_type, grpc.StatusCode.UNIMPLEMENTED, STREAMS)
            return
        frames = Frames(headers.get(b"grpc-encoding", b"").decode("latin-1"), self._max_message_bytes)
        codec = codec_of(handler, is_json=has_json)
        certificate = headers.get(CERTIFICATE) if self._has_client_certificates else None
        call = Call(receive, send, codec, frames, content_type, metadata, _peer(scope.get("client")), certificate)
        call.is_whole = is_whole
        if CONNECT.encode() in headers:
            call.malformed = grpc.StatusCode.INVALID_ARGUMENT
        timeout = headers.get(b"grpc-timeout")
        if timeout is not None:
            said = timeout.decode("latin-1")
            timeout_s = seconds_of(said)
            if timeout_s is None:
                text = f"grpc-timeout is {said[:40]!r}: expected up to 8 digits and one of H, M, S, m, u, n"
                await _refuse(send, content_type, grpc.StatusCode.INTERNAL, text)
                return
            call.set_deadline(timeout_s)
        self._calls.add(call)
        if self._looking is None:
            self._looking = self._loop.call_later(_LOOK_S, self._look_for_clients)
        try:
            await _run(handler, call, method)
        finally:
            self._calls.discard(call)
            if not self._calls:
                self._empty.set()

    def _refusal(self, raw: Headers, headers: Mapping[bytes, bytes]) -> tuple[grpc.StatusCode, str] | None:
        """Why a call is not begun, whichever its method."""
        num_bytes = size_of(raw)
        if num_bytes > self._max_metadata_bytes:
            text = f"the metadata has {num_bytes} bytes, the limit is {self._max_metadata_bytes} (max_metadata_bytes)"
            return grpc.StatusCode.RESOURCE_EXHAUSTED, text
        if self._is_stopping:
            return grpc.StatusCode.UNAVAILABLE, "the server is shutting down"
        version = headers.get(CONNECT.encode())
        if version is not None and version not in _CONNECT_VERSIONS:
            text = f"connect-protocol-version is {quoted(version.decode('latin-1'))}: expected 1"
            return grpc.StatusCode.INVALID_ARGUMENT, text
        if version is not None and (timeout := headers.get(b"connect-timeout-ms")) is not None:  # no time of any length
            text = f"connect-timeout-ms is {quoted(timeout.decode('latin-1'))}: expected up to 10 digits"
            return grpc.StatusCode.INVALID_ARGUMENT, text
        if b"trailers" not in headers.get(b"te", b""):
            text = "te is missing: expected trailers, which a proxy on the way may not pass"
            return grpc.StatusCode.INTERNAL, text
        return None

    def _look_for_clients(self) -> None:
        for call in self._calls:
            call.look_for_client()
        self._looking = self._loop.call_later(_LOOK_S, self._look_for_clients) if self._calls else None

    async def _answer_no_call(
        self, scope: Event, headers: Mapping[bytes, bytes], reason: str | None, send: Send
    ) -> None:
        """Answers a request that is no call: with a file of the page, or with words. reason: why it is refused."""
        method, host = scope["method"], headers.get(b"host", b"").decode("latin-1")
        found = None if self._page is None or method not in {"GET", "HEAD"} else self._page.find(scope["raw_path"])
        if found is None:
            status, text = 403 if reason else 415 if method == "POST" else 404, reason or _WHAT_IS_SPOKEN
        elif (against := self._browsers.reason_against_page(host)) is not None:
            status, text = 403, against
        else:
            is_known = found.tag in headers.get(b"if-none-match", b"")  # one of a list, also a weak one
            status, body = (304, b"") if is_known else (200, found.body)
            await _answer_other(send, status, found.content_type, found.headers, body, is_head=method == "HEAD")
            return
        body = f"{text}\n".encode()
        await _answer_other(send, status, _TEXT, _TEXT_HEADERS, body, is_head=method == "HEAD")

    async def _find(self, details: grpc.HandlerCallDetails) -> Handler | None:
        return self._handlers.get(details.method)


_LOOK_S = 0.1
"""Between two looks whether the clients are still there whose handlers do not read."""
_CONNECT_VERSIONS = {b"1", b"-"}
_CLIENT_HAS_LEFT = "ClientDisconnectedError"
"""pyvoy's own class, which exists inside of Envoy alone."""
_TEXT = b"text/plain; charset=utf-8"
_TEXT_HEADERS = [(b"x-content-type-options", b"nosniff")]
_WHAT_IS_SPOKEN = "this is a gRPC service: it speaks gRPC, gRPC-Web and Connect, by POST"


async def _run(handler: Handler, call: Call, path: str) -> None:
    is_cancelled = False
    try:
        await _handle(handler, call)
    except grpc.aio.AbortError:
        pass
    except asyncio.CancelledError:
        is_cancelled = True
    except Exception as error:
        log.error("wire.handler_crashed", method=path, exc_info=error)
        call.set_code(grpc.StatusCode.UNKNOWN)
        call.set_details(INTERNAL)
    await call.finish(is_cancelled=is_cancelled)


async def _handle(handler: Handler, call: Call) -> None:
    """Runs a handler of any of the four kinds, which is a coroutine function or an asynchronous generator."""
    behaviour: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    request: Any = _requests(call)
    if not handler.request_streaming:
        request = await _request(call)
        if request is grpc.aio.EOF:
            await call.abort(grpc.StatusCode.UNIMPLEMENTED, "the call has no request: this method takes one")
    answer = behaviour(request, call)
    if inspect.isasyncgen(answer):
        async for response in answer:
            await call.write(response)
        return
    response = await answer
    if not handler.response_streaming and (call.code() or grpc.StatusCode.OK) is grpc.StatusCode.OK:
        await call.write(response)


async def _requests(call: Call) -> AsyncIterator[Any]:
    while (request := await _request(call)) is not grpc.aio.EOF:
        yield request


async def _request(call: Call) -> Any:
    """The next request, or `grpc.aio.EOF`. Ends the call for one that cannot be parsed, as the table of
    https://github.com/grpc/grpc/blob/master/doc/statuscodes.md has it."""
    try:
        return await call.read()
    except DecodeError as error:
        await call.abort(call.malformed, f"the request cannot be parsed: {error}")


async def _refuse(send: Send, content_type: bytes, code: grpc.StatusCode, details: str) -> None:
    """Ends a call before it has begun."""
    await send_whole(send, 200, content_type, status_headers(code, details, ()), b"")


async def _answer_other(
    send: Send, status: int, content_type: bytes, headers: Headers, body: bytes, *, is_head: bool
) -> None:
    """Answers a request that is no call. body: what is sent, or, where the request is a HEAD, would be."""
    size = [] if status == HTTPStatus.NOT_MODIFIED else [(b"content-length", b"%d" % len(body))]
    await send_whole(send, status, content_type, [*headers, *size], b"" if is_head else body)


def _method(scope: Event) -> str:
    """The method as the client wrote it: what a proxy on the way has judged, and no other spelling of it."""
    method, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
    return f"{method}?{query}" if query else method


def _peer(client: tuple[str, int] | None) -> str:
    if client is None:
        return "unknown"
    address, port = client
    return f"ipv6:%5B{address}%5D:{port}" if ":" in address else f"ipv4:{address}:{port}"
