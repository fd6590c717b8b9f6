"""Sends many kinds of requests to a server that serves `g2p-en`, so that its dashboards have data.

    python -m examples.traffic 127.0.0.1:50051 --seconds 60

It spells words in one call, and token by token in sessions; it leaves and resumes sessions, runs beam searches, scores
targets, takes snapshots, and sometimes sends requests that the server refuses.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial

import grpc

from carousel import AsyncClient, CarouselError
from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc

_Way = Callable[[AsyncClient, random.Random], Awaitable[None]]
_MODEL = "g2p-en"
_WORDS = ("elephant", "sequence", "forget", "gate", "stream", "carousel", "memory", "gradient")
_TOKENS = ("K", "EH", "R", "AH", "S", "EH", "L", "IY", "AH", "N")


async def spell(client: AsyncClient, chance: random.Random) -> None:
    """Generates a word in one call."""
    async for _ in client.generate(_MODEL, chance.choice(_WORDS)):
        pass


async def feed(client: AsyncClient, chance: random.Random) -> None:
    """Feeds a session token by token. Some sessions then score targets, run a beam search or take a snapshot."""
    async with client.session(_MODEL, source=chance.choice(_WORDS), durability="checkpoint") as session:
        for _ in range(chance.randrange(5, 60)):
            await session.feed([chance.choice(_TOKENS)], top_k=3)
            await asyncio.sleep(chance.expovariate(50.0))
        if chance.random() < 0.3:
            await session.score([["K", "AH"], ["S"]])
            async for _ in session.generate(beam_size=4, max_tokens=8):
                pass
        if chance.random() < 0.3:
            await client.sessions.snapshot(session.id)


async def leave(target: str, client: AsyncClient, chance: random.Random) -> None:
    """Feeds a session, closes its client, and resumes the session with another client."""
    name = f"left-{chance.getrandbits(32)}"
    async with AsyncClient(target) as gone:
        session = await gone.session(_MODEL, source="carousel", session_id=name, on_disconnect="keep")
        await session.feed(["K", "EH"])
    async with client.resume(name) as again:
        await again.feed(["R"])


async def send_again(target: str) -> None:
    """Sends the same feed twice, as a client does when an answer was lost."""
    async with grpc.aio.insecure_channel(target) as channel:
        call = inference_pb2_grpc.InferenceStub(channel).Stream()
        opening = pb.Open(
            model=_MODEL,
            source=pb.Sequence(text="gate"),
            on_disconnect=pb.DisconnectPolicy(action=pb.DISCONNECT_ACTION_HOLD),
        )
        once = pb.Feed(tokens=["G"], position=0)
        for number, request in enumerate(({"open": opening}, {"feed": once}, {"feed": once}), start=1):
            await call.write(pb.StreamRequest(request_id=number, session_id="", **request))  # type: ignore[arg-type]
            await call.read()
        await call.done_writing()


async def err(client: AsyncClient, chance: random.Random) -> None:
    """Sends requests that the server refuses."""
    with contextlib.suppress(CarouselError):
        async with client.session(_MODEL, source="gate") as session:
            await session.feed(["no such token"])
    with contextlib.suppress(CarouselError):
        await client.sessions.get("nobody")


async def run(target: str, seconds: float, num_workers: int = 16) -> int:
    """Sends requests for so many seconds. Returns how many actions were completed."""
    until, count = time.monotonic() + seconds, 0

    async def work(client: AsyncClient, number: int) -> None:
        nonlocal count
        chance = random.Random(number)
        ways: list[Callable[[AsyncClient, random.Random], Awaitable[None]]] = [
            spell,
            feed,
            feed,
            feed,
            partial(leave, target),
            err,
        ]
        while time.monotonic() < until:
            if chance.random() < 0.05:
                await send_again(target)
            try:
                await chance.choice(ways)(client, chance)
            except CarouselError as error:
                if error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:  # dashboards should show refusals, too
                    raise
            count += 1

    async with AsyncClient(target) as client:
        await asyncio.gather(*(work(client, number) for number in range(num_workers)))
    return count


def main() -> int:
    """Runs the traffic. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Send many kinds of requests to a server that serves g2p-en.")
    parser.add_argument("target")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=16)
    given = parser.parse_args()
    print(asyncio.run(run(given.target, given.seconds, given.workers)), "actions completed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
