"""An engine over a real graph, with futures for the results of its jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime as ort

from service.engine.arena import Array
from service.engine.decoding import Decoding
from service.engine.engine import Engine
from service.engine.jobs import FeedJob, GenerateJob, Job, Lane, OutputKind, OutputSpec
from service.engine.limits import EngineLimits
from service.engine.results import Fed, Generated, LaneState, Result
from service.observer import BatchReport, GraphKind
from service.repository.bundle import load_bundle
from service.repository.manifest import BASE_VARIANT
from tests.domain import ids
from tests.reference import ReferenceSession

LOGITS = OutputSpec(OutputKind.LOGITS, every_position=True)


class Recorder:
    """An `EngineObserver` that records its reports."""

    def __init__(self) -> None:
        self.batches: list[BatchReport] = []
        self.failures: list[BaseException] = []
        self.is_tracing = False
        self.traced: list[Sequence[object]] = []

    def batch_traced(self, tags: Sequence[object], report: BatchReport) -> None:
        self.traced.append(tags)

    def batch_ran(self, report: BatchReport) -> None:
        self.batches.append(report)

    def batch_failed(self, kind: GraphKind, num_rows: int, error: BaseException) -> None:
        self.failures.append(error)


class FailingGraph:
    """Has the `run` method of `ort.InferenceSession` that the engine calls, and runs another graph.

    num_left: after this many more runs, every run raises `RuntimeError("no memory")`; None: no run raises.
    """

    def __init__(self) -> None:
        self.graph: ort.InferenceSession | None = None
        self.num_left: int | None = None

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        assert self.graph is not None
        if self.num_left is not None:
            if not self.num_left:
                raise RuntimeError("no memory")
            self.num_left -= 1
        results: list[Array] = self.graph.run(outputs, inputs)
        return results


class Caller:
    """Submits jobs to an engine and awaits their results."""

    def __init__(self, engine: Engine, recorder: Recorder) -> None:
        self.engine = engine
        self.recorder = recorder

    def feed(self, lane: Lane, tokens: list[int], outputs: OutputSpec = LOGITS) -> asyncio.Future[Result]:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.engine.submit(lane, FeedJob(reply=_resolve, tag=future, start=None, tokens=tokens, outputs=outputs))
        return future

    def generate(
        self, lane: Lane, decoding: Decoding, window: int = 10_000
    ) -> tuple[GenerateJob, asyncio.Queue[Result]]:
        queue: asyncio.Queue[Result] = asyncio.Queue()
        job = GenerateJob(
            reply=lambda job, result: queue.put_nowait(result), start=None, decoding=decoding, window=window
        )
        self.engine.submit(lane, job)
        return job, queue

    async def tokens(self, lane: Lane, decoding: Decoding) -> list[int]:
        _, queue = self.generate(lane, decoding)
        found: list[int] = []
        while True:
            result = await queue.get()
            assert isinstance(result, Generated)
            found += ids(result.token_ids)
            if result.finish_reason is not None:
                return found

    async def state(self, lane: Lane) -> LaneState:
        """Returns a copy of an idle lane's state."""
        states: asyncio.Future[list[LaneState | None]] = asyncio.get_running_loop().create_future()
        self.engine.read([lane], states.set_result)
        (state,) = await states
        assert state is not None
        return state

    async def closed(self, lane: Lane) -> None:
        done = asyncio.Event()
        self.engine.close(lane, done.set)
        await done.wait()


def _resolve(job: Job, result: Result) -> None:
    job.tag.set_result(result)


async def taken(queue: asyncio.Queue[Result], count: int) -> list[int]:
    """Returns the tokens of a generation's next results, until there are `count` or more."""
    tokens: list[int] = []
    while len(tokens) < count:
        result = await queue.get()
        assert isinstance(result, Generated)
        tokens += ids(result.token_ids)
    return tokens


@asynccontextmanager
async def running(
    folder: Path, limits: EngineLimits | None = None, *, graph: FailingGraph | None = None
) -> AsyncIterator[Caller]:
    """Yields the caller of an engine. graph: runs in the place of the step graph, and is given that graph."""
    recorder = Recorder()
    crashes: list[BaseException] = []
    limits = limits or EngineLimits(num_slots=300)
    bundle = load_bundle(folder)
    if graph is not None:
        graph.graph = bundle.step
        step = replace(bundle.variants[BASE_VARIANT], step=cast(ort.InferenceSession, graph))
        bundle = replace(bundle, variants={**bundle.variants, BASE_VARIANT: step})
    engine = Engine(bundle, limits, recorder, asyncio.get_running_loop(), crashes.append)
    engine.start()
    try:
        yield Caller(engine, recorder)
    finally:
        engine.stop()
        assert not crashes


def logits_of(result: Result) -> np.ndarray:
    assert isinstance(result, Fed), result
    return np.array([output.logits for output in result.outputs])


def reference_logits(folder: Path, tokens: list[int]) -> np.ndarray:
    session = ReferenceSession(folder)
    return np.array([session.step(token) for token in tokens])
