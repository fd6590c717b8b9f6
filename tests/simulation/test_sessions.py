"""Sessions: an id has one owner, slots are freed, limits are respected, and ended streams leave nothing behind."""

from __future__ import annotations

import asyncio

import pytest

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import models_pb2, sessions_pb2
from simulation.bundles import LAZY, PROMPT
from simulation.knobs import Tenant
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


def test_a_plain_session_never_takes_the_place_of_a_stored_one() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "k", on_disconnect=keep(20.0))
        await fed(stream, "k", 5, 6, 7)
        stream.leave()
        await asyncio.sleep(2.0)  # the session leaves the memory meanwhile
        other = world.connect()
        answer = await other.ask("k", open=plain())
        if answer.HasField("opened"):
            await fed(other, "k", 4)
            await opened(other, "o")  # k is spilled now
            await fed(other, "o", 4)
        other.leave()
        await asyncio.sleep(0.5)
        answer = await world.connect().ask("k", open=RESUME)
        assert answer.HasField("opened"), answer
        assert answer.position == 3

    play(act, num_slots=1, idle_timeout_s=1.0, does_finish=False)


def test_a_plain_session_whose_id_was_used_before_can_be_spilled() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=STRICT)
        await stream.ask("a", close=pb.Close())
        await asyncio.sleep(0.3)
        await opened(stream, "a", durability=STRICT)  # now the id has a greater epoch
        await stream.ask("a", close=pb.Close())
        await asyncio.sleep(0.3)
        await opened(stream, "a")
        await fed(stream, "a", 5)
        await opened(stream, "b")  # a is spilled now
        assert await fed(stream, "a", 6) == 2
        assert not stream.notices

    play(act, num_slots=1, idle_timeout_s=5.0)


@pytest.mark.parametrize("why", ["outputs", "slots"])
def test_a_refused_opening_leaves_its_id_free(why: str) -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        if why == "outputs":
            refused = await stream.ask("x", open=plain(durability=STRICT, outputs=LOGITS))
        else:
            await opened(stream, "busy")
            stream.send("busy", generate=pb.Generate(decoding=pb.Decoding(max_tokens=40, min_tokens=40)))
            await fed(stream, "busy", 1)
            stream.set_reading(False)
            stream.send("busy", generate=pb.Generate(decoding=pb.Decoding(max_tokens=40, min_tokens=40)))
            await asyncio.sleep(0.1)
            refused = await world.connect().ask("x", open=plain(durability=STRICT))
            stream.leave()
            stream = world.connect()
            await asyncio.sleep(0.5)
        assert refused.HasField("error"), refused
        answer = await stream.ask("x", open=plain(durability=STRICT))
        assert answer.HasField("opened"), answer

    play(act, num_slots=1)


def test_an_opening_that_could_not_be_stored_can_be_sent_again() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        opening = plain(durability=STRICT)
        sent = stream.send("x", open=opening)
        while world.shared.current("x") is None:  # noqa: ASYNC110  # polls for some milliseconds of virtual time
            await asyncio.sleep(0.0005)
        world.faults.is_down = True  # now the id is reserved
        assert await sent.wait(10.0)
        assert reason(sent.answer) == "STORE_UNAVAILABLE"
        assert sent.answer.error.message == ("session 'x' could not be stored, and is not open: send the request again")
        world.faults.is_down = False
        await asyncio.sleep(0.2)
        assert reason(await stream.ask("x", open=opening)) == "opened"

    play(act)


def test_an_opening_that_ends_while_it_waits_for_its_id_leaves_the_id_free() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=STRICT)
        world.faults.is_down = True
        assert reason(await stream.ask("a", close=pb.Close())) == "STORE_UNAVAILABLE"
        stream.send("a", open=plain(durability=STRICT))  # this opening waits for the last record of the closed session
        await asyncio.sleep(0.1)
        stream.leave()
        await asyncio.sleep(0.1)
        world.faults.is_down = False
        await asyncio.sleep(2.0)
        assert reason(await world.connect(1).ask("a", open=plain())) == "opened"

    play(act, idle_timeout_s=5.0)


@pytest.mark.parametrize("opening", [RESUME, plain(), plain(durability=STRICT)])
def test_a_session_that_is_closed_while_it_is_restored_does_not_come_back(opening: pb.Open) -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=CHECKPOINT)
        await fed(stream, "a", 5)
        await opened(stream, "b")  # a is spilled now
        await fed(stream, "b", 5)
        world.loop.slowness_s = 0.05
        stream.send("a", feed=feed(6))
        await asyncio.sleep(0.02)  # a is being restored now
        stream.send("a", close=pb.Close())
        sent = stream.send("a", open=opening)
        assert await sent.wait(10.0)
        assert reason(sent.answer) == ("SESSION_NOT_FOUND" if opening is RESUME else "opened"), sent.answer
        world.loop.slowness_s = 0.0

    play(act, num_slots=1, idle_timeout_s=5.0)


def test_a_stream_that_ends_while_a_strict_opening_waits_frees_all_its_sessions() -> None:
    async def act(world: World) -> None:
        for number in range(10):
            stream = world.connect()
            await opened(stream, f"warm{number}")
            stream.send(open=plain(durability=STRICT))
            stream.send(f"b{number}", open=plain())
            stream.send(f"b{number}", feed=feed(1))
            stream.send(f"b{number}", generate=pb.Generate(decoding=pb.Decoding(max_tokens=64, min_tokens=64)))
            await asyncio.sleep(0.001 * number)
            stream.leave()
            await asyncio.sleep(0.2)

    play(act, num_slots=8, max_sessions=50)


@pytest.mark.parametrize("whose", ["the server's", "the principal's"])
def test_concurrent_restores_keep_to_the_limit_of_sessions(whose: str) -> None:
    async def act(world: World) -> None:
        caller = Tenant("p", 3) if whose == "the principal's" else None
        stream = world.connect(caller=caller)
        await opened(stream, "a", durability=CHECKPOINT)
        request = sessions_pb2.SessionsSnapshotRequest(session_id="a")
        snapshot = (await world.call("Sessions.Snapshot", request, caller=caller)).snapshot
        requests = [sessions_pb2.SessionsRestoreRequest(snapshot=snapshot, session_id=f"r{n}") for n in range(9)]
        answers = await asyncio.gather(*(world.call("Sessions.Restore", one, caller=caller) for one in requests))
        assert len(world.replicas[0].statistics().sessions) <= 3
        assert sorted(map(reason, answers)) == ["SessionsRestoreResponse"] * 2 + ["TOO_MANY_SESSIONS"] * 7

    play(act, max_sessions=20 if whose == "the principal's" else 3, num_slots=20)


@pytest.mark.parametrize("whose", ["the server's", "the principal's"])
def test_concurrent_resumptions_keep_to_the_limit_of_sessions(whose: str) -> None:
    async def act(world: World) -> None:
        caller = Tenant("p", 3) if whose == "the principal's" else None
        first = world.connect(0, caller)
        for number in range(3):
            await opened(first, f"k{number}", durability=STRICT, on_disconnect=keep(20.0))
        world.replicas[0].kill()
        await asyncio.sleep(1.5)
        second = world.connect(1, caller)
        await opened(second, "here")
        sent = [second.send(f"k{number}", open=RESUME) for number in range(3)]
        for one in sent:
            assert await one.wait(10.0)
        assert len(world.replicas[1].statistics().sessions) <= 3
        assert sorted(reason(one.answer) for one in sent) == ["TOO_MANY_SESSIONS", "opened", "opened"]

    play(act, max_sessions=20 if whose == "the principal's" else 3, num_slots=20, idle_timeout_s=5.0)


def test_a_held_session_with_an_unread_generation_expires() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "h", on_disconnect=hold(1.0))
        await fed(stream, "h", 5)
        stream.set_reading(False)
        stream.send("h", generate=pb.Generate(decoding=pb.Decoding(max_tokens=60, min_tokens=60)))
        await asyncio.sleep(0.1)
        stream.leave()
        await asyncio.sleep(4.0)
        assert not world.replicas[0].statistics().sessions

    play(act)


def test_a_generation_that_could_not_be_stored_counts_as_use() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=STRICT)
        await fed(stream, "a", 5)
        await asyncio.sleep(0.7)
        world.faults.is_down = True
        generation = pb.Generate(position=1, decoding=pb.Decoding(max_tokens=30, min_tokens=30))
        assert reason(await stream.ask("a", generate=generation)) == "STORE_UNAVAILABLE"
        world.faults.is_down = False
        await asyncio.sleep(0.7)
        assert not stream.notices
        answer = await stream.ask("a", generate=generation)
        assert answer.position == 31, answer

    play(act, idle_timeout_s=1.0)


def test_resuming_a_session_on_its_own_stream_counts_as_use() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=CHECKPOINT)
        for _ in range(6):
            await asyncio.sleep(0.4)
            assert reason(await stream.ask("a", open=RESUME)) == "opened"
        assert not stream.notices

    play(act, idle_timeout_s=1.0)


def test_an_opening_and_a_resumption_of_one_id_at_once_do_not_lose_the_session() -> None:
    async def act(world: World) -> None:
        for number in range(10):
            first, second = world.connect(), world.connect()
            name = f"both{number}"
            sent = first.send(name, open=plain(durability=STRICT, on_disconnect=hold(1.0)))
            await asyncio.sleep(0.0005 * number)
            resumed = second.send(name, open=RESUME)
            assert await sent.wait(10.0)
            assert await resumed.wait(10.0)
            assert reason(sent.answer) == "opened", sent.answer
            assert reason(resumed.answer) in ("opened", "SESSION_NOT_FOUND"), resumed.answer
            owner = second if reason(resumed.answer) == "opened" else first
            assert await fed(owner, name, 5) == 1
            first.leave()
            second.leave()
            await asyncio.sleep(1.5)

    play(act, num_slots=8, max_sessions=50, idle_timeout_s=5.0)


def test_an_unload_during_an_opening_leaves_no_session_on_a_stopped_engine() -> None:
    async def act(world: World) -> None:
        for number in range(6):
            stream = world.connect()
            sent = stream.send(f"a{number}", open=pb.Open(model=PROMPT, durability=STRICT))
            await asyncio.sleep(0.0015 * number)
            await world.call("Models.Unload", models_pb2.ModelsUnloadRequest(model=PROMPT, version=1))
            assert await sent.wait(10.0), f"{sent} is not answered"
            if reason(sent.answer) == "opened":
                later = stream.send(f"a{number}", feed=feed(*[5] * 9))
                assert await later.wait(10.0), f"{later} is not answered"
                assert reason(later.answer) == "fed", later.answer
            stream.leave()
            await asyncio.sleep(1.0)
            await world.call("Models.Load", models_pb2.ModelsLoadRequest(model=PROMPT))

    play(act, inline_s=0.0)


def test_unload_load_and_unload_leak_no_engine() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", on_disconnect=hold(0.5))
        unload = models_pb2.ModelsUnloadRequest(model=LAZY, version=1)
        await world.call("Models.Unload", unload)
        await world.call("Models.Load", models_pb2.ModelsLoadRequest(model=LAZY))
        second = world.connect()
        await opened(second, "b")
        await world.call("Models.Unload", unload)
        await world.call("Models.Load", models_pb2.ModelsLoadRequest(model=LAZY))

    play(act)


def test_no_gauge_goes_negative() -> None:
    async def act(world: World) -> None:
        for number in range(12):
            stream = world.connect()
            await opened(stream, f"a{number}")
            await fed(stream, f"a{number}", 5)
            other = world.connect()
            other.send(f"b{number}", open=plain())
            await asyncio.sleep(0.0005 * number)
            stream.leave()
            await asyncio.sleep(0.1)
            other.leave()
            await asyncio.sleep(0.1)
            assert min(world.replicas[0].statistics().gauges.values()) >= 0

    play(act, num_slots=1)


def test_a_client_that_leaves_during_a_resumption_leaves_no_uncaught_error() -> None:
    async def act(world: World) -> None:
        for number in range(5):
            stream = world.connect()
            stream.send("gone", open=RESUME)
            await asyncio.sleep(0.001 * number)
            stream.leave()
            await asyncio.sleep(0.1)

    play(act)


def test_a_stream_that_resumed_a_session_keeps_it_when_its_opening_could_not_be_stored() -> None:
    async def act(world: World) -> None:
        first, second = world.connect(), world.connect()
        world.loop.slowness_s = 0.05
        sent = first.send("a", open=plain(durability=STRICT, on_disconnect=hold(3.0)))
        while world.shared.current("a") is None:  # noqa: ASYNC110  # polls for some milliseconds of virtual time
            await asyncio.sleep(0.0005)
        resumed = second.send("a", open=RESUME)
        await asyncio.sleep(0.01)
        assert not sent.is_done
        world.faults.is_down = True
        for one in (sent, resumed):
            assert await one.wait(5.0)
        assert reason(sent.answer) == "STORE_UNAVAILABLE", sent.answer
        assert (reason(resumed.answer), resumed.answer.position) == ("opened", 0)
        world.faults.is_down, world.loop.slowness_s = False, 0.0
        await asyncio.sleep(1.0)
        assert await fed(second, "a", 5) == 1

    play(act, idle_timeout_s=5.0, lease_s=9.0)


def test_a_stream_that_resumed_a_session_learns_that_its_opening_fails() -> None:
    seen = set()

    def attempt(number: int) -> None:
        async def act(world: World) -> None:
            first, second = world.connect(), world.connect()
            world.replicas[0].graph_error_rate = 1.0
            sent = first.send("a", open=pb.Open(model=PROMPT, outputs=LOGITS, on_disconnect=hold(3.0)))
            await asyncio.sleep(0.0002 * number)
            resumed = await second.ask("a", open=RESUME)
            assert await sent.wait(5.0)
            await asyncio.sleep(0.1)
            reported = [pb.CloseReason.Name(notice.closed.reason) for notice in second.notices]
            seen.add((reason(sent.answer), reason(resumed), *reported))

        play(act, idle_timeout_s=5.0, inline_s=0.0, seed=f"told {number}")

    for number in range(60):
        attempt(number)
    assert seen == {
        ("ENGINE_ERROR", "SESSION_NOT_FOUND"),
        ("ENGINE_ERROR", "opened", "CLOSE_REASON_FAILED"),
    }


def test_openings_that_wait_for_the_store_are_bounded() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        world.loop.slowness_s = 1.0
        sent = [stream.send(f"a{number}", open=plain(durability=STRICT)) for number in range(60)]
        await asyncio.sleep(0.1)
        refused = [one for one in sent if one.is_done and reason(one.answer) in ("TOO_MANY_SESSIONS", "QUEUE_FULL")]
        num_tasks = len(world.replicas[0].life.tasks)
        assert len(refused) >= 60 - 6 - 6, f"{len(refused)} of 60 openings are refused, {num_tasks} tasks wait"
        world.loop.slowness_s = 0.0

    play(act, max_sessions=6)


def test_a_resumption_whose_stream_has_ended_takes_the_session_from_no_stream() -> None:
    async def act(world: World) -> None:
        first, second = world.connect(), world.connect()
        world.loop.slowness_s = 0.2
        sent = first.send("a", open=plain(durability=STRICT, on_disconnect=keep(20.0)))
        await asyncio.sleep(0.05)
        second.send("a", open=RESUME)
        await asyncio.sleep(0.05)
        second.leave()
        assert await sent.wait(5.0)
        assert await fed(first, "a", 5) == 1
        assert not first.notices
        world.loop.slowness_s = 0.0

    play(act, idle_timeout_s=5.0)


def test_a_session_that_was_fetched_for_a_look_is_resumed_out_of_the_store() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=STRICT, on_disconnect=keep(20.0))
        world.replicas[0].kill()
        await asyncio.sleep(1.5)
        await world.replicas[0].start()
        await world.call("Sessions.GetState", sessions_pb2.SessionsGetStateRequest(session_id="a"))
        for source in (pb.RESTORED_FROM_STORE, pb.RESTORED_FROM_MEMORY):
            answer = await world.connect().ask("a", open=RESUME)
            assert answer.opened.restored_from == source

    play(act, idle_timeout_s=5.0)


def test_the_id_of_a_session_that_will_be_kept_is_reserved_for_as_long_as_it_lives() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=NONE, on_disconnect=keep(0.5))
        for position in range(20):
            await asyncio.sleep(0.2)
            await fed(stream, "a", 5, position=position)
        assert reason(await world.connect(1).ask("a", open=plain(durability=STRICT))) == "SESSION_ID_IN_USE"

    play(act, idle_timeout_s=1.0)


def test_an_id_is_free_again_when_its_close_is_answered() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        for durability in (NONE, CHECKPOINT, NONE):
            await opened(stream, "a", durability=durability)
            assert await fed(stream, "a", 5) == 1
            assert reason(await stream.ask("a", close=pb.Close())) == "closed"
            await asyncio.sleep(0.5)

    play(act)
