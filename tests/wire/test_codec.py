"""Content types, and messages in JSON."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from service.wire.codec import codec_of, is_json
from service.wire.json_messages import JsonError

HANDLER = grpc.unary_unary_rpc_method_handler(
    lambda request, context: request, Struct.FromString, Struct.SerializeToString
)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"application/grpc", False),
        (b"application/grpc+proto", False),
        (b"application/grpc; charset=utf-8", False),
        (b"application/grpc+json", True),
        (b"Application/GRPC+JSON;charset=UTF-8", True),
        (b'application/grpc+json; charset="utf-8"', True),
        (b"application/grpc+json; foo=bar", True),
        (b"application/grpc+json; charset=latin-1", None),
        (b"application/grpc+json;charset", None),
        (b"application/grpc-web+json", None),  # that Envoy's filter does not know, and leaves as it is
        (b"application/grpcjson", None),
        (b"application/grpc+thrift", None),
        (b"application/json", None),
        (b"", None),
    ],
)
def test_content_types_of_grpc_are_told_from_others(content_type: bytes, expected: bool | None) -> None:
    assert is_json(content_type) is expected


def test_json_is_parsed_into_its_message() -> None:
    codec = codec_of(HANDLER, is_json=True)
    assert codec.decode(b'{"a": [1]}') == codec.decode(codec.encode(codec.decode(b'{"a": [1]}')))
    assert codec.decode(b"") == Struct()


@pytest.mark.parametrize("data", [b"{", b"[1]", b'{"a":1,"a":2}', b"\xff", b'{"a":' * 20_000, b'"\\ud800"'])
def test_what_is_no_json_of_the_message_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(JsonError, match=r"^the request is not JSON of google\.protobuf\.Struct: .{1,303}$"):
        codec_of(HANDLER, is_json=True).decode(data)


@pytest.mark.parametrize("data", [b"[]", b'""', b"null", b" 5", b"true", b"[{}]"])
def test_json_that_is_not_an_object_is_refused(data: bytes) -> None:
    with pytest.raises(JsonError, match="expected an object"):
        codec_of(HANDLER, is_json=True).decode(data)
