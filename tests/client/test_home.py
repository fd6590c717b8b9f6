"""A client works only in the process that created it, until it is closed."""

from __future__ import annotations

import copy
import pickle

import pytest

from carousel import AsyncClient, Client, FailedPreconditionError

from .fake_server import FakeServer


def test_objects_with_a_connection_cannot_be_pickled_or_copied(server: FakeServer) -> None:
    with Client(server.target) as client, client.session("toy", "ab") as session, client.batch("toy") as batch:
        for one in (client, client.sessions, session, batch, session.generate()):
            for copied in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match=rf"{type(one).__name__} cannot be pickled or copied.*each process"):
                    copied(one)


async def test_asyncio_objects_with_a_connection_cannot_be_pickled(server: FakeServer) -> None:
    async with AsyncClient(server.target) as client, client.session("toy", "ab") as session:
        for one in (client, client.sessions, session, client.batch("toy"), session.generate(), client.session("toy")):
            with pytest.raises(TypeError, match=f"{type(one).__name__} cannot be pickled or copied"):
                pickle.dumps(one)


def test_every_call_of_a_closed_client_says_that_it_was_closed(server: FakeServer) -> None:
    client = Client(server.target)
    session = client.session("toy", "ab")
    client.close()
    client.close()
    for call in (
        client.models,
        lambda: client.model("toy"),
        lambda: client.generate("toy", "ab"),
        lambda: client.score("toy", ["A"]),
        lambda: client.step("s", "A"),
        lambda: client.session("toy", "ab"),
        lambda: client.resume("s"),
        lambda: client.batch("toy"),
        lambda: client.watch("s"),
        lambda: list(client.sessions.list()),
        lambda: client.sessions.get("s"),
        lambda: session.feed("A"),
    ):
        with pytest.raises(FailedPreconditionError, match=r"the client was closed: make a new one") as caught:
            call()
        assert caught.value.reason == "CLIENT_CLOSED"
    session.close()


async def test_every_call_of_a_closed_client_of_asyncio_says_that_it_was_closed(server: FakeServer) -> None:
    client = AsyncClient(server.target)
    session = await client.session("toy", "ab")
    await client.close()
    await client.close()
    for call in (
        client.models,
        lambda: client.score("toy", ["A"]),
        lambda: client.step("s", "A"),
        lambda: client.session("toy", "ab"),
        lambda: client.sessions.get("s"),
        lambda: session.feed("A"),
    ):
        with pytest.raises(FailedPreconditionError, match="the client was closed: make a new one"):
            await call()
    for start in (lambda: client.generate("toy", "ab"), lambda: client.watch("s"), lambda: client.batch("toy")):
        with pytest.raises(FailedPreconditionError, match="the client was closed: make a new one"):
            start()
    await session.close()
