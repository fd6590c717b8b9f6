"""Requests: each has one last response, in order, and a stream ends after all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import sessions_pb2
from service.api import answers
from simulation.bundles import PROMPT
from simulation.streams import Sent
from simulation.world import World
from tests.simulation.scenes import NONE, STRICT, fed, feed, hold, opened, plain, play, reason


def step(*handles: int, positions: list[int] | None = None) -> pb.StepBatch:
    """Returns a step batch with one token for each session."""
    return pb.StepBatch(handles=handles, token_ids=[5] * len(handles), positions=positions)


def test_a_step_batch_works_on_a_session_that_was_spilled_and_restored() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        a = await opened(stream, "a")
        answer = await stream.ask(step_batch=step(a))
        await opened(stream, "b")
        await fed(stream, "b", 6)  # a is spilled now
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
        await opened(other, "b")  # a is spilled now
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
    """Three cases, each of which happens. The Cancel comes before the feed: the second feed is applied. It comes after
    the feed: the feed is answered again. It comes in the middle of the feed: only the client knows how to continue."""
    seen = set()
    tokens = [5, 6, 7, 5, 6, 7][:length]

    def attempt(delay_s: float) -> None:
        async def act(world: World) -> None:
            stream, other = world.connect(), world.connect()
            await opened(stream, "a")
            await opened(other, "b")
            other.send("b", feed=feed(*tokens * 2))  # occupies the engine, so that later requests wait
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
        await opened(stream, "c")  # a is spilled now
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
        await opened(stream, "b")  # a is spilled now
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
        await opened(stream, "b")  # a is spilled now
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


ABANDONED = {
    "rewind": ("Sessions.Rewind", sessions_pb2.SessionsRewindRequest(session_id="a", position=1)),
    "set_state": (
        "Sessions.SetState",
        sessions_pb2.SessionsSetStateRequest(
            session_id="a",
            tensors=[sessions_pb2.StateTensor(name="hidden", dtype="float32", shape=[1, 2], data=bytes(8))],
        ),
    ),
    "close": ("Sessions.Close", sessions_pb2.SessionsCloseRequest(session_id="a")),
    "fork": ("Sessions.Fork", sessions_pb2.SessionsForkRequest(session_id="a", fork_session_id="b")),
    "snapshot": ("Sessions.Snapshot", sessions_pb2.SessionsSnapshotRequest(session_id="a")),
}


@pytest.mark.parametrize("call", ABANDONED)
@pytest.mark.parametrize("end", ["close", "admin close", "leave", "drain", "feed"])
def test_a_call_that_its_caller_abandons_costs_others_nothing(call: str, end: str) -> None:
    """The call's deadline expires, or its caller cancels it, while it waits for the store."""

    def attempt(delay_s: float) -> None:
        async def act(world: World) -> None:
            stream = world.connect()
            await opened(stream, "a", durability=STRICT, on_disconnect=hold(1.0))
            await fed(stream, "a", 5, mark=True)
            await fed(stream, "a", 6)
            abandoned = world.replicas[0].call(*ABANDONED[call])
            await asyncio.sleep(delay_s)
            later = stream.send("a", feed=feed(7))
            abandoned.cancel()
            if end == "close":
                closed = stream.send("a", close=pb.Close())
                assert await closed.wait(20.0)
                assert reason(closed.answer) in ("closed", "SESSION_NOT_FOUND", "SESSION_NOT_OPEN"), closed.answer
            elif end == "admin close":
                request = sessions_pb2.SessionsCloseRequest(session_id="a")
                answer = await world.call("Sessions.Close", request)
                assert isinstance(answer, sessions_pb2.SessionsCloseResponse) or reason(answer) == "SESSION_NOT_FOUND"
            elif end == "leave":
                stream.leave()
            elif end == "drain":
                await world.replicas[0].drain(5.0)
                await world.replicas[0].start()
            else:
                assert await later.wait(20.0), "a feed behind it is not answered"
            if end == "close" or call == "close":
                await asyncio.sleep(1.0)
                answer = await world.connect().ask("a", open=plain(durability=STRICT))
                assert reason(answer) in ("opened", "SESSION_IN_USE" if call != "close" else ""), answer

        play(act, inline_s=0.0, seed=f"abandoned {delay_s}")

    for number in range(12):
        attempt(number * 0.0006)


def test_a_rewind_returns_its_own_position_also_if_a_feed_follows() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a", durability=STRICT, on_disconnect=hold())
        await fed(stream, "a", 5, mark=True)
        await fed(stream, "a", 6)
        for call, position in (("rewind", 1), ("set_state", 2)):
            asked = world.replicas[0].call(*ABANDONED[call])
            later = stream.send("a", feed=feed(7))
            answer = await asked
            assert await later.wait(10.0)
            reported = answer.session.position if call == "rewind" else answer.position
            assert (reported, later.answer.position) == (position, position + 1)

    play(act, inline_s=0.0)


def test_an_opening_that_asks_for_no_output_is_answered() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        for kind in (pb.OUTPUT_KIND_NONE, pb.OUTPUT_KIND_NEXT_TOKEN):
            for durability in (STRICT, NONE):
                name = f"{kind}-{durability}"
                opening = pb.Open(model=PROMPT, durability=durability, outputs=pb.OutputSpec(kind=kind))
                answer = await stream.ask(name, open=opening)
                assert reason(answer) == "opened"
                assert answer.opened.HasField("output") == (kind != pb.OUTPUT_KIND_NONE)
        stream.half_close()
        assert await stream.wait_over(10.0)

    play(act)


@pytest.mark.parametrize("name", ["fed", "large_fed", "generated", "opened", "batch_stepped"])
def test_a_response_that_cannot_be_made_is_an_error_and_the_stream_continues(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in the code that makes one response affects only that response."""

    def fail(*arguments: object, **named: object) -> object:
        raise ZeroDivisionError("for the test")

    async def act(world: World) -> None:
        stream = world.connect()
        handle = await opened(stream, "a")
        if name == "generated":
            await fed(stream, "a", 5)
        monkeypatch.setattr(answers, name, fail)
        sends: dict[str, Callable[[], Sent]] = {
            "fed": lambda: stream.send("a", feed=feed(5, position=0)),
            "large_fed": lambda: stream.send("a", feed=feed(5, position=0)),
            "generated": lambda: stream.send("a", generate=pb.Generate(decoding=pb.Decoding(max_tokens=2))),
            "opened": lambda: stream.send("b", open=plain()),
            "batch_stepped": lambda: stream.send(step_batch=step(handle)),
        }
        first = sends[name]()
        if name == "large_fed":
            assert await first.wait(5.0)
            first = sends[name]()  # a retry: the size of its response is not known
        assert await first.wait(5.0)
        assert reason(first.answer) == "ENGINE_ERROR"
        monkeypatch.undo()
        assert await stream.send("a", score=pb.Score(targets=[pb.Sequence(ids=pb.TokenIds(ids=[5]))])).wait(5.0)
        assert any("ZeroDivisionError" in violation for violation in world.journal.violations)
        world.journal.violations.clear()
        stream.half_close()
        assert await stream.wait_over(10.0)

    play(act)
