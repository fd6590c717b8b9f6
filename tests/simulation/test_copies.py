"""Copies of sessions made by Fork and Restore: how long they wait to be resumed, and what they contain."""

from __future__ import annotations

import asyncio

import pytest

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import sessions_pb2
from simulation.world import World
from tests.simulation.scenes import CHECKPOINT, NONE, RESUME, fed, hold, keep, opened, play

COPIES = ("forked", "restored")


async def copied(world: World, name: str) -> None:
    """Copies a session with Fork and with Restore."""
    await world.call("Sessions.Fork", sessions_pb2.SessionsForkRequest(session_id=name, fork_session_id="forked"))
    taken = await world.call("Sessions.Snapshot", sessions_pb2.SessionsSnapshotRequest(session_id=name))
    await world.call(
        "Sessions.Restore", sessions_pb2.SessionsRestoreRequest(snapshot=taken.snapshot, session_id="restored")
    )


async def live(world: World) -> set[str]:
    """Returns the copies that the server has in memory."""
    listed = await world.call("Sessions.List", sessions_pb2.SessionsListRequest())
    return {one.session_id for one in listed.sessions} & set(COPIES)


@pytest.mark.parametrize("idle_timeout_s", [0.5, 300.0])
@pytest.mark.parametrize("durability", [NONE, CHECKPOINT])
@pytest.mark.parametrize(("on_disconnect", "wait_s"), [(None, 3.0), (hold(), 3.0), (hold(2.0), 2.0), (hold(5.0), 5.0)])
def test_a_copy_waits_for_as_long_as_its_policy_says(
    on_disconnect: pb.DisconnectPolicy | None, wait_s: float, durability: pb.Durability.ValueType, idle_timeout_s: float
) -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "k", durability=durability, on_disconnect=on_disconnect)
        await fed(stream, "k", 5, 6)
        await copied(world, "k")
        await asyncio.sleep(wait_s - 0.3)
        assert await live(world) == set(COPIES)
        await asyncio.sleep(0.6 + min(1.0, idle_timeout_s / 4))  # the expiry looks for sessions at this interval
        assert await live(world) == set()

    play(act, hold_s=3.0, idle_timeout_s=idle_timeout_s)


def test_a_copy_of_a_kept_session_leaves_the_memory_and_can_be_resumed() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "k", durability=NONE, on_disconnect=keep(20.0))
        await fed(stream, "k", 5, 6)
        await copied(world, "k")
        await asyncio.sleep(0.2)
        assert all(world.stored(name) is not None for name in COPIES), "they are stored at once"
        await asyncio.sleep(3.0)
        assert await live(world) == set()
        for name in COPIES:
            answer = await world.connect().ask(name, open=RESUME)
            assert answer.HasField("opened"), answer
            assert answer.position == 2

    play(act, hold_s=3.0, idle_timeout_s=1.0)
