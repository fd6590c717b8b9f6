"""Programs that step batches continue when connections are cut and servers are killed."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from carousel import AsyncClient, Client, NotFoundError, SessionClosedError, StepBatchResult, UnavailableError
from examples.local_service import LocalService
from examples.ports import free_port
from tests.cutting import cuttable
from tests.end_to_end.test_client_resume import killed_and_started_again
from tests.reference import ReferenceSession
from tests.services import local_service, redis_server
from tests.waiting import wait_until

NUM_SESSIONS = 5
NUM_STEPS = 300


def token(place: int, index: int) -> int:
    return 2 + (index * 7 + place * 3) % 11


def expected_logits(repository: Path) -> list[list[tuple[float, ...]]]:
    """Returns the logits of each session after each step, by step and session."""
    references = [ReferenceSession(repository / "tiny-endless" / "1") for _ in range(NUM_SESSIONS)]
    return [
        [tuple(reference.step(token(place, index)).tolist()) for place, reference in enumerate(references)]
        for index in range(NUM_STEPS)
    ]


@pytest.mark.parametrize(("durability", "number"), [("checkpoint", signal.SIGTERM), ("strict", signal.SIGKILL)])
def test_a_blocking_program_continues_when_its_server_is_restarted(
    tiny_repository: Path, tmp_path: Path, number: int, durability: str
) -> None:
    """A strict step may be stored while its answer is lost with the server. An error says so, and the step's tokens
    count."""
    expected = expected_logits(tiny_repository)
    with (
        killed_and_started_again(tiny_repository, tmp_path, number) as server,
        Client(server.target) as client,
        client.batch("tiny-endless", durability=durability, timeout=60) as batch,
    ):
        batch.open_many([None] * NUM_SESSIONS)
        for index in range(NUM_STEPS):
            step = batch.step([token(place, index) for place in range(NUM_SESSIONS)], logits=True)
            assert step.positions == (index + 1,) * NUM_SESSIONS
            for place in range(NUM_SESSIONS):
                width = len(step.logits) // NUM_SESSIONS
                if place in step.errors:
                    assert (durability, number) == ("strict", signal.SIGKILL)
                    assert step.errors[place].reason == "OUTPUTS_LOST"
                else:
                    assert step.logits[place * width : (place + 1) * width] == expected[index][place]
            if index in {100, 200}:
                server.restart()


async def test_an_asyncio_program_with_steps_in_flight_continues_when_its_server_is_restarted(
    tiny_repository: Path, tmp_path: Path
) -> None:
    expected = expected_logits(tiny_repository)
    with killed_and_started_again(tiny_repository, tmp_path, signal.SIGTERM) as server:
        async with AsyncClient(server.target) as client, client.batch("tiny-endless", timeout=60) as batch:
            await batch.open_many([None] * NUM_SESSIONS)
            for index in range(0, NUM_STEPS, 3):
                for at in range(index, index + 3):
                    batch.send([token(place, at) for place in range(NUM_SESSIONS)], logits=True)
                if index in {99, 201}:
                    server.restart()
                for at in range(index, index + 3):
                    step = await batch.receive()
                    assert not step.errors
                    assert step.logits == tuple(number for row in expected[at] for number in row)


def test_one_session_that_is_closed_elsewhere_fails_alone(tiny_service: LocalService, tiny_repository: Path) -> None:
    """The other sessions continue, also when they are resumed and their handles change."""
    expected = expected_logits(tiny_repository)
    with (
        cuttable(tiny_service.target) as (target, cut),
        Client(target) as client,
        client.batch("tiny-endless") as batch,
    ):
        batch.open_many([None] * NUM_SESSIONS)
        for index in range(10):
            if index == 3:
                client.sessions.close(batch.session_ids[1])
            if index == 6:
                cut()
            step = batch.step([token(place, index) for place in range(NUM_SESSIONS)], logits=True)
            assert list(step.errors) == ([1] if index >= 3 else [])
            width = len(step.logits) // NUM_SESSIONS
            for place in set(range(NUM_SESSIONS)) - set(step.errors):
                assert step.logits[place * width : (place + 1) * width] == expected[index][place]
        assert isinstance(step.errors[1], SessionClosedError)
        assert step.errors[1].close_reason == "client"
        assert batch.positions == (10, 3, 10, 10, 10)


def test_sessions_that_end_with_their_server_are_reported(tiny_repository: Path, tmp_path: Path) -> None:
    flags = {"port": free_port(), "store": "lmdb", "data-folder": tmp_path}
    with Client(f"127.0.0.1:{flags['port']}") as client:
        with local_service(tiny_repository, flags) as service:
            batch = client.batch("tiny-endless", durability="none", timeout=30)
            batch.open_many([None] * 2)
            assert batch.step([2, 3]).positions == (1, 1)
            service.process.kill()
            service.process.wait()
        with local_service(tiny_repository, flags):
            for _ in range(2):
                step = batch.step([4, 5])
                assert {place: type(error) for place, error in step.errors.items()} == dict.fromkeys(
                    (0, 1), NotFoundError
                )
            assert batch.open() == 2
            assert batch.step([6], places=[2]).positions == (1,)
            batch.close()


def test_a_batch_that_has_ended_raises_the_error_that_ended_it(tiny_repository: Path, tmp_path: Path) -> None:
    with local_service(tiny_repository, {"data-folder": tmp_path}) as service, Client(service.target) as client:
        batch = client.batch("tiny-endless", on_disconnect="free")
        batch.open_many([None] * 2)
        batch.send([2, 3])
        batch.receive()
        service.process.kill()
        service.process.wait()
        for call in (lambda: batch.step([2, 3]), lambda: batch.send([2, 3]), batch.receive, batch.open) * 2:
            with pytest.raises(UnavailableError, match="the connection was lost"):
                call()
        batch.close()


def test_a_recovery_ends_in_time_and_a_later_call_tries_again(tiny_repository: Path, tmp_path: Path) -> None:
    flags = {"port": free_port(), "store": "lmdb", "data-folder": tmp_path}
    with Client(f"127.0.0.1:{flags['port']}") as client:
        with local_service(tiny_repository, flags) as service:
            batch = client.batch("tiny-endless", durability="strict", resume_timeout=0.3)
            batch.open_many([None] * 2)
            batch.step([2, 3])
            service.process.kill()
            service.process.wait()
        batch.send([4, 5])
        for _ in range(2):
            with pytest.raises(UnavailableError):
                batch.receive()
        with local_service(tiny_repository, flags):

            def received() -> StepBatchResult | None:
                with suppress(UnavailableError):
                    return batch.receive(timeout=30)
                return None

            step = wait_until(received)  # until gRPC tries to connect again
            assert (step.positions, step.errors) == ((2, 2), {})
            batch.close()


def test_a_strict_step_waits_for_an_outage_of_the_store(tiny_repository: Path, tmp_path: Path) -> None:
    expected = expected_logits(tiny_repository)
    key = tmp_path / "key"
    key.write_bytes(bytes(16))
    with redis_server(tmp_path) as redis:
        flags = {"store": "redis", "redis-url": redis.url, "snapshot-key-file": key, "lease-s": 30}
        with (
            local_service(tiny_repository, flags) as service,
            Client(service.target, timeout=60) as client,
            client.batch("tiny-endless", durability="strict") as batch,
        ):
            batch.open_many([None] * NUM_SESSIONS)
            timer = threading.Timer(1.5, redis.start)
            for index in range(4):
                if index == 2:
                    redis.stop()
                    timer.start()
                step = batch.step([token(place, index) for place in range(NUM_SESSIONS)], logits=True)
                assert (step.errors, step.positions) == ({}, (index + 1,) * NUM_SESSIONS)
                assert step.logits == tuple(number for row in expected[index] for number in row)
            timer.join()


def test_a_closed_batch_leaves_no_session(tiny_service: LocalService) -> None:
    with Client(tiny_service.target) as client:
        with client.batch("tiny-endless") as batch:
            batch.open_many([None] * 3)
            names = batch.session_ids
        for name in names:
            with pytest.raises(NotFoundError):
                client.sessions.get(name)
