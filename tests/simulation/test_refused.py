"""A refused request changes nothing: earlier requests can be repeated, and the rest of a batch is done."""

from __future__ import annotations

from typing import Any

from carousel.v1 import inference_pb2 as pb
from simulation.streams import ClientStream, Sent
from simulation.world import World
from tests.simulation.scenes import CHECKPOINT, RESUME, fed, feed, keep, opened, play, reason


def test_earlier_requests_can_be_repeated_after_a_refused_request() -> None:
    """This holds also if the request is refused only at its turn, and whatever request follows it."""

    async def act(world: World) -> None:
        stream = world.connect()
        handle = await opened(stream, "a", durability=CHECKPOINT, on_disconnect=keep(20.0))
        wrong = pb.StepBatch(handles=[handle], token_ids=[5], positions=[7])
        asked: list[dict[str, Any]] = [
            {"session_id": "a", "feed": feed(5, 6, position=0)},
            {"session_id": "a", "generate": pb.Generate(position=2, decoding=pb.Decoding(max_tokens=3, min_tokens=3))},
            {"step_batch": pb.StepBatch(handles=[handle], token_ids=[5], positions=[5])},
        ]
        for request in asked:
            first = await ask_of(stream, request)
            refusals: list[dict[str, Any]] = [
                {"step_batch": wrong},
                {"session_id": "a", "feed": feed(5, position=7)},
                {"session_id": "a", "generate": pb.Generate(position=7)},
            ]
            for refused in refusals:
                sent = [send_of(stream, one) for one in (refused, {"step_batch": wrong}, request)]
                for one in sent:
                    assert await one.wait(5.0)
                assert same(sent[-1].answer, first), (refused, request, sent[-1].answer)

    play(act, does_finish=False)


def test_a_moved_session_replays_requests_before_a_refused_step_batch() -> None:
    async def act(world: World) -> None:
        stream = world.connect(0)
        handle = await opened(stream, "a", durability=CHECKPOINT, on_disconnect=keep(20.0))
        await fed(stream, "a", 5)
        generate = {"session_id": "a", "generate": pb.Generate(position=1, decoding=pb.Decoding(max_tokens=3))}
        first = await ask_of(stream, generate)
        wrong = pb.StepBatch(handles=[handle], token_ids=[5], positions=[7])
        assert len((await stream.ask(step_batch=wrong)).batch_stepped.errors) == 1
        other = world.connect(1)
        assert reason(await other.ask("a", open=RESUME)) == "opened"
        assert same(await ask_of(other, generate), first)

    play(act, does_finish=False)


def test_a_feed_repeated_after_a_refused_feed_is_answered_and_applied_once() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "a")
        sent = [stream.send("a", feed=feed(*tokens, position=at)) for tokens, at in (((5,), 0), ((6,), 7), ((5,), 0))]
        for one in sent:
            assert await one.wait(5.0)
        assert [reason(one.answer) for one in sent] == ["fed", "POSITION_MISMATCH", "fed"]
        assert [sent[0].answer.position, sent[2].answer.position] == [1, 1]
        assert sent[0].answer.fed.outputs == sent[2].answer.fed.outputs
        assert await fed(stream, "a", 6, position=1) == 2

    play(act, inline_s=0.0)


def test_a_step_batch_of_many_unknown_handles_steps_the_sessions_that_are_there() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        handle = await opened(stream, "a")
        most = 30
        handles = [handle, *range(1000, 1000 + most - 1)]
        answer = await stream.ask(step_batch=pb.StepBatch(handles=handles, token_ids=[5] * most))
        assert list(answer.batch_stepped.positions)[:2] == [1, 0]
        assert len(answer.batch_stepped.errors) == most - 1

    play(act)


def send_of(stream: ClientStream, request: dict[str, Any]) -> Sent:
    """Sends a request on a stream."""
    return stream.send(request.get("session_id", ""), **{k: v for k, v in request.items() if k != "session_id"})


async def ask_of(stream: ClientStream, request: dict[str, Any]) -> pb.StreamResponse:
    """Sends a request. Returns its last response."""
    sent = send_of(stream, request)
    assert await sent.wait(5.0)
    return sent.answer


def same(again: pb.StreamResponse, first: pb.StreamResponse) -> bool:
    """Returns whether a repeated request has the same response as the first."""
    assert not first.HasField("error"), first
    kind = first.WhichOneof("response")
    if kind == "generated":  # the repeated response has all tokens at once
        return again.WhichOneof("response") == kind and again.position == first.position
    if kind == "batch_stepped":
        return list(again.batch_stepped.positions) == list(first.batch_stepped.positions) and not (
            again.batch_stepped.errors
        )
    return again.WhichOneof("response") == kind and again.fed.outputs == first.fed.outputs
