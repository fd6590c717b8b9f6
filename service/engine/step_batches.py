"""Step batches: many lanes that consume tokens together and get one answer, with a column for each value.

A step batch begins when its turn has come in all of its lanes, and holds them until all rows are done. Rows with one
token and nothing pending, which are nearly all rows, run in groups. Any other row is a feed of its own, a part of the
step batch. A row that fails affects no other row. Its lane continues at once, after a failed run without its queue.

A gateway sends one step batch after the other for the same sessions. These batches wait in one chain for all lanes, not
in each lane's queue, until one of the lanes gets another request.

All work is linear in the number of lanes, also when rows fail or sessions leave: the table of places is made once, and
all dropped rows of a group are removed together when the group runs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar

import numpy as np

from service.engine.jobs import VALUES, Lane, OutputKind, Remainder, StepBatchJob
from service.engine.results import Failed, Fed, Result, StepOutput, Stepped, StepResult, fetch_for
from service.engine.scheduler import Group
from service.engine.stepper import ActiveFeed, Stepper
from service.errors import CarouselError, EngineError, position_mismatch


def submit_step_batch(stepper: Stepper, job: StepBatchJob, output_size: int) -> ActiveStepBatch:
    """Begins a step batch, or appends it to a chain or to all its lanes' queues. output_size: V."""
    batch, head = ActiveStepBatch(stepper, job, output_size), job.lanes[0].active
    if not (isinstance(head, ActiveStepBatch) and head.try_chain(batch)):
        batch.enter()
    return batch


class ActiveStepBatch:
    """A step batch from its submission to its answer; it collects the answer's columns.

    job: the request. positions: [N] of lanes that are done or have failed; errors: by place, for rows that failed.
    num_lanes_missing: lanes in which its turn has not come. chain: later step batches of the same lanes; is_alone:
    whether this one holds all of its lanes, and nothing waits in any of them except the chain.
    """

    __slots__ = (
        "_apart",
        "_firsts",
        "_groups",
        "_is_answered",
        "_is_begun",
        "_is_done",
        "_log_probabilities",
        "_logits",
        "_num_left",
        "_outputs",
        "_places",
        "_stepper",
        "_token_ids",
        "chain",
        "errors",
        "is_alone",
        "job",
        "num_lanes_missing",
        "positions",
    )

    survives_cancel: ClassVar[bool] = False

    def __init__(self, stepper: Stepper, job: StepBatchJob, output_size: int) -> None:
        self._stepper, self.job = stepper, job
        count = len(job.lanes)
        is_emitted = job.outputs.kind is OutputKind.EMITTED
        self._outputs = VALUES if is_emitted else job.outputs
        kind, size = self._outputs.kind, count * job.width
        self.positions = [0] * count
        self._token_ids = [0] * size
        self._log_probabilities = [0.0] * size if kind is OutputKind.TOP_K else []
        self._logits = np.zeros((count, output_size), np.float32) if kind.is_vector else None
        self.errors: dict[int, CarouselError] = {}
        self._is_done = bytearray(count)
        self._num_left = self.num_lanes_missing = count
        self._groups: list[Group] = []
        self._firsts: list[int] = []
        self._places: dict[Lane, int] = {}
        self._apart: set[int] = set()
        self._is_answered = self._is_begun = self.is_alone = False
        self.chain: deque[ActiveStepBatch] = deque()

    def enter(self) -> None:
        """Makes itself the active job of the idle lanes, and enters the queues of the others."""
        late = []
        for place, lane in enumerate(self.job.lanes):
            if lane.active is None and lane.refusal is None and not lane.queue:
                lane.active = self
            else:
                late.append((place, lane))
        self.num_lanes_missing = len(late)
        for place, lane in late:
            if lane.refusal is None:
                lane.enqueue(self)
            else:
                self._fail(place, lane, lane.refusal)
                self.num_lanes_missing -= 1
        self.is_alone = not late
        if not self.num_lanes_missing:
            self.start()

    def begin(self, lane: Lane) -> None:
        """See `Queued`. Its turn has come in one more lane."""
        lane.active = self
        self.num_lanes_missing -= 1
        if not self.num_lanes_missing:
            self.start()

    def drop(self, lane: Lane, error: CarouselError) -> None:
        """See `Queued`. Its turn in this lane will not come."""
        self._fail(self._place(lane), lane, error)
        self.num_lanes_missing -= 1
        if not self.num_lanes_missing:
            self.start()

    def try_chain(self, batch: ActiveStepBatch) -> bool:
        """Appends a batch of the same lanes to the chain if only the chain waits in them. Returns whether it did."""
        if self.is_alone and self.job.lanes == batch.job.lanes:
            self.chain.append(batch)
            return True
        return False

    def unchain(self) -> None:
        """See `ActiveJob`."""
        if self.is_alone:
            self.is_alone = False
            if self.chain:
                for lane in self.job.lanes:
                    lane.queue = deque(self.chain)
                self.chain = deque()

    def abandon(self, lane: Lane, error: CarouselError) -> None:
        """See `ActiveJob`. If the lane's row has run, the batch keeps the lane, so that answers stay in order."""
        place = self._place(lane)
        if not self._is_begun:
            self._fail(place, lane, error)
        elif self._is_done[place]:
            lane.active = self
        else:
            self._drop(place)
            self._fail(place, lane, error)
            self._end_if_done()

    def remainder(self, lane: Lane) -> Remainder | None:
        """See `ActiveJob`."""
        return Remainder(lane.pending)

    def part_ended(self, part: ActiveFeed, result: Result) -> None:
        """See `Whole`. After a row is done, the step batch keeps its lane until all rows are."""
        lane, place = part.lane, part.index
        if isinstance(result, Fed):
            lane.active = self
            self._store(place, result.position, result.outputs)
            self._is_done[place] = 1
            self._num_left -= 1
        elif isinstance(result, Failed):
            self._fail(place, lane, result.error)
            self._stepper.free(lane)
        self._end_if_done()

    def take_group(self, group: Group, result: StepResult, begin: int) -> None:
        """See `GroupOwner`."""
        job, places, count = self.job, group.places, len(group.places)
        lanes = job.lanes if count == len(job.lanes) else [job.lanes[place] for place in places]
        for lane in lanes:
            lane.position += 1
        if self._stepper.keeps_logits:
            for row, lane in enumerate(lanes, begin):
                lane.next_logits = result.row(row, 0).copy()
        if job.outputs.kind is OutputKind.NEXT_TOKEN and lanes is job.lanes and result.next_tokens is not None:
            self._token_ids = result.next_tokens[begin : begin + count, 0].tolist()
            self.positions = [lane.position for lane in lanes]
        else:
            for row, place, lane in zip(range(begin, begin + count), places, lanes, strict=True):
                output = result.output(row, 0, self._outputs, lane.position)
                self._store(place, lane.position, [] if output is None else [output])
        self._num_left -= count
        if self._num_left:  # otherwise the batch is answered now, and nothing reads `_is_done` again
            for place in places:
                self._is_done[place] = 1
        self._end_if_done()

    def fail_group(self, group: Group, error: CarouselError) -> None:
        """See `GroupOwner`."""
        for place in list(group.places):
            lane = self.job.lanes[place]
            if lane.active is self and not self._is_done[place]:
                self._stepper.abandon(lane, error)

    def start(self) -> None:
        """Schedules its rows, because its turn has come in every lane."""
        self._is_begun = True
        try:
            self._schedule()
        except Exception as error:  # a bug in one step batch must not affect other jobs
            self._stepper.on_fault(len(self.job.lanes), error)
            self._give_up(EngineError("the step batch could not be started; the sessions are unchanged"))
        self._end_if_done()

    def _schedule(self) -> None:
        """Schedules its rows, and refuses rows whose lane has another position."""
        job = self.job
        lanes = job.lanes
        places: Sequence[int] = range(len(lanes))
        is_plain = job.counts is None and not self.errors and not any(lane.pending for lane in lanes)
        if not (is_plain and (job.starts is None or job.starts == [lane.position for lane in lanes])):
            places = self._set_apart()
        size = self._stepper.scheduler.max_rows
        fetch = fetch_for(self._outputs)
        offsets = self._offsets() if job.counts is not None else range(len(lanes))
        for begin in range(0, len(places), size):
            some = places[begin : begin + size]
            rows = [lanes[place].slot.row for place in some]
            tokens = job.tokens if len(some) == len(job.tokens) else [job.tokens[offsets[place]] for place in some]
            group = Group(self, rows, rows, rows, tokens, fetch, places=some)
            self._groups.append(group)
            self._firsts.append(some[0])
            self._stepper.scheduler.add_group(group)

    def _give_up(self, error: CarouselError) -> None:
        """Fails all rows that are not done, and frees their lanes for the next job."""
        self.unchain()
        for group in self._groups:
            self._stepper.scheduler.remove(group)
        for place, lane in enumerate(self.job.lanes):
            if lane.active is self and place not in self.errors and not self._is_done[place]:
                lane.active = None
                self._fail(place, lane, error)
                self._stepper.free(lane)

    def _set_apart(self) -> list[int]:
        """Refuses rows whose lane has another position, makes feeds of rows that are not plain, and returns the places
        of the plain ones. Frees the lanes of refused rows last."""
        job = self.job
        plain: list[int] = []
        elsewhere: list[Lane] = []
        for place, lane in enumerate(job.lanes):
            if place in self.errors:
                continue
            start = None if job.starts is None else job.starts[place]
            count = 1 if job.counts is None else job.counts[place]
            if start is not None and start != lane.position:
                self._fail(place, lane, position_mismatch("step_batch.positions", start, lane.position))
                elsewhere.append(lane)
            elif count == 1 and not lane.pending:
                plain.append(place)
            else:
                self._apart.add(place)
        if self._apart or elsewhere:
            self.unchain()
        offsets = self._offsets() if self._apart else []
        for place in sorted(self._apart):
            tokens = job.tokens[offsets[place] : offsets[place + 1]]
            ActiveFeed(self._stepper, job.lanes[place], job, tokens, self._outputs, whole=self, index=place)
        for lane in elsewhere:
            lane.active = None
            self._stepper.free(lane)
        return plain

    def _offsets(self) -> Sequence[int]:
        """Returns [N + 1] the offset of each lane's first token in `job.tokens`, and the total."""
        counts = self.job.counts
        return range(len(self.job.lanes) + 1) if counts is None else list(accumulate(counts, initial=0))

    def _store(self, place: int, position: int, outputs: list[StepOutput]) -> None:
        self.positions[place] = position
        columns = slice(place * self.job.width, (place + 1) * self.job.width)
        for output in outputs:
            if output.logits is not None and self._logits is not None:
                self._logits[place] = output.logits
            else:
                self._token_ids[columns] = output.token_ids
                self._log_probabilities[columns] = output.log_probabilities or []

    def _place(self, lane: Lane) -> int:
        if not self._places:
            self._places = {one: place for place, one in enumerate(self.job.lanes)}
        return self._places[lane]

    def _drop(self, place: int) -> None:
        """Removes a row that has not run from its group."""
        if place not in self._apart:
            group = self._groups[bisect_right(self._firsts, place) - 1]
            group.dropped.add(place)
            if not group.num_rows:
                self._stepper.scheduler.remove(group)

    def _fail(self, place: int, lane: Lane, error: CarouselError) -> None:
        self.errors[place] = error
        self.positions[place] = lane.position
        self._num_left -= 1

    def _end_if_done(self) -> None:
        """Answers the job when all its rows are done, then frees its lanes or passes them to the next in the chain."""
        if self._num_left or self.num_lanes_missing or self._is_answered:
            return
        self._is_answered = True
        stepper, errors = self._stepper, sorted(self.errors.items())
        columns = self.positions, self._token_ids, self._log_probabilities, self._logits
        stepper.answer(self.job, Stepped(*columns, errors))
        if self.chain:
            following = self.chain.popleft()  # it takes over the lanes and the rest of the chain
            following.chain, following.is_alone, following.num_lanes_missing = self.chain, True, 0
            for lane in self.job.lanes:
                lane.active = following
            stepper.due.append(following.start)
            return
        for lane in self.job.lanes:
            if lane.active is self:
                lane.active = None
                if lane.queue:
                    stepper.free(lane)
