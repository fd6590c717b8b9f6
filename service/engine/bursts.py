"""Bursts: generations that step together, one step after the other, while the engine has nothing else to do.

Their state passes from run to run outside the arena, and their tokens are committed many at a time. So a step costs
little more than its run and, for rows that do not take the likeliest token, the choice. Rules:

1. A token that ends a generation, or fills its window, is committed as in any other batch: a session's output never
   depends on whether it ran in a burst.
2. When a generation ends, its state at that step is written to the arena. Its row continues to run, unused, until the
   burst ends.
3. A burst ends when choosing raises for any row. That step is undone; the next batch, which is not a burst, repeats it.
4. A burst ends when the engine has other work, but not in its first millisecond. Setting up a burst takes time, and if
   many requests come and go, the engine would spend all its time on that.
"""

from __future__ import annotations

from math import nan
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.arena import Arena, Array
from service.engine.decoding import IntArray, choose_batch
from service.engine.generations import ActiveGeneration
from service.engine.results import FetchSpec, StepResult
from service.engine.rows import padded
from service.engine.runner import StepGraph
from service.engine.scheduler import Batch
from service.engine.stepper import Stepper
from service.observer import BatchReport, EngineObserver

_LEAST_S = 0.001
"""How long a burst continues although the engine has other work, in seconds."""
_LEAST_ROOM = 2
"""Tokens that every window must have room for when a burst begins."""


class Driver(Protocol):
    """The thread that drives the engine, as a burst sees it."""

    def has_other_work(self) -> bool:
        """Whether the engine has something else to do."""

    def can_deliver(self) -> bool:
        """Whether tokens may be delivered now. If not, they wait and are delivered with later ones."""

    def deliver(self) -> None:
        """Passes the results so far to the event loop."""


class Bursts:
    """Runs bursts. Only for the thread that drives the engine."""

    def __init__(
        self, arena: Arena, graph: StepGraph, stepper: Stepper, observer: EngineObserver, output_size: int
    ) -> None:
        self._arena = arena
        self._graph = graph
        self._stepper = stepper
        self._observer = observer
        self._output_size = output_size
        self._is_barred = False

    def take_eligible(self, batch: Batch) -> list[ActiveGeneration]:
        """Returns the generations of a batch if all of it can run as a burst and nothing else waits; else none."""
        if self._is_barred:
            self._is_barred = False
            return []
        if batch.kind != "step" or batch.groups or batch.width > 1 or len(self._stepper.scheduler):
            return []
        found = [job for job in batch.jobs if isinstance(job, ActiveGeneration)]
        if len(found) < len(batch.jobs) or any(generation.request.room < _LEAST_ROOM for generation in found):
            return []
        return found

    def run(self, jobs: list[ActiveGeneration], driver: Driver) -> tuple[list[ActiveGeneration], Exception | None]:
        """Steps generations until the engine has other work or they must stop, and commits every token.

        Returns the generations that are not finished, and the exception that a run raised, or None. After an exception,
        the state is as it was before that run.
        """
        burst = Burst(self._arena, self._graph, [job.lane.slot.row for job in jobs], [j.lane.context_row for j in jobs])
        progress = _Progress(jobs, burst, self._stepper, self._output_size)
        error = None
        began = perf_counter()
        queue_s = _begun(jobs, began)
        ready_at_s = began + _LEAST_S
        while not progress.must_stop:
            num_rows = len(progress.active)
            began = perf_counter()
            try:
                result = burst.step(progress.tokens, progress.fetch)
            except Exception as raised:  # ONNX Runtime has exception classes of its own
                error = raised
                break
            committing = perf_counter()
            try:
                progress.take(result)
            except Exception:  # the next batch repeats this step and finds out which row raises
                burst.undo()
                self._is_barred = True
                break
            if driver.can_deliver():
                progress.commit()
                driver.deliver()
            ended = perf_counter()
            times = committing - began, ended - committing
            report = BatchReport("step", num_rows, num_rows, burst.capacity, queue_s, 0.0, *times)
            self._observer.batch_ran(report)
            if self._observer.is_tracing:
                self._observer.batch_traced([job.job.tag for job in jobs], report)
            queue_s = ()
            if ended >= ready_at_s and driver.has_other_work():
                break
        return progress.end(), error


class Burst:
    """Rows that step again and again. Their state passes from run to run; `save` writes it to the arena.

    rows, context_rows: [N] arena rows of the state and of the context, without padding.
    """

    def __init__(self, arena: Arena, graph: StepGraph, rows: list[int], context_rows: list[int]) -> None:
        self._arena = arena
        self._graph = graph
        self._count = len(rows)
        self._rows = padded(rows)
        self._states: list[Array] = arena.gather(self._rows)
        self._before = self._states
        self._contexts = arena.gather_context(padded(context_rows))
        self._tokens = np.zeros((len(self._rows), 1), dtype=np.int64)
        self._lengths = np.ones(len(self._rows), dtype=np.int64)

    @property
    def capacity(self) -> int:
        """Number of rows with padding."""
        return len(self._rows)

    def step(self, tokens: IntArray | list[int], fetch: FetchSpec) -> StepResult:
        """Consumes one token a row. tokens: [N]. Raises what ONNX Runtime raises; nothing has changed then."""
        self._tokens[: self._count, 0] = tokens
        result, states = self._graph.run(
            self._tokens, self._lengths, self._states, self._contexts, fetch, count=self._count
        )
        self._before, self._states = self._states, states
        return result

    def undo(self) -> None:
        """Restores the state from before the last step. Only one step can be undone."""
        self._states = self._before

    def save(self, places: list[int]) -> None:
        """Writes the state of the rows at `places` to the arena."""
        self._arena.scatter(self._rows[places], self._states, places=places)


class _Progress:
    """The progress of a burst's generations.

    active: places of unfinished generations; tokens: [N] the next token of each row; fetch: outputs that the runs need.
    """

    def __init__(self, jobs: list[ActiveGeneration], burst: Burst, stepper: Stepper, output_size: int) -> None:
        self.active = list(range(len(jobs)))
        self.tokens: IntArray = np.array([job.inputs[0] for job in jobs])
        self._burst = burst
        self._jobs = jobs
        self._steps: list[list[int]] = []
        self._choosers = [place for place, job in enumerate(jobs) if not job.takes_likeliest]
        self._scores: dict[int, list[float]] = {
            place: [] for place in self._choosers if jobs[place].request.decoding.log_probabilities
        }
        self.fetch = FetchSpec(logits=stepper.keeps_logits or bool(self._choosers))
        self._is_end = np.zeros(output_size, np.bool_)
        self._is_end[_ends(jobs, stepper.eos_id)] = True
        self._left = np.array([job.request.decoding.max_tokens - job.request.num_produced for job in jobs])
        self._room = min(job.request.room for job in jobs)

    @property
    def must_stop(self) -> bool:
        """Whether a window is full, or most of the rows belong to finished generations."""
        return self._room <= 0 or 2 * len(self.active) < len(self._jobs)

    def take(self, result: StepResult) -> None:
        """Takes the result of a step. Raises what choosing raises."""
        if result.next_tokens is None:
            raise ValueError("a step of one token a row returned no next tokens")
        self.tokens = result.next_tokens[: len(self._jobs), 0].astype(np.int64)
        scores = self._choose(result) if self._choosers else {}
        self._left -= 1
        ends = self._is_end[self.tokens] | (self._left == 0)
        if ends.any():
            self._end_rows(ends, scores, result)
        for place in self._choosers:
            self._jobs[place].advance_choice(int(self.tokens[place]))
            if place in self._scores:
                self._scores[place].append(scores[place])
        self._steps.append(self.tokens.tolist())
        self._room -= 1
        if not self._room:
            self.commit()

    def commit(self) -> None:
        """Commits the tokens of all steps that were taken but not committed."""
        if self._steps and self.active:
            columns = list(zip(*self._steps, strict=True))
            for place in self.active:
                self._commit(place, list(columns[place]))
            self._room = min(self._jobs[place].request.room for place in self.active)
        self._steps.clear()

    def end(self) -> list[ActiveGeneration]:
        """Commits everything, writes the state to the arena, and schedules the unfinished generations for their next
        batch. Returns them."""
        self.commit()
        self._burst.save(self.active)
        going = [self._jobs[place] for place in self.active]
        for job in going:
            job.schedule_next()
        return going

    def _commit(self, place: int, token_ids: list[int]) -> None:
        scores = self._scores.get(place)
        if scores is not None:
            self._scores[place] = []
        self._jobs[place].take_many(token_ids, scores)

    def _choose(self, result: StepResult) -> dict[int, float]:
        """Replaces the likeliest token of each row that chooses in another way. Returns the log-probabilities of these
        rows, NaN where they were not asked for."""
        choices = [choice for choice in (self._jobs[place].choice for place in self._choosers) if choice is not None]
        chosen, scores = choose_batch(result.row(self._choosers, 0), choices)
        self.tokens[self._choosers] = chosen
        return dict(zip(self._choosers, scores.tolist(), strict=True))

    def _end_rows(self, ends: NDArray[np.bool_], scores: dict[int, float], result: StepResult) -> None:
        ended = [place for place in self.active if ends[place]]
        self.active = [place for place in self.active if not ends[place]]
        self._choosers = [place for place in self._choosers if not ends[place]]
        self._burst.save(ended)
        for place in ended:
            if self._steps:
                self._commit(place, [step[place] for step in self._steps])
            self._jobs[place].commit_token(int(self.tokens[place]), scores.get(place, nan), result, place)


def _ends(jobs: list[ActiveGeneration], eos_id: int | None) -> list[int]:
    """Returns the tokens that may end one of the generations."""
    ends = set().union(*(job.request.decoding.stop_ids for job in jobs))
    return sorted(ends if eos_id is None else ends | {eos_id})


def _begun(jobs: list[ActiveGeneration], now_s: float) -> tuple[float, ...]:
    """Marks the requests as started. Returns, for each that starts now, how long it has waited, in seconds."""
    waited = []
    for request in [job.request for job in jobs]:
        if not request.is_started:
            request.is_started = True
            waited.append(now_s - request.submitted_s)
    return tuple(waited)
