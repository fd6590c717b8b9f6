"""Runs batches: arrays in, arrays out. Sees jobs only as rows; knows no queues, no requests and no answers.

Only this file knows which inputs and outputs the step graph of a variant has. Arrays that are the same in many batches
are reused, because making one costs as much as ten lines of Python.

A row gets the same bits in any batch and any chunk. ONNX Runtime does not promise that of every graph: `export` proves
it for each graph before it writes a bundle.

Shapes: `B` rows, padded up to a bucket; `T` time; `S` source; `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from service.engine.arena import Arena, Array, IntArray
from service.engine.jobs import Item, Items
from service.engine.results import LOGITS, FetchSpec, StepResult
from service.engine.rows import ROW_BUCKETS, Axes, bucket, padded, run_alike, run_steps, run_whole_steps
from service.engine.scheduler import Batch
from service.engine.trace_graph import TraceGraph
from service.observer import GraphKind
from service.repository.bundle import Bundle
from service.repository.manifest import SOURCE_MULTIPLE, Manifest, StepSpec
from service.repository.uniform import groups_of

_LONG_S = 0.005  # of a run that takes this long, what only a first run does is a small part


class Ran(NamedTuple):
    """The result of a run; without logits for the encoder. capacity: rows times width with padding."""

    result: StepResult
    capacity: int
    gather_s: float
    run_s: float


class StepGraph:
    """The step graph: advances rows. For one thread at a time; ONNX Runtime releases the GIL while it runs. A graph
    with a fixed batch axis of 1 runs row by row; one with a uniform state (without a batch axis in
    the graph) once for each value in the batch. chunk_graph: the step in a loop, for chunks of several tokens."""

    def __init__(
        self,
        manifest: Manifest,
        session: ort.InferenceSession,
        spec: StepSpec,
        chunk_graph: ort.InferenceSession | None = None,
    ) -> None:
        self._session = session
        self._chunk_graph = chunk_graph
        self._spec = spec
        self._states = [state.input for state in manifest.states]
        self._state_names = [tensor.name for tensor in self._states]
        self._carried_names = self._state_names + [one.input.name for one in manifest.contexts]
        self._input, self._output = spec.input.name, spec.output.name
        self._lengths = None if spec.lengths is None else spec.lengths.name
        self._gives_values = spec.values is not None
        self._uniform = [place for place, state in enumerate(manifest.states) if state.is_uniform]
        self._constants = {one.name: np.array(one.values, one.dtype).reshape(one.shape) for one in spec.constants}
        states = [state.output for state in manifest.states]
        self._num_states = len(states)
        heads = [] if spec.next_token is None else [spec.next_token.name]
        self._has_next_token = bool(heads)
        self._axes = [tensor.shape.index("batch") for tensor in self._states]
        self._names = {False: [*states, *heads], True: [*states, *heads, self._output]}

    def run(
        self,
        tokens: Array,
        lengths: IntArray,
        states: list[Array],
        contexts: list[Array],
        fetch: FetchSpec,
        *,
        count: int,
    ) -> tuple[StepResult, list[Array]]:
        """Runs the graph once. tokens: [B, T], or features [B, T, F]; lengths: [B]; states, contexts: in the manifest's
        order; count: rows without padding. Returns its outputs and the next states. Raises what ONNX Runtime raises."""
        is_long = self._lengths is None and tokens.shape[1] > 1
        if is_long and (self._uniform or self._spec.max_rows == 1 < len(tokens) or lengths.min() < tokens.shape[1]):
            return run_steps(self.run, tokens, lengths, states, contexts, axes=self._axes, fetch=fetch, count=count)
        feeds: dict[str, Array] = dict(zip(self._carried_names, (*states, *contexts), strict=True))
        feeds[self._input] = tokens
        session = self._session
        if self._lengths is not None and (self._chunk_graph is None or tokens.shape[1] > 1):
            feeds[self._lengths] = lengths
            session = session if self._chunk_graph is None else self._chunk_graph
        if self._constants:
            feeds |= self._constants
        top_k = self._spec.top_k if fetch.top_k else None
        has_logits = fetch.logits or not self._has_next_token or (fetch.top_k > 0 and top_k is None)
        names = self._names[has_logits]
        if top_k is not None:
            feeds[top_k.k.name] = np.array([fetch.top_k], np.int64)
            names = [*names, top_k.log_probabilities.name, top_k.token_ids.name]
        alike: Sequence[Sequence[int]] = ()
        if len(tokens) > 1:
            if self._spec.max_rows == 1:
                alike = [[row] for row in range(count)]
            elif self._uniform:
                alike = groups_of([(states[place], self._axes[place]) for place in self._uniform], count)
        if alike:
            along = [*self._axes, *[0] * (len(names) - self._num_states)]
            shared = {*self._constants, *(() if top_k is None else (top_k.k.name,))}
            own = dict(zip(self._state_names, self._axes, strict=True))
            outputs = run_alike(session, names, feeds, alike, Axes(len(tokens), own, shared, along))
        elif is_long:
            outputs = run_whole_steps(session, names, feeds, self._input, self._state_names)
        else:
            outputs = session.run(names, feeds)
        ranked = (None, None) if top_k is None else (outputs[-2], outputs[-1])
        at = self._num_states
        next_tokens = outputs[at] if self._has_next_token else None
        logits = None
        if has_logits:
            logits = outputs[at + self._has_next_token].astype(np.float32, copy=False)
        return StepResult(logits, next_tokens, *ranked, gives_values=self._gives_values), outputs[:at]


class Runner:
    """Runs the graphs of one variant of a bundle over one arena. For one thread at a time."""

    def __init__(self, bundle: Bundle, variant: str, arena: Arena) -> None:
        manifest = bundle.manifest
        graphs = bundle.variants[variant]
        self._manifest = manifest
        self._arena = arena
        self.step_graph = StepGraph(manifest, graphs.step, graphs.step_spec, graphs.loop)
        self._trace = None if bundle.trace is None else TraceGraph(manifest, bundle.trace)
        self._items = Items(manifest.step.feature_size)
        self._source_items = Items(0 if manifest.encoder is None else manifest.encoder.feature_size)
        self._initial = [state.initial for state in manifest.states]
        self._encoder = bundle.encoder
        self._encoder_outputs = [name for name in self._initial if name] + [c.output for c in manifest.contexts]
        self._has_chunk_graph = graphs.loop is not None
        self._readout = graphs.readout
        self._readout_spec = graphs.readout_spec
        self._has_contexts = bool(manifest.contexts)
        self._rows: tuple[list[int], IntArray] = ([], padded([]))
        self._single: dict[int, tuple[Array, IntArray]] = {}
        """By batch size: buffers for one token a row, and for lengths of 1."""

    @property
    def has_readout(self) -> bool:
        """Whether a graph computes the next logits from a state alone."""
        return self._readout is not None

    def run(self, batch: Batch, fetch: FetchSpec) -> Ran:
        """Runs a batch and writes the new state to the arena.

        Raises what ONNX Runtime raises; the arena is unchanged then.
        """
        if batch.kind == "encoder":
            return self._run_encoder(batch)
        if batch.kind == "readout":
            return self._run_readout(batch)
        began = perf_counter()
        count, width = batch.num_rows, batch.width
        reads: list[int] = []
        fed: list[Item] = []
        for job in batch.jobs:
            reads.append(job.lane.slot.row)
            fed.append(job.inputs[job.done])
        has_own_writes = False
        for group in batch.groups:
            reads += group.reads
            fed += group.tokens
            has_own_writes = has_own_writes or group.writes is not group.reads
        if reads == self._rows[0]:
            rows = self._rows[1]
        else:
            rows = padded(reads)
            self._rows = reads, rows
        size = len(rows)
        if width == 1:
            tokens, lengths = self._tokens(fed, size)
        else:
            tokens, lengths = self._chunks(batch, size)
        contexts: list[Array] = self._contexts(batch) if self._has_contexts else []
        states = self._arena.gather(rows)
        gathered = perf_counter()
        trace = None
        if fetch.trace and self._trace is not None:  # before the step, while `states` is what the step reads
            sources = self._arena.source_lengths([job.lane.context_row for job in batch.jobs])
            trace = self._trace.run(tokens, lengths, states, contexts, sources)
        result, states = self.step_graph.run(tokens, lengths, states, contexts, fetch, count=count)
        if trace:
            result.trace = trace
        ran = perf_counter()
        self._arena.keep(self._writes(batch) if has_own_writes else rows, count, states)
        return Ran(result, size * width, gathered - began, ran - gathered)

    def copy_row(self, row: int, targets: list[int]) -> None:
        """Copies the state of a row to other rows."""
        self._arena.scatter(np.array(targets), self._arena.gather(np.full(len(targets), row)))

    def warm_up(self, max_rows: int) -> Iterator[tuple[GraphKind, int, float]]:
        """Runs the graphs at every batch size up to the bucket of `max_rows`, on row 0, which belongs to no session.

        Yields (graph, rows, seconds) of a run with one token a row; for the encoder, with the shortest sources.
        """
        for count in ROW_BUCKETS[: ROW_BUCKETS.index(bucket(max_rows)) + 1]:
            rows, lengths = np.zeros(count, dtype=np.int64), np.ones(count, dtype=np.int64)
            yield "step", count, _seconds(partial(self._run_blank, rows, 1))
            if self._has_chunk_graph:  # warm-up only: its first run takes longer
                self._run_blank(rows, 2)
            if self._readout is not None:
                yield "readout", count, _seconds(partial(self._read_out, rows, rows))
            if self._encoder is not None:
                source = self._source_items.blank(count, SOURCE_MULTIPLE) + 1
                yield "encoder", count, _seconds(partial(self._encode, source, lengths)) / SOURCE_MULTIPLE  # per token

    def _run_blank(self, rows: IntArray, width: int) -> None:
        """Runs the step graph with `width` tokens a row, and drops what it returns."""
        count = len(rows)
        tokens, lengths = self._items.blank(count, width) + 1, np.full(count, width, dtype=np.int64)
        states, contexts = self._arena.gather(rows), self._arena.gather_context(rows)
        self.step_graph.run(tokens, lengths, states, contexts, LOGITS, count=count)

    def _tokens(self, fed: list[Item], size: int) -> tuple[Array, IntArray]:
        """Returns one token a row, and lengths of 1, in reused buffers. A padded row gets token 0, or zeros."""
        kept = self._single.get(size)
        if kept is None:
            kept = self._single[size] = self._items.blank(size, 1), np.ones(size, dtype=np.int64)
        tokens = kept[0]
        count = len(fed)
        tokens[:count, 0] = self._items.array(fed) if self._items.feature_size else fed
        if count < size:
            tokens[count:] = 0
        return kept

    def _chunks(self, batch: Batch, size: int) -> tuple[Array, IntArray]:
        """Returns several tokens a row, and the lengths. The batch has no groups: these queue for single tokens."""
        lengths = np.ones(size, dtype=np.int64)
        lengths[: len(batch.jobs)] = batch.widths
        tokens = self._items.blank(size, batch.width)
        for index, (job, wide) in enumerate(zip(batch.jobs, batch.widths, strict=True)):
            tokens[index, :wide] = self._items.array(job.inputs[job.done : job.done + wide])
        return tokens, lengths

    def _writes(self, batch: Batch) -> IntArray:
        """Returns the rows that the next state is written to, when they differ from the rows that are read."""
        rows = [job.lane.slot.row for job in batch.jobs]
        for group in batch.groups:
            rows += group.writes
        return padded(rows)

    def _contexts(self, batch: Batch) -> list[Array]:
        rows = [job.lane.context_row for job in batch.jobs]
        for group in batch.groups:
            rows += group.contexts
        return self._arena.gather_context(padded(rows))

    def _run_readout(self, batch: Batch) -> Ran:
        began = perf_counter()
        rows = padded([job.lane.slot.row for job in batch.jobs])
        owners = padded([job.lane.context_row for job in batch.jobs])
        gathered = perf_counter()
        result = self._read_out(rows, owners)
        return Ran(result, len(rows), gathered - began, perf_counter() - gathered)

    def _read_out(self, rows: IntArray, context_rows: IntArray) -> StepResult:
        spec, manifest = self._readout_spec, self._manifest
        assert self._readout is not None  # noqa: S101  # only models with a readout get readout jobs
        assert spec is not None  # noqa: S101  # a readout always has its spec
        feeds = {}
        for state, array in zip(manifest.states, self._arena.gather(rows), strict=True):
            if state.name in spec.states:
                feeds[state.input.name] = array
        for context, array in zip(manifest.contexts, self._arena.gather_context(context_rows), strict=True):
            if context.name in spec.contexts:
                feeds[context.input.name] = array
        (logits,) = self._readout.run([spec.logits.name], feeds)
        return StepResult(logits[:, np.newaxis].astype(np.float32, copy=False))

    def _run_encoder(self, batch: Batch) -> Ran:
        began = perf_counter()
        rows = padded([job.lane.slot.row for job in batch.jobs])
        count, size = batch.num_rows, len(rows)
        width = -(-batch.width // SOURCE_MULTIPLE) * SOURCE_MULTIPLE
        source = self._source_items.blank(size, width)
        lengths = np.ones(size, dtype=np.int64)
        lengths[:count] = batch.widths
        for index, job in enumerate(batch.jobs):
            source[index, : len(job.source)] = self._source_items.array(job.source)
        source[count:, 0] = source[0, 0]  # a padded row must read a real token
        gathered = perf_counter()
        outputs = self._encode(source, lengths)
        ran = perf_counter()
        given = [index for index, name in enumerate(self._initial) if name]
        self._arena.scatter(rows[:count], outputs[: len(given)], given)
        self._arena.set_context(rows[:count], lengths[:count], outputs[len(given) :])
        return Ran(StepResult(None), size * width, gathered - began, ran - gathered)

    def _encode(self, source: Array, lengths: IntArray) -> list[Array]:
        spec = self._manifest.encoder
        assert spec is not None  # noqa: S101  # only models with an encoder get encode jobs
        assert self._encoder is not None  # noqa: S101  # as above
        outputs: list[Array] = self._encoder.run(
            self._encoder_outputs, {spec.source.name: source, spec.lengths.name: lengths}
        )
        return outputs


def _seconds(run: Callable[[], object]) -> float:
    """Returns how long a run takes: the second, because the first takes longer, unless it is a long one."""
    for _ in range(2):
        began = perf_counter()
        run()
        if (seconds := perf_counter() - began) >= _LONG_S:
            break
    return seconds
