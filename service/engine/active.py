"""The running state of jobs, apart from the requests: what every kind of job in hand answers.

An `ActiveJob` is made when a job's turn comes and is `lane.active` until the job ends, so all its fields are valid for
its whole life. A `RowJob` has one row of a batch; a `CompoundJob` runs as parts, each a `RowJob`, or as groups of rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from service.engine.decoding import Choice, IntArray
from service.engine.items import Item
from service.engine.jobs import NO_TOKENS, EncodeJob, Job, Lane
from service.engine.results import Encoded, Failed, Result
from service.engine.step_result import NEXT_TOKEN, FetchSpec, StepResult
from service.errors import CarouselError, IllegalRequestError

if TYPE_CHECKING:
    from service.engine.generations import ActiveGeneration
    from service.engine.step_batches import ActiveStepBatch
    from service.engine.stepper import ActiveFeed, Stepper


class Rest(NamedTuple):
    """What a lane's saved state holds of the job in hand. pending: see `Lane`. num_produced, seen: of a generation."""

    pending: list[Item]
    num_produced: int = 0
    seen: IntArray | None = None


class Queued(Protocol):
    """An entry of a lane's queue."""

    def begin(self, lane: Lane) -> None:
        """Its turn in the lane has come."""

    def drop(self, lane: Lane, error: CarouselError) -> None:
        """It is answered `error` without a turn."""


class ActiveJob(Protocol):
    """A job in hand of a lane."""

    @property
    def job(self) -> Job:
        """The request."""

    @property
    def survives_cancel(self) -> bool:
        """Whether cancelling the lane's work leaves it alone."""

    @property
    def generation(self) -> ActiveGeneration | None:
        """Itself, if it is a generation."""

    def abandon(self, lane: Lane, error: CarouselError) -> None:
        """Ends it for this lane at a token boundary and answers `error`. `lane.active` is cleared already."""

    def unchain(self) -> None:
        """Prepares for something else that is asked of one of its lanes: its followers wait in the lanes' queues."""

    def is_followed_by(self, batch: ActiveStepBatch) -> bool:
        """Takes a step batch as the next of its lanes, if it holds the same lanes and only its chain waits there.
        Returns whether it did."""

    def rest(self, lane: Lane) -> Rest | None:
        """What a saved state of the lane holds now; None while its state cannot be read."""


class CompoundJob(ActiveJob, Protocol):
    """A job that runs as parts or as groups of rows."""

    def part_ended(self, part: ActiveFeed, result: Result) -> None:
        """A part is done or has failed. Its lane has no job in hand now."""

    def take_group(self, group: Group, result: StepResult, begin: int) -> None:
        """The rows of a group were run: those of the batch from `begin` on."""

    def fail_group(self, group: Group, error: CarouselError) -> None:
        """The run or the commit of a group has failed. Every row of it that is not answered is answered `error`."""


class RowJob(ABC):
    """A job in hand that has one row of a batch.

    inputs[done:]: tokens that it still has to run, the first `num_pending` of which came from `lane.pending`; none for
    a row of the readout. ticket: the scheduler's. fetch: the graph outputs that its row needs. runs_on: whether more of
    it waits to be run once its next batch was.
    """

    __slots__ = ("done", "fetch", "inputs", "job", "lane", "num_pending", "runs_on", "ticket")

    job: Job
    lane: Lane
    inputs: Sequence[Item]
    done: int
    num_pending: int
    ticket: int
    fetch: FetchSpec
    runs_on: bool

    survives_cancel: ClassVar[bool] = False

    @property
    def generation(self) -> ActiveGeneration | None:
        """See `ActiveJob`."""
        return None

    @property
    def choice(self) -> Choice | None:
        """How its next token is chosen, when it is not simply the likeliest."""
        return None

    @property
    def source(self) -> Sequence[Item]:
        """What a row of the encoder reads."""
        return NO_TOKENS

    @abstractmethod
    def take(self, result: StepResult, row: int, width: int) -> None:
        """Its row was run, with `width` tokens.

        It brings the lane to where its state is first, and answers last: whatever raises here, the lane is whole and
        the job can be abandoned.
        """

    @abstractmethod
    def abandon(self, lane: Lane, error: CarouselError) -> None:
        """See `ActiveJob`."""

    def unchain(self) -> None:  # noqa: B027  # few kinds have a chain
        """See `ActiveJob`: only the lane's queue follows it."""

    def is_followed_by(self, batch: ActiveStepBatch) -> bool:
        """See `ActiveJob`."""
        return False

    def rest(self, lane: Lane) -> Rest | None:
        """See `ActiveJob`."""
        return Rest(list(self.inputs[self.done : self.num_pending]))

    def set_down(self) -> None:
        """Makes the lane of a job that ends midway whole: tokens that were pending before it, and that the state has
        not consumed, stay pending."""
        if self.done < self.num_pending:
            self.lane.pending = list(self.inputs[self.done : self.num_pending])


class ActiveEncode(RowJob):
    """A source that the encoder is to read."""

    __slots__ = ("_source", "_stepper")

    survives_cancel: ClassVar[bool] = True

    def __init__(self, stepper: Stepper, lane: Lane, job: EncodeJob) -> None:
        self._stepper = stepper
        self._source = job.source
        self.lane, self.job = lane, job
        self.inputs, self.done, self.num_pending = NO_TOKENS, 0, 0
        self.ticket, self.fetch, self.runs_on = 0, NEXT_TOKEN, False
        lane.active = self
        stepper.scheduler.add("encoder", self, len(job.source))

    @property
    def source(self) -> Sequence[Item]:
        """See `RowJob`."""
        return self._source

    def take(self, result: StepResult, row: int, width: int) -> None:
        """See `RowJob`."""
        self._stepper.finish(self.lane, self.job, Encoded(self.lane.position))

    def abandon(self, lane: Lane, error: CarouselError) -> None:
        """See `ActiveJob`."""
        self._stepper.scheduler.remove(self)
        self._stepper.answer(self.job, Failed(lane.position, error))

    def rest(self, lane: Lane) -> Rest | None:
        """See `ActiveJob`: the state is not the session's yet."""
        return None


@dataclass(slots=True, eq=False)
class Group:
    """Rows that take one token each, together: those of a step batch, or a search's beams.

    reads, writes, contexts: [R] the rows of the arena that have their state, that get the next one, and that have their
    context; tokens: [R]; runs_on: whether more of the owner waits to be run once they were; places: [R] of a step
    batch, its rows' places in it; dropped: places that left since, whose rows `compact` takes out.
    """

    owner: CompoundJob
    reads: list[int]
    writes: list[int]
    contexts: list[int]
    tokens: Sequence[Item]
    fetch: FetchSpec
    runs_on: bool = False
    places: Sequence[int] = ()
    dropped: set[int] = field(default_factory=set)
    ticket: int = 0

    @property
    def num_rows(self) -> int:
        """R, without those that left."""
        return len(self.tokens) - len(self.dropped)

    def compact(self) -> None:
        """Takes the rows of dropped places out, all in one go. Of a step batch: its three lists of rows are one."""
        if self.dropped:
            kept = [row for row, place in enumerate(self.places) if place not in self.dropped]
            self.reads = self.writes = self.contexts = [self.reads[row] for row in kept]
            self.tokens = [self.tokens[row] for row in kept]
            self.places = [self.places[row] for row in kept]
            self.dropped = set()


class Turn:
    """A job of one lane that waits in the lane's queue."""

    __slots__ = ("_job", "_stepper")

    def __init__(self, stepper: Stepper, job: Job) -> None:
        self._stepper = stepper
        self._job = job

    def begin(self, lane: Lane) -> None:
        """See `Queued`."""
        self._stepper.begin(lane, self._job)

    def drop(self, lane: Lane, error: CarouselError) -> None:
        """See `Queued`."""
        self._stepper.answer(self._job, Failed(lane.position, error))


class StepBatchTurn:
    """A step batch that waits in the queue of one of its lanes, at its place."""

    __slots__ = ("_batch", "_place")

    def __init__(self, batch: ActiveStepBatch, place: int) -> None:
        self._batch = batch
        self._place = place

    def begin(self, lane: Lane) -> None:
        """See `Queued`."""
        self._batch.turn_came(lane)

    def drop(self, lane: Lane, error: CarouselError) -> None:
        """See `Queued`."""
        self._batch.turn_lost(lane, self._place, error)


def nothing_consumed() -> CarouselError:
    """Why nothing comes next in a session that has consumed no token."""
    return IllegalRequestError("generate: this model has no start token: feed a token first")
