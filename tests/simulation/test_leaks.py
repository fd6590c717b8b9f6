"""What may happen between two turns of the event loop: nothing is lost or left, and nobody waits for ever."""

from __future__ import annotations

from carousel.v1 import inference_pb2 as pb
from simulation.bundles import PROMPT
from simulation.world import World
from tests.simulation.scenes import (
    LOGITS,
    feed,
    play,
    reason,
)


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
