"""What may happen between two turns of the event loop: nothing is lost or left, and nobody waits for ever."""

from __future__ import annotations

import asyncio

from carousel.v1 import inference_pb2 as pb
from simulation.bundles import PROMPT
from simulation.world import World
from tests.simulation.scenes import (
    LOGITS,
    RESUME,
    fed,
    feed,
    hold,
    opened,
    play,
    reason,
)


def generation(count: int, position: int, **fields: int) -> pb.Generate:
    """So many tokens."""
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
