"""Cancels of generations: while the store is slow, the tokens of a strict session that wait for it do not count as
requests; a generation that no stream reads is ended by a cancel."""

from __future__ import annotations

import asyncio

from carousel.v1 import inference_pb2 as pb
from simulation.streams import ClientStream, Sent
from simulation.world import World
from tests.simulation.scenes import CHECKPOINT, RESUME, STRICT, fed, feed, keep, opened, play

TOKENS = 20
DECODING = pb.Decoding(max_tokens=TOKENS, min_tokens=TOKENS)
MAX_IN_FLIGHT = 3
"""Fewer requests than a generation has responses."""


async def generated(world: World) -> tuple[ClientStream, Sent]:
    """Returns a strict session that has generated all its tokens while the slow store has stored none of them."""
    stream = world.connect()
    await opened(stream, "s", durability=STRICT, on_disconnect=keep())
    await fed(stream, "s", 1)
    world.loop.slowness_s = 0.3
    generating = stream.send("s", generate=pb.Generate(decoding=DECODING))
    await asyncio.sleep(0.2)
    return stream, generating


def test_a_cancel_is_carried_out_while_many_parts_of_a_generation_wait_for_the_store() -> None:
    async def act(world: World) -> None:
        stream, generating = await generated(world)
        assert not generating.responses, "all of it waits"
        cancelled = await stream.ask("s", cancel=pb.Cancel())
        assert cancelled.HasField("cancelled"), cancelled
        assert generating.is_done
        reported = sum(len(part.generated.tokens) for part in generating.responses)
        assert cancelled.position == 1 + reported

    play(act, generation_window=TOKENS, max_in_flight=MAX_IN_FLIGHT)


def test_requests_after_a_waiting_generation_are_accepted_up_to_the_limit() -> None:
    async def act(world: World) -> None:
        stream, generating = await generated(world)
        feeds = [stream.send("s", feed=pb.Feed(token_ids=[2])) for _ in range(MAX_IN_FLIGHT)]
        for sent in (generating, *feeds):
            assert await sent.wait(10.0)
        assert sum(len(part.generated.tokens) for part in generating.responses) == TOKENS
        assert [sent.answer.WhichOneof("response") for sent in feeds] == ["fed", "fed", "error"]
        assert feeds[-1].answer.error.reason == "QUEUE_FULL"

    play(act, generation_window=TOKENS, max_in_flight=MAX_IN_FLIGHT)


def test_a_generation_whose_stream_has_ended_is_ended_by_a_cancel_as_its_error_says() -> None:
    async def act(world: World) -> None:
        stream = world.connect()
        await opened(stream, "s", durability=CHECKPOINT, on_disconnect=keep(20.0))
        await fed(stream, "s", 1)
        stream.send("s", generate=pb.Generate(decoding=pb.Decoding(max_tokens=64, min_tokens=64)))
        await asyncio.sleep(0.01)
        stream.leave()
        await asyncio.sleep(0.5)
        other = world.connect()
        assert (await other.ask("s", open=RESUME)).HasField("opened")
        refused = (await other.ask("s", feed=feed(2))).error
        assert refused.reason == "ILLEGAL_REQUEST"
        assert refused.message.endswith(
            ": no stream reads it: send a Cancel on a stream that resumes the session, or its Generate again"
        )
        position = (await other.ask("s", cancel=pb.Cancel())).position
        assert await fed(other, "s", 2) == position + 1

    play(act, idle_timeout_s=20.0, does_finish=False)
