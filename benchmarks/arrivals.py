"""The open-loop load generator: steps arrive at random, whether or not the server keeps up.

A closed loop waits for a response before it sends the next request. So a slow server receives fewer requests and looks
better than it is ("coordinated omission"). Here arrivals are a Poisson process of a given rate, drawn before the
measurement. The latency of a step counts from its scheduled arrival, so time in any queue counts too.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

import numpy as np

from benchmarks.streams import Streams
from benchmarks.traffic import Load, single_feeds

_SPIN_S = 0.002
"""For waits shorter than this, the generator polls the clock, because the event loop's timers are less precise."""
_GRACE_S = 10.0


async def arrivals(target: str, load: Load) -> dict[str, float]:
    """Sends `rate` steps of one token per second for `seconds`. The `streams` streams take turns.

    Returns the number of answered steps, answered steps per second, percentiles of the latency from the scheduled
    arrival, and percentiles of the generator's own lag: how much later than scheduled it sent.
    """
    streams = Streams(target, load.model)
    calls = [await streams.open(index) for index in range(load.streams)]
    generator = np.random.default_rng(0)
    count = max(load.streams, int(load.rate * load.seconds))
    scheduled = np.cumsum(generator.exponential(1.0 / load.rate, count)).tolist()
    ready = single_feeds(load)
    sent: list[deque[float]] = [deque() for _ in calls]
    latencies: list[float] = []
    lags: list[float] = []
    clock = time.perf_counter

    async def read(index: int) -> None:
        call, mine = calls[index], sent[index]
        while True:
            await call.read()
            latencies.append(clock() - mine.popleft())

    readers = [asyncio.create_task(read(index)) for index in range(len(calls))]
    began = clock()
    for number, arrival in enumerate(scheduled):
        due_s = began + arrival
        while (ahead_s := due_s - clock()) > 0:  # noqa: ASYNC110  # the generator must poll the clock
            await asyncio.sleep(ahead_s - _SPIN_S if ahead_s > _SPIN_S else 0)
        lags.append(clock() - due_s)
        index = number % len(calls)
        sent[index].append(due_s)
        await calls[index].write(ready[number % len(ready)])
    while len(latencies) < count and clock() < began + scheduled[-1] + _GRACE_S:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    elapsed = clock() - began
    for reader in readers:
        reader.cancel()
    await streams.close()
    return {
        "steps": len(latencies),
        "per_second": len(latencies) / elapsed,
        "p50_s": float(np.percentile(latencies, 50)),
        "p99_s": float(np.percentile(latencies, 99)),
        "lag_p50_s": float(np.percentile(lags, 50)),
        "lag_p99_s": float(np.percentile(lags, 99)),
    }
