"""Messages to bytes and back: protocol buffers, or their JSON for callers that have no protocol buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

JSON = b"application/grpc+json"
"""The content type of calls whose messages are JSON."""
_MAX_ERROR = 300
_JSON = b"+json"


class JsonError(Exception):
    """A request is not the JSON of its message; the message says where."""


class Codec(NamedTuple):
    """decode raises DecodeError, or JsonError."""

    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]


def codec_of(handler: grpc.RpcMethodHandler[Any, Any], content_type: bytes) -> Codec:
    """How the messages of a method travel in calls of a content type."""
    decode, encode = handler.request_deserializer, handler.response_serializer
    if not content_type.endswith(_JSON):
        return Codec(decode or _as_it_is, encode or _as_it_is)
    empty = decode(b"") if decode is not None else None
    kind: type[Message] | None = type(empty) if isinstance(empty, Message) else None

    def parse(data: bytes) -> Message:
        if kind is None:
            raise JsonError("this method has no JSON")
        try:
            return json_format.Parse(data or b"{}", kind())
        except (json_format.ParseError, UnicodeDecodeError, RecursionError, DecodeError) as error:
            raise JsonError(f"the request is not JSON of {kind.DESCRIPTOR.full_name}: {_short(error)}") from None

    return Codec(parse, _to_json)


def _as_it_is(data: Any) -> Any:
    return data


def _to_json(message: Message) -> bytes:
    return json_format.MessageToJson(message, indent=None).encode()


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _MAX_ERROR else f"{text[:_MAX_ERROR]}..."
