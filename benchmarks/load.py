"""The Python load generator, for machines that cannot build the native one. Its process keeps streams busy and prints
its figures as one line of JSON.

    python -m benchmarks.load lockstep 127.0.0.1:50051 --model lm-small --streams 64

It writes prepared bytes and parses almost nothing that it reads, but still uses a whole core. So its figures describe
the generator and the server together rather than the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Any

import numpy as np

from benchmarks.arrivals import arrivals
from benchmarks.cpu import cpu_seconds
from benchmarks.streams import Streams
from benchmarks.traffic import GROWTH_CHUNK, NOTHING, Load, feed, generate, single_feeds, step_batches
from carousel.v1 import inference_pb2 as pb

Seen = dict[str, float]
ENDED = pb.Generated(finish_reason=pb.FINISH_REASON_MAX_TOKENS).SerializeToString()


async def steps(call: Any, ready: list[bytes], stop_at_s: float, latencies: list[float]) -> None:
    """Sends one token and waits for its response, repeatedly, until `stop_at_s`. Appends the latencies in seconds."""
    clock = time.perf_counter
    step = 0
    while (began := clock()) < stop_at_s:
        await call.write(ready[step % len(ready)])
        await call.read()
        latencies.append(clock() - began)
        step += 1


async def lockstep(target: str, load: Load) -> Seen:
    """Every stream sends one token at a time. With `long_feed`, one more stream feeds that many tokens at a time."""
    streams = Streams(target, load.model, durability=load.durability)
    calls = [await streams.open(index) for index in range(load.streams)]
    ready = single_feeds(load)
    latencies: list[list[float]] = [[] for _ in calls]
    stop_at_s = time.perf_counter() + load.seconds
    long_feed = None
    if load.long_feed:
        # a connection of its own, because on a shared one its message would delay the others in the transport
        alone = await Streams(target, load.model, "long").open(0)
        message = feed([1] * load.long_feed, NOTHING)
        long_feed = asyncio.create_task(steps(alone, [message], stop_at_s, []))
    await asyncio.gather(*(steps(call, ready, stop_at_s, mine) for call, mine in zip(calls, latencies, strict=True)))
    if long_feed is not None:
        long_feed.cancel()
    await streams.close()
    every = np.concatenate([np.array(mine) for mine in latencies])
    return {
        "steps": len(every),
        "p50_s": float(np.percentile(every, 50)),
        "p99_s": float(np.percentile(every, 99)),
        "p999_s": float(np.percentile(every, 99.9)),
    }


async def generations(target: str, load: Load) -> Seen:
    """Every stream generates `tokens` tokens greedily, repeatedly."""
    streams = Streams(target, load.model)
    calls = [await streams.open(index) for index in range(load.streams)]
    message = generate(load)
    for index, call in enumerate(calls):
        await call.write(feed([1 + index % (load.vocabulary - 1)], NOTHING))
        await call.read()
    stop_at_s = time.perf_counter() + load.seconds
    num_generated = 0

    async def one(call: Any) -> None:
        nonlocal num_generated
        while time.perf_counter() < stop_at_s:
            await call.write(message)
            # `finish_reason` is the last field of `Generated`, which is the last field of the response: see the proto
            while not (await call.read()).endswith(ENDED):
                pass
            num_generated += 1

    await asyncio.gather(*map(one, calls))
    await streams.close()
    return {"steps": num_generated * load.tokens}


async def frames(target: str, load: Load) -> Seen:
    """One stream of `streams` sessions that step together, with up to `in_flight` step batches in flight."""
    streams = Streams(target, load.model)
    call = await streams.open(0)
    opening = pb.StreamRequest(open=pb.Open(model=load.model)).SerializeToString()
    for _ in range(load.streams - 1):
        await call.write(opening)
        await call.read()
    ready = step_batches(load)
    room = asyncio.Semaphore(load.in_flight)
    stop_at_s = time.perf_counter() + load.seconds
    num_sent = 0

    async def write() -> None:
        nonlocal num_sent
        while time.perf_counter() < stop_at_s:
            await room.acquire()
            await call.write(ready[num_sent % len(ready)])
            num_sent += 1

    writer = asyncio.create_task(write())
    num_read, answer = 0, b""
    while not writer.done() or num_read < num_sent:
        answer = await call.read()
        room.release()
        num_read += 1
    stepped = pb.StreamResponse.FromString(answer).batch_stepped
    if stepped.errors or len(stepped.token_ids) != load.streams:
        raise RuntimeError(f"a step batch failed: {stepped}")
    await streams.close()
    return {"steps": load.streams * num_read}


async def growth(target: str, load: Load) -> Seen:
    """Steps two lone sessions in turn, one at position 100 and one at `tokens`. Returns the median latency of each."""
    streams = Streams(target, load.model)
    young, old = await streams.open(0), await streams.open(0)
    for call, position in ((young, 100), (old, load.tokens)):
        for begin in range(0, position, GROWTH_CHUNK):
            await call.write(feed([1] * min(GROWTH_CHUNK, position - begin), NOTHING))
            await call.read()
    ready = [feed([1])]
    latencies: tuple[list[float], list[float]] = ([], [])
    for _ in range(20):
        for call, mine in zip((young, old), latencies, strict=True):
            await steps(call, ready, time.perf_counter() + load.seconds / 40, mine)
    await streams.close()
    return {
        "steps": len(latencies[0]) + len(latencies[1]),
        "stream0_p50_s": float(np.median(latencies[0])),
        "stream1_p50_s": float(np.median(latencies[1])),
    }


GENERATORS: dict[str, Callable[[str, Load], Awaitable[Seen]]] = {
    "lockstep": lockstep,
    "generations": generations,
    "frames": frames,
    "growth": growth,
    "arrivals": arrivals,
}


async def run(generator: str, target: str, load: Load, server_pid: int) -> Seen:
    """Runs a generator. Returns its figures, the steps per second, and the server's CPU time per step in microseconds.

    Unlike in the native generator, the time to open the streams counts too.
    """
    before_s, began = cpu_seconds(server_pid), time.perf_counter()
    seen = await GENERATORS[generator](target, load)
    cpu_s = cpu_seconds(server_pid) - before_s
    return {"per_second": seen["steps"] / (time.perf_counter() - began), "cpu_us": cpu_s * 1e6 / seen["steps"], **seen}


def main() -> None:
    """Runs the command line of the process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("generator", choices=GENERATORS)
    parser.add_argument("target")
    parser.add_argument("--server-pid", type=int, required=True)
    defaults = Load()
    for field in fields(Load):
        default = getattr(defaults, field.name)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(default), default=default)
    arguments = vars(parser.parse_args())
    load = Load(**{field.name: arguments[field.name] for field in fields(Load)})
    print(json.dumps(asyncio.run(run(arguments["generator"], arguments["target"], load, arguments["server_pid"]))))


if __name__ == "__main__":
    main()
