"""Serves generated gRPC servicers over ASGI: finds the method, runs its handler, and ends the call with a status."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import structlog

from service.wire.codec import codec_of
from service.wire.envoy.browsers import Browsers
from service.wire.envoy.call import Call, Event, Receive, Send, send_whole
from service.wire.envoy.frames import Frames
from service.wire.envoy.headers import Metadata, metadata_of, seconds_of, size_of, status_headers

log = structlog.get_logger()

_GRPC = b"application/grpc"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(slots=True)
class _Details:
    """What an interceptor is told of a call."""

    method: str
    invocation_metadata: Metadata


class Host:
    """The methods and their calls. Generated `add_...Servicer_to_server` take it as their server. Event loop only.

    interceptor: surrounds every call; browsers: which web pages may call; max_message_bytes: of one request;
    max_metadata_bytes: of a request's headers.
    """

    def __init__(
        self,
        interceptor: grpc.aio.ServerInterceptor,
        browsers: Browsers,
        *,
        max_message_bytes: int,
        max_metadata_bytes: int,
    ) -> None:
        self._interceptor = interceptor
        self._browsers = browsers
        self._max_message_bytes = max_message_bytes
        self._max_metadata_bytes = max_metadata_bytes
        self._handlers: dict[str, Handler] = {}
        self._calls: set[Call] = set()
        self._is_stopping = False
        self._empty = asyncio.Event()

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
        raw = scope["headers"]
        headers = dict(raw)
        content_type = headers.get(b"content-type", b"")
        host, origin = headers.get(b"host", b"").decode("latin-1"), headers.get(b"origin")
        reason = self._browsers.reason_against(
            scope["http_version"], host, None if origin is None else origin.decode("latin-1")
        )
        if scope["method"] != "POST" or not content_type.startswith(_GRPC):
            status = 403 if reason else 415 if scope["method"] == "POST" else 404
            await _answer_other(send, status, reason or _WHAT_IS_SPOKEN)
            return
        if reason is not None:
            await _refuse(send, content_type, grpc.StatusCode.PERMISSION_DENIED, reason)
            return
        num_bytes = size_of(raw)
        if num_bytes > self._max_metadata_bytes:
            text = f"the metadata has {num_bytes} bytes, the limit is {self._max_metadata_bytes} (max_metadata_bytes)"
            await _refuse(send, content_type, grpc.StatusCode.RESOURCE_EXHAUSTED, text)
            return
        if self._is_stopping:
            await _refuse(send, content_type, grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
            return
        metadata = metadata_of(raw)
        handler = await self._interceptor.intercept_service(self._find, _Details(scope["path"], metadata))
        if handler is None:
            await _refuse(send, content_type, grpc.StatusCode.UNIMPLEMENTED, f"{scope['path'][:200]}: no such method")
            return
        frames = Frames(headers.get(b"grpc-encoding", b"").decode("latin-1"), self._max_message_bytes)
        codec = codec_of(handler, content_type)
        call = Call(receive, send, codec, frames, content_type, metadata, _peer(scope.get("client")))
        timeout = headers.get(b"grpc-timeout")
        if timeout is not None:
            timeout_s = seconds_of(timeout.decode("latin-1"))
            if timeout_s is None:
                text = f"grpc-timeout is {timeout[:40]!r}: expected up to 8 digits and one of H, M, S, m, u, n"
                await _refuse(send, content_type, grpc.StatusCode.INTERNAL, text)
                return
            call.set_deadline(timeout_s)
        self._calls.add(call)
        try:
            await _run(handler, call, scope["path"])
        finally:
            self._calls.discard(call)
            if not self._calls:
                self._empty.set()

    async def _find(self, details: grpc.HandlerCallDetails) -> Handler | None:
        return self._handlers.get(details.method)


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
        call.set_details("internal error; the server's log says more")
    try:
        await call.finish(is_cancelled=is_cancelled)
    except Exception as error:  # the client has left meanwhile: pyvoy's own class, which exists inside of Envoy alone
        if type(error).__name__ != "ClientDisconnectedError":
            raise


async def _handle(handler: Handler, call: Call) -> None:
    """Runs a handler of any of the four kinds, which is a coroutine function or an asynchronous generator."""
    behaviour: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    request: Any = _requests(call)
    if not handler.request_streaming:
        request = await call.read()
        if request is grpc.aio.EOF:
            await call.abort(grpc.StatusCode.INTERNAL, "the call has no request")
    answer = behaviour(request, call)
    if inspect.isasyncgen(answer):
        async for response in answer:
            await call.write(response)
        return
    response = await answer
    if not handler.response_streaming and (call.code() or grpc.StatusCode.OK) is grpc.StatusCode.OK:
        await call.write(response)


async def _requests(call: Call) -> AsyncIterator[Any]:
    while (request := await call.read()) is not grpc.aio.EOF:
        yield request


async def _refuse(send: Send, content_type: bytes, code: grpc.StatusCode, details: str) -> None:
    """Ends a call before it has begun."""
    await send_whole(send, 200, content_type, status_headers(code, details, ()), b"")


async def _answer_other(send: Send, status: int, text: str) -> None:
    """Answers a request that is no call."""
    headers = [(b"x-content-type-options", b"nosniff")]
    await send_whole(send, status, b"text/plain; charset=utf-8", headers, f"{text}\n".encode())


def _peer(client: tuple[str, int] | None) -> str:
    if client is None:
        return "unknown"
    address, port = client
    return f"ipv6:%5B{address}%5D:{port}" if ":" in address else f"ipv4:{address}:{port}"
