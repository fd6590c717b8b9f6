"""Which stream has a session, and what happens to the session when streams come and go."""

from __future__ import annotations

import asyncio

import pytest

from carousel.v1 import inference_pb2 as pb
from simulation.world import World
from tests.simulation.scenes import NONE, RESUME, STRICT, fed, feed, hold, keep, opened, plain, play, reason


@pytest.mark.parametrize("what", ["a feed in flight", "an outage"])
def test_a_session_that_is_kept_is_stored_after_its_stream(what: str) -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=NONE, on_disconnect=keep(20.0))
        await fed(stream, "a", 5, 6)
        if what == "an outage":
            world.faults.is_down = True
        else:
            stream.send("a", feed=feed(*[5] * 30))
            await asyncio.sleep(0.008)
        stream.leave()
        await asyncio.sleep(0.3)
        world.faults.is_down = False
        await asyncio.sleep(0.7)
        assert world.replicas[0].has("a")
        world.replicas[0].kill()
        await asyncio.sleep(1.5)
        answer = await world.connect(1).ask("a", open=RESUME)
        assert (reason(answer), answer.position) == ("opened", 2 if what == "an outage" else 32), answer

    play(act, idle_timeout_s=9.0, does_finish=False, inline_s=0.0)


def test_an_opening_that_fails_is_not_reported_as_resumed() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        world.faults.is_down = True
        sent = [stream.send("a", open=plain(durability=STRICT)), stream.send("a", open=RESUME)]
        for one in sent:
            assert await one.wait(10.0)
        world.faults.is_down = False
        assert [reason(one.answer) for one in sent] == ["STORE_UNAVAILABLE", "STORE_UNAVAILABLE"]

    play(act)


def test_an_unattended_generation_continues_when_it_is_taken_over() -> None:
    async def act(world: World) -> None:
        stream, other = world.connect(), world.connect()
        await opened(stream, "a", on_disconnect=hold(3.0), unattended=True)
        await fed(stream, "a", 5)
        stream.set_reading(False)
        stream.send("a", generate=pb.Generate(position=1, decoding=pb.Decoding(max_tokens=30, min_tokens=30)))
        await asyncio.sleep(0.5)
        before = world.replicas[0].statistics().sessions["a"][0]
        await other.ask("a", open=RESUME)
        await asyncio.sleep(0.5)
        after = world.replicas[0].statistics().sessions["a"][0]
        assert after > before

    play(act, idle_timeout_s=9.0)
