"""The client in programs of their own: what they import, how they end, and forked and other processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import carousel
from carousel.v1 import inference_pb2 as pb
from tests.client.fake_server import FakeServer

ROOT = Path(__file__).parents[1]

SKIPPED = "skipping fork() handlers"
"""gRPC logs this when the process forks while another gRPC thread is active. The child process may then crash."""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


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


def output(code: str) -> str:
    """Runs a program in a new interpreter. It must end within 20 s and write nothing to standard error. Returns its
    output."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_package_needs_grpc_and_protobuf_alone() -> None:
    code = (
        "import sys, grpc, google.protobuf; before = set(sys.modules); import carousel;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names));"
        "print(*[name for name in sys.modules if name.startswith('google.')])"
    )
    packages, modules = output(code).splitlines()
    assert set(packages.split()) <= {"carousel", "google", "grpc"}
    assert all(
        name.startswith("google.protobuf") or name in {"google._upb", "google._upb._message"}
        for name in modules.split()
    )


def test_the_first_example_of_the_package_runs(server: FakeServer) -> None:
    assert carousel.__doc__ is not None
    example = carousel.__doc__.split("\n\n", 1)[1].split("`AsyncClient`")[0]
    example = "\n".join(line.removeprefix("    ") for line in example.splitlines())
    example = example.replace("localhost:50051", server.target).replace("g2p-en", "toy").replace('["K"]', '["A"]')
    assert output(example).split() == ["A", "B", "C", "D", "A"]


def test_a_program_that_closes_nothing_ends_silently_and_leaves_no_call(server: FakeServer) -> None:
    """At its end the interpreter stops gRPC's threads wherever they are. What then needs one of them waits forever."""
    server.events = [pb.WatchResponse(position=1)]
    code = f"""if True:
        import atexit, gc, threading
        from tests.waiting import wait_until

        def has_no_call():
            return not any(type(one).__name__.endswith("Rendezvous") for one in gc.get_objects())

        atexit.register(lambda: wait_until(has_no_call))  # runs after the client's own
        from carousel import CarouselError, Client

        def suspended():
            with Client({server.target!r}) as client, client.session("toy", "ab") as session:
                yield session.feed("A").position

        class Closing:
            def __init__(self, *closed):
                self.closed = closed

            def __del__(self):
                for one in self.closed:
                    one.close()

        client = Client({server.target!r})
        session = client.session("toy", "ab")
        session.feed("A")
        closing = Closing(session, client)
        others = [suspended(), client.generate("toy", "stall"), client.generate_many("toy", ["ab", "ab"])]
        others = [iter(one) for one in others]
        for one in others:
            next(one)
        try:
            next(client.generate("unknown", "ab"))
        except CarouselError as error:
            kept = error
        begun = threading.Event()
        threading.Thread(target=lambda: [begun.set() for event in client.watch("s")], daemon=True).start()
        begun.wait()
    """
    assert output(code) == ""


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
