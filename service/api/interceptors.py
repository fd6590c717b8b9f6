"""What surrounds every call: who it comes from, its count and duration, and errors into statuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, cast

import grpc

from service.api.caller import CALLER, Caller, as_called
from service.api.certificate_names import AuthContext
from service.api.status import TABLE, abort
from service.errors import INTERNAL, AnswerTooLargeError, CarouselError, TooManyCallsError, UnauthenticatedError
from service.observer import CALL_TRACE, ApiObserver

_OURS = "/carousel.v1."
_STREAM = "/carousel.v1.Inference/Stream"
_HEALTH = "/grpc.health.v1."
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Find = Callable[[str | None, AuthContext], Caller]
"""Whose call it is, by its `authorization` header and its client's certificate. Raises UnauthenticatedError."""
Behaviour = Callable[[Any, Any], Awaitable[Any]]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Turns errors of the domain into statuses, and anything else into INTERNAL with a fixed text. max_calls: of our
    own services in progress at once; more are refused. max_answer_bytes: of the answer of a unary call, whichever it
    is; a larger one is not sent."""

    def __init__(self, observer: ApiObserver, find: Find, *, max_answer_bytes: int, max_calls: int = 20_000) -> None:
        self._observer = observer
        self._find = find
        self._max_calls = max_calls
        self._max_answer_bytes = max_answer_bytes
        self._num_calls = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the handlers of our own services, which are all coroutine functions."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_HEALTH):
            return handler
        metadata = cast("dict[str, str]", dict(handler_call_details.invocation_metadata))
        if not method.startswith(_OURS):  # reflection
            return self._guarded(handler, metadata.get("authorization"))
        kinds = (
            ("unary_unary", grpc.unary_unary_rpc_method_handler),
            ("unary_stream", grpc.unary_stream_rpc_method_handler),
            ("stream_stream", grpc.stream_stream_rpc_method_handler),
        )
        for name, make in kinds:
            behaviour = getattr(handler, name)
            if behaviour is not None:
                wrapped: Any = self._wrap(behaviour, method, metadata)
                return make(wrapped, handler.request_deserializer, handler.response_serializer)
        return handler

    def _guarded(self, handler: Handler, authorization: str | None) -> Handler:
        """The handler of a stream, for those who may call."""
        find, behaviour = self._find, cast("Any", handler.stream_stream)

        async def call(requests: Any, context: Any) -> AsyncIterator[Any]:
            try:
                find(authorization, context.auth_context)
            except UnauthenticatedError as error:
                await abort(context, error)
            async for response in behaviour(requests, context):
                yield response

        guarded: Any = call
        return grpc.stream_stream_rpc_method_handler(guarded, handler.request_deserializer, handler.response_serializer)

    def _wrap(self, behaviour: Behaviour, method: str, metadata: dict[str, str]) -> Behaviour:
        observer, find = self._observer, self._find
        is_stream = method == _STREAM

        async def call(request: Any, context: Any) -> Any:
            began_s = time.monotonic()
            code = grpc.StatusCode.OK
            peer = context.peer()
            observer.call_started(method, peer)
            trace = observer.trace_call(method, metadata)
            CALL_TRACE.set(trace)
            self._num_calls += 1
            try:
                self._check_room()
                caller = find(metadata.get("authorization"), context.auth_context)
                if not is_stream:  # of which each message counts
                    caller.admit()
                CALLER.set(caller)
                answer = await behaviour(request, context)
                if answer is not None:  # of a unary call: streams write theirs themselves
                    self._check_size(answer.ByteSize(), method)
                return answer
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            except CarouselError as error:
                as_called(error, getattr(request, "session_id", ""))
                code = grpc.StatusCode.UNKNOWN
                row = TABLE[type(error)]
                observer.request_failed("", row.code.name, row.reason)
                await abort(context, error)
            except Exception as error:
                code = grpc.StatusCode.INTERNAL
                observer.handler_crashed(method, error)
                await context.abort(code, INTERNAL)
            finally:
                self._num_calls -= 1
                if code is grpc.StatusCode.UNKNOWN:
                    code = context.code() or code
                observer.call_ended(method, peer, _name(code), time.monotonic() - began_s)
                if trace is not None:
                    trace.ended(_name(code))

        return call

    def _check_size(self, num_bytes: int, method: str) -> None:
        if num_bytes > self._max_answer_bytes:
            raise AnswerTooLargeError(
                f"{method.rpartition('/')[2]}: the answer has {num_bytes} bytes, the limit is"
                f" {self._max_answer_bytes}: ask for less at a time, or raise the server's max_message_bytes",
                limit=self._max_answer_bytes,
            )

    def _check_room(self) -> None:
        if self._num_calls > self._max_calls:
            raise TooManyCallsError(
                f"{self._max_calls} calls are in progress, the most this server takes (max_calls): try again later",
                retry_delay_s=1.0,
                max_calls=self._max_calls,
            )


def _name(code: grpc.StatusCode | int) -> str:
    """A context gives its code as it was set: a `StatusCode`, or a number."""
    if isinstance(code, int):
        return next((c.name for c in grpc.StatusCode if c.value[0] == code), "UNKNOWN")
    return code.name
