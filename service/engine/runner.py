"""Runs batches: arrays in, arrays out. Knows lanes only as rows, and nothing of queues, requests or answers.

Shapes: `B` rows, padded up to a bucket; `T` time; `S` source; `V` vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.engine.arena import Arena
from service.engine.decoding import FloatArray
from service.engine.graph import Array, Graph
from service.engine.jobs import EncodeJob
from service.engine.scheduler import Batch
from service.observer import GraphKind
from service.repository.bundle import Bundle
from service.repository.manifest import SOURCE_MULTIPLE, StepSpec

ROW_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""The batch sizes that graphs are run at: memory then does not grow with every size that traffic happens to make."""


class Ran(NamedTuple):
    """A batch that was run. logits: [B, T, V], or None for the encoder; capacity: rows times width with padding."""

    logits: FloatArray | None
    capacity: int
    gather_s: float
    run_s: float


class Runner:
    """The graphs of one bundle over one arena. One thread at a time."""

    def __init__(self, bundle: Bundle, arena: Arena) -> None:
        manifest = bundle.manifest
        self._manifest = manifest
        self._arena = arena
        self._step_spec: StepSpec = manifest.step
        self._step = Graph(bundle.step, [manifest.step.logits.name, *(s.output for s in manifest.states)])
        self._step_inputs = [state.input.name for state in manifest.states] + [
            context.input.name for context in manifest.contexts
        ]
        self._initial = [state.initial for state in manifest.states]
        self._encoder: Graph | None = None
        if bundle.encoder is not None:
            outputs = [name for name in self._initial if name] + [context.output for context in manifest.contexts]
            self._encoder = Graph(bundle.encoder, outputs)

    def run(self, batch: Batch) -> Ran:
        """Runs a batch and writes the new state to the arena.

        Raises what ONNX Runtime raises, having written nothing.
        """
        return self._run_encoder(batch) if batch.kind == "encoder" else self._run_step(batch)

    def warm_up(self, max_rows: int) -> Iterator[tuple[GraphKind, int, float]]:
        """Runs the graphs at every batch size up to the bucket of `max_rows`, on the row that is nobody's.

        Yields (graph, rows, seconds) for each: of the second run of one token a row; for the encoder, of the shortest
        sources.
        """
        for count in ROW_BUCKETS[: bisect_left(ROW_BUCKETS, max_rows) + 1]:
            rows = np.zeros(count, dtype=np.int64)
            ones = np.ones((count, 1), dtype=np.int64)
            lengths = np.ones(count, dtype=np.int64)
            for attempt in range(2):
                began = perf_counter()
                self._step.run(self._step_feeds(rows, ones, lengths))
                if attempt:
                    yield "step", count, perf_counter() - began
            if self._encoder is not None:
                source = np.ones((count, SOURCE_MULTIPLE), dtype=np.int64)
                for attempt in range(2):
                    began = perf_counter()
                    self._encoder.run(self._encoder_feeds(source, lengths))
                    if attempt:
                        # a cost counts by the width: one of SOURCE_MULTIPLE tokens, given for one
                        yield "encoder", count, (perf_counter() - began) / SOURCE_MULTIPLE

    def _run_step(self, batch: Batch) -> Ran:
        began = perf_counter()
        count, width = len(batch.lanes), max(batch.widths)
        size = ROW_BUCKETS[bisect_left(ROW_BUCKETS, count)]
        rows = np.zeros(size, dtype=np.int64)
        rows[:count] = [lane.slot.row for lane in batch.lanes]
        lengths = np.ones(size, dtype=np.int64)
        tokens = np.zeros((size, width), dtype=np.int64)
        if width == 1:
            tokens[:count, 0] = [lane.inputs[lane.done] for lane in batch.lanes]
        else:
            lengths[:count] = batch.widths
            for index, (lane, wide) in enumerate(zip(batch.lanes, batch.widths, strict=True)):
                tokens[index, :wide] = lane.inputs[lane.done : lane.done + wide]
        feeds = self._step_feeds(rows, tokens, lengths)
        gathered = perf_counter()
        logits, *states = self._step.run(feeds)
        ran = perf_counter()
        self._arena.scatter(rows[:count], states)
        return Ran(logits[:count].astype(np.float32, copy=False), size * width, gathered - began, ran - gathered)

    def _step_feeds(self, rows: NDArray[np.int64], tokens: Array, lengths: Array) -> dict[str, Array]:
        feeds = {self._step_spec.tokens.name: tokens, self._step_spec.lengths.name: lengths}
        arrays = self._arena.gather(rows) + self._arena.gather_context(rows)
        feeds.update(zip(self._step_inputs, arrays, strict=True))
        return feeds

    def _run_encoder(self, batch: Batch) -> Ran:
        assert self._encoder is not None  # noqa: S101  # only models with an encoder are given encode jobs
        began = perf_counter()
        count = len(batch.lanes)
        size = ROW_BUCKETS[bisect_left(ROW_BUCKETS, count)]
        width = -(-max(batch.widths) // SOURCE_MULTIPLE) * SOURCE_MULTIPLE
        source = np.zeros((size, width), dtype=np.int64)
        lengths = np.ones(size, dtype=np.int64)
        lengths[:count] = batch.widths
        for index, lane in enumerate(batch.lanes):
            job = lane.job
            assert isinstance(job, EncodeJob)  # noqa: S101  # the stepper queues no other for the encoder
            source[index, : len(job.source)] = job.source
        source[count:, 0] = source[0, 0]  # a padded row must read some real token
        rows = np.array([lane.slot.row for lane in batch.lanes], dtype=np.int64)
        feeds = self._encoder_feeds(source, lengths)
        gathered = perf_counter()
        outputs = self._encoder.run(feeds)
        ran = perf_counter()
        given = [index for index, name in enumerate(self._initial) if name]
        self._arena.scatter(rows, outputs[: len(given)], given)
        self._arena.set_context(rows, lengths[:count], outputs[len(given) :])
        return Ran(None, size * width, gathered - began, ran - gathered)

    def _encoder_feeds(self, source: Array, lengths: Array) -> dict[str, Array]:
        spec = self._manifest.encoder
        assert spec is not None  # noqa: S101  # as above
        return {spec.source.name: source, spec.lengths.name: lengths}
