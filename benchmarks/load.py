"""The load generators: a process of its own that keeps streams busy and prints what it saw as one line of JSON.

    python -m benchmarks.load lockstep 127.0.0.1:50051 --model lm-small --streams 64

They write ready-made bytes and parse next to nothing of what they read, so that the server is what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from benchmarks.arrivals import arrivals
from benchmarks.streams import NOTHING, Streams, feed
from carousel.v1 import inference_pb2 as pb

Seen = dict[str, float]
ENDED = pb.Generated(finish_reason=pb.FINISH_REASON_MAX_TOKENS).SerializeToString()


async def steps(call: Any, ready: list[bytes], stop_at_s: float, latencies: list[float]) -> None:
    """Sends one token and waits for its answer, over and over."""
    clock = time.perf_counter
    step = 0
    while (began := clock()) < stop_at_s:
        await call.write(ready[step % len(ready)])
        await call.read()
        latencies.append(clock() - began)
        step += 1


async def lockstep(arguments: argparse.Namespace) -> Seen:
    """Every stream in lockstep with the server for some seconds; `--long-feed`: beside one that feeds so many tokens at
    a time. Returns steps a second, and percentiles of a step's latency."""
    streams = Streams(arguments.target, arguments.model, durability=arguments.durability)
    calls = [await streams.open(index) for index in range(arguments.streams)]
    ready = [feed([1 + index % (arguments.vocabulary - 1)]) for index in range(64)]
    latencies: list[list[float]] = [[] for _ in calls]
    stop_at_s = time.perf_counter() + arguments.seconds
    long_feed = None
    if arguments.long_feed:
        # on a connection of its own: on a shared one its message would hold up the others' in the transport
        alone = await Streams(arguments.target, arguments.model, "long").open(0)
        message = feed([1] * arguments.long_feed, NOTHING)
        long_feed = asyncio.create_task(steps(alone, [message], stop_at_s, []))
    began = time.perf_counter()
    await asyncio.gather(*(steps(call, ready, stop_at_s, mine) for call, mine in zip(calls, latencies, strict=True)))
    elapsed = time.perf_counter() - began
    if long_feed is not None:
        long_feed.cancel()
    await streams.close()
    every = np.concatenate([np.array(mine) for mine in latencies])
    return {
        "per_second": len(every) / elapsed,
        "p50_s": float(np.percentile(every, 50)),
        "p99_s": float(np.percentile(every, 99)),
    }


async def generations(arguments: argparse.Namespace) -> Seen:
    """Every stream generates `--tokens` tokens, greedily, `--rounds` times in a row. Returns tokens a second."""
    streams = Streams(arguments.target, arguments.model)
    calls = [await streams.open(index) for index in range(arguments.streams)]
    decoding = pb.Decoding(max_tokens=arguments.tokens)
    message = pb.StreamRequest(request_id=7, generate=pb.Generate(decoding=decoding)).SerializeToString()
    for index, call in enumerate(calls):
        await call.write(feed([1 + index % (arguments.vocabulary - 1)], NOTHING))
        await call.read()

    async def one(call: Any) -> None:
        for _ in range(arguments.rounds):
            await call.write(message)
            # the reason is the last field of the last field: see the proto
            while not (await call.read()).endswith(ENDED):
                pass

    began = time.perf_counter()
    await asyncio.gather(*map(one, calls))
    elapsed = time.perf_counter() - began
    await streams.close()
    return {"per_second": arguments.streams * arguments.tokens * arguments.rounds / elapsed}


async def frames(arguments: argparse.Namespace) -> Seen:
    """One stream of `--streams` sessions that step together, `--in-flight` frames ahead. Returns tokens a second."""
    streams = Streams(arguments.target, arguments.model)
    call = await streams.open(0)
    opening = pb.StreamRequest(open=pb.Open(model=arguments.model)).SerializeToString()
    for _ in range(arguments.streams - 1):
        await call.write(opening)
        await call.read()
    handles = range(1, arguments.streams + 1)
    ready = []
    for shift in range(16):
        tokens = [1 + (handle + shift) % (arguments.vocabulary - 1) for handle in handles]
        step = pb.StepBatch(handles=handles, token_ids=tokens)
        ready.append(pb.StreamRequest(request_id=7, step_batch=step).SerializeToString())
    room = asyncio.Semaphore(arguments.in_flight)
    stop_at_s = time.perf_counter() + arguments.seconds
    num_sent = 0

    async def write() -> None:
        nonlocal num_sent
        while time.perf_counter() < stop_at_s:
            await room.acquire()
            await call.write(ready[num_sent % len(ready)])
            num_sent += 1

    writer = asyncio.create_task(write())
    num_read, answer = 0, b""
    began = time.perf_counter()
    while not writer.done() or num_read < num_sent:
        answer = await call.read()
        room.release()
        num_read += 1
    elapsed = time.perf_counter() - began
    stepped = pb.StreamResponse.FromString(answer).batch_stepped
    if stepped.errors or len(stepped.token_ids) != arguments.streams:
        raise RuntimeError(f"a frame failed: {stepped}")
    await streams.close()
    return {"per_second": arguments.streams * num_read / elapsed}


async def growth(arguments: argparse.Namespace) -> Seen:
    """Two lone sessions, one at position 100 and one at `--tokens`, stepped in turn: each one's median latency."""
    streams = Streams(arguments.target, arguments.model)
    young, old = await streams.open(0), await streams.open(0)
    for call, position in ((young, 100), (old, arguments.tokens)):
        for begin in range(0, position, 100_000):
            await call.write(feed([1] * min(100_000, position - begin), NOTHING))
            await call.read()
    ready = [feed([1])]
    latencies: tuple[list[float], list[float]] = ([], [])
    for _ in range(20):
        for call, mine in zip((young, old), latencies, strict=True):
            await steps(call, ready, time.perf_counter() + arguments.seconds / 40, mine)
    await streams.close()
    return {"young_s": float(np.median(latencies[0])), "old_s": float(np.median(latencies[1]))}


GENERATORS: dict[str, Callable[[argparse.Namespace], Awaitable[Seen]]] = {
    "lockstep": lockstep,
    "generations": generations,
    "frames": frames,
    "growth": growth,
    "arrivals": arrivals,
}


async def run(arguments: argparse.Namespace) -> Seen:
    """Runs the generator that was named."""
    return await GENERATORS[arguments.generator](arguments)


def main() -> None:
    """The command line of the process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("generator", choices=GENERATORS)
    parser.add_argument("target")
    parser.add_argument("--model", default="lm-small")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=64)
    parser.add_argument("--long-feed", type=int, default=0)
    parser.add_argument("--durability", default="none")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--in-flight", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1000.0)
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
