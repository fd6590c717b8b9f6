"""gRPC messages in HTTP/2 frames, however they are cut and whatever is wrong with them."""

from __future__ import annotations

import gzip
import zlib

import pytest

from examples.local_service import LocalService
from examples.processes import resident_bytes
from tests.wire.conformance.calls import framed, path, read
from tests.wire.conformance.conftest import serving_pid
from tests.wire.conformance.hpack import encode
from tests.wire.conformance.http2 import END_HEADERS, END_STREAM, Connection, Type, call_headers, frame, message_frame
from tests.wire.conformance.servicer import METHODS, struct

MAX_BYTES = 4 * 1024 * 1024
BOMB_BYTES = 96 * 1024 * 1024
HEADERS = call_headers(path("Unary"))
GZIP = call_headers(path("Unary"), ("grpc-encoding", "gzip"))
MESSAGE = struct(text="x").SerializeToString()
GZIPPED = gzip.compress(MESSAGE, mtime=0)
PADDED = 0x8


def test_a_message_may_be_cut_anywhere(service: LocalService) -> None:
    """Two messages are cut into three DATA frames at each place, in streams of one connection."""
    body = framed(number=1) + framed(number=2)
    cuts = [(first, second) for first in range(len(body) + 1) for second in {first, (first + len(body)) // 2}]
    with Connection(service.target) as one:
        streams = []
        for first, second in cuts:
            stream = one.start(call_headers(path("Stream")))
            for part in filter(None, (body[:first], body[first:second])):
                one.data(stream, part)
            one.data(stream, body[second:], is_last=True)
            streams.append(stream)
        for stream in streams:
            answer = one.answer(stream)
            assert ([read(message)["number"] for message in answer.messages], answer.status) == ([1, 2], 0)


def test_a_message_may_come_byte_by_byte(service: LocalService) -> None:
    body = framed(text="byte by byte")
    with Connection(service.target) as one:
        stream = one.start(HEADERS)
        for at in range(len(body)):
            one.data(stream, body[at : at + 1])
            one.ping()  # waits, so that each byte arrives in its own read
        one.data(stream, b"", is_last=True)
        answer = one.answer(stream)
        assert (read(answer.messages[0]), answer.status) == ({"text": "byte by byte"}, 0)


def test_many_messages_may_come_in_one_frame(service: LocalService) -> None:
    with Connection(service.target) as one:
        body = b"".join(framed(number=number) for number in range(500))
        answer = one.ask(call_headers(path("Stream")), body)
        assert [read(message)["number"] for message in answer.messages] == list(range(500))
        assert answer.status == 0


def test_an_empty_frame_is_ignored(service: LocalService) -> None:
    """The frames alternate with data: Envoy treats several empty frames in a row as a flood and closes the
    connection."""
    with Connection(service.target) as one:
        stream = one.start(call_headers(path("Stream")))
        body = framed(number=1)
        for at in range(len(body)):
            one.data(stream, b"")
            one.data(stream, body[at : at + 1])
        assert read(one.wait_for_data(stream, len(body)).messages[0]) == {"number": 1}
        one.data(stream, b"", is_last=True)
        assert one.answer(stream).status == 0


def test_padding_is_ignored(envoy_service: LocalService) -> None:
    """grpcio resets a stream that has padding."""
    body = framed(number=1)
    with Connection(envoy_service.target) as one:
        stream = one.start(call_headers(path("Stream")))
        one.send(frame(Type.DATA, PADDED, stream, bytes([9]) + body[:3] + bytes(9)))
        one.send(frame(Type.DATA, PADDED | END_STREAM, stream, bytes([0]) + body[3:]))
        answer = one.answer(stream)
        assert ([read(message) for message in answer.messages], answer.status) == ([{"number": 1}], 0)


def test_an_empty_message_is_a_message(service: LocalService) -> None:
    with Connection(service.target) as one:
        answer = one.ask(call_headers(path("Stream")), message_frame(b"") * 3)
        assert (answer.messages, answer.status) == ([b""] * 3, 0)


@pytest.mark.parametrize("size", [MAX_BYTES - 100, MAX_BYTES + 1, 2**31, 2**32 - 1])
def test_a_too_large_message_is_refused_before_it_is_complete(service: LocalService, size: int) -> None:
    """A message below the limit is accepted."""
    with Connection(service.target) as one:
        stream = one.start(HEADERS)
        if size > MAX_BYTES:
            one.data(stream, message_frame(b"some of it", length=size))
            answer = one.answer(stream)
            assert answer.status == 8
            assert str(size) in answer.message
            assert str(MAX_BYTES) in answer.message
        else:
            one.data_in_turn(stream, framed(do="tell", name="nothing", padding="x" * size), is_last=True)
            assert one.answer(stream).status == 0


@pytest.mark.parametrize(
    ("headers", "body", "statuses"),
    [
        (HEADERS, message_frame(MESSAGE, flag=1), {13}),
        (call_headers(path("Unary"), ("grpc-encoding", "identity")), message_frame(MESSAGE, flag=1), {13}),
        (call_headers(path("Unary"), ("grpc-encoding", "br")), message_frame(MESSAGE, flag=1), {12, 13}),
        (GZIP, message_frame(b"no gzip", flag=1), {13}),
        (GZIP, message_frame(GZIPPED[:-1], flag=1), {13}),
        (GZIP, message_frame(GZIPPED + b"more", flag=1), {13}),
        (GZIP, message_frame(GZIPPED * 2, flag=1), {13}),
        (HEADERS, message_frame(b"\xff\xff"), {2, 13}),
    ],
    ids=lambda value: value.hex()[:24] if isinstance(value, bytes) else "",
)
def test_what_is_no_message_is_refused(
    service: LocalService, headers: list[tuple[bytes, bytes]], body: bytes, statuses: set[int]
) -> None:
    with Connection(service.target) as one:
        answer = one.ask(headers, body)
        assert answer.status in statuses
        assert answer.message
        assert one.ask(HEADERS, framed(still="there")).status == 0


@pytest.mark.parametrize(("name", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_messages_are_read(service: LocalService, name: str, compress) -> None:  # type: ignore[no-untyped-def]
    """The same call may also have uncompressed messages."""
    headers = call_headers(path("Stream"), ("grpc-encoding", name))
    with Connection(service.target) as one:
        body = message_frame(compress(MESSAGE), flag=1) + message_frame(MESSAGE) + message_frame(b"", flag=1)
        answer = one.ask(headers, body)
        assert ([read(message) for message in answer.messages], answer.status) == ([{"text": "x"}] * 2 + [{}], 0)
        assert set(answer.headers["grpc-accept-encoding"].replace(" ", "").split(",")) == {
            "identity",
            "deflate",
            "gzip",
        }


@pytest.mark.parametrize(("name", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compression_bomb_takes_no_memory(service: LocalService, name: str, compress) -> None:  # type: ignore[no-untyped-def]
    before = resident_bytes(serving_pid(service))
    bomb = message_frame(compress(bytes(BOMB_BYTES)), flag=1)
    with Connection(service.target) as one:
        headers = call_headers(path("Unary"), ("grpc-encoding", name))
        stream = one.start(headers)
        one.data_in_turn(stream, bomb, is_last=True)
        assert one.answer(stream).status == 8
    assert resident_bytes(serving_pid(service)) < before + BOMB_BYTES // 2


@pytest.mark.parametrize("num_bytes", range(1, 6))
def test_a_message_that_is_cut_off_is_refused(envoy_service: LocalService, num_bytes: int) -> None:
    """grpcio never answers a call whose last message is incomplete; the call ends at its deadline."""
    with Connection(envoy_service.target) as one:
        answer = one.ask(HEADERS, message_frame(b"x", length=2)[:num_bytes])
        assert (answer.status, answer.message) == (13, "the request ended in the middle of a message")


@pytest.mark.parametrize("flag", [2, 0x80, 0xFF])
def test_an_unknown_first_byte_is_refused(envoy_service: LocalService, flag: int) -> None:
    """grpcio accepts any byte there."""
    with Connection(envoy_service.target) as one:
        answer = one.ask(HEADERS, message_frame(b"", flag=flag))
        assert answer.status == 13
        assert answer.message.startswith(f"the first byte of a frame is {flag}: expected 0 or 1, then 4 bytes")


@pytest.mark.parametrize("method", ["Unary", "ServerStream"])
def test_a_call_without_its_request_is_refused(envoy_service: LocalService, method: str) -> None:
    """grpcio never answers a call without a request; the call ends at its deadline."""
    with Connection(envoy_service.target) as one:
        assert one.ask(call_headers(path(method))).status == 12
        stream = one.start(call_headers(path(method)), is_last=True)
        assert one.answer(stream).status == 12


@pytest.mark.parametrize("method", ["ClientStream", "Stream"])
def test_a_stream_may_have_no_request(service: LocalService, method: str) -> None:
    with Connection(service.target) as one:
        stream = one.start(call_headers(path(method)), is_last=True)
        answer = one.answer(stream)
        assert (len(answer.messages), answer.status) == (method == "ClientStream", 0)


@pytest.mark.parametrize("method", METHODS)
def test_trailers_may_end_a_request(service: LocalService, method: str) -> None:
    """They have no meaning and no gRPC client sends them, but HTTP/2 allows them."""
    with Connection(service.target) as one:
        stream = one.start(call_headers(path(method)))
        one.data(stream, framed(number=1))
        one.send(frame(Type.HEADERS, END_HEADERS | END_STREAM, stream, encode([(b"k", b"v")])))
        answer = one.answer(stream)
        assert (len(answer.messages), answer.status) == (1, 0)


def test_what_follows_the_request_of_a_unary_call_changes_nothing(service: LocalService) -> None:
    with Connection(service.target) as one:
        answer = one.ask(HEADERS, framed(number=1) + framed(number=2) + b"\0\0")
        assert ([read(message)["number"] for message in answer.messages], answer.status) == ([1], 0)
