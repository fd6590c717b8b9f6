"""What is stored: a strict response is stored first, a Close is remembered, and a record lives as long as its
session."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import sessions_pb2
from simulation.streams import Sent
from simulation.world import World
from tests.simulation.scenes import CHECKPOINT, NONE, RESUME, STRICT, fed, feed, hold, keep, opened, plain, play, reason


def rewind(position: int) -> sessions_pb2.SessionsRewindRequest:
    """Returns a rewind of the session `a`."""
    return sessions_pb2.SessionsRewindRequest(session_id="a", position=position)


def generation(count: int) -> pb.Generate:
    """Returns a generation of `count` tokens from position 1."""
    return pb.Generate(position=1, decoding=pb.Decoding(max_tokens=count, min_tokens=count))


async def bring_back(world: World, name: str) -> pb.StreamResponse:
    """Kills the first replica, and resumes a session on the second."""
    world.faults.is_down = False
    world.replicas[0].kill()
    await asyncio.sleep(1.5)
    return await world.connect(1).ask(name, open=RESUME)


def test_a_strict_feed_after_a_rewind_that_could_not_be_stored_is_stored() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=STRICT, on_disconnect=keep(20.0))
        await fed(stream, "a", 5, 6, mark=True)
        await fed(stream, "a", *[5] * 8)
        world.faults.is_down = True
        assert reason(await world.call("Sessions.Rewind", rewind(2))) == "STORE_UNAVAILABLE"
        answer = await stream.ask("a", feed=feed(7, position=2))
        if reason(answer) == "fed":
            back = await bring_back(world, "a")
            assert back.position == 3, f"position 3 was acknowledged, and the session is back at {back.position}"

    play(act, idle_timeout_s=9.0, does_finish=False)


def test_a_strict_feed_after_a_rewind_is_stored_as_it_is() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=STRICT, on_disconnect=keep(20.0))
        await fed(stream, "a", 5, 6, mark=True)
        await fed(stream, "a", *[5] * 8)
        world.faults.is_down = True
        await world.call("Sessions.Rewind", rewind(2))
        world.faults.is_down = False
        assert await fed(stream, "a", 7, position=2) == 3
        back = await bring_back(world, "a")
        assert back.position == 3

    play(act, idle_timeout_s=9.0, does_finish=False)


def test_a_session_whose_stream_ends_while_it_is_written_is_stored_at_once() -> None:
    async def act(world: World) -> None:
        for number in range(40):
            stream = world.connect()
            name = f"a{number}"
            await opened(stream, name, durability=CHECKPOINT, on_disconnect=keep(20.0))
            await fed(stream, name, *[5] * 8)  # so many tokens are stored at once
            await asyncio.sleep(0.0002 * number)
            await fed(stream, name, 6)
            stream.leave()
            await asyncio.sleep(1.0)
            stored = world.stored(name)
            assert stored is not None
            assert stored.position == 9

    play(act, checkpoint_interval_s=60.0, idle_timeout_s=20.0, max_sessions=50, does_finish=False)


def test_a_cancelled_strict_feed_returns_a_stored_position() -> None:
    async def act(world: World) -> None:
        for number in range(20):
            stream = world.connect()
            name = f"a{number}"
            await opened(stream, name, durability=STRICT, on_disconnect=keep(20.0))
            sent = stream.send(name, feed=feed(*[5] * 30))
            await asyncio.sleep(0.001 * number)
            stream.send(name, cancel=pb.Cancel())
            world.faults.is_down = True
            assert await sent.wait(5.0)
            stored = world.stored(name)
            assert sent.answer.position <= (stored.position if stored else 0)
            world.faults.is_down = False
            await stream.ask(name, close=pb.Close())
            stream.leave()

    play(act, idle_timeout_s=9.0, does_finish=False, inline_s=0.0)


def test_no_call_returns_an_unstored_position_of_a_strict_session() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=STRICT, on_disconnect=keep(20.0))
        await fed(stream, "a", 5)
        world.faults.is_down = True
        assert reason(await stream.ask("a", feed=feed(6))) == "STORE_UNAVAILABLE"
        answers = [
            await stream.ask("a", open=RESUME),
            await stream.ask("a", feed=feed(7, position=9)),
            await stream.ask("a", score=pb.Score(position=9, targets=[pb.Sequence(ids=pb.TokenIds(ids=[5]))])),
            await world.connect().ask("a", open=RESUME),
        ]
        expected = ["opened", "STORE_UNAVAILABLE", "STORE_UNAVAILABLE", "opened"]
        assert [(reason(answer), answer.position) for answer in answers] == [(one, 1) for one in expected]
        found = await world.call("Sessions.Get", sessions_pb2.SessionsGetRequest(session_id="a"))
        assert found.session.position == 1
        world.faults.is_down = False
        resumed = await world.connect().ask("a", open=RESUME)
        assert (reason(resumed), resumed.position, world.stored("a").position) == ("opened", 2, 2)

    play(act, idle_timeout_s=9.0, does_finish=False)


def test_a_session_that_was_set_back_and_is_not_stored_so_is_not_resumed() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=STRICT, on_disconnect=keep(20.0))
        await fed(stream, "a", 5, mark=True)
        await fed(stream, "a", 6)
        world.faults.is_down = True
        assert reason(await world.call("Sessions.Rewind", rewind(1))) == "STORE_UNAVAILABLE"
        for one in (stream, world.connect()):
            assert reason(await one.ask("a", open=RESUME)) == "STORE_UNAVAILABLE"
        world.faults.is_down = False
        other = world.connect()
        resumed = await other.ask("a", open=RESUME)
        assert (reason(resumed), resumed.position, world.stored("a").position) == ("opened", 1, 1)
        batch = await other.ask(step_batch=pb.StepBatch(handles=[resumed.opened.handle], token_ids=[7]))
        assert list(batch.batch_stepped.positions) == [2]

    play(act, idle_timeout_s=9.0, does_finish=False)


def test_a_step_batch_returns_no_unstored_position_of_a_strict_session() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        handles = [await opened(stream, "a", durability=STRICT), await opened(stream, "b")]
        await fed(stream, "b", 5)
        await stream.ask("a", score=pb.Score(targets=[pb.Sequence(ids=pb.TokenIds(ids=[5]))]))
        await opened(stream, "c")  # b is spilled now
        world.faults.is_down = True
        stream.send("a", feed=feed(6, 7))
        batch = stream.send(step_batch=pb.StepBatch(handles=handles, token_ids=[5, 5]))
        stream.send("a", cancel=pb.Cancel())
        assert await batch.wait(10.0)
        answer = batch.answer.batch_stepped
        assert [error.error.reason for error in answer.errors] == ["CANCELLED", "STORE_UNAVAILABLE"]
        assert world.stored("a").position == 0
        assert list(answer.positions) == [0, 1]
        world.faults.is_down = False

    play(act, num_slots=2, idle_timeout_s=5.0)


def test_a_step_batch_has_one_error_of_a_session_that_it_refuses_and_that_is_not_stored() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        handle = await opened(stream, "a", durability=STRICT)
        world.faults.is_down = True
        assert reason(await stream.ask("a", feed=feed(5))) == "STORE_UNAVAILABLE"
        answer = (
            await stream.ask(step_batch=pb.StepBatch(handles=[handle], token_ids=[5], positions=[9]))
        ).batch_stepped
        assert [error.error.reason for error in answer.errors] == ["STORE_UNAVAILABLE"]
        assert list(answer.positions) == [0]
        world.faults.is_down = False

    play(act, idle_timeout_s=5.0)


def test_the_record_of_a_strict_session_lives_as_long_as_it() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=STRICT, on_disconnect=hold(2.0))
        await fed(stream, "a", 5, 6, 7)
        stream.leave()
        await asyncio.sleep(0.5)
        world.replicas[0].kill()
        await asyncio.sleep(1.2)
        second = world.connect(1)
        answer = await second.ask("a", open=RESUME)
        assert answer.position == 3
        await asyncio.sleep(2.5)  # shorter than the idle timeout
        assert world.stored("a") is not None, "the session lives, and its record is gone"
        assert await fed(second, "a", 7, position=3) == 4
        assert world.stored("a").position == 4

    play(act, idle_timeout_s=3.0)


def test_a_session_that_was_resumed_outlives_its_record_in_an_outage_of_the_store() -> None:
    async def act(world: World) -> None:
        await opened(stream := world.connect(), "a", durability=CHECKPOINT, on_disconnect=keep(0.5))
        await fed(stream, "a", 5)
        stream.leave()
        await asyncio.sleep(0.1)
        stream = world.connect(1)
        answer = await stream.ask("a", open=RESUME)  # now the session has a greater epoch
        assert answer.position == 1, answer
        await fed(stream, "a", 6)
        await asyncio.sleep(0.5)  # now the session is stored
        world.faults.is_down = True
        position, answers = 2, []
        for _ in range(11):
            answer = await stream.ask("a", feed=feed(6, position=position))
            answers.append(reason(answer))
            position += answer.HasField("fed")
            await asyncio.sleep(0.2)
        assert answers[:2] == ["fed"] * 2, "as long as the lease of its server holds it goes on in memory"
        assert answers[-5:] == ["STORE_UNAVAILABLE"] * 5, "then another server could have it"
        assert world.stored("a") is None
        world.faults.is_down = False
        await asyncio.sleep(0.6)
        assert not stream.notices
        assert world.stored("a").position == position
        assert await fed(stream, "a", 7, position=position) == position + 1
        assert reason(await world.connect().ask("a", open=RESUME)) == "opened", "any server can claim it"

    play(act, idle_timeout_s=1.0)


def test_a_session_that_is_spilled_when_its_stream_ends_does_not_wait_to_be_stored() -> None:
    """The spill has stored the session, so no change waits for the store when the stream ends."""

    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=NONE, on_disconnect=keep(20.0))
        await fed(stream, "a", 5)
        await opened(world.connect(), "b", durability=NONE)  # a is spilled now
        stream.leave()
        await asyncio.sleep(2.0)
        assert world.stored("a").position == 1
        assert world.replicas[0].lag_s == 0.0

    play(act, num_slots=1, idle_timeout_s=30.0, does_finish=False)


def test_a_session_that_does_not_change_is_stored_again_after_an_outage_that_its_record_did_not_outlive() -> None:
    async def act(world: World) -> None:
        await opened(stream := world.connect(), "a", durability=CHECKPOINT, on_disconnect=keep(0.5))
        await fed(stream, "a", 5)
        await asyncio.sleep(0.5)
        assert world.stored("a").position == 1
        world.faults.is_down = True
        for _ in range(10):
            # a use that changes nothing; after the server's lease expires, another server could have the session
            assert reason(await stream.ask("a", open=RESUME)) in ("opened", "STORE_UNAVAILABLE")
            await asyncio.sleep(0.2)
        assert world.stored("a") is None
        world.faults.is_down = False
        await asyncio.sleep(0.5)
        assert world.stored("a").position == 1
        world.replicas[0].kill()
        await asyncio.sleep(1.0)
        answer = await world.connect(1).ask("a", open=RESUME)
        assert (reason(answer), answer.position) == ("opened", 1)

    play(act, idle_timeout_s=1.0, does_finish=False)


@pytest.mark.parametrize("durability", [CHECKPOINT, STRICT])
def test_a_close_that_was_answered_is_remembered(durability: pb.Durability.ValueType) -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=durability)
        await fed(stream, "a", 5, 6)
        await asyncio.sleep(0.5)
        world.faults.is_down = True
        answer = await stream.ask("a", close=pb.Close())
        await asyncio.sleep(0.5)
        world.faults.is_down = False
        if reason(answer) == "closed":
            await asyncio.sleep(2.5)
            answer = await world.connect(1).ask("a", open=RESUME)
            assert reason(answer) == "SESSION_NOT_FOUND", f"a closed session is back: {answer}"

    play(act, idle_timeout_s=9.0, lease_s=2.0, does_finish=False)


def test_an_id_can_be_opened_again_when_its_close_was_answered() -> None:
    async def act(world: World) -> None:
        stream, others = world.connect(), world.connect()
        for number in range(4):
            await opened(others, f"load{number}", durability=STRICT)
        is_over = False

        async def load(name: str) -> None:
            while not is_over:
                await fed(others, name, 5)

        loads = [asyncio.create_task(load(f"load{number}")) for number in range(4)]
        try:
            for _ in range(20):
                answer = await stream.ask("a", open=plain(durability=STRICT))
                assert reason(answer) == "opened", answer
                await fed(stream, "a", 5)
                assert reason(await stream.ask("a", close=pb.Close())) == "closed"
        finally:
            is_over = True
            await asyncio.gather(*loads)

    play(act, num_slots=8)


def _tokens(sent: Sent) -> int:
    return sum(len(part.generated.tokens) for part in sent.responses)


def test_strict_tokens_are_stored_before_they_are_replayed() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "g", durability=STRICT, on_disconnect=hold(6.0), unattended=True)
        await fed(stream, "g", 5)
        stream.send("g", generate=generation(60))
        await asyncio.sleep(0.005)
        stream.leave()
        world.faults.is_down = True
        await asyncio.sleep(0.3)
        again = world.connect()
        assert reason(await again.ask("g", open=RESUME)) == "opened"
        sent = again.send("g", generate=generation(60))
        await sent.wait(0.5)
        stored = world.stored("g")
        assert stored.position >= 1 + _tokens(sent), f"{_tokens(sent)} tokens are reported, stored is {stored.position}"

    play(act, idle_timeout_s=9.0, lease_s=9.0, does_finish=False, generation_window=8)


def test_clients_that_leave_on_go_away_lose_nothing() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        for number in range(4):
            await opened(stream, f"a{number}", durability=STRICT, on_disconnect=keep(20.0))
        sent = [stream.send(f"a{number}", feed=feed(5)) for number in range(4)]
        busy = world.connect()
        await opened(busy, "busy")
        await fed(busy, "busy", 5)
        busy.set_reading(False)
        busy.send("busy", generate=generation(60))
        await asyncio.sleep(0.1)
        drained = asyncio.create_task(world.replicas[0].drain(0.5))
        while not stream.notices:  # noqa: ASYNC110  # polls for some milliseconds of virtual time
            await asyncio.sleep(0.0005)
        stream.leave()
        await drained
        second = world.connect(1)
        for number in range(4):
            answer = await second.ask(f"a{number}", open=RESUME)
            assert reason(answer) == "opened", answer
            assert answer.position >= (1 if sent[number].is_done else 0)

    play(act, idle_timeout_s=9.0, num_slots=8, does_finish=False)


def test_a_session_that_is_kept_outlives_its_replica() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=STRICT, on_disconnect=keep(20.0))
        await fed(stream, "a", 5, 6, 7)
        back = await bring_back(world, "a")
        assert back.position == 3
        assert back.opened.restored_from == pb.RESTORED_FROM_STORE

    play(act, idle_timeout_s=9.0, does_finish=False)


def test_a_plain_session_leaves_no_record() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=NONE)
        await fed(stream, "a", 5)
        stream.leave()
        await asyncio.sleep(1.0)
        assert world.shared.current("a") is None

    play(act)


@pytest.mark.parametrize("kind", ["feed", "generate", "score", "step_batch"])
def test_requests_to_a_session_that_another_server_is_claiming_are_answered(kind: str) -> None:
    """The session's last record is on its way to a slow store. Its stream is notified only after the record is
    stored."""

    async def act(world: World) -> None:
        here, there = world.connect(0), world.connect(1)
        handle = await opened(here, "a", durability=STRICT, on_disconnect=keep(20.0))
        other = await opened(here, "b")
        requests: dict[str, dict[str, Any]] = {
            "feed": {"feed": feed(6)},
            "generate": {"generate": pb.Generate(decoding=pb.Decoding(max_tokens=2))},
            "score": {"score": pb.Score(targets=[pb.Sequence(ids=pb.TokenIds(ids=[5]))])},
            "step_batch": {"step_batch": pb.StepBatch(handles=[handle, other], token_ids=[6, 6])},
        }
        name = "" if kind == "step_batch" else "a"
        world.loop.slowness_s = 0.05
        first = here.send("a", feed=feed(5))
        await asyncio.sleep(0.1)
        taken = there.send("a", open=RESUME)
        sent = []
        for _ in range(20):
            sent.append(here.send("a", feed=feed(5)))
            sent.append(here.send(name, **requests[kind]))
            await asyncio.sleep(0.02)
        here.half_close()
        assert await here.wait_over(10.0), f"the stream does not end: {here.unanswered}"
        assert not here.unanswered
        assert await taken.wait(10.0)
        assert first.answer.position == 1
        reported = {str(one.answer.error.reason or one.answer.WhichOneof("response")) for one in sent}
        if kind == "step_batch":
            assert [len(one.answer.batch_stepped.errors) for one in sent][-1] == 1, "the other goes on"
        else:
            assert "SESSION_MOVED" in reported, reported
        world.loop.slowness_s = 0.0

    play(act, idle_timeout_s=9.0, lease_s=1.0, max_in_flight=100, does_finish=False)
