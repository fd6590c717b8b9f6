"""Surrounds each call: sets its request id and its caller, reports it to the observer, and turns errors into statuses.

Calls that are refused before a handler runs are surrounded as well: for an unknown method, by the wire (`refusing`), or
for a missing token. Calls of gRPC's health service pass through unchanged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, cast

import grpc

from service.api.caller import CALLER, Caller, as_called
from service.api.certificate_names import AuthContext
from service.api.request_ids import KEY, request_id_of
from service.api.status import TABLE, abort
from service.errors import INTERNAL, AnswerTooLargeError, CarouselError, TooManyCallsError
from service.observer import CALL, CALL_TRACE, ApiObserver, CallReport

_OURS = "/carousel.v1."
_STREAM = "/carousel.v1.Inference/Stream"
_HEALTH = "/grpc.health.v1."
_MAX_METHOD = 200
"""The most characters of an unknown method name that responses and reports show."""
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Find = Callable[[str | None, AuthContext], Caller]
"""Returns the caller for an `authorization` header and a client's certificate. Raises UnauthenticatedError."""
Behaviour = Callable[[Any, Any], Awaitable[Any]]
Reported = Callable[[Any, Any, CallReport], Awaitable[Any]]
"""A behaviour that also gets the report of its call."""


class _Refusal:
    """A behaviour that refuses every call."""

    def __init__(self, code: grpc.StatusCode, details: str, *, is_known: bool) -> None:
        self._code, self._details = code, details
        self.is_known = is_known

    async def __call__(self, _: Any, context: Any, report: CallReport | None = None) -> None:
        await context.abort(self._code, self._details)


def refusing(code: grpc.StatusCode, details: str, *, is_known: bool) -> Handler:
    """Returns a handler that refuses calls, whoever makes them. is_known: whether the server has the method."""
    refusal: Any = _Refusal(code, details, is_known=is_known)
    return grpc.stream_stream_rpc_method_handler(refusal)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Turns domain errors into statuses, and any other exception into INTERNAL with a fixed text. Must be the outermost
    interceptor.

    max_calls: the most calls of our own services that may be in progress; further calls are refused. max_answer_bytes:
    the most bytes of the response of any unary call; a larger one is not sent.
    """

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
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Wraps a handler. For an unknown method, wraps a handler that refuses the call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            text = f"{_printable(method)}: no such method"
            handler = refusing(grpc.StatusCode.UNIMPLEMENTED, text, is_known=False)
        if method.startswith(_HEALTH):
            return handler
        metadata = cast("dict[str, str]", dict(handler_call_details.invocation_metadata))
        kinds = (
            ("unary_unary", grpc.unary_unary_rpc_method_handler),
            ("unary_stream", grpc.unary_stream_rpc_method_handler),
            ("stream_stream", grpc.stream_stream_rpc_method_handler),
        )
        for name, make in kinds:
            behaviour: Any = getattr(handler, name)
            if behaviour is not None:
                serve: Reported
                is_known = True
                if isinstance(behaviour, _Refusal):
                    serve, is_known = behaviour, behaviour.is_known
                elif method.startswith(_OURS):
                    serve = self._served(behaviour, method, metadata.get("authorization"))
                else:
                    serve = self._reflected(behaviour, metadata.get("authorization"))
                wrapped: Any = self._reported(serve, method, metadata, is_known=is_known)
                return make(wrapped, handler.request_deserializer, handler.response_serializer)
        return handler

    def _served(self, behaviour: Behaviour, method: str, authorization: str | None) -> Reported:
        """Returns the behaviour of a method of our own services, a coroutine function, with checks: the number of
        calls, the caller, the caller's rate, and the size of the response."""

        async def serve(request: Any, context: Any, report: CallReport) -> Any:
            self._num_calls += 1
            try:
                self._check_room()
                caller = self._caller(authorization, context, report)
                if method != _STREAM:  # a stream counts each of its messages
                    caller.admit()
                    report.num_messages_in = 1
                CALLER.set(caller)
                answer = await behaviour(request, context)
                if answer is not None:  # a unary call: streaming methods write their responses themselves
                    self._check_size(answer.ByteSize(), method)
                    report.num_messages_out = 1
                return answer
            finally:
                self._num_calls -= 1

        return serve

    def _reflected(self, behaviour: Callable[[Any, Any], AsyncIterator[Any]], authorization: str | None) -> Reported:
        """Returns the behaviour of gRPC's reflection, an asynchronous generator, for authenticated callers."""

        async def serve(requests: Any, context: Any, report: CallReport) -> None:
            self._caller(authorization, context, report)
            async for response in behaviour(requests, context):
                try:
                    await context.write(response)
                except grpc.aio.InternalError:  # grpc raises this when the client has disconnected
                    return
                report.num_messages_out += 1

        return serve

    def _caller(self, authorization: str | None, context: Any, report: CallReport) -> Caller:
        caller = self._find(authorization, context.auth_context)
        report.principal = caller.principal.name
        return caller

    def _reported(self, serve: Reported, method: str, metadata: dict[str, str], *, is_known: bool) -> Behaviour:
        """Returns a behaviour that reports each call and turns errors into statuses."""
        observer = self._observer
        method = method if is_known else _printable(method)

        async def call(request: Any, context: Any) -> Any:
            began_s = time.monotonic()
            report = CallReport(request_id_of(metadata), method, context.peer(), is_known)
            observer.call_started(report)
            trace = observer.trace_call(report, metadata)
            if trace is not None:
                report.trace_id = trace.trace_id
            CALL.set(report)
            CALL_TRACE.set(trace)
            context.set_trailing_metadata(((KEY, report.request_id),))
            try:
                return await serve(request, context, report)
            except asyncio.CancelledError:
                report.code = _name(context.code() or grpc.StatusCode.CANCELLED)
                raise
            except grpc.aio.AbortError:
                report.code = _name(context.code() or grpc.StatusCode.UNKNOWN)
                raise
            except CarouselError as error:
                as_called(error, report.others_session)
                row = TABLE[type(error)]
                report.code, report.reason = row.code.name, row.reason
                observer.request_failed(report.model, row.code.name, row.reason)
                await abort(context, error, report.request_id)
            except Exception as error:
                report.code = grpc.StatusCode.INTERNAL.name
                observer.handler_crashed(method, error)
                await context.abort(grpc.StatusCode.INTERNAL, INTERNAL)
            finally:
                report.duration_s = time.monotonic() - began_s
                observer.call_ended(report)
                if trace is not None:
                    trace.ended(report)

        return call

    def _check_size(self, num_bytes: int, method: str) -> None:
        if num_bytes > self._max_answer_bytes:
            raise AnswerTooLargeError(
                f"{method.rpartition('/')[2]}: the response has {num_bytes} bytes, the limit is"
                f" {self._max_answer_bytes}: request less, or increase the server's max_message_bytes",
                limit=self._max_answer_bytes,
            )

    def _check_room(self) -> None:
        if self._num_calls > self._max_calls:
            raise TooManyCallsError(
                f"{self._max_calls} calls are in progress, the limit of this server (max_calls): try again later",
                retry_delay_s=1.0,
                max_calls=self._max_calls,
            )


def _printable(method: str) -> str:
    """Returns the name of an unknown method, shortened and in printable ASCII, because clients can send anything."""
    method = method[:_MAX_METHOD]
    return method if method.isascii() and method.isprintable() else ascii(method)


def _name(code: grpc.StatusCode | int) -> str:
    """Returns the name of a status code. A context has the code as it was set: a `StatusCode` or a number."""
    if isinstance(code, int):
        return next((c.name for c in grpc.StatusCode if c.value[0] == code), "UNKNOWN")
    return code.name
