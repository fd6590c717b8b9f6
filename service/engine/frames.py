"""Frames: many lanes that consume tokens at once, and are answered at once, in columns.

A frame begins when it is its turn in all of its lanes, and holds them until all are done. Rows that take one token and
have nothing pending, which is nearly all of them, go as groups; any other is a feed of its own, part of the frame. A
row that fails takes no other with it, and its lane goes on at once.

A gateway sends frame after frame of the same sessions. Those follow each other in a chain that is one for all lanes,
and spare them their own queues, until one of the lanes is given anything else.
"""

from __future__ import annotations

import numpy as np

from service.engine.jobs import FeedJob, FrameJob, Group, Lane, OutputKind
from service.engine.outcome import Outcome
from service.engine.results import Failed, Fed, Result, StepOutput, Stepped
from service.engine.stepper import Stepper
from service.errors import CarouselError, position_mismatch


class Frames:
    """Carries out `FrameJob`s over a stepper's lanes. The thread that drives the engine alone."""

    def __init__(self, stepper: Stepper, output_size: int) -> None:
        self._stepper = stepper
        self._scheduler = stepper.scheduler
        self._output_size = output_size
        stepper.add(FrameJob, self)

    def submit(self, frame: FrameJob) -> None:
        """Puts a frame at the end of all its lanes' queues."""
        lanes = frame.lanes
        count = frame.num_left = frame.num_waiting = len(lanes)
        frame.positions, frame.token_ids = [0] * count, [0] * (count * frame.width)
        if frame.outputs.kind is OutputKind.TOP_K:
            frame.log_probabilities = [0.0] * (count * frame.width)
        elif frame.outputs.kind.is_vector:
            frame.logits = np.zeros((count, self._output_size), np.float32)
        head = lanes[0].job
        if isinstance(head, FrameJob) and head.is_alone and head.lanes == lanes:
            head.chain.append(frame)
            return
        late = []
        for lane in lanes:
            if lane.job is None and not lane.closed:
                lane.job = frame
            else:
                late.append(lane)
        frame.num_waiting = len(late)
        for lane in late:
            self._stepper.submit(lane, frame)
        if not late:
            frame.is_alone = True
            self._start(frame)

    def begin(self, lane: Lane, frame: FrameJob) -> None:
        """It is the frame's turn in one more lane."""
        frame.num_waiting -= 1
        if not frame.num_waiting:
            self._start(frame)

    def drop(self, lane: Lane, frame: FrameJob, error: CarouselError) -> None:
        """One lane less."""
        self._fail(lane, frame, error)
        self.begin(lane, frame)

    def abandon(self, lane: Lane, frame: FrameJob, error: CarouselError) -> None:
        """Takes a lane's row out. One that was run already stays held, so that its session is answered in order."""
        if frame.num_waiting:
            self._fail(lane, frame, error)
            return
        for group in frame.groups:
            if lane in group.lanes:
                self._take_out(lane, group)
                self._fail(lane, frame, error)
                self._end_if_done(frame)
                return
        lane.job = frame

    def part_ended(self, lane: Lane, part: FeedJob, result: Result) -> None:
        """A row that was a feed of its own is done, and the frame holds its lane until all are; or it has failed."""
        frame = part.whole
        assert isinstance(frame, FrameJob)  # noqa: S101  # made below
        if isinstance(result, Failed):
            self._fail(lane, frame, result.error)
        elif isinstance(result, Fed):
            lane.job = frame
            self._store(frame, part.index, result.position, result.outputs)
            frame.num_left -= 1
        self._end_if_done(frame)

    def stepped(self, group: Group, outcome: Outcome, begin: int) -> None:
        """The rows of a group were run: those of the batch from `begin` on."""
        frame = group.owner
        assert isinstance(frame, FrameJob)  # noqa: S101  # the caller has looked
        frame.groups.remove(group)
        rows = range(begin, begin + len(group.lanes))
        for lane in group.lanes:
            lane.position += 1
        if self._stepper.keeps_logits:
            for row, lane in zip(rows, group.lanes, strict=True):
                lane.next_logits = outcome.row(row, 0).copy()
        if frame.outputs.kind is OutputKind.NEXT_TOKEN and len(group.lanes) == len(frame.lanes):
            assert outcome.next_tokens is not None  # noqa: S101  # of one token a row they are always told
            frame.token_ids = outcome.next_tokens[rows.start : rows.stop, 0].tolist()
            frame.positions = [lane.position for lane in group.lanes]
        else:
            for row, place, lane in zip(rows, group.places, group.lanes, strict=True):
                output = outcome.output(row, 0, frame.outputs, lane.position)
                self._store(frame, place, lane.position, [] if output is None else [output])
        frame.num_left -= len(group.lanes)
        self._end_if_done(frame)

    def _start(self, frame: FrameJob) -> None:
        """It is the frame's turn in every lane."""
        lanes = frame.lanes
        places: list[int] | range = range(len(lanes))
        elsewhere: list[Lane] = []
        is_plain = frame.counts is None and not frame.errors and not any(lane.pending for lane in lanes)
        if not (is_plain and frame.starts in (None, [lane.position for lane in lanes])):
            places, elsewhere = self._set_apart(frame)
        is_logits = frame.outputs.kind.is_vector
        size = self._scheduler.max_rows
        for begin in range(0, len(places), size):
            some = places[begin : begin + size]
            chosen = lanes if len(some) == len(lanes) else [lanes[place] for place in some]
            rows = [lane.slot.row for lane in chosen]
            tokens = frame.tokens
            if frame.counts is not None or len(some) != len(lanes):
                offsets = self._offsets(frame)
                tokens = [frame.tokens[offsets[place]] for place in some]
            group = Group(
                owner=frame,
                reads=rows,
                writes=rows,
                contexts=rows,
                tokens=tokens,
                wants_logits=is_logits,
                top_k=frame.outputs.top_k,
                lanes=list(chosen),
                places=list(some),
            )
            frame.groups.append(group)
            self._scheduler.add("step", group, 1)
        self._end_if_done(frame)
        for lane in elsewhere:  # last: what follows may end at once, and is answered after the frame
            if lane.job is frame:
                lane.job = None
                self._stepper.begin_next(lane)

    def _set_apart(self, frame: FrameJob) -> tuple[list[int], list[Lane]]:
        """Refuses rows that are elsewhere, makes feeds of those that are not plain, and returns the places of the
        rest, and the lanes of those that were refused."""
        plain, apart, elsewhere = [], [], []
        failed = {index for index, _ in frame.errors}
        for place, lane in enumerate(frame.lanes):
            if place in failed:
                continue
            start = None if frame.starts is None else frame.starts[place]
            count = 1 if frame.counts is None else frame.counts[place]
            if start is not None and start != lane.position:
                self._fail(lane, frame, position_mismatch("step_batch.positions", start, lane.position))
                elsewhere.append(lane)
            elif count == 1 and not lane.pending:
                plain.append(place)
            else:
                apart.append(place)
        offsets = self._offsets(frame) if apart else []
        if apart or elsewhere:
            frame.unchain()
        for place in apart:
            tokens = frame.tokens[offsets[place] : offsets[place + 1]]
            part = FeedJob(
                reply=frame.reply, start=None, tokens=tokens, outputs=frame.outputs, whole=frame, index=place
            )
            self._stepper.begin_part(frame.lanes[place], part)
        return plain, elsewhere

    @staticmethod
    def _offsets(frame: FrameJob) -> list[int]:
        """[N + 1] where each lane's tokens begin."""
        counts = np.ones(len(frame.lanes), np.int64) if frame.counts is None else frame.counts
        offsets: list[int] = [0, *np.cumsum(counts).tolist()]
        return offsets

    @staticmethod
    def _store(frame: FrameJob, place: int, position: int, outputs: list[StepOutput]) -> None:
        frame.positions[place] = position
        columns = slice(place * frame.width, (place + 1) * frame.width)
        for output in outputs:
            if output.logits is not None and frame.logits is not None:
                frame.logits[place] = output.logits
            else:
                frame.token_ids[columns] = output.token_ids
                frame.log_probabilities[columns] = output.log_probabilities or []

    def _take_out(self, lane: Lane, group: Group) -> None:
        row = group.lanes.index(lane)
        # the three lists of rows may be one
        group.reads = group.writes = group.contexts = group.reads[:row] + group.reads[row + 1 :]
        group.tokens = [*group.tokens[:row], *group.tokens[row + 1 :]]
        del group.lanes[row], group.places[row]
        if not group.lanes:
            self._scheduler.remove(group)
            if isinstance(group.owner, FrameJob):
                group.owner.groups.remove(group)

    def _fail(self, lane: Lane, frame: FrameJob, error: CarouselError) -> None:
        place = frame.lanes.index(lane)
        frame.errors.append((place, error))
        frame.positions[place] = lane.position
        frame.num_left -= 1

    def _end_if_done(self, frame: FrameJob) -> None:
        """Answers a frame all of whose rows are done, and lets its lanes go on."""
        if frame.num_left or frame.num_waiting:
            return
        frame.num_waiting = -1  # it is answered once
        following, frame.chain = frame.chain, []
        errors = sorted(frame.errors, key=lambda one: one[0])
        stepped = Stepped(frame.positions, frame.token_ids, frame.log_probabilities, frame.logits, errors)
        self._stepper.results.append((frame, stepped))
        if following:
            self._follow(following)
            return
        for lane in frame.lanes:
            if lane.job is frame:
                lane.job = None
                if lane.jobs:
                    self._stepper.begin_next(lane)

    def _follow(self, chain: list[FrameJob]) -> None:
        """The next frame of a chain takes the lanes over."""
        frame = chain.pop(0)
        frame.chain = chain
        frame.is_alone = True
        frame.num_waiting = 0
        for lane in frame.lanes:
            lane.job = frame
        self._start(frame)
