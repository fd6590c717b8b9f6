"""No session outlives its maximum age: used, held, spilled, stored, copied or moved."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import sessions_pb2
from service.sessions.stores.base import Ownership
from simulation.streams import ClientStream
from simulation.world import World
from tests.simulation.scenes import CHECKPOINT, NONE, RESUME, STRICT, fed, feed, hold, keep, opened, play, reason

MAX_AGE_S = 10.0
_LOOK_S = 1.0
"""How often the expiry looks for sessions."""
_GRACE_S = 5.0
"""How long a record outlives its session."""


async def until_age(world: World, began_s: float, age_s: float) -> None:
    await asyncio.sleep(began_s + age_s - world.loop.time())


def check_gone(answer: Any) -> None:
    """Checks that an error says that the session reached its maximum age."""
    assert reason(answer) == "SESSION_NOT_FOUND", answer
    error = answer.error if isinstance(answer, pb.StreamResponse) else answer
    assert "reached the age that the server allows (max_age_s)" in error.message
    assert error.metadata["close_reason"] == "max_age"


def close_reasons(stream: ClientStream) -> list[str]:
    return [pb.CloseReason.Name(notice.closed.reason) for notice in stream.notices if notice.HasField("closed")]


async def copy(world: World, name: str, fork_name: str) -> bytes:
    """Forks a session. Returns a snapshot of it."""
    await world.call("Sessions.Fork", sessions_pb2.SessionsForkRequest(session_id=name, fork_session_id=fork_name))
    taken = await world.call("Sessions.Snapshot", sessions_pb2.SessionsSnapshotRequest(session_id=name))
    assert isinstance(taken.snapshot, bytes)
    return taken.snapshot


@pytest.mark.parametrize("durability", [NONE, CHECKPOINT, STRICT])
def test_a_session_that_is_used_all_the_time_is_closed_at_its_age(durability: pb.Durability.ValueType) -> None:
    async def act(world: World) -> None:
        stream, began_s = world.connect(), world.loop.time()
        await opened(stream, "a", durability=durability, on_disconnect=None if durability == NONE else keep(20.0))
        position = 0
        while not close_reasons(stream):
            answer = await stream.ask("a", feed=feed(5, position=position))
            if answer.HasField("fed"):
                position += 1
            assert world.loop.time() - began_s < MAX_AGE_S + _LOOK_S + 0.5
            await asyncio.sleep(0.1)
        assert world.loop.time() - began_s >= MAX_AGE_S
        assert position > 50
        assert close_reasons(stream) == ["CLOSE_REASON_MAX_AGE"]
        check_gone(await stream.ask("a", open=RESUME))
        if durability != NONE:
            assert world.stored("a") is None
            check_gone(await world.connect(1).ask("a", open=RESUME))

    play(act, max_age_s=MAX_AGE_S)


def test_there_is_no_limit_by_default() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a")
        for position in range(40):
            await fed(stream, "a", 5, position=position)
            await asyncio.sleep(1.0)

    play(act)


@pytest.mark.parametrize("on_disconnect", [hold(6.0), keep(100.0)])
@pytest.mark.parametrize("idle_timeout_s", [2.0, 300.0])
def test_a_session_without_a_stream_is_closed_at_its_age(
    on_disconnect: pb.DisconnectPolicy, idle_timeout_s: float
) -> None:
    """The session was resumed shortly before its maximum age, so that it would otherwise be held or kept for longer."""

    async def act(world: World) -> None:
        stream, began_s = world.connect(), world.loop.time()
        await opened(stream, "a", on_disconnect=on_disconnect)
        for second in range(8):
            await until_age(world, began_s, second)
            await fed(stream, "a", 5)
        stream.leave()
        await until_age(world, began_s, MAX_AGE_S - 0.2)
        world.connect().send("a", open=RESUME)
        await until_age(world, began_s, MAX_AGE_S + _LOOK_S + 0.2)
        assert not any(replica.has("a") for replica in world.replicas)
        assert world.stored("a") is None
        check_gone(await world.connect().ask("a", open=RESUME))

    play(act, max_age_s=MAX_AGE_S, idle_timeout_s=idle_timeout_s)


@pytest.mark.parametrize("durability", [NONE, CHECKPOINT])
def test_a_spilled_session_is_closed_at_its_age(durability: pb.Durability.ValueType) -> None:
    async def act(world: World) -> None:
        stream, began_s = world.connect(), world.loop.time()
        await opened(stream, "a", durability=durability, on_disconnect=hold(6.0))
        await fed(stream, "a", 5)
        await until_age(world, began_s, 2.0)
        other = world.connect()
        await opened(other, "b")
        assert world.shared.records
        await until_age(world, began_s, MAX_AGE_S + _LOOK_S + 0.2)
        assert close_reasons(stream) == ["CLOSE_REASON_MAX_AGE"]
        assert not any(name.startswith("~") and world.shared.current(name) for name in world.shared.records)
        assert world.stored("a") is None
        await fed(other, "b", 5)

    play(act, max_age_s=MAX_AGE_S, num_slots=1, idle_timeout_s=300.0)


@pytest.mark.parametrize("how", ["kill", "drain"])
def test_a_record_is_gone_soon_after_the_age_when_no_server_runs(how: str) -> None:
    async def act(world: World) -> None:
        stream, began_s = world.connect(), world.loop.time()
        await opened(stream, "a", durability=STRICT, on_disconnect=keep(100.0))
        await fed(stream, "a", 5)
        await until_age(world, began_s, 6.0)
        await fed(stream, "a", 6)
        for replica in world.replicas:
            if how == "kill":
                replica.kill()
            else:
                await replica.drain(0.1)
        await until_age(world, began_s, MAX_AGE_S - 0.5)
        assert world.stored("a").position == 2
        await until_age(world, began_s, MAX_AGE_S + _GRACE_S + 0.5)
        assert world.stored("a") is None

    play(act, max_age_s=MAX_AGE_S, idle_timeout_s=300.0, does_finish=False)


def test_a_record_that_is_written_late_expires_at_its_time() -> None:
    """The store failed when the session was handed over, and works again later."""

    async def act(world: World) -> None:
        stream, began_s = world.connect(), world.loop.time()
        await opened(stream, "a", durability=CHECKPOINT, on_disconnect=keep(100.0))
        for position in range(12):  # often enough that the session is not idle
            await fed(stream, "a", 5, position=position)
            await until_age(world, began_s, position / 2 + 0.5)
        assert world.replicas[0].has("a")
        world.faults.is_down = True
        stream.leave()
        await until_age(world, began_s, 8.9)  # the session was handed over, and cannot be stored
        assert not world.replicas[0].has("a")
        await until_age(world, began_s, MAX_AGE_S + 2.0)
        world.faults.is_down = False
        await until_age(world, began_s, MAX_AGE_S + _GRACE_S - 0.5)
        assert world.shared.records["a"].ownership is Ownership.FREE, "it was written"
        await until_age(world, began_s, MAX_AGE_S + _GRACE_S + 0.1)
        assert world.stored("a") is None

    play(act, max_age_s=MAX_AGE_S, idle_timeout_s=1.0)


def test_a_session_that_moves_between_servers_keeps_its_age() -> None:
    async def act(world: World) -> None:
        streams, began_s = [world.connect(0), world.connect(1)], world.loop.time()
        await opened(streams[0], "a", durability=STRICT, on_disconnect=keep(100.0))
        for position in range(9):
            stream = streams[position % 2]
            if position:
                assert reason(await stream.ask("a", open=RESUME)) == "opened"
            await fed(stream, "a", 5, position=position)
            await until_age(world, began_s, position + 1.0)
        await until_age(world, began_s, MAX_AGE_S + _LOOK_S + 0.2)
        assert close_reasons(streams[0])[-1] == "CLOSE_REASON_MAX_AGE"
        for stream in streams:
            check_gone(await stream.ask("a", open=RESUME))

    play(act, max_age_s=MAX_AGE_S, idle_timeout_s=300.0)


def test_a_copy_has_the_age_of_its_original() -> None:
    """Copies are forks, forks of forks, and restored snapshots."""

    async def act(world: World) -> None:
        stream, began_s = world.connect(), world.loop.time()
        await opened(stream, "a", durability=NONE, on_disconnect=hold(6.0))
        await fed(stream, "a", 5)
        await until_age(world, began_s, 7.0)
        await copy(world, "a", "fork")
        taken = await copy(world, "fork", "fork-of-fork")
        request = sessions_pb2.SessionsRestoreRequest(snapshot=taken, session_id="restored")
        copies = ["fork", "fork-of-fork", "restored"]
        assert (await world.call("Sessions.Restore", request, slot=1)).session.session_id == "restored"
        for name in copies:
            assert reason(await world.connect(int(name == "restored")).ask(name, open=RESUME)) == "opened"
        await until_age(world, began_s, MAX_AGE_S + _LOOK_S + 0.2)
        for name in copies:
            check_gone(await world.connect(int(name == "restored")).ask(name, open=RESUME))
        refused = await world.call("Sessions.Restore", request)
        assert (refused.reason, refused.field) == ("SNAPSHOT_EXPIRED", "snapshot")
        assert "sessions of this server may exist for 10 s (max_age_s)" in refused.message

    play(act, max_age_s=MAX_AGE_S, idle_timeout_s=300.0)


@pytest.mark.parametrize("how", ["resume", "step", "get elsewhere"])
def test_a_record_that_is_too_old_is_refused_and_ended(how: str) -> None:
    """The record's server had no limit, and was killed. The next server has one, and finds a record that lasts
    longer."""

    async def act(world: World) -> None:
        stream, began_s = world.connect(), world.loop.time()
        await opened(stream, "a", durability=STRICT, on_disconnect=keep(90.0))
        await fed(stream, "a", 5)
        world.replicas[0].kill()
        second = world.replicas[1]
        second.kill()
        second.knobs = replace(second.knobs, max_age_s=MAX_AGE_S)
        await second.start()
        await until_age(world, began_s, MAX_AGE_S + 0.1)
        assert world.stored("a").position == 1
        if how == "resume":
            check_gone(await world.connect(1).ask("a", open=RESUME))
        elif how == "step":
            check_gone(await world.call("Inference.Step", pb.StepRequest(session_id="a"), slot=1))
        else:
            request = sessions_pb2.SessionsCloseRequest(session_id="a")
            check_gone(await world.call("Sessions.Close", request, slot=1))
        assert world.stored("a") is None
        check_gone(await world.connect(1).ask("a", open=RESUME))
        await opened(world.connect(1), "a", durability=STRICT)

    play(act, idle_timeout_s=300.0, does_finish=False)


def test_a_record_that_is_claimed_just_before_its_age_expires_at_its_time() -> None:
    """A claim extends the lifetime of a record to at least a minute."""

    async def act(world: World) -> None:
        stream, began_s = world.connect(), world.loop.time()
        await opened(stream, "a", durability=CHECKPOINT, on_disconnect=keep(90.0))
        await fed(stream, "a", 5)
        await asyncio.sleep(0.5)
        world.replicas[0].kill()
        await until_age(world, began_s, 2.0)
        assert reason(await world.connect(1).ask("a", open=RESUME)) == "opened"
        await until_age(world, began_s, MAX_AGE_S - 0.1)
        world.replicas[1].kill()
        await until_age(world, began_s, MAX_AGE_S + _GRACE_S + 0.1)
        assert world.stored("a") is None

    play(act, max_age_s=MAX_AGE_S, idle_timeout_s=300.0, does_finish=False)


def test_an_id_that_was_only_reserved_is_free_by_its_time() -> None:
    async def act(world: World) -> None:
        stream, began_s = world.connect(), world.loop.time()
        await opened(stream, "a", durability=CHECKPOINT, on_disconnect=keep(90.0))
        assert world.stored("a") is None, "it was not written yet"
        world.replicas[0].kill()
        assert world.shared.current("a") is not None
        await until_age(world, began_s, MAX_AGE_S + _GRACE_S + 0.1)
        assert world.shared.current("a") is None

    play(act, max_age_s=MAX_AGE_S, idle_timeout_s=300.0, checkpoint_interval_s=100.0, does_finish=False)


def test_a_record_that_cannot_be_used_here_is_given_back_for_no_longer_than_its_time() -> None:
    async def act(world: World) -> None:
        stream, began_s = world.connect(), world.loop.time()
        await opened(stream, "a", durability=STRICT, on_disconnect=keep(90.0))
        await fed(stream, "a", 5)
        for replica in world.replicas:
            replica.kill()
        second = world.replicas[1]
        second.knobs = replace(second.knobs, models=())
        await second.start()
        await until_age(world, began_s, MAX_AGE_S - 1.0)
        assert reason(await world.connect(1).ask("a", open=RESUME)) == "SNAPSHOT_MODEL"
        assert world.stored("a").position == 1
        await until_age(world, began_s, MAX_AGE_S + _GRACE_S + 0.5)
        assert world.stored("a") is None

    play(act, max_age_s=MAX_AGE_S, idle_timeout_s=300.0, does_finish=False)
