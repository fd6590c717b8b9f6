"""Encodes and decodes messages: as protocol buffers, or as JSON for callers that have no protocol buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message

from service.wire.json_messages import JsonError, parse

_IS_JSON = {b"application/grpc": False, b"application/grpc+proto": False, b"application/grpc+json": True}

_UTF_8 = {b"utf-8", b"utf8", b"us-ascii"}

STREAMS = "this method streams: use the content type application/connect+json or application/connect+proto"
"""The message that refuses a Connect call with a unary content type to a method that streams."""


class Codec(NamedTuple):
    """Encodes and decodes the messages of a method. decode raises DecodeError or JsonError. is_slow: both functions
    take about a second for 2 MB, so large messages must be encoded and decoded in a thread. Thread-safe."""

    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    is_slow: bool


def is_json(content_type: bytes) -> bool | None:
    """Whether calls of a content type have JSON messages. None for a content type that is not gRPC's, and for JSON that
    is not UTF-8. Other parameters are ignored."""
    kind, *parameters = content_type.lower().split(b";")
    found = _IS_JSON.get(kind.strip())
    for parameter in parameters:
        name, _, value = parameter.partition(b"=")
        if found and name.strip() == b"charset" and value.strip(b' \t"') not in _UTF_8:
            return None
    return found


def codec_of(handler: grpc.RpcMethodHandler[Any, Any], *, is_json: bool) -> Codec:
    """Returns the codec of a method."""
    decode, encode = handler.request_deserializer, handler.response_serializer
    if not is_json:
        return Codec(decode or _as_it_is, encode or _as_it_is, is_slow=False)
    empty = decode(b"") if decode is not None else None
    kind: type[Message] | None = type(empty) if isinstance(empty, Message) else None

    def decode_json(data: bytes) -> Message:
        if kind is None:
            raise JsonError("this method does not support JSON")
        return parse(data, kind)

    return Codec(decode_json, _to_json, is_slow=True)


def _as_it_is(data: Any) -> Any:
    return data


def _to_json(message: Message) -> bytes:
    return json_format.MessageToJson(message, indent=None).encode()
