"""A client works only in the process that created it, until it is closed."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from carousel import AsyncClient, Client, FailedPreconditionError

from .fake_server import FakeServer

ROOT = Path(__file__).parents[2]


SKIPPED = "skipping fork() handlers"
"""gRPC logs this when the process forks while another gRPC thread is active. The child process may then crash."""


def run(program: str, target: str) -> str:
    """Runs a program in a child process, which must succeed, and returns its output. Runs it again if gRPC was not
    ready for a fork, at most 5 times."""
    command = [sys.executable, "-c", program, target]
    for _ in range(5):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0 or SKIPPED not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


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


FORKS = """
import os, sys
from carousel import Client, FailedPreconditionError

def refused(call):
    try:
        call()
    except FailedPreconditionError as error:
        assert error.reason == "FORKED" and "make a client after the fork" in error.message, error
    else:
        raise AssertionError("it was not refused")

def fork(client, session):
    generation = client.generate("toy", "stall")
    next(generation)
    assert session.feed("A").position == 1
    child = os.fork()
    if child == 0:
        for call in (client.models, lambda: session.feed("A"), session.cancel, lambda: session.rewind(0)):
            refused(call)
        for call in (lambda: next(generation), lambda: client.session("toy"), lambda: list(session.generate())):
            refused(call)
        generation.close()
        session.close()
        client.close()
        os._exit(0)  # as multiprocessing does
    else:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert session.feed("A").position == 2
        assert client.models()
        assert next(generation)

for on_disconnect in ("free", "hold"):
    with Client(sys.argv[1]) as client, client.session("toy", "ab", on_disconnect=on_disconnect) as session:
        fork(client, session)
print("undisturbed")
"""

BATCH_FORKS = """
import os, sys
from carousel import Client, FailedPreconditionError

def fork(use, then=lambda: None):
    child = os.fork()
    if child == 0:
        try:
            use()
        except FailedPreconditionError as error:
            assert error.reason == "FORKED", error
            then()
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

with Client(sys.argv[1]) as client:
    with client.batch("toy") as batch:
        batch.open("ab")
        fork(lambda: batch.step([2]), batch.close)
        batch.close_session(0)
    many = client.generate_many("toy", ["ab"] * 9, concurrency=1)
    next(many)
    fork(lambda: list(many), many.close)
    assert len(list(many)) == 8
    print("undisturbed")
"""

ASYNC_FORKS = """
import asyncio, os, sys, traceback
from carousel import AsyncClient, FailedPreconditionError

async def main():
    async with AsyncClient(sys.argv[1]) as client, client.session("toy", "ab") as session:
        await session.feed("A")
        child = os.fork()
        if child == 0:
            asyncio.set_event_loop(None)
            asyncio.events._set_running_loop(None)

            async def refused():
                for call in (client.models, lambda: session.feed("A"), session.cancel):
                    try:
                        await call()
                    except FailedPreconditionError as error:
                        assert error.reason == "FORKED", error
                    else:
                        raise AssertionError("it was not refused")
                await session.close()
                await client.close()

            code = 1
            try:
                asyncio.new_event_loop().run_until_complete(refused())
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == 0, code
        assert (await session.feed("A")).position == 2
        print("undisturbed")

asyncio.run(main())
"""

PROCESSES = """
import multiprocessing, sys
from carousel import Client

def use(client):
    client.models()

if __name__ == "__main__":
    with Client(sys.argv[1]) as client, client.session("toy") as session:
        for method in ("spawn", "forkserver"):
            process = multiprocessing.get_context(method).Process(target=use, args=(client,))
            try:
                process.start()
            except TypeError as error:
                assert "Client cannot be pickled or copied" in str(error)
            else:
                raise AssertionError(method)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            try:
                pool.apply(use, (client,))
            except TypeError as error:
                assert "Client cannot be pickled or copied" in str(error)
            else:
                raise AssertionError("pool")
        assert session.feed("A").position == 1
        print("undisturbed")
"""


def test_a_forked_process_is_refused_and_does_not_disturb_its_parent(server: FakeServer) -> None:
    assert run(FORKS, server.target) == "undisturbed\n"


@pytest.mark.parametrize("program", [BATCH_FORKS, ASYNC_FORKS, PROCESSES], ids=["batch", "asyncio", "multiprocessing"])
def test_objects_are_refused_in_any_other_process(server: FakeServer, program: str) -> None:
    assert run(program, server.target) == "undisturbed\n"
