"""Runs batches: arrays in, arrays out. Knows lanes only as rows, and nothing of queues, requests or answers.

Shapes: `B` rows, padded up to a bucket; `T` time; `S` source; `V` vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from time import perf_counter
from typing import NamedTuple

import numpy as np

from service.engine.arena import Arena, IntArray
from service.engine.decoding import FloatArray
from service.engine.graph import Array, Graph
from service.engine.items import Items
from service.engine.jobs import EncodeJob, Lane
from service.engine.outcome import Outcome
from service.engine.scheduler import Batch
from service.engine.step_graph import StepGraph
from service.engine.trace_graph import TraceGraph
from service.engine.wants import Wants
from service.observer import GraphKind
from service.repository.bundle import Bundle
from service.repository.manifest import SOURCE_MULTIPLE

ROW_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""The batch sizes that graphs are run at: memory then does not grow with every size that traffic happens to make."""


class Ran(NamedTuple):
    """A batch that was run. outcome: None for the encoder; capacity: rows times width with padding."""

    outcome: Outcome | None
    capacity: int
    gather_s: float
    run_s: float


class Runner:
    """The graphs of one variant of a bundle over one arena. One thread at a time."""

    def __init__(self, bundle: Bundle, variant: str, arena: Arena) -> None:
        manifest = bundle.manifest
        graphs = bundle.variants[variant]
        self._manifest = manifest
        self._arena = arena
        self._step = StepGraph(manifest, graphs.step, graphs.step_spec)
        self._trace = None if bundle.trace is None else TraceGraph(manifest, bundle.trace)
        self._items = Items(manifest.step.feature_size)
        self._source_items = Items(0 if manifest.encoder is None else manifest.encoder.feature_size)
        self._initial = [state.initial for state in manifest.states]
        self._encoder = None if bundle.encoder is None else Graph(bundle.encoder)
        self._encoder_outputs = [name for name in self._initial if name] + [c.output for c in manifest.contexts]
        self._readout = None if graphs.readout is None else Graph(graphs.readout)
        self._readout_spec = graphs.readout_spec

    @property
    def has_readout(self) -> bool:
        """Whether it can tell what comes next from a state alone."""
        return self._readout is not None

    def run(self, batch: Batch, wants: Wants) -> Ran:
        """Runs a batch and writes the new state to the arena.

        Raises what ONNX Runtime raises, having written nothing.
        """
        if batch.kind == "encoder":
            return self._run_encoder(batch)
        return self._run_step(batch, wants) if batch.kind == "step" else self._run_readout(batch)

    def burst(self, lanes: list[Lane]) -> Burst:
        """Prepares to step lanes again and again, one token each."""
        return Burst(self._arena, self._step, [lane.slot.row for lane in lanes], [lane.context_row for lane in lanes])

    def fork(self, row: int, forks: list[int]) -> None:
        """Copies the state of a row to others."""
        self._arena.scatter(np.array(forks), self._arena.gather(np.full(len(forks), row)))

    def warm_up(self, max_rows: int) -> Iterator[tuple[GraphKind, int, float]]:
        """Runs the graphs at every batch size up to the bucket of `max_rows`, on the row that is nobody's.

        Yields (graph, rows, seconds) for each: of the second run of one token a row; for the encoder, of the shortest
        sources.
        """
        for count in ROW_BUCKETS[: bisect_left(ROW_BUCKETS, max_rows) + 1]:
            rows = np.zeros(count, dtype=np.int64)
            ones = self._items.blank(count, 1) + 1
            lengths = np.ones(count, dtype=np.int64)
            for attempt in range(2):
                began = perf_counter()
                self._step.run(ones, lengths, self._arena.gather(rows), self._contexts(rows), Wants(logits=True))
                if attempt:
                    yield "step", count, perf_counter() - began
            if self._readout is not None:
                for attempt in range(2):
                    began = perf_counter()
                    self._read_out(rows)
                    if attempt:
                        yield "readout", count, perf_counter() - began
            if self._encoder is not None:
                source = self._source_items.blank(count, SOURCE_MULTIPLE) + 1
                for attempt in range(2):
                    began = perf_counter()
                    self._encode(source, lengths)
                    if attempt:
                        # a cost counts by the width: one of SOURCE_MULTIPLE tokens, given for one
                        yield "encoder", count, (perf_counter() - began) / SOURCE_MULTIPLE

    def _run_step(self, batch: Batch, wants: Wants) -> Ran:
        began = perf_counter()
        lanes, groups = batch.lanes, batch.groups
        count, width = batch.num_rows, batch.width
        reads = writes = _rows([lane.slot.row for lane in lanes], [group.reads for group in groups], count)
        if any(group.writes is not group.reads for group in groups):
            writes = _rows([lane.slot.row for lane in lanes], [group.writes for group in groups], count)
        size = len(reads)
        lengths = np.ones(size, dtype=np.int64)
        tokens = self._items.blank(size, width)
        if width == 1:
            fed = [lane.inputs[lane.done] for lane in lanes]
            for group in groups:
                fed += group.tokens
            tokens[:count, 0] = self._items.array(fed)
        else:
            lengths[: len(lanes)] = batch.widths
            for index, (lane, wide) in enumerate(zip(lanes, batch.widths, strict=True)):
                tokens[index, :wide] = self._items.array(lane.inputs[lane.done : lane.done + wide])
            for group in groups:
                raise AssertionError(group)  # groups wait in the queue of single tokens
        contexts: list[Array] = []
        if self._manifest.contexts:
            owners = [lane.context_row for lane in lanes]
            contexts = self._contexts(_rows(owners, [group.contexts for group in groups], count))
        states = self._arena.gather(reads)
        gathered = perf_counter()
        trace: dict[str, list[FloatArray]] = {}
        if wants.trace and self._trace is not None:  # before the run: the arena's arrays are its own afterwards
            sources = self._arena.source_lengths([lane.context_row for lane in lanes])
            trace = self._trace.run(tokens, lengths, states, contexts, sources)
        outcome, states = self._step.run(tokens, lengths, states, contexts, wants)
        outcome.trace = trace
        ran = perf_counter()
        self._arena.keep(writes, count, states)
        return Ran(outcome, size * width, gathered - began, ran - gathered)

    def _contexts(self, rows: IntArray) -> list[Array]:
        return self._arena.gather_context(rows)

    def _run_readout(self, batch: Batch) -> Ran:
        began = perf_counter()
        rows = _rows([lane.slot.row for lane in batch.lanes], [], batch.num_rows)
        owners = _rows([lane.context_row for lane in batch.lanes], [], batch.num_rows)
        gathered = perf_counter()
        outcome = self._read_out(rows, owners)
        return Ran(outcome, len(rows), gathered - began, perf_counter() - gathered)

    def _read_out(self, rows: IntArray, context_rows: IntArray | None = None) -> Outcome:
        spec, manifest = self._readout_spec, self._manifest
        assert self._readout is not None  # noqa: S101  # only graphs with a readout are given such work
        assert spec is not None  # noqa: S101  # they come together
        feeds = {}
        for state, array in zip(manifest.states, self._arena.gather(rows), strict=True):
            if state.name in spec.states:
                feeds[state.input.name] = array
        contexts = self._contexts(rows if context_rows is None else context_rows)
        for context, array in zip(manifest.contexts, contexts, strict=True):
            if context.name in spec.contexts:
                feeds[context.input.name] = array
        (logits,) = self._readout.run([spec.logits.name], feeds)
        return Outcome(logits[:, np.newaxis].astype(np.float32, copy=False))

    def _run_encoder(self, batch: Batch) -> Ran:
        began = perf_counter()
        rows = _rows([lane.slot.row for lane in batch.lanes], [], batch.num_rows)
        count, size = batch.num_rows, len(rows)
        width = -(-batch.width // SOURCE_MULTIPLE) * SOURCE_MULTIPLE
        source = self._source_items.blank(size, width)
        lengths = np.ones(size, dtype=np.int64)
        lengths[:count] = batch.widths
        for index, lane in enumerate(batch.lanes):
            job = lane.job
            assert isinstance(job, EncodeJob)  # noqa: S101  # the stepper queues no other for the encoder
            source[index, : len(job.source)] = self._source_items.array(job.source)
        source[count:, 0] = source[0, 0]  # a padded row must read some real token
        gathered = perf_counter()
        outputs = self._encode(source, lengths)
        ran = perf_counter()
        given = [index for index, name in enumerate(self._initial) if name]
        self._arena.scatter(rows[:count], outputs[: len(given)], given)
        self._arena.set_context(rows[:count], lengths[:count], outputs[len(given) :])
        return Ran(None, size * width, gathered - began, ran - gathered)

    def _encode(self, source: Array, lengths: IntArray) -> list[Array]:
        spec = self._manifest.encoder
        assert spec is not None  # noqa: S101  # only models with an encoder are given encode jobs
        assert self._encoder is not None  # noqa: S101  # as above
        return self._encoder.run(self._encoder_outputs, {spec.source.name: source, spec.lengths.name: lengths})


class Burst:
    """Rows that step again and again: their state goes from run to run, and back to the arena when it is saved.

    rows, context_rows: [B].
    """

    def __init__(self, arena: Arena, step: StepGraph, rows: list[int], context_rows: list[int]) -> None:
        self._arena = arena
        self._step = step
        self._count = len(rows)
        self._rows = _rows(rows, [], self._count)
        self._states: list[Array] = arena.gather(self._rows)
        self._contexts = arena.gather_context(_rows(context_rows, [], self._count))
        self._tokens = np.zeros((len(self._rows), 1), dtype=np.int64)
        self._lengths = np.ones(len(self._rows), dtype=np.int64)

    @property
    def capacity(self) -> int:
        """Rows with padding."""
        return len(self._rows)

    def step(self, tokens: IntArray | list[int], wants: Wants) -> Outcome:
        """Consumes one token a row. tokens: [B]. Raises what ONNX Runtime raises, having changed nothing."""
        self._tokens[: self._count, 0] = tokens
        outcome, self._states = self._step.run(self._tokens, self._lengths, self._states, self._contexts, wants)
        return outcome

    def save(self, places: list[int]) -> None:
        """Writes the state of some of the rows to the arena."""
        self._arena.scatter(self._rows[places], self._states, places=places)


def _rows(rows: list[int], more: list[list[int]], count: int) -> IntArray:
    """Rows of the arena as an array, padded with nobody's up to a bucket."""
    padded = np.zeros(ROW_BUCKETS[bisect_left(ROW_BUCKETS, count)], dtype=np.int64)
    padded[: len(rows)] = rows
    begin = len(rows)
    for part in more:
        padded[begin : begin + len(part)] = part
        begin += len(part)
    return padded
