"""Calls whose messages are JSON, on gRPC's own wire, which does not tell a server what a call's content type is.

A proxy that makes gRPC of a browser's JSON (`deploy/envoy`) marks such a call in its metadata.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from service.wire.codec import STREAMS, Codec, codec_of
from service.wire.json_messages import JsonError
from service.wire.marks import UNARY

MARK = ("carousel-codec", "json")
"""The metadata of such a call."""
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class JsonInterceptor(grpc.aio.ServerInterceptor):
    """Gives marked calls their messages from JSON, and has the answers as JSON. Outside of all other interceptors."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The handler of the call; of a call that is marked, one that reads and writes JSON."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        metadata = handler_call_details.invocation_metadata
        if (handler.request_streaming or handler.response_streaming) and any(name == UNARY for name, _ in metadata):
            return grpc.unary_unary_rpc_method_handler(_refuse_to_stream)
        return _of_json(handler) if MARK in metadata else handler


def _of_json(handler: Handler) -> Handler:
    """The handler, for JSON."""
    codec = codec_of(handler, is_json=True)
    if handler.stream_stream is not None:
        return grpc.stream_stream_rpc_method_handler(handler.stream_stream, _strict(codec), codec.encode)
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(
            _decoding(handler.unary_stream, codec), response_serializer=codec.encode
        )
    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(
            _decoding(handler.unary_unary, codec), response_serializer=codec.encode
        )
    return handler


async def _refuse_to_stream(_: bytes, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, STREAMS)


def _strict(codec: Codec) -> Callable[[bytes], Any]:
    """Decodes as gRPC has it: what is no message is a DecodeError."""

    def decode(data: bytes) -> Any:
        try:
            return codec.decode(data)
        except JsonError as error:
            raise DecodeError(str(error)) from None

    return decode


def _decoding(behaviour: Any, codec: Codec) -> Any:
    """A behaviour for the bytes of a request; one that is not JSON of its message is refused, with the place."""

    async def call(data: bytes, context: Any) -> Any:
        try:
            request = codec.decode(data)
        except JsonError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return await behaviour(request, context)

    return call
