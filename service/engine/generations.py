"""Active jobs that need no tokens from the client: encoding the source, which comes before a lane's first step, and
generations, which choose tokens one after the other, as far ahead as the window allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from service.engine.decoding import Choice, FinishReason, choose_batch
from service.engine.history import History
from service.engine.jobs import NO_TOKENS, EncodeJob, GenerateJob, Item, Lane, Remainder
from service.engine.last_tokens import LastTokens
from service.engine.results import CHOICE, NEXT_TOKEN, Chosen, Encoded, Failed, Generated, StepResult, known
from service.engine.scheduler import RowJob
from service.engine.stepper import Stepper, nothing_consumed
from service.errors import CarouselError, position_mismatch


class ActiveEncode(RowJob):
    """The active job that encodes a session's source."""

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

    def remainder(self, lane: Lane) -> Remainder | None:
        """See `ActiveJob`. None, because the lane's state is not complete before the source is encoded."""
        return None


def begin_generation(stepper: Stepper, history: History, lane: Lane, job: GenerateJob) -> None:
    """Begins a generation, or refuses it if its start position differs from the lane's."""
    if job.start is not None and job.start != lane.position:
        error = position_mismatch("generate.position", job.start, lane.position)
        stepper.answer(job, Failed(lane.position, error))
    else:
        ActiveGeneration(stepper, lane, job, history.before(lane)).begin()


def resume_generation(lane: Lane, job: GenerateJob) -> None:
    """Continues a generation that waits for a grant, if it is still the active job and its window has room again."""
    active = lane.active
    if isinstance(active, ActiveGeneration) and active.job is job and job.is_parked:
        active.schedule_next()


class ActiveGeneration(RowJob):
    """An active generation. request: its job; takes_likeliest: whether it only needs the likeliest token."""

    __slots__ = ("_before", "_choice", "_stepper", "request", "takes_likeliest")

    def __init__(self, stepper: Stepper, lane: Lane, job: GenerateJob, before: LastTokens | None = None) -> None:
        self._stepper = stepper
        self._before = before
        self.lane = lane
        self.job = self.request = job
        decoding = job.decoding
        self.takes_likeliest = decoding.is_plain and not decoding.log_probabilities
        self._choice = Choice(decoding, lane.position, job.num_produced, job.seen, stepper.eos_id)
        self.fetch = NEXT_TOKEN if self.takes_likeliest else CHOICE
        self.inputs: Sequence[Item] = lane.pending
        self.done, self.num_pending = 0, len(lane.pending)
        self.ticket = 0
        self.runs_on = True
        lane.pending = NO_TOKENS
        lane.active = self

    @property
    def choice(self) -> Choice | None:
        """See `RowJob`."""
        return None if self.takes_likeliest else self._choice

    def begin(self) -> None:
        """Chooses the first token, or first schedules the pending tokens if there are any."""
        lane, stepper = self.lane, self._stepper
        if self.inputs:
            stepper.scheduler.add("step", self, len(self.inputs))
        elif lane.next_logits is not None:
            result = known(lane.next_logits, stepper.gives_values)
            if not self.takes_likeliest:
                result.chosen = choose_together(result, [self], [1])
            self.take(result, 0, 1)
        elif stepper.can_read_out(lane):
            stepper.scheduler.add("readout", self, 1)
        else:
            stepper.finish(lane, self.job, Failed(lane.position, nothing_consumed()))

    def take(self, result: StepResult, row: int, width: int) -> None:
        """See `RowJob`."""
        self._consume(result, row, width)
        if self.done < len(self.inputs):
            self._stepper.scheduler.add("step", self, len(self.inputs) - self.done)
        elif self.takes_likeliest:
            self._commit(result.next_item(row, width - 1), None)
        else:
            chosen = result.chosen[row]
            if isinstance(chosen, Exception):
                raise chosen
            self._commit(*chosen)

    def take_many(self, token_ids: Sequence[Item], log_probabilities: list[float] | None) -> None:
        """Commits several tokens, none of which ends the generation. The state has consumed all except the last."""
        self.lane.position += len(token_ids)
        self.request.num_produced += len(token_ids)
        self.inputs, self.done, self.num_pending = list(token_ids[-1:]), 0, 1
        self._stepper.answer_partly(self.job, self._generated(token_ids, log_probabilities, None))

    def commit_token(self, token: int, log_probability: float | None, result: StepResult, row: int) -> None:
        """Commits a token that was chosen from a row of `result`. Ends the generation, or schedules the token."""
        self._consume(result, row, 1)
        self._commit(token, log_probability)

    def advance_choice(self, token: int) -> None:
        """Updates the choice after a token that does not end the generation."""
        self._choice.advance(token)

    def schedule_next(self) -> None:
        """Schedules its last token if the window has room for another, or else waits for a grant."""
        job, choice = self.request, self._choice
        choice.position = self.lane.position
        choice.num_produced = job.num_produced
        # `is_parked` is set before the window is checked, and the event loop grants before it checks `is_parked`. So at
        # least one of the two sees the other's change, and no grant is missed.
        job.is_parked = True
        if job.num_produced - job.num_granted < job.window:
            job.is_parked = False
            self._stepper.parked.discard(self)
            self._stepper.scheduler.add("step", self, len(self.inputs) - self.done)
        else:
            self._stepper.parked.add(self)

    def abandon(self, lane: Lane, error: CarouselError) -> None:
        """See `ActiveJob`."""
        self._stepper.parked.discard(self)
        self._stepper.scheduler.remove(self)
        self.restore_pending()
        self._stepper.answer(self.job, Failed(lane.position, error))

    def remainder(self, lane: Lane) -> Remainder | None:
        """See `ActiveJob`."""
        pending = list(self.inputs[self.done : self.num_pending])
        return Remainder(pending, self.request.num_produced, self._choice.seen, self.request.decoding)

    def _consume(self, result: StepResult, row: int, width: int) -> None:
        """Updates the lane to match its state after a run."""
        if self.inputs:
            self.done += width
        self.lane.next_logits = result.row(row, width - 1).copy() if self._stepper.keeps_logits else None

    def _generated(
        self, tokens: Sequence[Item], log_probabilities: list[float] | None, reason: FinishReason | None
    ) -> Generated:
        """Returns an answer; the first one also contains the tokens before the generation."""
        before, self._before = self._before, None
        return Generated(self.lane.position, tokens, log_probabilities, reason, before)

    def _commit(self, token: Item, log_probability: float | None) -> None:
        lane, job, stepper = self.lane, self.request, self._stepper
        decoding = job.decoding
        reason = decoding.finish_reason(token, job.num_produced + 1, stepper.eos_id)
        if reason is FinishReason.EOS or reason is FinishReason.STOP:
            stepper.finish(lane, job, self._generated([], None, reason))
            return
        if isinstance(token, int):
            self._choice.advance(token)
        lane.next_logits = None
        lane.position += 1
        job.num_produced += 1
        scores = [log_probability] if decoding.log_probabilities and log_probability is not None else None
        generated = self._generated([token], scores, reason)
        if reason is None:
            self.inputs, self.done, self.num_pending = [token], 0, 1
            stepper.answer_partly(job, generated)
            self.schedule_next()
        else:
            lane.pending = [token]
            stepper.finish(lane, job, generated)


def choose_together(result: StepResult, jobs: Sequence[RowJob], widths: Sequence[int]) -> dict[int, Chosen]:
    """Chooses the next token of each row that does not simply take the likeliest. Returns the choices by row.

    All rows are chosen in one call. If it raises, each row is chosen alone, because a row's choice has the same bits in
    any batch; rows that raise again get their exception.
    """
    rows = [row for row, job in enumerate(jobs) if job.choice is not None]
    choices = [choice for choice in (job.choice for job in jobs) if choice is not None]
    found: dict[int, Chosen] = {}
    try:
        _choose(result, rows, choices, widths, found)
    except Exception:
        for row, choice in zip(rows, choices, strict=True):
            try:
                _choose(result, [row], [choice], widths, found)
            except Exception as error:  # any exception affects only this row
                found[row] = error
    return found


def _choose(
    result: StepResult, rows: list[int], choices: list[Choice], widths: Sequence[int], found: dict[int, Chosen]
) -> None:
    logits = result.row(rows, [widths[row] - 1 for row in rows])
    tokens, scores = choose_batch(logits, choices)
    found.update(zip(rows, zip(tokens.tolist(), scores.tolist(), strict=True), strict=True))
