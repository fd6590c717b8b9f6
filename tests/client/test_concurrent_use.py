"""When a second thread calls an object that only one thread may use at a time, it gets an error and the first
continues."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from collections.abc import Callable

import pytest

from carousel import (
    AsyncClient,
    AsyncSession,
    Client,
    ConcurrentUseError,
    DeadlineExceededError,
    FailedPreconditionError,
    RequestCancelledError,
    Step,
)
from carousel._deadline import Deadline
from carousel._turn import Turn
from tests.waiting import wait_until

from .fake_server import FakeServer


def in_a_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def wait_for(server: FakeServer, kind: str) -> None:
    while server.requests.get(timeout=10).WhichOneof("request") != kind:
        pass


@pytest.mark.parametrize("on_disconnect", ["free", "hold"])
def test_a_second_thread_in_a_session_gets_an_error(server: FakeServer, on_disconnect: str) -> None:
    with Client(server.target) as client, client.session("toy", "ab", on_disconnect=on_disconnect) as session:
        server.mute()
        first, results = in_a_thread(lambda: session.feed("A"))
        wait_for(server, "feed")
        for call in (
            lambda: session.feed("B"),
            lambda: session.score(["A"]),
            lambda: list(session.generate()),
            lambda: session.rewind(0),
            session.close,
        ):
            with pytest.raises(ConcurrentUseError, match=r"one thread at a time.*a session per thread, or AsyncClient"):
                call()
        server.unmute()
        first.join(10)
        assert isinstance(results[0], Step)
        assert (results[0].position, session.feed("B").position) == (1, 2)
    assert issubclass(ConcurrentUseError, FailedPreconditionError)


def test_a_call_that_waits_for_a_cancelling_thread_ends_at_its_timeout(server: FakeServer) -> None:
    with Client(server.target) as client, client.session("toy", "ab") as session:
        server.mute()
        first, fed = in_a_thread(lambda: session.feed("A"))
        wait_for(server, "feed")
        second, _ = in_a_thread(session.cancel)
        wait_for(server, "cancel")
        third, refused = in_a_thread(lambda: session.feed("B", timeout=0.1))
        third.join(5)
        has_ended = not third.is_alive()
        server.unmute()
        for thread in (first, second, third):
            thread.join(10)
        assert has_ended
        assert isinstance(refused[0], DeadlineExceededError)
        assert isinstance(fed[0], Step | RequestCancelledError)


def test_a_cancelling_thread_has_its_turn_before_the_next_call() -> None:
    turn = Turn("session")
    order: list[str] = []

    def cancel() -> None:
        with turn.cancelling(Deadline(10)), turn.after_others(Deadline(10)):
            order.append("cancel")

    for _ in range(200):
        order.clear()
        with turn:
            canceller = threading.Thread(target=cancel)
            canceller.start()
            wait_until(lambda: turn.is_awaited)
        with turn:  # the lock is free, and the cancelling thread has not been woken yet
            order.append("next call")
        canceller.join(10)
        assert order == ["cancel", "next call"]


def test_a_call_that_meets_a_cancelling_thread_never_fails() -> None:
    turn = Turn("session")
    is_done = threading.Event()

    def cancel() -> None:
        while not is_done.is_set():
            with turn.cancelling(Deadline(10)), turn.after_others(Deadline(10)):
                pass

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # the threads meet at every point of the code
    cancellers = [threading.Thread(target=cancel) for _ in range(2)]
    for canceller in cancellers:
        canceller.start()
    try:
        for _ in range(30_000):
            with turn:
                pass
    finally:
        sys.setswitchinterval(interval)
        is_done.set()
        for canceller in cancellers:
            canceller.join(10)


def test_a_second_thread_in_a_generation_gets_an_error(server: FakeServer) -> None:
    with Client(server.target) as client:
        generation = client.generate("toy", "stall")
        assert [next(generation).text for _ in range(3)] == ["A", "B", "C"]
        (one, of_one), (other, of_other) = [in_a_thread(lambda: next(generation)) for _ in range(2)]
        (refused,) = wait_until(lambda: of_one or of_other)
        assert isinstance(refused, ConcurrentUseError)
        assert re.search(r"this generation.*Read it in one thread", str(refused))
        assert not (of_one and of_other), "the other thread still waits for its token"
        generation.close()
        one.join(10)
        other.join(10)
        assert of_one
        assert of_other


def test_a_second_thread_in_a_batch_gets_an_error(server: FakeServer) -> None:
    with Client(server.target) as client:
        batch = client.batch("toy")
        server.mute()
        first, _ = in_a_thread(lambda: batch.open("ab"))
        wait_for(server, "open")
        for call in (
            lambda: batch.open("ab"),
            lambda: batch.step([]),
            lambda: batch.send([]),
            batch.receive,
            batch.close,
        ):
            with pytest.raises(ConcurrentUseError, match=r"this batch.*Call it from one thread"):
                call()
        server.unmute()
        first.join(10)
        assert len(batch) == 1
        batch.close()


async def test_a_session_of_another_event_loop_is_refused(server: FakeServer) -> None:
    async with AsyncClient(server.target) as client, client.session("toy", "ab") as session:
        with pytest.raises(ConcurrentUseError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, session.feed("A"))
        with pytest.raises(ConcurrentUseError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, session.close())
        assert (await session.feed("A")).position == 1


async def test_two_tasks_that_await_one_opening_get_the_same_session(server: FakeServer) -> None:
    async with AsyncClient(server.target) as client:
        opening = client.session("toy", "ab")

        async def opened() -> AsyncSession:
            return await opening

        first, second = await asyncio.gather(opened(), opened())
        assert first is second
        assert server.num_streams == 1
        await first.close()
