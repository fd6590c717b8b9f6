"""Invalid requests: wrong methods, paths, content types and protocols, and bytes that belong to no protocol."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

import pytest

from examples.local_service import LocalService
from tests.wire.conformance.calls import framed, path
from tests.wire.conformance.http1 import exchange, request
from tests.wire.conformance.http2 import PREFACE, Connection, Type, call_headers, frame

GRPC = {"content-type": "application/grpc", "te": "trailers"}


@pytest.mark.parametrize(
    "content_type", ["application/grpc", "application/grpc+proto", "application/grpc; charset=utf-8"]
)
def test_content_types_of_grpc_are_taken(service: LocalService, content_type: str) -> None:
    with Connection(service.target) as one:
        assert one.ask(call_headers(path("Unary"), content_type=content_type), framed(number=1)).status == 0


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/json ",
        "application/grpcx",
        "application/grpc+thrift",
        "application/grpc-web+json",
    ],
)
def test_other_content_types_are_refused(envoy_service: LocalService, content_type: str | None) -> None:
    """The status is 415, as the protocol says; grpcio accepts any content type."""
    with Connection(envoy_service.target) as one:
        answer = one.ask(call_headers(path("Unary"), content_type=content_type), framed(number=1))
        assert (answer.http_status, answer.status) in (("415", None), ("400", None))
        assert one.ask(call_headers(path("Unary")), framed(number=1)).status == 0


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "TRACE", "BREW", "post"])
def test_other_methods_are_refused(service: LocalService, method: str) -> None:
    with Connection(service.target) as one:
        answer = one.ask(call_headers(path("Unary"), method=method), framed(do="wait", name=f"never {method}"))
        assert answer.reset is not None or answer.http_status == "404" or answer.status == 13
        assert one.ask(call_headers(path("Unary")), framed(number=1)).status == 0


@pytest.mark.parametrize(
    "spelled",
    [path("Un%61ry"), path("Unary?x=1"), path("./Unary"), f"/{path('Unary')}", path("Unary#x"), path("Unary%00")],
)
def test_a_method_has_one_spelling(service: LocalService, spelled: str) -> None:
    """Otherwise a proxy that forbids a path would pass another spelling of it."""
    with Connection(service.target) as one:
        answer = one.ask(call_headers(spelled), framed(number=1))
        assert answer.status in (12, 13) or answer.reset is not None


def test_a_path_may_be_long(service: LocalService) -> None:
    with Connection(service.target) as one:
        answer = one.ask(call_headers("/" + "a" * 9000), framed())
        assert answer.status == 12
        assert len(answer.message) < 500


def test_a_request_of_http_1_is_refused_or_answered_and_closed(service: LocalService) -> None:
    """grpcio closes the connection because the request is not HTTP/2. Envoy answers in HTTP/1.1."""
    answer = exchange(service.target, request("GET", "/nothing", connection="close"))
    assert answer.is_closed
    if answer.status:
        assert (answer.status, answer.body[:22]) == (404, b"this is a gRPC service")


def test_a_call_over_http_1_has_its_status(envoy_service: LocalService) -> None:
    answer = exchange(
        envoy_service.target, request("POST", path("Unary"), framed(number=1), **GRPC, connection="close")
    )
    assert (answer.status, answer.trailers) == (200, {"grpc-status": "0"})
    answer = exchange(envoy_service.target, request("POST", path("Nope"), framed(number=1), **GRPC, connection="close"))
    assert (answer.status, answer.headers["grpc-status"]) == (200, "12")


@pytest.mark.parametrize(
    "sent",
    [
        b"\0" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # TLS
        b"GARBAGE\r\n\r\n",
        PREFACE[:-4] + b"XX\r\n" + bytes(100),
        PREFACE + b"GET / HTTP/1.1\r\n\r\n" + bytes(100),
        PREFACE + frame(Type.DATA, 0, 1, b"before any settings"),
        PREFACE + frame(Type.SETTINGS, 0, 0, b"five!"),
        PREFACE + frame(Type.SETTINGS, 0, 3, bytes(6)),
        PREFACE + frame(Type.SETTINGS, 0, 0) + frame(Type.HEADERS, 4, 0, b""),
        PREFACE + frame(Type.SETTINGS, 0, 0) + frame(Type.HEADERS, 4, 2, b"\x82"),
        PREFACE + frame(Type.SETTINGS, 0, 0) + frame(Type.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff\xff\xff"),
        PREFACE + frame(Type.SETTINGS, 0, 0) + frame(Type.CONTINUATION, 4, 1, b""),
        PREFACE + frame(Type.SETTINGS, 0, 0) + frame(Type.WINDOW_UPDATE, 0, 0, bytes(4)),
        PREFACE + frame(Type.SETTINGS, 0, 0) + frame(Type.PING, 0, 0, b"short"),
        PREFACE + frame(Type.SETTINGS, 0, 0) + frame(Type.DATA, 0, 1, b"", length=2**24 - 1),
    ],
    ids=lambda sent: sent.removeprefix(PREFACE)[:12].hex(),
)
def test_bytes_that_are_not_http_2_affect_no_other_client(service: LocalService, sent: bytes) -> None:
    host, _, port = service.target.rpartition(":")
    with socket.create_connection((host, int(port)), 15) as one:
        one.sendall(sent)
        one.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while one.recv(65536):  # until the server also closes the connection
                pass
    with Connection(service.target) as other:
        assert other.ask(call_headers(path("Unary")), framed(number=1)).status == 0


def test_random_frames_end_no_other_call(service: LocalService) -> None:
    """The frames have random types, flags, streams and contents, each set on a new connection."""
    rng = random.Random(5)
    with Connection(service.target) as other:
        stream = other.start(call_headers(path("Stream")))
        for number in range(60):
            with Connection(service.target) as one:
                one.start(call_headers(path("Stream")))
                for _ in range(rng.randrange(1, 6)):
                    kind, flags, on = rng.randrange(12), rng.randrange(256), rng.randrange(6)
                    one.send(frame(kind, flags, on, rng.randbytes(rng.randrange(40))))
                one.send(rng.randbytes(rng.randrange(30)))
            other.data(stream, framed(number=number))
        other.data(stream, b"", is_last=True)
        answer = other.answer(stream)
        assert (len(answer.messages), answer.status) == (60, 0)


def test_a_frame_may_be_cut_off_by_the_end_of_the_connection(service: LocalService) -> None:
    whole = (
        PREFACE
        + frame(Type.SETTINGS, 0, 0)
        + frame(Type.HEADERS, 4, 1, b"\x83\x86")
        + frame(Type.DATA, 1, 1, b"\0" * 5)
    )
    host, _, port = service.target.rpartition(":")
    for length in range(len(whole)):
        with socket.create_connection((host, int(port)), 15) as one:
            one.sendall(whole[:length])
    with Connection(service.target) as other:
        assert other.ask(call_headers(path("Unary")), framed(number=1)).status == 0
