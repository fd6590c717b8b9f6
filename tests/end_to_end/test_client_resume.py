"""Programs that use the client library do not notice that connections are cut and servers killed."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from carousel import AsyncClient, Client, NotFoundError, SessionClosedError
from examples.local_service import LocalService, local_service
from tests.reference import ReferenceSession


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def killed_and_started_again(repository: Path, folder: Path, delays_s: list[float], number: int) -> Iterator[str]:
    """A server on one port, which is sent a signal after each of the delays, and started again."""
    port = free_port()
    flags = {"port": port, "store": "lmdb", "data-folder": folder, "checkpoint-interval-s": 0.05}
    flags["shutdown-grace-s"] = 0.5
    leave, ready = threading.Event(), threading.Event()

    def run() -> None:
        for delay_s in [*delays_s, 1e6]:
            with local_service(repository, flags) as service:
                ready.set()
                leave.wait(delay_s)
                if not leave.is_set():
                    service.process.send_signal(number)
                    service.process.wait()

    keeper = threading.Thread(target=run)
    keeper.start()
    ready.wait(60)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        leave.set()
        keeper.join()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_blocking_program_does_not_notice(tiny_repository: Path, tmp_path: Path, number: int) -> None:
    folder = tiny_repository / "tiny-endless" / "1"
    with (
        killed_and_started_again(tiny_repository, tmp_path, [0.5, 0.7], number) as target,
        Client(target) as client,
        client.session("tiny-endless") as session,
    ):
        reference = ReferenceSession(folder)
        for index in range(400):
            step = session.feed(2 + index % 5, logits=True, timeout=30)
            assert list(step.outputs[0].logits) == reference.step(2 + index % 5).tolist()
            assert session.position == index + 1
            threading.Event().wait(0.005)
        tokens = [token.id for token in session.generate(max_tokens=40_000, timeout=60)]
        assert tokens == reference.generate(40_000)
        assert session.position == 40_400


async def test_asyncio_programs_do_not_notice(tiny_repository: Path, tmp_path: Path) -> None:
    folder = tiny_repository / "tiny-endless" / "1"
    with killed_and_started_again(tiny_repository, tmp_path, [0.6, 0.6], signal.SIGKILL) as target:
        async with AsyncClient(target) as client:

            async def program(first: int) -> None:
                async with client.session("tiny-endless") as session:
                    reference = ReferenceSession(folder)
                    for _ in range(4):
                        await session.feed([first, 3], outputs=False, timeout=30)
                        reference.step(first)
                        reference.step(3)
                        generation = session.generate(max_tokens=8000, timeout=60)
                        assert [token.id async for token in generation] == reference.generate(8000)
                        assert session.position == generation.position

            async def one_shot() -> None:
                expected = ReferenceSession(folder).generate(30_000)
                found = [t.id async for t in client.generate("tiny-endless", max_tokens=30_000)]
                assert found == expected

            await asyncio.gather(*(program(first) for first in range(2, 8)), one_shot())


def test_a_session_that_others_opened_is_gone_on_with(tiny_service: LocalService, tiny_repository: Path) -> None:
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
