"""Paths that are not UTF-8, and calls that are cancelled at any moment. Each call ends, no other call notices, and
nothing is logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from examples.local_service import LocalService
from tests.services import local_service
from tests.waiting import wait_until
from tests.wire.conformance.calls import framed, path
from tests.wire.conformance.conftest import COMMAND
from tests.wire.conformance.http1 import exchange, request
from tests.wire.conformance.http2 import Connection, call_headers

NO_TEXT = [
    "/\xe9",
    "/conformance.v1.Conformance/\xe9",
    "/%E9",
    "/conformance.v1.Conformance/%e9",
    "/%FF%00",
    "/%",
    "/?\xe9",
]
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED.value[0]


def lines(service: LocalService) -> list[str]:
    """Returns the lines of a service's log."""
    return Path(service.log_file.name).read_text().splitlines()


@pytest.mark.parametrize("spelled", NO_TEXT)
def test_a_path_that_is_not_valid_text_is_not_found(envoy_service: LocalService, spelled: str) -> None:
    num_lines = len(lines(envoy_service))
    with Connection(envoy_service.target) as one:
        answer = one.ask(call_headers(spelled), framed(number=1))
        assert answer.status == UNIMPLEMENTED
        assert one.ask(call_headers(path("Unary")), framed(number=1)).status == 0
    assert lines(envoy_service)[num_lines:] == []


@pytest.mark.parametrize("spelled", ["/%E9", "/conformance.v1.Conformance/%FF"])
def test_a_path_that_is_not_utf_8_is_not_found_over_http_1(envoy_service: LocalService, spelled: str) -> None:
    asked = request("POST", spelled, b"{}", content_type="application/json", connection="close")
    assert exchange(envoy_service.target, asked).status == 404
    elsewhere = request("GET", spelled, b"", host="evil.example", connection="close")
    assert exchange(envoy_service.target, elsewhere).status == 404


def test_a_server_serves_again_after_a_path_ended_its_loop() -> None:
    """grpcio 1.85 has this defect."""
    with local_service(None, {"wire": "grpcio"}, command=COMMAND) as service:
        with Connection(service.target) as one:
            stream = one.start(call_headers("/conformance.v1.Conformance/\xe9"))
            one.data(stream, framed(), is_last=True)
            assert one.answer(stream).status != 0

        def serves() -> bool:
            try:
                with Connection(service.target) as one:
                    return one.ask(call_headers(path("Unary")), framed(number=1)).status == 0
            except (OSError, AssertionError):
                return False

        wait_until(lambda: any(line["event"] == "wire.ended" for line in service.log))
        wait_until(serves)
        assert service.stop() == 0


def test_calls_that_are_given_up_leave_nothing_in_the_log(envoy_service: LocalService) -> None:
    num_lines = len(lines(envoy_service))
    with Connection(envoy_service.target) as one:
        for number in range(60):
            stream = one.start(call_headers(path("Unary" if number % 2 else "Stream")))
            if number % 3:
                one.data(stream, framed(do="wait", name=f"given up {number}")[: 9 * (number % 3)])
            if number % 5 == 0:
                one.ping()
            one.reset(stream)
        one.ping()
    for _ in range(10):
        with Connection(envoy_service.target) as one:
            one.start(call_headers(path("Unary")))
    with grpc.insecure_channel(envoy_service.target) as channel:
        unary: Any = channel.unary_unary(path("Unary"))
        for _ in range(20):
            unary.future(framed(do="wait", name="late")[5:], timeout=0.01).exception()
            unary.future(framed(do="wait", name="cancelled")[5:]).cancel()
    with Connection(envoy_service.target) as one:
        assert one.ask(call_headers(path("Unary")), framed(number=1)).status == 0
    assert lines(envoy_service)[num_lines:] == []


@pytest.mark.parametrize("content_type", ["application/json", "application/proto"])
def test_a_streaming_method_is_not_found_with_a_unary_content_type(
    envoy_service: LocalService, content_type: str
) -> None:
    headers = {"content_type": content_type, "connect_protocol_version": "1", "connection": "close"}
    sent = request("POST", path("Stream"), b"", **headers)
    answer = exchange(envoy_service.target, sent)
    assert answer.status == 404
    assert "application/connect+json" in answer.body.decode()
