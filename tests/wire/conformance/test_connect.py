"""The protocols that Envoy translates to gRPC, as programs and web pages use them: Connect, gRPC-Web and plain JSON."""

from __future__ import annotations

import base64
import json
import subprocess
from typing import Any

import pytest

from examples.local_service import LocalService
from tests.services import program
from tests.wire.conformance.calls import framed, path, read
from tests.wire.conformance.http1 import Answer, exchange, received, request
from tests.wire.conformance.http2 import Connection, call_headers, message_frame
from tests.wire.conformance.servicer import struct

JSON = {"content_type": "application/json", "connection": "close"}
STREAM = {"content_type": "application/connect+json", "connect_protocol_version": "1", "connection": "close"}
LARGE = 1_000_000


def unary(service: LocalService, method: str = "Unary", **fields: Any) -> Answer:
    """Makes a unary Connect call in JSON. Returns the response."""
    return exchange(service.target, request("POST", path(method), json.dumps(fields).encode(), **JSON))


def enveloped(*messages: Any) -> bytes:
    """Returns the enveloped messages of a Connect stream."""
    return b"".join(message_frame(json.dumps(message).encode()) for message in messages)


def opened(body: bytes) -> list[tuple[int, Any]]:
    """Returns the messages of a Connect stream, each with its flags."""
    found = []
    while body:
        end = 5 + int.from_bytes(body[1:5], "big")
        found.append((body[0], json.loads(body[5:end])))
        body = body[end:]
    return found


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "APPLICATION/JSON",
        "Application/Json; charset=utf-8",
    ],
)
@pytest.mark.parametrize("version", [None, "1"])
def test_json_is_answered_with_json(envoy_service: LocalService, content_type: str, version: str | None) -> None:
    headers = {**JSON, "content_type": content_type, "connect_protocol_version": version}
    answer = exchange(envoy_service.target, request("POST", path("Unary"), '{"text": "ñ"}'.encode(), **headers))
    assert (answer.status, json.loads(answer.body)) == (200, {"text": "ñ"})
    assert answer.headers["content-type"].startswith("application/json")


def test_requests_of_one_connection_are_answered_in_turn(envoy_service: LocalService) -> None:
    """The requests may also arrive all at once."""
    sent = [
        request("POST", path("Unary"), b'{"number": %d}' % number, content_type="application/json") for number in (1, 2)
    ]
    sent.append(request("POST", path("Unary"), b'{"number": 3}', **JSON))
    answer = received(envoy_service.target, b"".join(sent))
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert [answer.index(b'{"number": %d.0}' % number) for number in (1, 2, 3)] == sorted(
        answer.index(b'{"number": %d.0}' % number) for number in (1, 2, 3)
    )


def test_protocol_buffers_may_be_sent_without_frames(envoy_service: LocalService) -> None:
    headers = {"content_type": "application/proto", "connect_protocol_version": "1", "connection": "close"}
    body = struct(number=1).SerializeToString()
    answer = exchange(envoy_service.target, request("POST", path("Unary"), body, **headers))
    assert (answer.status, read(answer.body)) == (200, {"number": 1})


CODES = {
    "canceled": (1, 499),
    "unknown": (2, 500),
    "invalid_argument": (3, 400),
    "deadline_exceeded": (4, 504),
    "not_found": (5, 404),
    "already_exists": (6, 409),
    "permission_denied": (7, 403),
    "resource_exhausted": (8, 429),
    "failed_precondition": (9, 400),
    "aborted": (10, 409),
    "out_of_range": (11, 400),
    "unimplemented": (12, 501),
    "internal": (13, 500),
    "unavailable": (14, 503),
    "data_loss": (15, 500),
    "unauthenticated": (16, 401),
}
OLDER = {"failed_precondition": 412, "unimplemented": 404}
"""The HTTP statuses of the Connect protocol before 2024. Envoy's filter still uses them."""
RESENT = {"canceled", "deadline_exceeded"}
"""Envoy's filter would answer these with 408, and then browsers resend a POST by themselves. The server sends `aborted`
instead."""


@pytest.mark.parametrize("code", CODES)
def test_a_status_becomes_a_connect_error(envoy_service: LocalService, code: str) -> None:
    number = CODES[code][0]
    answer = unary(envoy_service, do="end", code=number, details="plain words", trailers=[["k", "v"]])
    code = "aborted" if code in RESENT else code
    status = CODES[code][1]
    assert answer.status in (status, OLDER.get(code))
    assert json.loads(answer.body) == {"code": code, "message": "plain words"}
    assert answer.headers["content-type"] == "application/json"


def test_what_is_no_json_is_refused_in_words(envoy_service: LocalService) -> None:
    for body in (b"{", b"[]", b"\xff", b'{"a":' * 5000):
        answer = exchange(envoy_service.target, request("POST", path("Unary"), body, **JSON))
        assert (answer.status, json.loads(answer.body)["code"]) == (400, "invalid_argument")
        assert "is not JSON of google.protobuf.Struct" in json.loads(answer.body)["message"]


@pytest.mark.parametrize(
    ("header", "value", "expected"),
    [
        *(
            ("connect_timeout_ms", value, "up to 10 digits")
            for value in ("abc", "-1", "1.5", "", *("9" * n for n in (11, 12, 13)))
        ),
        *(("connect_protocol_version", value, "expected 1") for value in ("9", "2", "v1")),
    ],
)
@pytest.mark.parametrize("kind", ["application/json", "application/proto", "application/connect+json"])
def test_a_header_that_means_nothing_is_refused(
    envoy_service: LocalService, kind: str, header: str, value: str, expected: str
) -> None:
    headers = {"content_type": kind, "connection": "close", "connect_protocol_version": "1", header: value}
    body = enveloped({}) if "connect+" in kind else b"" if "proto" in kind else b"{}"
    answer = exchange(
        envoy_service.target, request("POST", path("ServerStream" if "+" in kind else "Unary"), body, **headers)
    )
    error = opened(answer.body)[0][1]["error"] if "connect+" in kind else json.loads(answer.body)
    assert answer.status == (200 if "connect+" in kind else 400)
    assert error["code"] == "invalid_argument"
    assert f"{header.replace('_', '-')} is {value!r}" in error["message"]
    assert expected in error["message"]


@pytest.mark.parametrize("charset", ["latin-1", "utf-16", ""])
@pytest.mark.parametrize("kind", ["application/json", "application/connect+json", "application/grpc+json"])
def test_json_in_another_charset_is_refused(envoy_service: LocalService, kind: str, charset: str) -> None:
    headers = {**JSON, "content_type": f"{kind}; charset={charset}"}
    assert exchange(envoy_service.target, request("POST", path("Unary"), b"{}", **headers)).status == 415


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_that_is_not_compressed_as_it_says_is_refused(envoy_service: LocalService, encoding: str) -> None:
    answer = exchange(envoy_service.target, request("POST", path("Unary"), b"{}", **JSON, content_encoding=encoding))
    error = json.loads(answer.body)
    assert (answer.status, error["code"], error["message"]) == (
        400,
        "invalid_argument",
        f"a compressed message is not valid {encoding}",
    )


def test_protocol_buffers_that_are_none_are_refused(envoy_service: LocalService) -> None:
    headers = {"content_type": "application/proto", "connect_protocol_version": "1", "connection": "close"}
    answer = exchange(envoy_service.target, request("POST", path("Unary"), b"\xff\xff", **headers))
    assert (answer.status, json.loads(answer.body)["code"]) == (400, "invalid_argument")


def test_json_may_be_large(envoy_service: LocalService) -> None:
    """Requests and responses may be large, up to the limit of messages."""
    assert unary(envoy_service, do="tell", name="x", padding="x" * LARGE).status == 200
    answer = unary(envoy_service, do="pad", size=LARGE)
    assert (answer.status, len(json.loads(answer.body)["padding"])) == (200, LARGE)
    answer = unary(envoy_service, do="tell", name="x", padding="x" * (4 * 1024 * 1024))
    assert (answer.status, json.loads(answer.body)["code"]) == (429, "resource_exhausted")


def test_a_time_limit_is_kept(envoy_service: LocalService) -> None:
    body = json.dumps({"do": "wait", "name": "connect"}).encode()
    answer = exchange(envoy_service.target, request("POST", path("Unary"), body, **JSON, connect_timeout_ms="200"))
    assert (answer.status, json.loads(answer.body)["code"]) == (409, "aborted")


@pytest.mark.parametrize("method", ["ServerStream", "ClientStream", "Stream"])
def test_connect_streams_work(envoy_service: LocalService, method: str) -> None:
    """The last message of a stream has its status. Over HTTP/1.1 a client sends all its messages first."""
    messages = [{"number": 1.0}] if method == "ServerStream" else [{"number": 1.0}, {"number": 2.0}]
    response = exchange(envoy_service.target, request("POST", path(method), enveloped(*messages), **STREAM))
    answers = [{"count": 2.0}] if method == "ClientStream" else messages
    assert response.status == 200
    assert opened(response.body) == [*((0, answer) for answer in answers), (2, {})]
    assert response.headers["content-type"] == "application/connect+json"


def test_connect_streams_of_protocol_buffers_work(envoy_service: LocalService) -> None:
    headers = {**STREAM, "content_type": "application/connect+proto"}
    answer = exchange(envoy_service.target, request("POST", path("Stream"), framed(number=1) * 2, **headers))
    assert answer.body == framed(number=1) * 2 + message_frame(b"{}", flag=2)


def test_a_streams_status_comes_at_its_end(envoy_service: LocalService) -> None:
    body = enveloped({"do": "end", "code": 5, "details": "none", "after": 2, "trailers": [["k", "v"]]})
    answer = exchange(envoy_service.target, request("POST", path("Stream"), body, **STREAM))
    end = {"error": {"code": "not_found", "message": "none"}, "metadata": {"k": ["v"]}}
    assert (answer.status, opened(answer.body)) == (200, [(0, {"before": True})] * 2 + [(2, end)])


@pytest.mark.parametrize(
    "body", [b"\0\0\0", b"\0\0\0\0\5{}", message_frame(b"{", flag=0), message_frame(b"{}", flag=3)]
)
def test_a_stream_of_what_is_no_message_ends_with_an_error(envoy_service: LocalService, body: bytes) -> None:
    answer = exchange(envoy_service.target, request("POST", path("Stream"), body, **STREAM))
    ((flags, end),) = opened(answer.body)
    assert (answer.status, flags) == (200, 2)
    assert end["error"]["code"] in ("internal", "invalid_argument")


def test_a_stream_of_connect_goes_both_ways_over_http_2(envoy_service: LocalService) -> None:
    with Connection(envoy_service.target) as one:
        stream = one.start(call_headers(path("Stream"), content_type="application/connect+json", te=None))
        for number in range(3):
            one.data(stream, enveloped({"number": number}))
            answer = one.answer_with(stream, number + 1)
        one.data(stream, b"", is_last=True)
        answer = one.answer(stream)
        assert opened(bytes(answer.data)) == [*((0, {"number": number}) for number in range(3)), (2, {})]


@pytest.mark.parametrize("kind", ["application/grpc-web", "application/grpc-web+proto"])
def test_grpc_web_is_accepted(envoy_service: LocalService, kind: str) -> None:
    headers = {"content_type": kind, "x_grpc_web": "1", "connection": "close"}
    answer = exchange(envoy_service.target, request("POST", path("Stream"), framed(number=1) * 2, **headers))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/grpc-web+proto")
    assert answer.body == framed(number=1) * 2 + message_frame(b"grpc-status:0\r\n", flag=0x80)


def test_grpc_web_text_works(envoy_service: LocalService) -> None:
    kind = "application/grpc-web-text"
    headers = {"content_type": kind, "accept": kind, "connection": "close"}
    body = base64.b64encode(framed(do="end", code=5, details="ñ", after=1))
    answer = exchange(envoy_service.target, request("POST", path("ServerStream"), body, **headers))
    assert answer.headers["content-type"] == "application/grpc-web-text+proto"
    parts = b"".join(base64.b64decode(part + b"=" * (-len(part) % 4)) for part in answer.body.split(b"="))
    response, trailers = framed(before=True), parts[len(framed(before=True)) :]
    assert parts.startswith(response)
    assert trailers[0] == 0x80
    assert set(trailers[5:].split(b"\r\n")) >= {b"grpc-status:5", b"grpc-message:%C3%B1"}


def test_grpc_web_that_is_no_base_64_is_refused(envoy_service: LocalService) -> None:
    headers = {"content_type": "application/grpc-web-text", "connection": "close"}
    answer = exchange(envoy_service.target, request("POST", path("Unary"), b"!!!!", **headers))
    assert (answer.status, answer.headers["grpc-status"]) == (400, "13")


def test_a_call_that_fails_at_once_has_its_status_in_grpc_web(envoy_service: LocalService) -> None:
    headers = {"content_type": "application/grpc-web", "connection": "close"}
    answer = exchange(envoy_service.target, request("POST", path("Nope"), framed(), **headers))
    assert (answer.status, answer.headers["grpc-status"]) == (200, "12")


@pytest.mark.parametrize(
    "query", ["connect=v1&encoding=json&message=%7B%7D", "connect=v1&encoding=json&base64=1&message=e30"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_method_can_be_called_by_get(envoy_service: LocalService, method: str, query: str) -> None:
    """Any page can make a browser send a GET without an origin and without a preflight request."""
    answer = exchange(envoy_service.target, request(method, f"{path('Unary')}?connect=v1&{query}", **JSON))
    assert (answer.status, bool(answer.body)) == (404, method == "GET")
    with Connection(envoy_service.target) as one:
        headers = call_headers(f"{path('Unary')}?connect=v1&{query}", method=method, content_type=None)
        assert one.ask(headers).http_status == "404"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_requests_that_need_no_preflight_are_refused(envoy_service: LocalService, kind: str | None) -> None:
    answer = exchange(
        envoy_service.target, request("POST", path("Unary"), b"{}", content_type=kind, connection="close")
    )
    assert answer.status == 415


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://[", "", "http://localhost.evil.example"])
def test_other_origins_are_refused_in_every_protocol(envoy_service: LocalService, origin: str) -> None:
    answer = exchange(envoy_service.target, request("POST", path("Unary"), b"{}", **JSON, origin=origin))
    assert (answer.status, json.loads(answer.body)["code"]) == (403, "permission_denied")
    for kind in ("application/grpc-web", "application/grpc"):
        headers = {"content_type": kind, "te": "trailers", "origin": origin, "connection": "close"}
        answer = exchange(envoy_service.target, request("POST", path("Unary"), framed(), **headers))
        assert (answer.status, answer.headers["grpc-status"]) == (200, "7")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"k: " + b"v" * 100_000 + b"\r\n\r\n",
        b"GARBAGE\r\n\r\n",
    ],
    ids=lambda sent: sent[:60].decode(),
)
def test_an_invalid_http_1_request_closes_the_connection(envoy_service: LocalService, sent: bytes) -> None:
    answer = exchange(envoy_service.target, sent)
    assert answer.is_closed
    assert answer.status in (400, 403, 426, 431)


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
def test_curl_can_call(envoy_carousel: LocalService, version: str) -> None:
    command = [program("curl"), "-sS", version, "-w", "\n%{http_code}", "-H", "content-type: application/json"]
    for body, code in (("{}", "200"), ('{"no": 1}', "400")):
        url = f"http://{envoy_carousel.target}/carousel.v1.Models/List"
        done = subprocess.run([*command, "-d", body, url], capture_output=True, text=True, check=True, timeout=30)
        answer, _, status = done.stdout.rpartition("\n")
        assert status == code
        assert ("models" if code == "200" else "code") in json.loads(answer)
