"""Decodes the requests of calls on gRPC's own wire, so that a request that cannot be parsed becomes a failed call with
a report, like any other failed call.

gRPC does not tell a server the content type of a call. A proxy that translates a browser's JSON to gRPC
(`deploy/envoy`) marks such a call in its metadata.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from service.api.interceptors import refusing
from service.wire.codec import STREAMS, Codec, codec_of
from service.wire.json_messages import JsonError
from service.wire.marks import UNARY

MARK = ("carousel-codec", "json")
"""The metadata entry of a call whose messages are JSON."""
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class DecodingInterceptor(grpc.aio.ServerInterceptor):
    """Decodes requests for handlers. Marked calls have JSON requests and receive JSON responses. It must be the
    innermost interceptor."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Returns the call's handler, changed so that it decodes a single request itself."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        metadata = handler_call_details.invocation_metadata
        if (handler.request_streaming or handler.response_streaming) and any(name == UNARY for name, _ in metadata):
            return refusing(grpc.StatusCode.UNIMPLEMENTED, STREAMS, is_known=True)
        return _decoded(handler, is_json=MARK in metadata)


def _decoded(handler: Handler, *, is_json: bool) -> Handler:
    codec = codec_of(handler, is_json=is_json)
    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(
            _decoding(handler.unary_unary, codec), response_serializer=codec.encode
        )
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(
            _decoding(handler.unary_stream, codec), response_serializer=codec.encode
        )
    if is_json and handler.stream_stream is not None:
        return grpc.stream_stream_rpc_method_handler(handler.stream_stream, _strict(codec), codec.encode)
    return handler


def _strict(codec: Codec) -> Callable[[bytes], Any]:
    """Returns a decoder that raises DecodeError for every invalid message, as gRPC expects."""

    def decode(data: bytes) -> Any:
        try:
            return codec.decode(data)
        except JsonError as error:
            raise DecodeError(str(error)) from None

    return decode


def _decoding(behaviour: Any, codec: Codec) -> Any:
    """Returns a behaviour that takes a request's bytes and aborts the call if they cannot be decoded."""

    async def call(data: bytes, context: Any) -> Any:
        try:
            request = codec.decode(data)
        except JsonError as error:  # its message names the field
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except DecodeError as error:
            await context.abort(grpc.StatusCode.INTERNAL, f"the request cannot be parsed: {error}")
        return await behaviour(request, context)

    return call
