"""Deadlines that a client sets with `grpc-timeout`."""

from __future__ import annotations

import grpc
import pytest

from examples.local_service import LocalService
from tests.waiting import wait_until
from tests.wire.conformance.calls import client, framed, path, read, recorded
from tests.wire.conformance.http2 import Connection, call_headers
from tests.wire.conformance.servicer import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_call_past_its_deadline_is_ended_and_its_handler_cancelled(service: LocalService, method: str) -> None:
    """The server ends the call itself: this client measures no time."""
    name = f"late {method}"
    with Connection(service.target) as one:
        answer = one.ask(call_headers(path(method), ("grpc-timeout", "300m")), framed(do="wait", name=name))
        assert answer.status == 4 or answer.reset is not None
    wait_until(lambda: recorded(service, name) == "cancelled")


def test_responses_that_came_in_time_are_there(service: LocalService) -> None:
    with Connection(service.target) as one:
        stream = one.start(call_headers(path("Stream"), ("grpc-timeout", "2S")))
        one.data(stream, framed(number=1))
        one.wait_for_data(stream, 1)
        one.data(stream, framed(do="wait", name="in time"), is_last=True)
        answer = one.answer(stream)
        assert [read(message) for message in answer.messages] == [{"number": 1}]
        assert answer.status == 4 or answer.reset is not None


@pytest.mark.parametrize("method", ["Unary", "ServerStream"])
@pytest.mark.parametrize("timeout", ["0S", "0n", "00000000H"])
def test_a_zero_timeout_is_a_valid_deadline(service: LocalService, method: str, timeout: str) -> None:
    with Connection(service.target) as one:
        answer = one.ask(call_headers(path(method), ("grpc-timeout", timeout)), framed(do="wait", name="never"))
        assert answer.status == 4 or answer.reset is not None


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        ("10H", 36_000),
        ("99999999H", 359_999_996_400),
        ("3M", 180),
        ("20S", 20),
        ("20000m", 20),
        ("99999999u", 100),
    ],
)
def test_a_deadline_has_the_unit_that_it_says(service: LocalService, timeout: str, seconds: float) -> None:
    with Connection(service.target) as one:
        answer = one.ask(call_headers(path("Unary"), ("grpc-timeout", timeout)), framed(do="describe"))
        assert answer.status == 0
        if seconds < 10**9:  # grpcio counts no further than this
            assert seconds - 15 < read(answer.messages[0])["remaining_s"] < seconds * 1.01


def test_without_a_deadline_there_is_none(service: LocalService) -> None:
    with Connection(service.target) as one:
        answer = one.ask(call_headers(path("Unary")), framed(do="describe"))
        assert read(answer.messages[0])["remaining_s"] is None


@pytest.mark.parametrize("timeout", ["", "x", "S", "-1S", "1.5S", "+1S", "1s", "S1", "1SS", "0x1S", "1e3S"])
def test_what_is_no_timeout_is_refused(service: LocalService, timeout: str) -> None:
    with Connection(service.target) as one:
        answer = one.ask(call_headers(path("Unary"), ("grpc-timeout", timeout)), framed(number=1))
        assert answer.status == 13
        assert "grpc-timeout" in answer.message


def test_a_timeout_has_eight_digits_at_most(envoy_service: LocalService) -> None:
    """The protocol says so; grpcio accepts more digits."""
    with Connection(envoy_service.target) as one:
        answer = one.ask(call_headers(path("Unary"), ("grpc-timeout", "123456789S")), framed(number=1))
        assert answer.status == 13
        assert answer.message == ("grpc-timeout is '123456789S': expected up to 8 digits and one of H, M, S, m, u, n")


@pytest.mark.parametrize("method", METHODS)
async def test_grpcio_and_the_server_agree_on_a_deadline(service: LocalService, method: str) -> None:
    async with client(service.target) as one:
        _, error = await one.ended(method, timeout_s=0.3, do="wait", name=f"agreed {method}")
        assert error is not None
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
