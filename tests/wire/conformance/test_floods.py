"""Floods of streams, resets, connections, and frames that cost the server more than the client."""

from __future__ import annotations

import time
from contextlib import ExitStack

import pytest

from examples.local_service import LocalService
from examples.processes import num_descriptors, resident_bytes
from tests.waiting import wait_until
from tests.wire.conformance.calls import framed, path, read
from tests.wire.conformance.conftest import serving_pid
from tests.wire.conformance.hpack import encode
from tests.wire.conformance.http2 import END_HEADERS, END_STREAM, PREFACE, Connection, Type, call_headers, frame

MIB = 1024 * 1024
CALL = call_headers(path("Unary"))
STREAM = call_headers(path("Stream"))


def is_served(service: LocalService) -> bool:
    """Returns whether the server answers a new connection."""
    with Connection(service.target) as one:
        return one.ask(CALL, framed(number=1)).status == 0


@pytest.mark.parametrize("num_streams", [300, pytest.param(5000, marks=pytest.mark.many)])
def test_streams_may_be_idle(service: LocalService, num_streams: int) -> None:
    """The streams share a few connections, and each is answered whenever it sends a request."""
    before = resident_bytes(serving_pid(service))
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(service.target)) for _ in range(10)]
        streams = [(one, one.start(STREAM)) for _ in range(num_streams // 10) for one in connections]
        for turn in range(2):
            for connection, stream in streams:
                connection.data(stream, framed(turn=turn))
            for connection, stream in streams:
                connection.wait_for_data(stream, (turn + 1) * len(framed(turn=0)))
            assert is_served(service)
        assert resident_bytes(serving_pid(service)) < before + 40 * MIB + num_streams * 50_000
        for connection, stream in streams:
            connection.data(stream, b"", is_last=True)
        for connection, stream in streams:
            answer = connection.answer(stream)
            assert ([read(message)["turn"] for message in answer.messages], answer.status) == ([0, 1], 0)


@pytest.mark.parametrize("begun", [False, True], ids=["at once", "begun"])
def test_a_flood_of_resets_harms_nobody(service: LocalService, *, begun: bool) -> None:
    """The server may close the connections that flood it."""
    before = resident_bytes(serving_pid(service))
    with Connection(service.target) as other:
        stream = other.start(STREAM)
        other.data(stream, framed(number=1))
        other.wait_for_data(stream, 1)
        for _ in range(3):
            with Connection(service.target) as one:
                for _ in range(40):
                    burst = b""
                    for _ in range(50):
                        number = one.new_stream()
                        burst += frame(Type.HEADERS, END_HEADERS, number, encode(STREAM))
                        if begun:
                            burst += frame(Type.DATA, 0, number, framed(do="wait", name="flood"))
                        burst += frame(Type.RST_STREAM, 0, number, (8).to_bytes(4, "big"))
                    one.send(burst)
        assert is_served(service)
        other.data(stream, framed(number=2), is_last=True)
        answer = other.answer(stream)
        assert (len(answer.messages), answer.status) == (2, 0)
    assert resident_bytes(serving_pid(service)) < before + 128 * MIB
    wait_until(lambda: num_tasks(service) < 50)


def num_tasks(service: LocalService) -> int:
    """Returns the number of tasks in the server's event loop."""
    with Connection(service.target) as one:
        return int(read(one.ask(CALL, framed(do="describe")).messages[0])["num_tasks"])


FLOODS = {
    "pings": frame(Type.PING, 0, 0, bytes(8)),
    "settings": frame(Type.SETTINGS, 0, 0, b"\0\4" + (2**20).to_bytes(4, "big")),
    "empty data": frame(Type.DATA, 0, 1),
    "window updates": frame(Type.WINDOW_UPDATE, 0, 1, (1).to_bytes(4, "big")),
    "priorities": frame(2, 0, 1, bytes(5)),
    "unknown frames": frame(0xAB, 0, 1, bytes(100)),
    "resets of nothing": frame(Type.RST_STREAM, 0, 1, bytes(4)),
    "continuations": frame(Type.HEADERS, 0, 3, encode(STREAM)) + frame(Type.CONTINUATION, 0, 3) * 20,
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_frames_harms_nobody(service: LocalService, flood: str) -> None:
    before = resident_bytes(serving_pid(service))
    with Connection(service.target) as one:
        one.start(STREAM)
        one.socket.settimeout(0.5)  # the server's answers fill the socket, because this client does not read them
        try:
            for _ in range(200):
                one.send(FLOODS[flood] * 100)
        except TimeoutError:
            pass
        assert is_served(service)
    assert resident_bytes(serving_pid(service)) < before + 128 * MIB


def test_endless_headers_are_refused(service: LocalService) -> None:
    before = resident_bytes(serving_pid(service))
    with Connection(service.target) as one:
        number = one.new_stream()
        one.send(frame(Type.HEADERS, 0, number, encode(STREAM)))
        block = encode([(b"k%d" % index, b"v" * 1000) for index in range(15)])
        for _ in range(2000):  # 30 MB
            one.send(frame(Type.CONTINUATION, 0, number, block))
            if one.is_closed:
                break
        assert is_served(service)
    assert resident_bytes(serving_pid(service)) < before + 64 * MIB


def test_connections_come_and_go_and_leave_nothing_behind(service: LocalService) -> None:
    """A hundred connections a second: complete calls, open streams, abandoned calls, and invalid beginnings."""
    assert is_served(service)
    pid, per_s, seconds = serving_pid(service), 100, 2
    descriptors, tasks = num_descriptors(pid), num_tasks(service)
    begin = time.monotonic()
    for number in range(per_s * seconds):
        with Connection(service.target) as one:
            match number % 4:
                case 0:
                    assert one.ask(CALL, framed(number=number)).status == 0
                case 1:
                    one.data(one.start(STREAM), framed(number=number))
                case 2:
                    one.data(one.start(CALL), framed(do="wait", name="left"), is_last=True)
                case _:
                    one.send(PREFACE[: number % 24] + frame(Type.HEADERS, END_STREAM, 1, b""))
        time.sleep(max(0.0, begin + number / per_s - time.monotonic()))  # the pace of the connections
    assert is_served(service)
    wait_until(lambda: num_descriptors(pid) <= descriptors + 5)
    wait_until(lambda: num_tasks(service) <= tasks + 5)
