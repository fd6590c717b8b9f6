"""The open-loop load generator: steps arrive at random, whether or not the server keeps up.

A closed loop waits for an answer before it sends the next request, so a slow server is asked for less and looks better
than it is ("coordinated omission"). Here arrivals are a Poisson process of a given rate, drawn beforehand, and a step's
latency counts from the moment at which it was to be sent, so that waiting counts wherever it is.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

import numpy as np

from benchmarks.streams import Streams
from benchmarks.traffic import Load, single_feeds

_SPIN_S = 0.002
"""Less than this is waited for by looking at the clock: the event loop's timers are coarser."""
_GRACE_S = 10.0


async def arrivals(target: str, load: Load) -> dict[str, float]:
    """Steps of one token, `rate` a second for `seconds`, each of the next of `streams` streams in turn.

    Returns what was sent and answered a second, percentiles of the latency from the scheduled arrival, and of the
    generator's own lag: how much later than scheduled it sent.
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
        while (ahead_s := due_s - clock()) > 0:  # noqa: ASYNC110  # it is the clock that is waited for
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
