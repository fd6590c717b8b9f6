"""Readers that stall: clients that read no responses, and handlers that read no requests. The data that waits for them
is bounded, and other calls continue."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from examples.local_service import LocalService
from examples.processes import resident_bytes
from tests.waiting import wait_until
from tests.wire.conformance.calls import framed, path, read, recorded
from tests.wire.conformance.conftest import serving_pid
from tests.wire.conformance.http2 import Connection, call_headers

SIZE = 64 * 1024
COUNT = 4000
"""256 MiB in all."""
MOST_BYTES = 64 * 1024 * 1024
"""Limit of the bytes that wait for one reader, in the server and in the sockets between."""


def rest(service: LocalService, name: str) -> int:
    """Waits until no more responses are written for 0.5 s. Returns how many were written."""
    wait_until(lambda: recorded(service, name) is not None)
    last, since = -1, time.monotonic()
    while time.monotonic() < since + 0.5:
        number = recorded(service, name)
        if number != last:
            last, since = number, time.monotonic()
        time.sleep(0.05)  # nothing announces that no more responses come
    assert isinstance(last, float), "the handler has ended"
    return int(last)


@pytest.mark.parametrize("stalls", ["stream", "connection"])
def test_a_client_that_does_not_read_stops_its_handler_and_no_other(service: LocalService, stalls: str) -> None:
    """The client does not enlarge the flow-control window of the stream, or of the whole connection."""
    name, before = f"stalls the {stalls}", resident_bytes(serving_pid(service))
    window_bytes = 2**16 if stalls == "stream" else 2**30
    with Connection(service.target, window_bytes=window_bytes, does_read=stalls == "stream") as one:
        stream = one.start(call_headers(path("ServerStream")))
        one.data(stream, framed(do="flood", name=name, size=SIZE, count=COUNT), is_last=True)
        written = rest(service, name)
        assert written * SIZE < MOST_BYTES
        assert resident_bytes(serving_pid(service)) < before + 2 * MOST_BYTES
        if stalls == "stream":  # other streams of the same connection continue
            assert one.ask(call_headers(path("Unary")), framed(number=1)).status == 0
        one.reset(stream)
        wait_until(lambda: isinstance(recorded(service, name), str))


def test_a_client_that_never_looks_at_its_socket_stops_its_handler(service: LocalService) -> None:
    name, before = "stalls the socket", resident_bytes(serving_pid(service))
    with Connection(service.target) as one:
        stream = one.start(call_headers(path("ServerStream")))
        one.data(stream, framed(do="flood", name=name, size=SIZE, count=COUNT), is_last=True)
        assert rest(service, name) * SIZE < MOST_BYTES
        assert resident_bytes(serving_pid(service)) < before + 2 * MOST_BYTES


def test_a_client_that_reads_again_gets_everything(service: LocalService) -> None:
    name = "reads again"
    with Connection(service.target) as one:
        stream = one.start(call_headers(path("ServerStream")))
        one.data(stream, framed(do="flood", name=name, size=SIZE, count=400), is_last=True)
        rest(service, name)
        answer = one.answer(stream)
        assert (len(answer.messages), answer.status) == (400, 0)
        assert {len(read(message)["padding"]) for message in answer.messages} == {SIZE}


def test_a_handler_that_does_not_read_stops_its_client(service: LocalService) -> None:
    """The client can send as much as the server's window allows. Once the handler reads, it gets everything."""
    name, before = "ignores", resident_bytes(serving_pid(service))
    padding = framed(padding="x" * SIZE)
    with Connection(service.target) as one:
        stream = one.start(call_headers(path("Stream")))
        one.data(stream, framed(do="ignore", name=name))
        num_messages = 0
        one.socket.settimeout(1.0)
        with suppress(TimeoutError):
            while num_messages < COUNT:
                num_messages += 1
                one.data_in_turn(stream, padding)
        assert num_messages * SIZE < MOST_BYTES
        assert resident_bytes(serving_pid(service)) < before + 2 * MOST_BYTES
        one.socket.settimeout(20.0)
        with Connection(service.target) as other:
            assert other.ask(call_headers(path("Unary")), framed(do="release", name=name)).status == 0
        one.data_in_turn(stream, one.unsent, is_last=True)
        answer = one.answer(stream)
        assert (len(answer.messages), answer.status) == (num_messages, 0)


def test_a_flow_control_violation_ends_only_its_sender(envoy_service: LocalService) -> None:
    """Envoy's window is fixed. grpcio enlarges its window by its measurements of the connection, at times beyond what
    this test sends."""
    with Connection(envoy_service.target) as other, Connection(envoy_service.target) as one:
        stream = one.start(call_headers(path("Stream")))
        one.data(stream, framed(do="ignore", name="overrun"))
        one.ping()
        for _ in range(400):
            one.data(stream, bytes(2**14))
        answer = one.answer(stream)
        assert answer.reset is not None or one.is_closed
        assert other.ask(call_headers(path("Unary")), framed(number=1)).status == 0
