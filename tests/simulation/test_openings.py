"""Concurrent openings of one id: each is answered by the facts at the time of its decision."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import sessions_pb2
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


@pytest.mark.parametrize("durability", [NONE, STRICT])
@pytest.mark.parametrize("second", [plain(), RESUME], ids=["open", "resume"])
def test_a_second_opening_behind_one_that_succeeds_finds_the_session(durability: Any, second: pb.Open) -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        sent = [stream.send("a", open=plain(durability=durability)), stream.send("a", open=second)]
        sent.append(stream.send("a", feed=feed(5, position=0)))
        sent.append(stream.send("a", open=plain()))
        for one in sent:
            assert await one.wait(10.0), f"{one} is not answered"
        reported = "opened" if second is RESUME else "SESSION_ALREADY_OPEN"
        assert [reason(one.answer) for one in sent] == ["opened", reported, "fed", "SESSION_ALREADY_OPEN"]
        assert (await stream.ask("a", open=plain())).error.metadata["position"] == "1"

    play(act)


@pytest.mark.parametrize("is_reserved", [False, True])
def test_a_second_opening_behind_one_that_fails_is_tried_itself(is_reserved: bool) -> None:
    """The first opening fails before its id is reserved, or because it cannot be stored. Requests after the second
    opening belong to the session that the second opens."""

    async def act(world: World) -> None:
        stream = world.connect()
        world.faults.is_down = not is_reserved
        sent = [stream.send("a", open=plain(durability=STRICT))]
        while is_reserved and world.shared.current("a") is None:  # noqa: ASYNC110  # polls in virtual time
            await asyncio.sleep(0.0005)
        world.faults.is_down = True
        sent += [stream.send("a", open=plain()), stream.send("a", feed=feed(5, position=0))]
        sent += [stream.send("a", open=plain())]
        assert await sent[0].wait(10.0)
        world.faults.is_down = False
        for one in sent:
            assert await one.wait(10.0), f"{one} is not answered"
        assert [reason(one.answer) for one in sent] == ["STORE_UNAVAILABLE", "opened", "fed", "SESSION_ALREADY_OPEN"]
        assert await fed(stream, "a", 6) == 2

    play(act)


def test_a_resumption_behind_an_opening_that_fails_is_refused() -> None:
    async def act(world: World) -> None:
        first, second = world.connect(), world.connect()
        await opened(first, "a", durability=STRICT, on_disconnect=hold(1.0))
        sent = [second.send("a", open=plain()), second.send("b", open=plain(durability=STRICT))]
        world.faults.is_down = True
        sent.append(second.send("b", open=RESUME))
        for one in sent:
            assert await one.wait(20.0), f"{one} is not answered"
        assert [reason(one.answer) for one in sent[:2]] == ["SESSION_ID_IN_USE", "STORE_UNAVAILABLE"]
        assert reason(sent[2].answer) in ("STORE_UNAVAILABLE", "SESSION_NOT_FOUND")
        world.faults.is_down = False

    play(act)


def test_a_stream_that_ends_with_openings_of_one_id_leaves_nothing() -> None:
    async def act(world: World) -> None:
        for number in range(20):
            stream = world.connect()
            for _ in range(3):
                stream.send("a", open=plain(durability=STRICT))
                stream.send("a", feed=feed(5))
            await asyncio.sleep(0.001 * number)
            stream.leave()
            await asyncio.sleep(0.5)

    play(act)


def test_requests_that_wait_for_an_opening_are_answered_before_a_half_closed_stream_ends() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        sent = [stream.send("a", open=plain(durability=STRICT)) for _ in range(3)]
        stream.half_close()
        assert await stream.wait_over(10.0)
        assert [reason(one.answer) for one in sent] == ["opened", "SESSION_ALREADY_OPEN", "SESSION_ALREADY_OPEN"]

    play(act)


@pytest.mark.parametrize("policy", [hold(1.0), keep(1.0)], ids=["hold", "keep"])
def test_an_opening_that_waits_for_longer_than_a_session_may_be_idle_is_answered(policy: pb.DisconnectPolicy) -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=STRICT)
        world.faults.is_down = True
        assert reason(await stream.ask("a", close=pb.Close())) == "STORE_UNAVAILABLE"
        sent = stream.send("a", open=plain(durability=STRICT, on_disconnect=policy))
        await asyncio.sleep(2.0)
        assert not stream.notices
        world.faults.is_down = False
        assert await sent.wait(10.0)
        assert reason(sent.answer) == "opened"

    play(act, idle_timeout_s=0.5, lease_s=9.0)


CALLS = {
    "Sessions.Snapshot": sessions_pb2.SessionsSnapshotRequest(session_id="a"),
    "Sessions.GetState": sessions_pb2.SessionsGetStateRequest(session_id="a"),
    "Sessions.Fork": sessions_pb2.SessionsForkRequest(session_id="a"),
}


@pytest.mark.parametrize("method", CALLS)
def test_a_call_about_a_session_whose_id_moves_finds_it(method: str) -> None:
    """The server takes the session over from another server, while a client tries to open the id here, which fails."""

    async def act(world: World) -> None:
        seen = set()
        for number in range(80):
            here, there = world.connect(1), world.connect(0)
            await opened(there, "a", durability=STRICT, on_disconnect=keep(20.0))
            await fed(there, "a", 5)
            look = asyncio.create_task(world.call(method, CALLS[method], slot=1))
            await asyncio.sleep(0.001 * number)
            sent = here.send("a", open=plain())
            again = here.send("a", open=plain(durability=STRICT))
            assert reason(await look) == CALLS[method].DESCRIPTOR.name.replace("Request", "Response")
            for one in (sent, again):
                assert await one.wait(10.0)
                seen.add(reason(one.answer))
            await world.call("Sessions.Close", sessions_pb2.SessionsCloseRequest(session_id="a"), slot=1)
            for stream in (here, there):
                stream.leave()
            await asyncio.sleep(0.1)
        assert "SESSION_ID_IN_USE" in seen

    play(act, idle_timeout_s=5.0, num_slots=50, max_sessions=90, does_finish=False)


@pytest.mark.parametrize("durability", [CHECKPOINT, STRICT])
@pytest.mark.parametrize("method", CALLS)
def test_a_call_that_waits_for_another_server_does_not_affect_a_session_opened_here(
    durability: Any, method: str
) -> None:
    """The other server closes the awaited session, and a client opens its id here before the record is read again."""

    async def act(world: World) -> None:
        for number in range(12):
            here, there = world.connect(1), world.connect(0)
            await opened(there, "a", durability=STRICT, on_disconnect=keep(20.0))
            look = asyncio.create_task(world.call(method, CALLS[method], slot=1))
            await asyncio.sleep(0.01 + 0.005 * number)
            await world.call("Sessions.Close", sessions_pb2.SessionsCloseRequest(session_id="a"), slot=0)
            answer = await here.ask("a", open=plain(durability=durability, on_disconnect=keep(20.0)))
            reported = reason(await look)
            if answer.HasField("opened"):
                assert reported in ("SESSION_NOT_FOUND", CALLS[method].DESCRIPTOR.name.replace("Request", "Response"))
                assert await fed(here, "a", 5) == 1
                await asyncio.sleep(1.0)
                assert await fed(here, "a", 6) == 2
            await world.call("Sessions.Close", sessions_pb2.SessionsCloseRequest(session_id="a"), slot=1)
            for stream in (here, there):
                stream.leave()
            await asyncio.sleep(0.1)

    play(act, idle_timeout_s=5.0, num_slots=50, max_sessions=90, does_finish=False)


def test_a_session_that_a_stream_took_over_while_it_was_opened_outlives_a_cancel() -> None:
    """The Cancel ends the outputs that the opening requested. The opening's stream has ended before."""
    seen = set()

    def attempt(delay_s: float) -> None:
        async def act(world: World) -> None:
            first, second, other = world.connect(), world.connect(), world.connect()
            await opened(other, "b")
            other.send("b", feed=feed(*[5] * 12))  # occupies the engine, so that later requests wait
            first.send("a", open=pb.Open(model=PROMPT, outputs=LOGITS, on_disconnect=keep(5.0)))
            await asyncio.sleep(0.004)
            first.leave()
            await asyncio.sleep(delay_s)
            resumed = second.send("a", open=RESUME)
            cancel = second.send("a", cancel=pb.Cancel())
            for one in (resumed, cancel):
                assert await one.wait(10.0)
            seen.add((reason(resumed.answer), cancel.answer.cancelled.request_count))
            if resumed.answer.HasField("opened"):
                assert await fed(second, "a", 5) == 1

        play(act, inline_s=0.0, seed=f"taken {delay_s}")

    for number in range(40):
        attempt(number * 0.0005)
    assert ("opened", 1) in seen, seen


def test_a_look_at_a_session_that_is_closed_while_it_is_opened_does_not_find_it() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        stream.send("a", open=plain(durability=STRICT))
        await asyncio.sleep(0.004)
        look = asyncio.create_task(world.call("Sessions.Snapshot", CALLS["Sessions.Snapshot"]))
        await asyncio.sleep(0.001)
        stream.leave()
        assert reason(await look) in ("SESSION_NOT_FOUND", "SessionsSnapshotResponse")

    for seed in range(20):
        play(act, seed=f"closed {seed}")


def test_the_error_for_an_id_of_a_held_session_says_that_it_is_held() -> None:
    async def act(world: World) -> None:
        first, second = world.connect(), world.connect()
        await opened(first, "a", on_disconnect=hold(3.0))
        answer = await second.ask("a", open=plain())
        assert answer.error.message == "session_id = 'a' is in use by another stream"
        first.leave()
        await asyncio.sleep(0.1)
        answer = await second.ask("a", open=plain())
        assert reason(answer) == "SESSION_ID_IN_USE"
        reported = (await second.ask("a", feed=feed(5))).error
        assert (reported.reason, reported.message) == (
            "SESSION_NOT_OPEN",
            "feed: session 'a' is detached: resume it",
        )
        assert answer.error.message == (
            "session_id = 'a' is in use by a session that is detached: resume it, or close it"
        )
        world.loop.slowness_s = 0.2
        second.send("b", open=plain(durability=STRICT))
        await asyncio.sleep(0.02)
        answer = await world.connect().ask("b", open=plain())
        world.loop.slowness_s = 0.0
        assert answer.error.message == "session_id = 'b' is in use by a session that is being opened"

    play(act)
