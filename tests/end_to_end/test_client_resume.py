"""Programs that use the client library continue when connections are cut and servers are killed."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest

from carousel import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    NotFoundError,
    ResourceExhaustedError,
    SessionClosedError,
    ValueToken,
)
from examples.local_service import LocalService
from examples.ports import free_port
from tests.reference import ReferenceSession
from tests.services import local_service


class Restarted:
    """A server on one port. target: its address."""

    def __init__(self, port: int) -> None:
        self.target = f"127.0.0.1:{port}"
        self.orders: SimpleQueue[bool] = SimpleQueue()
        """For each order, whether the server is to start again after its end."""

    def restart(self) -> None:
        """Has the server end by a signal and start again, and does not wait for it."""
        self.orders.put(True)


@contextmanager
def killed_and_started_again(repository: Path, folder: Path, number: int) -> Iterator[Restarted]:
    """Runs a server that is restarted when the test says so. number: the signal that ends it."""
    port = free_port()
    flags = {"port": port, "store": "lmdb", "data-folder": folder, "checkpoint-interval-s": 0.05}
    flags["shutdown-grace-s"] = 0.5
    server, ready = Restarted(port), threading.Event()

    def run() -> None:
        goes_on = True
        while goes_on:
            with local_service(repository, flags) as service:
                ready.set()
                if goes_on := server.orders.get():
                    service.process.send_signal(number)
                    service.process.wait()

    keeper = threading.Thread(target=run)
    keeper.start()
    ready.wait(60)
    try:
        yield server
    finally:
        server.orders.put(False)
        keeper.join()


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_blocking_program_continues_when_its_server_is_restarted(
    tiny_repository: Path, tmp_path: Path, number: int
) -> None:
    folder = tiny_repository / "tiny-endless" / "1"
    with (
        killed_and_started_again(tiny_repository, tmp_path, number) as server,
        Client(server.target) as client,
        client.session("tiny-endless") as session,
    ):
        reference = ReferenceSession(folder)
        for index in range(400):
            step = session.feed(2 + index % 5, logits=True, timeout=30)
            assert list(step.outputs[0].logits) == reference.step(2 + index % 5).tolist()
            assert session.position == index + 1
            if index in {100, 250}:
                server.restart()
        tokens = [token.id for token in session.generate(max_tokens=5000, timeout=60)]
        assert tokens == reference.generate(5000)
        assert session.position == 5400


async def test_asyncio_programs_continue_when_their_server_is_restarted(tiny_repository: Path, tmp_path: Path) -> None:
    folder = tiny_repository / "tiny-endless" / "1"
    expected = ReferenceSession(folder).generate(10_000)
    with killed_and_started_again(tiny_repository, tmp_path, signal.SIGKILL) as server:
        async with AsyncClient(server.target) as client:

            async def program(first: int) -> None:
                async with client.session("tiny-endless") as session:
                    reference = ReferenceSession(folder)
                    for turn in range(4):
                        if first == 2 and turn in {1, 2}:
                            server.restart()  # the other programs are anywhere
                        await session.feed([first, 3], outputs=False, timeout=30)
                        reference.step(first)
                        reference.step(3)
                        generation = session.generate(max_tokens=2000, timeout=60)
                        assert [token.id async for token in generation] == reference.generate(2000)
                        assert session.position == generation.position

            async def one_shot() -> None:
                found = [t.id async for t in client.generate("tiny-endless", max_tokens=10_000)]
                assert found == expected

            await asyncio.gather(*(program(first) for first in range(2, 8)), one_shot())


def test_a_session_that_another_client_opened_can_be_resumed(tiny_service: LocalService, tiny_repository: Path) -> None:
    reference = ReferenceSession(tiny_repository / "tiny-endless" / "1")
    with Client(tiny_service.target) as client:
        with client.session("tiny-endless", session_id="handed-over") as first:
            first.feed([5, 6])
            with client.resume("handed-over") as second:
                assert (second.position, second.model) == (2, "tiny-endless")
                for token in (5, 6):
                    reference.step(token)
                assert list(second.feed(7, logits=True).outputs[0].logits) == reference.step(7).tolist()
                with pytest.raises(SessionClosedError, match="taken"):
                    first.feed(1)
        with pytest.raises(NotFoundError, match="was closed by a client"):
            client.resume("handed-over")


def test_snapshots_forks_marks_and_state_from_the_client(tiny_service: LocalService) -> None:
    with Client(tiny_service.target) as client, client.session("tiny-endless") as session:
        session.feed([5, 6], mark=True)
        after = session.feed(7, logits=True).outputs[0].logits
        client.sessions.fork(session.id, "the-fork")
        client.sessions.restore(client.sessions.snapshot(session.id), session_id="the-copy")
        ahead = session.feed(8, logits=True).outputs[0].logits
        for name in ("the-fork", "the-copy"):
            with client.resume(name) as other:
                assert other.position == 3
                assert other.feed(8, logits=True).outputs[0].logits == ahead
        session.rewind(2)
        assert session.position == 2
        assert session.feed(7, logits=True).outputs[0].logits == after
        state = client.sessions.get_state(session.id)
        session.feed(9)
        client.sessions.set_state(session.id, *state)
        assert session.feed(8, logits=True).outputs[0].logits == ahead
        info = client.sessions.get(session.id)
        assert (info.durability, info.attached, info.marks) == ("checkpoint", True, (2,))


async def test_one_call_generations_continue_after_a_shutdown(tiny_repository: Path, tmp_path: Path) -> None:
    """The generation takes longer than the server's grace time, so the server cuts it off."""
    expected = ReferenceSession(tiny_repository / "tiny-endless" / "1").generate(20_000)
    with killed_and_started_again(tiny_repository, tmp_path, signal.SIGTERM) as server:
        both_generate = threading.Barrier(2, server.restart)
        async with AsyncClient(server.target) as client:

            async def asyncio_program() -> list[int]:
                tokens = client.generate("tiny-endless", max_tokens=20_000)
                first = await anext(tokens)
                await asyncio.to_thread(both_generate.wait, 60)
                return [first.id, *[token.id async for token in tokens]]

            def blocking_program() -> list[int]:
                with Client(server.target) as blocking:
                    tokens = blocking.generate("tiny-endless", max_tokens=20_000)
                    first = next(tokens)
                    both_generate.wait(60)
                    return [first.id, *[token.id for token in tokens]]

            found = await asyncio.gather(asyncio_program(), asyncio.to_thread(blocking_program))
            assert list(found) == [expected, expected]


def test_a_call_that_runs_out_of_time_in_an_outage_leaves_the_session(tiny_repository: Path, tmp_path: Path) -> None:
    flags = {"port": free_port(), "store": "lmdb", "data-folder": tmp_path}
    target = f"127.0.0.1:{flags['port']}"
    with Client(target) as client:
        with local_service(tiny_repository, flags) as service:
            session = client.session("tiny-endless", durability="strict")
            assert session.feed(5).position == 1
            service.process.kill()
            service.process.wait()
        for _ in range(2):
            with pytest.raises(DeadlineExceededError):
                session.feed(6, timeout=0.3)
            assert not session.closed
        with local_service(tiny_repository, flags):
            assert session.feed(6, timeout=30).position == 2
            session.close()


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_session_that_was_rewound_gets_its_own_tokens_again(
    tiny_repository: Path, tmp_path: Path, is_stored: bool
) -> None:
    """Marks that were set after the last checkpoint exist again too. The last checkpoint is the opening or the
    rewind."""
    flags = {"port": free_port(), "store": "lmdb", "data-folder": tmp_path, "checkpoint-interval-s": 600}
    reference = ReferenceSession(tiny_repository / "tiny-endless" / "1")
    with Client(f"127.0.0.1:{flags['port']}") as client:
        with local_service(tiny_repository, flags) as service:
            session = client.session("tiny-endless")
            session.feed([5, 6, 7], mark=True)
            next(session.generate(max_tokens=400))  # leaves the rest unread
            if is_stored:
                session.rewind(3)  # a rewind stores the session
            else:
                session.feed([4, 4])
            start = session.position
            session.feed([8, 9], mark=True)
            session.feed([3], outputs=False)
            session.rewind(start + 2)
            session.feed([2, 11])
            service.process.kill()
            service.process.wait()
        with local_service(tiny_repository, flags):
            found = session.feed(12, logits=True, timeout=30).outputs[0].logits
            assert session.position == start + 5
            assert client.sessions.get(session.id).marks == (3, start + 2)
            session.close()
    for token in (5, 6, 7):
        reference.step(token)
    if not is_stored:
        reference.generate(start - 5)
        reference.step(4)
        reference.step(4)
    for token in (8, 9, 2, 11):
        reference.step(token)
    assert list(found) == reference.step(12).tolist()


def test_a_feed_over_the_servers_limit_fails_alone(tiny_repository: Path, tmp_path: Path) -> None:
    flags = {"max-message-bytes": 65_536, "data-folder": tmp_path}
    with (
        local_service(tiny_repository, flags) as service,
        Client(service.target) as client,
        client.session("tiny-endless") as session,
    ):
        session.feed([5, 6])
        for _ in range(2):
            with pytest.raises(ResourceExhaustedError, match="65536"):
                session.feed([2] * 100_000, timeout=30)
        assert session.feed(7).position == 3


async def test_a_cancelled_feed_is_cancelled_by_the_next_call(tiny_service: LocalService) -> None:
    async with AsyncClient(tiny_service.target) as client, client.session("tiny-endless") as session:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.feed([3] * 60_000, outputs=False), 0.01)
        position = await session.cancel(timeout=30)
        assert position == session.position <= 60_000
        assert (await session.feed(4)).position == position + 1


def test_a_generation_of_values_yields_its_declared_type(shipped_service: LocalService) -> None:
    history = [[370.0 + month] for month in range(12)]
    with Client(shipped_service.target) as client:
        tokens = list(client.generate("co2-forecast", history, max_tokens=3))
        assert all(float(token.text) > 0 for token in tokens)
        values = [token.values for token in tokens if isinstance(token, ValueToken)]
        assert values == client.forecast("co2-forecast", 3, history)
        with pytest.raises(TypeError, match="the model generates tokens, not values"):
            client.forecast("g2p-en", 3, "gate")
