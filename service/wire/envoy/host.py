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

from service.api.interceptors import refusing
from service.errors import INTERNAL
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
    why_malformed,
)
from service.wire.envoy.page import Page
from service.wire.marks import CONNECT, UNARY

log = structlog.get_logger()

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Refusal: TypeAlias = tuple[grpc.StatusCode, str]
"""The status with which a call is refused before it begins."""


@dataclass(slots=True)
class _Details:
    """What an interceptor receives about a call."""

    method: str
    invocation_metadata: Metadata


class Host:
    """The methods and their calls. Generated `add_...Servicer_to_server` functions take it as their server. Event loop
    only.

    interceptor: surrounds every call; browsers: decides which web pages may call; page: the server's own page, or None;
    max_message_bytes: of one request; max_metadata_bytes: of a request's headers; has_client_certificates: whether
    Envoy verifies client certificates and passes them on.
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
        """Registers the methods of a service. Generated code calls it."""
        for name, handler in handlers.items():
            self._handlers[f"/{service}/{name}"] = handler

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Does nothing: generated code also calls this, with the same methods."""

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls from here on, and cancels calls that are still in progress after `grace_s` seconds."""
        self._is_stopping = True
        if self._calls:
            self._empty.clear()
            for step_s in (grace_s, 1.0):  # cancelled calls get a second to end
                try:
                    await asyncio.wait_for(self._empty.wait(), step_s)
                    break
                except TimeoutError:
                    for call in list(self._calls):
                        call.cancel()

    async def serve(self, scope: Event, receive: Receive, send: Send) -> None:
        """Serves one request: an ASGI application for the scope `http`."""
        try:
            await self._serve_and_settle(scope, receive, send)
        except Exception as error:
            if type(error).__name__ == _CLIENT_HAS_LEFT:
                return
            log.error("wire.call_crashed", method=scope["path"], exc_info=error)
            # Without it, Envoy would end the call with OK. If a response has begun, this raises and resets the stream.
            await _refuse(send, b"application/grpc", grpc.StatusCode.INTERNAL, INTERNAL)

    async def _serve_and_settle(self, scope: Event, receive: Receive, send: Send) -> None:
        """Serves a request and never ends as a cancelled task, because pyvoy 1.3.0 panics on those."""
        task = asyncio.current_task()
        try:
            await self._serve(scope, receive, send)
            if task is not None and task.cancelling():
                await asyncio.sleep(0)  # raises a cancellation that came too late for the handler
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
        metadata, method = metadata_of(raw), _method(scope)
        refusal = self._refusal(raw, headers, reason)

        async def find(_: grpc.HandlerCallDetails) -> Handler | None:
            return self._handler(method, refusal, is_whole=is_whole)

        is_whole = UNARY.encode() in headers
        handler = await self._interceptor.intercept_service(find, _Details(method, metadata))
        if handler is None:
            await _refuse(send, content_type, grpc.StatusCode.UNIMPLEMENTED, f"{method[:200]}: no such method")
            return
        frames = Frames(headers.get(b"grpc-encoding", b"").decode("latin-1"), self._max_message_bytes)
        codec = codec_of(handler, is_json=has_json)
        certificate = headers.get(CERTIFICATE) if self._has_client_certificates else None
        call = Call(receive, send, codec, frames, content_type, metadata, _peer(scope.get("client")), certificate)
        call.is_whole = is_whole
        if CONNECT.encode() in headers:
            call.malformed = grpc.StatusCode.INVALID_ARGUMENT
        timeout = headers.get(b"grpc-timeout")
        timeout_s = None if timeout is None else seconds_of(timeout.decode("latin-1"))
        if timeout_s is not None:
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

    def _handler(self, method: str, refusal: Refusal | None, *, is_whole: bool) -> Handler | None:
        """Returns a call's handler: one that reads the request itself, or one that refuses. None: no such method."""
        handler = self._handlers.get(method)
        if refusal is None and handler is not None:
            if not (is_whole and (handler.request_streaming or handler.response_streaming)):
                return handler if handler.request_streaming else _reading(handler)
            refusal = grpc.StatusCode.UNIMPLEMENTED, STREAMS
        return None if refusal is None else refusing(*refusal, is_known=handler is not None)

    def _refusal(self, raw: Headers, headers: Mapping[bytes, bytes], reason: str | None) -> Refusal | None:
        """Returns the status with which a call to any method is refused, or None. reason: why its web page may not
        call, or None."""
        if reason is not None:
            return grpc.StatusCode.PERMISSION_DENIED, reason
        num_bytes = size_of(raw)
        if num_bytes > self._max_metadata_bytes:
            text = f"the metadata has {num_bytes} bytes, the limit is {self._max_metadata_bytes} (max_metadata_bytes)"
            return grpc.StatusCode.RESOURCE_EXHAUSTED, text
        if self._is_stopping:
            return grpc.StatusCode.UNAVAILABLE, "the server is shutting down"
        return why_malformed(headers)

    def _look_for_clients(self) -> None:
        for call in self._calls:
            call.look_for_client()
        self._looking = self._loop.call_later(_LOOK_S, self._look_for_clients) if self._calls else None

    async def _answer_no_call(
        self, scope: Event, headers: Mapping[bytes, bytes], reason: str | None, send: Send
    ) -> None:
        """Answers a request that is not a call: with a file of the page, or with a text. reason: why it is refused."""
        method, host = scope["method"], headers.get(b"host", b"").decode("latin-1")
        found = None if self._page is None or method not in {"GET", "HEAD"} else self._page.find(scope["raw_path"])
        if found is None:
            status, text = 403 if reason else 415 if method == "POST" else 404, reason or _WHAT_IS_SPOKEN
        elif (against := self._browsers.reason_against_page(host)) is not None:
            status, text = 403, against
        else:
            is_known = found.tag in headers.get(b"if-none-match", b"")  # also in a list, and as a weak tag
            status, body = (304, b"") if is_known else (200, found.body)
            await _answer_other(send, status, found.content_type, found.headers, body, is_head=method == "HEAD")
            return
        body = f"{text}\n".encode()
        await _answer_other(send, status, _TEXT, _TEXT_HEADERS, body, is_head=method == "HEAD")


_LOOK_S = 0.1
"""Seconds between two checks whether the clients of calls that do not read are still connected."""
_CLIENT_HAS_LEFT = "ClientDisconnectedError"
"""The name of pyvoy's exception class, which exists only inside Envoy."""
_TEXT = b"text/plain; charset=utf-8"
_TEXT_HEADERS = [(b"x-content-type-options", b"nosniff")]
_WHAT_IS_SPOKEN = "this is a gRPC service: send gRPC, gRPC-Web or Connect by POST"


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
    """Runs a handler of any of the four kinds. Handlers of a single request read it themselves: see `_reading`."""
    behaviour: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    response = await _answer(behaviour, _requests(call) if handler.request_streaming else None, call)
    if not handler.response_streaming and (call.code() or grpc.StatusCode.OK) is grpc.StatusCode.OK:
        await call.write(response)


def _reading(handler: Handler) -> Handler:
    """Returns a handler that reads its single request itself, so that the interceptors also see unreadable requests."""
    behaviour: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary

    async def read_and_answer(_: Any, call: Any) -> Any:
        request = await _request(call)
        if request is grpc.aio.EOF:
            await call.abort(grpc.StatusCode.UNIMPLEMENTED, "the call has no request: this method needs exactly one")
        return await _answer(behaviour, request, call)

    reading: Any = read_and_answer
    make = grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
    return make(reading, handler.request_deserializer, handler.response_serializer)


async def _answer(behaviour: Any, request: Any, call: Call) -> Any:
    """Runs a coroutine function and returns its response, or an asynchronous generator and writes its responses."""
    answer = behaviour(request, call)
    if not inspect.isasyncgen(answer):
        return await answer
    async for response in answer:
        await call.write(response)
    return None


async def _requests(call: Call) -> AsyncIterator[Any]:
    while (request := await _request(call)) is not grpc.aio.EOF:
        yield request


async def _request(call: Call) -> Any:
    """Returns the next request, or `grpc.aio.EOF`. Aborts the call if the request cannot be parsed, with the status
    from https://github.com/grpc/grpc/blob/master/doc/statuscodes.md."""
    try:
        return await call.read()
    except DecodeError as error:
        await call.abort(call.malformed, f"the request cannot be parsed: {error}")


async def _refuse(send: Send, content_type: bytes, code: grpc.StatusCode, details: str) -> None:
    """Ends a call before it begins."""
    await send_whole(send, 200, content_type, status_headers(code, details, ()), b"")


async def _answer_other(
    send: Send, status: int, content_type: bytes, headers: Headers, body: bytes, *, is_head: bool
) -> None:
    """Answers a request that is not a call. body: sent, except for HEAD, for which only its length is sent."""
    size = [] if status == HTTPStatus.NOT_MODIFIED else [(b"content-length", b"%d" % len(body))]
    await send_whole(send, status, content_type, [*headers, *size], b"" if is_head else body)


def _method(scope: Event) -> str:
    """Returns the method exactly as the client wrote it, because a proxy on the way has checked only this spelling."""
    method, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
    return f"{method}?{query}" if query else method


def _peer(client: tuple[str, int] | None) -> str:
    if client is None:
        return "unknown"
    address, port = client
    return f"ipv6:%5B{address}%5D:{port}" if ":" in address else f"ipv4:{address}:{port}"
