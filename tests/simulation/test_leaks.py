"""Events between two turns of the event loop: nothing is lost or left behind, and no request waits for ever."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from carousel.v1 import inference_pb2 as pb
from service.sessions.stores.base import CorruptRecordError, Ownership
from service.sessions.stores.memory import Record
from simulation.adapters import EPOCH
from simulation.bundles import PROMPT
from simulation.world import World
from tests.simulation.scenes import (
    CHECKPOINT,
    LOGITS,
    NONE,
    RESUME,
    STRICT,
    fed,
    feed,
    hold,
    keep,
    opened,
    plain,
    play,
    reason,
)


def generation(count: int, position: int, **fields: int) -> pb.Generate:
    """Returns a generation of `count` tokens."""
    return pb.Generate(position=position, decoding=pb.Decoding(max_tokens=count, min_tokens=count), **fields)


def test_a_refused_opening_gives_back_the_bytes_that_it_has_taken() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await stream.ask("a", open=pb.Open(model=PROMPT))
        sent = [stream.send("a", feed=feed(*[5] * 20))]
        sent.append(stream.send(open=pb.Open(model=PROMPT, outputs=LOGITS)))
        for one in sent:
            assert await one.wait(10.0)
        assert [reason(one.answer) for one in sent] == ["fed", "QUEUE_FULL"]

    play(act, max_waiting=1, inline_s=0.0)


def test_a_generation_of_which_the_client_has_received_everything_goes_on() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", on_disconnect=hold(3.0))
        await fed(stream, "a", 5)
        stream.send("a", generate=generation(30, 1))
        stream.set_reading(False)
        await asyncio.sleep(0.5)
        stream.leave()
        await asyncio.sleep(0.05)
        again = world.connect()
        await again.ask("a", open=RESUME)
        position = world.replicas[0].statistics().sessions["a"][0]
        rest = again.send("a", generate=generation(30, 1, received_position=position))
        assert await rest.wait(10.0), f"it stands still at {position}"

    play(act, idle_timeout_s=9.0)


@pytest.mark.parametrize("kind", ["close", "cancel", "open"])
def test_a_close_of_a_session_that_is_handed_over_is_not_answered_as_if_it_were_closed(kind: str) -> None:
    async def act(world: World) -> None:
        here, there = world.connect(0), world.connect(1)
        await opened(here, "a", durability=STRICT, on_disconnect=keep(20.0))
        world.loop.slowness_s = 0.05
        here.send("a", feed=feed(5))
        await asyncio.sleep(0.1)
        taken = there.send("a", open=RESUME)
        while world.replicas[0].has("a"):  # polls for some milliseconds of virtual time
            here.send("a", feed=feed(5))
            await asyncio.sleep(0.01)
        asked = {"close": pb.Close(), "cancel": pb.Cancel(), "open": RESUME}
        one = here.send("a", **{kind: asked[kind]})
        assert await one.wait(10.0)
        assert await taken.wait(10.0)
        world.loop.slowness_s = 0.0
        await asyncio.sleep(1)
        assert world.stored("a") is not None
        assert reason(taken.answer) == "opened"
        assert reason(one.answer) == "SESSION_MOVED"

    play(act, idle_timeout_s=9.0, lease_s=1.0, max_in_flight=100, does_finish=False)


@pytest.mark.parametrize("durability", [NONE, CHECKPOINT])
def test_a_session_that_is_handed_over_while_it_is_spilled_loses_nothing(durability: pb.Durability.ValueType) -> None:
    def attempt(delay_s: float) -> None:
        async def act(world: World) -> None:
            stream, other = world.connect(), world.connect()
            await opened(stream, "a", durability=durability, on_disconnect=keep(20.0))
            await opened(other, "g")
            await fed(other, "g", 5)
            await fed(stream, "a", 5, 6)
            other.send("g", generate=generation(60, 1))
            other.send("b", open=plain())  # a is spilled now
            await asyncio.sleep(delay_s)
            await world.replicas[0].drain(0.0)
            answer = await world.connect(1).ask("a", open=RESUME)
            assert (reason(answer), answer.position) == ("opened", 2), answer

        play(act, num_slots=2, idle_timeout_s=9.0, does_finish=False, seed=f"spill {delay_s}", inline_s=0.0)

    for number in range(40):
        attempt(number * 0.0004)


def test_a_tombstone_that_cannot_be_read_is_one_of_a_session_that_is_gone() -> None:
    async def act(world: World) -> None:
        payload = b'["a reason of later years",3,1700000000.0]'
        world.shared.records["a"] = Record(1, "?", Ownership.GONE, payload, EPOCH + 5000.0)
        stream = world.connect()
        sent = [stream.send("a", open=RESUME), stream.send("a", feed=feed(5))]
        for one in sent:
            assert await one.wait(10.0), f"{one} is not answered"
            assert reason(one.answer) in ("SESSION_NOT_FOUND", "SESSION_NOT_OPEN")

    play(act)


@pytest.mark.parametrize("ahead", ["feed", "retry", "step batch again", "cancel"])
def test_what_waits_for_the_store_is_bounded(ahead: str) -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        handle = await opened(stream, "a", durability=STRICT)
        await fed(stream, "a", 5, position=0)
        world.loop.slowness_s = 1.0
        batch = pb.StepBatch(handles=[handle], token_ids=[5], positions=[1])
        stream.send(step_batch=batch) if ahead == "step batch again" else stream.send("a", feed=feed(5, position=1))
        await asyncio.sleep(0.05)
        for _ in range(60):
            if ahead == "feed":
                stream.send("a", feed=feed(5))
            elif ahead == "retry":
                stream.send("a", feed=feed(5, position=1))
            elif ahead == "cancel":
                stream.send("a", cancel=pb.Cancel())
            else:
                stream.send(step_batch=batch)
            await asyncio.sleep(0.001)
        waiters = world.replicas[0].statistics().waiters
        assert waiters <= 8, f"{waiters} wait"
        world.loop.slowness_s = 0.0
        await asyncio.sleep(2.0)

    play(act, idle_timeout_s=9.0, lease_s=9.0)


def test_a_resumption_is_not_refused_because_of_an_opening_of_its_id() -> None:
    def attempt(delay_s: float) -> None:
        async def act(world: World) -> None:
            stream, other = world.connect(), world.connect()
            await opened(stream, "a", durability=NONE, on_disconnect=keep(20.0))
            await fed(stream, "a", 5, 6)
            stream.leave()
            await asyncio.sleep(2.0)  # the session leaves the memory meanwhile
            assert world.stored("a").position == 2
            stream = world.connect()
            resumed = stream.send("a", open=RESUME)
            await asyncio.sleep(delay_s)
            again = other.send("a", open=plain())
            assert await resumed.wait(10.0)
            assert await again.wait(10.0)
            assert (reason(resumed.answer), reason(again.answer)) == ("opened", "SESSION_ID_IN_USE")

        play(act, idle_timeout_s=1.0, does_finish=False, seed=f"r{delay_s}")

    for number in range(40):
        attempt(number * 0.0002)


def test_an_opening_of_an_id_whose_record_is_corrupt_is_answered() -> None:
    async def act(world: World) -> None:
        store: Any = cast(Any, world.replicas[0]).store
        reserve = store.reserve

        def reserved(session_id: str, ttl_s: float) -> int | None:
            if session_id in world.shared.records:
                raise CorruptRecordError("the record cannot be read")
            return cast("int | None", reserve(session_id, ttl_s))

        store.reserve = reserved
        world.shared.records["a"] = Record(1, "?", Ownership.FREE, b"?", EPOCH + 5000.0)
        stream = world.connect()
        opening = plain(durability=STRICT)
        sent = [stream.send("a", open=opening), stream.send("a", feed=feed(5))]
        for one in sent:
            assert await one.wait(10.0), f"{one} is not answered"
        assert reason(sent[0].answer) == "SNAPSHOT_CORRUPT"
        assert "a" in world.shared.aside
        assert reason(await stream.ask("a", open=opening)) == "opened"

    play(act)
