"""Requests: each is answered once, in order, and a stream ends when all are."""

from __future__ import annotations

import asyncio

import pytest

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import sessions_pb2
from simulation.bundles import PROMPT
from simulation.world import World
from tests.simulation.scenes import STRICT, fed, feed, hold, opened, plain, play, reason


def step(*handles: int, positions: list[int] | None = None) -> pb.StepBatch:
    """A token for each session."""
    return pb.StepBatch(handles=handles, token_ids=[5] * len(handles), positions=positions)


def test_a_step_batch_works_on_a_session_that_was_spilled_and_restored() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        a = await opened(stream, "a")
        answer = await stream.ask(step_batch=step(a))
        await opened(stream, "b")
        await fed(stream, "b", 6)  # a is spilled
        for position in (2, 3):
            answer = await stream.ask(step_batch=step(a))
            assert not answer.batch_stepped.errors, answer
            assert list(answer.batch_stepped.positions) == [position]

    play(act, num_slots=1)


def test_a_step_batch_after_a_rewind_is_applied() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        a = await opened(stream, "a", on_disconnect=hold())
        await fed(stream, "a", 5, 6, mark=True)
        for _ in range(2):
            answer = await stream.ask(step_batch=step(a, positions=[2]))
            assert not answer.batch_stepped.replayed
            assert list(answer.batch_stepped.positions) == [3]
            request = sessions_pb2.SessionsRewindRequest(session_id="a", position=2)
            assert reason(await world.call("Sessions.Rewind", request)) == "SessionsRewindResponse"

    play(act)


def test_a_strict_step_batch_that_could_not_be_stored_can_be_sent_again() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        a = await opened(stream, "a", durability=STRICT)
        world.faults.is_down = True
        answer = await stream.ask(step_batch=step(a, positions=[0]))
        assert answer.batch_stepped.errors[0].error.reason == "STORE_UNAVAILABLE"
        world.faults.is_down = False
        await asyncio.sleep(1.0)
        answer = await stream.ask(step_batch=step(a, positions=[0]))
        assert not answer.batch_stepped.errors, answer
        assert list(answer.batch_stepped.positions) == [1]

    play(act, idle_timeout_s=5.0, lease_s=3.0)


@pytest.mark.parametrize(
    ("between", "has_output"),
    [
        ("nothing", False),
        ("nothing", True),
        ("feed", False),
        ("feed", True),
        ("long feed", False),
        ("long feed", True),
        ("step batch", False),
        ("step batch", True),
        ("cancel", False),
        ("cancel", True),
    ],
)
def test_a_close_behind_a_strict_opening_is_answered(between: str, has_output: bool) -> None:
    async def act(world: World) -> None:
        for number in range(60):
            stream = world.connect()
            message = pb.Open(model=PROMPT, durability=STRICT)
            if has_output:
                message.outputs.kind = pb.OUTPUT_KIND_LOGITS
            stream.send(open=message)
            if between == "feed":
                stream.send(feed=feed(5))
            elif between == "long feed":
                stream.send(feed=feed(*[5] * 9))
            elif between == "step batch":
                stream.send(step_batch=step(1))
            elif between == "cancel":
                stream.send(cancel=pb.Cancel())
            await asyncio.sleep(0.0004 * number)
            stream.send(close=pb.Close())
            stream.half_close()
            assert await stream.wait_over(10.0), f"the stream of trial {number} does not end: {stream.unanswered}"

    play(act, num_slots=8)


@pytest.mark.parametrize("kind", ["feed", "step_batch"])
def test_a_request_that_waits_for_a_spilled_session_is_answered_before_the_stream_ends(kind: str) -> None:
    async def act(world: World) -> None:
        stream, other = world.connect(), world.connect()
        a = await opened(stream, "a")
        await fed(stream, "a", 5)
        await opened(other, "b")  # a is spilled
        sent = stream.send(feed=feed(6)) if kind == "feed" else stream.send(step_batch=step(a))
        stream.half_close()
        assert await stream.wait_over(10.0), "the stream does not end"
        assert sent.is_done
        assert sent.answer.position == 2 or list(sent.answer.batch_stepped.positions) == [2]

    play(act, num_slots=1)


def test_a_request_that_waits_for_an_opening_is_answered_before_the_stream_ends() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=STRICT, on_disconnect=hold())
        stream.leave()
        again = world.connect(1)
        again.send("a", open=pb.Open(resume=pb.Resume()))
        sent = again.send("a", feed=feed(5))
        again.half_close()
        assert await again.wait_over(10.0)
        assert sent.is_done
        assert sent.answer.position == 1

    play(act)


@pytest.mark.parametrize("length", [1, 6])
def test_a_feed_sent_again_after_a_cancel_is_applied_once(length: int) -> None:
    """The Cancel comes in time, and the second is the one that is applied; or too late, and it is answered again; or in
    its midst, and only the client knows how to go on. Each of them happens."""
    seen = set()
    tokens = [5, 6, 7, 5, 6, 7][:length]

    def attempt(delay_s: float) -> None:
        async def act(world: World) -> None:
            stream, other = world.connect(), world.connect()
            await opened(stream, "a")
            await opened(other, "b")
            other.send("b", feed=feed(*tokens * 2))  # so that what comes meanwhile waits
            first = stream.send("a", feed=feed(*tokens, position=0))
            await asyncio.sleep(delay_s)
            cancel = stream.send("a", cancel=pb.Cancel())
            retries = [stream.send("a", feed=feed(*tokens, position=0)) for _ in range(2)]
            for one in (first, cancel, *retries):
                assert await one.wait(10.0), f"{one} is not answered"
            kinds = [one.answer.error.reason or one.answer.fed.replayed for one in (first, *retries)]
            seen.add(tuple(kinds))
            position = length if kinds[2] is True else first.answer.position
            assert [one.answer.position for one in retries] == [position] * 2

        play(act, inline_s=0.0, seed=f"cancel {delay_s}")

    for number in range(40):
        attempt(number * 0.0002)
    in_time, too_late = ("CANCELLED", False, True), (False, True, True)
    in_its_midst = ("CANCELLED", "POSITION_MISMATCH", "POSITION_MISMATCH")
    assert seen == ({in_time, too_late} if length == 1 else {in_time, too_late, in_its_midst})


def test_retries_of_a_step_batch_in_flight_are_bounded_as_requests_are() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        a = await opened(stream, "a")
        sent = [stream.send(step_batch=step(a, positions=[0])) for _ in range(70)]
        for one in sent:
            assert await one.wait(10.0), f"{one} is not answered"
        outcomes = [one.answer.error.reason or one.answer.batch_stepped.replayed for one in sent]
        assert outcomes[:10] == [False, *[True] * 8, "QUEUE_FULL"]
        assert outcomes.count(False) == 1

    play(act, inline_s=0.0, max_in_flight=8)


def test_a_feed_sent_again_while_it_is_in_flight_is_answered_whatever_follows() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a")
        sent = [stream.send("a", feed=feed(5, position=0)) for _ in range(2)]
        sent.append(stream.send("a", generate=pb.Generate(decoding=pb.Decoding(max_tokens=2))))
        for one in sent:
            assert await one.wait(10.0), f"{one} is not answered"
        assert sent[0].answer.position == sent[1].answer.position == 1
        assert sent[1].answer.fed.replayed

    play(act, inline_s=0.0)


def test_a_feed_does_not_overtake_a_step_batch_that_waits_for_a_spilled_session() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        handles = {name: await opened(stream, name) for name in "ab"}
        for name in "ab":
            await fed(stream, name, 5, position=0)
        await opened(stream, "c")  # a is spilled
        await fed(stream, "b", 5)
        batch = stream.send(step_batch=step(handles["a"], handles["b"]))
        later = stream.send("b", feed=feed(7))
        assert await batch.wait(10.0)
        assert await later.wait(10.0)
        assert list(batch.answer.batch_stepped.positions) == [2, 3]
        assert later.answer.position == 4

    play(act, num_slots=2, idle_timeout_s=5.0)


def test_a_step_batch_sent_again_does_not_overtake_what_waits_for_a_spilled_session() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        a = await opened(stream, "a")
        refused = step(a, positions=[9])
        assert list((await stream.ask(step_batch=refused)).batch_stepped.positions) == [0]
        await opened(stream, "b")  # a is spilled
        first = stream.send("a", feed=feed(7))
        again = stream.send(step_batch=refused)
        assert await first.wait(10.0)
        assert await again.wait(10.0)
        assert first.answer.position == 1
        assert list(again.answer.batch_stepped.positions) == [1]
        assert not again.answer.batch_stepped.replayed

    play(act, num_slots=1, idle_timeout_s=5.0)


def test_a_step_batch_sent_again_behind_what_waits_and_is_refused_is_answered_again() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        a = await opened(stream, "a")
        batch = step(a, positions=[0])
        first = await stream.ask(step_batch=batch)
        await opened(stream, "b")  # a is spilled
        wrong = stream.send("a", feed=feed(7, position=9))
        again = stream.send(step_batch=batch)
        later = stream.send("a", feed=feed(7))
        for sent in (wrong, again, later):
            assert await sent.wait(10.0)
        assert reason(wrong.answer) == "POSITION_MISMATCH"
        assert again.answer.batch_stepped.replayed
        assert list(again.answer.batch_stepped.positions) == list(first.batch_stepped.positions) == [1]
        assert later.answer.position == 2

    play(act, num_slots=1, idle_timeout_s=5.0)


@pytest.mark.parametrize("is_late", [False, True])
def test_a_strict_generation_whose_store_fails_is_answered_once(is_late: bool) -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "g", durability=STRICT, on_disconnect=hold())
        await fed(stream, "g", 5)
        world.faults.is_down = True
        sent = stream.send("g", generate=pb.Generate(decoding=pb.Decoding(max_tokens=30, min_tokens=30)))
        if not is_late:
            stream.send("u", open=plain())
            stream.half_close()
        assert await sent.wait(10.0)
        await asyncio.sleep(2.0)
        world.faults.is_down = False
        stream.half_close()
        assert await stream.wait_over(10.0), "the stream does not end"
        assert min(world.replicas[0].statistics().unanswered, default=0) >= 0

    play(act, idle_timeout_s=5.0, lease_s=9.0)


def test_requests_of_one_session_are_carried_out_in_order() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a")
        sent = [stream.send("a", feed=feed(*range(1, count + 1))) for count in (3, 1, 5, 2)]
        assert await sent[-1].wait(5.0)
        assert [one.answer.position for one in sent] == [3, 4, 9, 11]
        assert [len(one.responses) for one in sent] == [1] * 4

    play(act)


def test_a_stream_ends_after_a_half_close_when_all_is_answered() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        stream.send("a", open=plain())
        stream.send("a", feed=feed(*[3] * 20))
        last = stream.send("a", generate=pb.Generate(decoding=pb.Decoding(max_tokens=20, min_tokens=20)))
        stream.half_close()
        assert await stream.wait_over(5.0)
        assert last.is_done

    play(act)
