"""What both clients raise, and what they leave behind, when a stream ends too early."""

from __future__ import annotations

import asyncio
import threading

import pytest

from carousel import (
    AsyncClient,
    Client,
    FailedPreconditionError,
    ResourceExhaustedError,
    UnavailableError,
)

from .conftest import ServerProcess
from .fake_server import FakeServer
from .shells import AsyncioShell, BlockingShell, Shell, take


async def test_a_stream_that_the_server_ends_is_unavailable(shell: Shell, server: FakeServer) -> None:
    session = await shell.open()
    server.end_stream()
    for _ in range(2):
        with pytest.raises(UnavailableError, match=r"the server ended|the connection was lost"):
            await session.feed("A")
    await session.close()


async def test_a_server_that_stops_ends_a_waiting_feed(shell: Shell, server: FakeServer) -> None:
    session = await shell.open()
    server.requests.get()
    server.mute()

    def kill() -> None:
        server.requests.get()
        server.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(UnavailableError):
        await session.feed("A", timeout=30)
    killer.join()
    await session.close()


@pytest.mark.parametrize("kind", [BlockingShell, AsyncioShell])
async def test_a_server_that_is_killed_ends_what_waits_for_it(kind: type[Shell], server_process: ServerProcess) -> None:
    shell = kind(server_process.target)
    session = await shell.open("toy", "stall")
    generation = session.generate(timeout=30)
    assert len(await take(generation, 3)) == 3
    server_process.kill()
    with pytest.raises(UnavailableError):
        await take(generation)
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await session.feed("A")
    await session.close()
    await shell.close()


def test_a_lost_session_that_nobody_closes_leaves_no_thread(server_process: ServerProcess) -> None:
    with Client(server_process.target) as client:
        client.models()
        before = set(threading.enumerate())
        session = client.session("toy", "stall", on_disconnect="free")
        threads = set(threading.enumerate()) - before
        assert "carousel-stream" in {thread.name for thread in threads}
        server_process.kill()
        for thread in threads:
            thread.join(5)
        assert not [thread.name for thread in threads if thread.is_alive()]
        with pytest.raises(UnavailableError):
            session.feed("A")


async def test_a_lost_session_that_nobody_closes_leaves_no_task(server_process: ServerProcess) -> None:
    async with AsyncClient(server_process.target) as client:
        await client.models()
        before = asyncio.all_tasks()
        session = await client.session("toy", "stall", on_disconnect="free")
        tasks = asyncio.all_tasks() - before
        assert "carousel-stream" in {task.get_name() for task in tasks}
        server_process.kill()
        await asyncio.wait(tasks, timeout=5)
        assert not [task for task in tasks if not task.done()]
        with pytest.raises(UnavailableError):
            await session.feed("A")


async def test_a_server_that_is_not_there_is_unavailable(shell: Shell, server: FakeServer) -> None:
    server.kill()
    for call in (shell.open(), shell.models(), shell.generate("toy")):
        with pytest.raises(UnavailableError):
            await call


async def test_closing_the_client_ends_its_sessions(shell: Shell, server: FakeServer) -> None:
    session = await shell.open()
    await shell.close()
    assert server.stream_ended.wait(5)
    with pytest.raises(FailedPreconditionError):
        await session.feed("A")
    await session.close()


def test_a_closed_session_leaves_no_thread(server: FakeServer) -> None:
    with Client(server.target) as client:
        with client.session("toy", on_disconnect="free") as session:
            session.feed("A")
            assert "carousel-stream" in {thread.name for thread in threading.enumerate()}
        assert "carousel-stream" not in {thread.name for thread in threading.enumerate()}


async def test_messages_over_a_limit_are_resource_exhausted(server: FakeServer, shell: Shell) -> None:
    session = await shell.open()
    with pytest.raises(ResourceExhaustedError, match="SERVER: Received message larger than max"):
        await session.feed(["A" * 5_000_000])
    await session.close()
    small = type(shell)(server.target, max_message_bytes=100)
    session = await small.open()
    with pytest.raises(ResourceExhaustedError, match="CLIENT: Received message larger than max"):
        await session.feed([2] * 100, every_position=True)
    await session.close()
    await small.close()
