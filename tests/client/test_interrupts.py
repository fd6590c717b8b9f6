"""Ctrl-C ends each wait of a blocking call, also when the signal arrives just before the wait begins.

Such a signal sets Python's flag and ends no system call. `_thread.interrupt_main` does exactly this.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable, Iterator

import pytest

from carousel import Client
from carousel._call import started
from carousel._deadline import Deadline
from carousel._turn import Turn

from .fake_server import FakeServer

SOON = 0.02


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


def interrupted(call: Callable[[], object]) -> None:
    """Runs a call that waits, which a KeyboardInterrupt must end."""
    interrupt = threading.Timer(SOON, _thread.interrupt_main)
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        call()
    interrupt.join()


def test_a_wait_for_an_answer(client: Client, server: FakeServer) -> None:
    session = client.session("toy", "ab")
    server.mute()
    interrupted(lambda: session.feed("A"))
    server.unmute()
    session.close()


def test_a_wait_for_a_source(client: Client) -> None:
    come = threading.Event()

    def sources() -> Iterator[str]:
        come.wait()
        yield "ab"

    interrupted(lambda: list(client.generate_many("toy", sources())))
    come.set()


def test_a_wait_for_a_thread_that_cancels() -> None:
    turn, holds, done = Turn("session"), threading.Event(), threading.Event()

    def cancel() -> None:
        with turn.cancelling(Deadline(10)):
            holds.set()
            done.wait()

    def use() -> None:
        with turn:
            pass

    cancelling = threading.Thread(target=cancel)
    cancelling.start()
    holds.wait()
    interrupted(use)
    done.set()
    cancelling.join()
    use()


def test_a_call_that_starts_is_started_whole() -> None:
    """A call that gRPC has started in part is never read, and closing its channel waits for its end."""
    parts: list[int] = []

    def start() -> None:
        parts.append(1)
        _thread.interrupt_main()
        parts.append(2)

    with pytest.raises(KeyboardInterrupt):
        started(start)
    assert parts == [1, 2]
    with pytest.raises(KeyboardInterrupt):  # the handler is back
        _thread.interrupt_main()
