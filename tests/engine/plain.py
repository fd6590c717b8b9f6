"""A plain session over a made-up model: a list of tokens from which every result of a lane can be computed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from service.engine.beam import BeamSearch, Hypothesis
from service.engine.decoding import FinishReason, FloatRow, log_softmax, score, top_k
from service.engine.jobs import (
    EncodeJob,
    FeedJob,
    GenerateJob,
    Job,
    Lane,
    OutputKind,
    OutputSpec,
    ScoreJob,
    StepBatchJob,
)
from service.engine.results import Encoded, Failed, Fed, Generated, Result, Scored, Searched, StepOutput, Stepped
from service.errors import CarouselError, EngineError, IllegalRequestError, PositionMismatchError, RequestCancelledError
from tests.domain import ids
from tests.engine.one_row import choose

VOCABULARY_SIZE = 6
BOS_ID = 4
EOS_ID = 5


def next_logits(history: Sequence[int]) -> FloatRow:
    """Returns [V] logits after a history of source, start token and target tokens. They only need to differ between
    histories."""
    seed = zlib.crc32(bytes(history))
    return np.array([zlib.crc32(bytes([t]), seed) % 997 / 100 for t in range(VOCABULARY_SIZE)], np.float32)


def output_after(history: Sequence[int], spec: OutputSpec, position: int) -> StepOutput:
    logits = next_logits(history)
    if spec.kind is OutputKind.NEXT_TOKEN:
        return StepOutput(position, [int(logits.argmax())])
    if spec.kind is OutputKind.TOP_K:
        best = top_k(logits, spec.top_k)
        return StepOutput(position, best.tolist(), log_softmax(logits)[best].tolist())
    return StepOutput(position, [], None, logits)


def comparable(output: StepOutput) -> tuple[object, ...]:
    return (*output[:3], None if output.logits is None else output.logits.tolist())


def search_plainly(history: Sequence[int], search: BeamSearch) -> list[Hypothesis]:
    """Runs a search one row after another, each from the start."""
    rows: list[list[int]] = [[]]
    while not search.is_done:
        step = search.advance(np.array([next_logits([*history, *row]) for row in rows]))
        pairs = zip(step.parents.tolist(), step.tokens.tolist(), strict=True)
        rows = [[*rows[parent], token] for parent, token in pairs]
    return search.results()


def score_plainly(history: Sequence[int], target: Sequence[int]) -> list[float]:
    logits = np.array([next_logits([*history, *target[:index]]) for index in range(len(target))])
    scores: list[float] = score(logits, np.array(target)).tolist()
    return scores


def row_tokens(batch: StepBatchJob, place: int) -> list[int]:
    """Returns the tokens of one row."""
    count = 1 if batch.counts is None else batch.counts[place]
    first = place if batch.counts is None else sum(batch.counts[:place])
    return ids(batch.tokens[first : first + count])


class PlainSession:
    """A list of tokens. Checks every result of its lane when the result arrives.

    tokens: fed or generated.
    unanswered: jobs without a final result, in order.
    may_end: jobs that may fail, because they were cancelled or their run raised.
    """

    def __init__(self, lane: Lane, *, source: list[int] | None, bos_id: int | None) -> None:
        self.lane = lane
        self.prefix = [*(source or []), *([] if bos_id is None else [bos_id])]
        self.has_start = bos_id is not None
        self.tokens: list[int] = []
        self.unanswered: list[Job] = []
        self.starts: dict[Job, int | None] = {}
        self.searches: dict[Job, BeamSearch] = {}
        self.may_end: set[Job] = set()
        self.num_produced = 0
        self.results: list[Result] = []

    @property
    def history(self) -> list[int]:
        return self.prefix + self.tokens

    @property
    def generation(self) -> GenerateJob | None:
        """The active generation, or None."""
        return next((job for job in self.unanswered[:1] if isinstance(job, GenerateJob)), None)

    def _is_next(self, job: Job) -> bool:
        return job is self.unanswered[0]

    def ends(self) -> None:
        """Lets all unanswered jobs fail from now on."""
        self.may_end |= set(self.unanswered)

    def take(self, job: Job, result: Result) -> None:
        """Checks one result."""
        self.results.append(result)
        if isinstance(result, Failed):
            tokens = ids(job.tokens) if isinstance(job, FeedJob) else []
            self._failed(job, result.error, result.position, tokens)
            return
        assert self._is_next(job), "jobs are answered in the order in which they came"
        if isinstance(job, EncodeJob):
            assert result == Encoded(0)
            self._done(job)
        elif isinstance(job, FeedJob):
            assert isinstance(result, Fed)
            self._fed(job, result)
        elif isinstance(job, GenerateJob):
            assert isinstance(result, Generated)
            self._generated(job, result)
        elif isinstance(job, ScoreJob):
            assert result == Scored(len(self.tokens), [score_plainly(self.history, target) for target in job.targets])
            self._done(job)
        else:
            hypotheses = search_plainly(self.history, self.searches[job])
            self.tokens += hypotheses[0].tokens if hypotheses else []
            assert result == Searched(len(self.tokens), hypotheses)
            self._done(job)

    def take_row(self, batch: StepBatchJob, result: Stepped, place: int) -> None:
        """Checks one row of a step batch's result. `lose_row` may have recorded a failed row before: then it is not
        checked again."""
        tokens = row_tokens(batch, place)
        errors = dict(result.errors)
        columns = slice(place * batch.width, (place + 1) * batch.width)
        if place in errors:
            assert result.token_ids[columns] == [0] * batch.width
            if batch in self.unanswered:
                self.lose_row(batch, place, errors[place], result.positions[place])
            return
        assert self._is_next(batch), "jobs are answered in the order in which they came"
        start = self.starts[batch]
        assert start in (None, len(self.tokens))
        self.tokens += tokens
        assert result.positions[place] == len(self.tokens)
        if batch.outputs.kind is not OutputKind.NONE:
            expected = output_after(self.history, batch.outputs, len(self.tokens))
            assert result.token_ids[columns] == expected.token_ids
            if batch.outputs.kind is OutputKind.TOP_K:
                assert result.log_probabilities[columns] == expected.log_probabilities
            if batch.outputs.kind is OutputKind.LOGITS:
                assert expected.logits is not None
                assert result.logits is not None
                assert result.logits[place].tolist() == expected.logits.tolist()
        self._done(batch)

    def lose_row(self, batch: StepBatchJob, place: int, error: CarouselError, position: int) -> None:
        """Records that a step batch's row has failed, while the session continues. The batch's result will contain the
        error."""
        self._failed(batch, error, position, row_tokens(batch, place))

    def _fed(self, job: FeedJob, result: Fed) -> None:
        assert self.starts[job] in (None, len(self.tokens))
        expected = []
        for token in ids(job.tokens):
            self.tokens.append(token)
            expected.append((list(self.history), len(self.tokens)))
        if not (job.outputs.every_position and job.tokens):
            expected = [(self.history, len(self.tokens))]
        if job.outputs.kind is OutputKind.NONE:
            expected = []
        outputs = [output_after(history, job.outputs, position) for history, position in expected]
        assert result.position == len(self.tokens)
        assert [comparable(output) for output in result.outputs] == [comparable(output) for output in outputs]
        self._done(job)

    def _generated(self, job: GenerateJob, result: Generated) -> None:
        """Checks one result, of one token or of several."""
        assert self.num_produced or self.starts[job] in (None, len(self.tokens))
        reason = None
        for index, given in enumerate(result.token_ids):
            token, log_probability = choose(next_logits(self.history), job.decoding, len(self.tokens))
            assert given == token != EOS_ID
            assert reason is None, "nothing comes after the end"
            reported = None if result.log_probabilities is None else result.log_probabilities[index]
            assert reported == log_probability
            self.tokens.append(token)
            self.num_produced += 1
            if self.num_produced == job.decoding.max_tokens:
                reason = FinishReason.MAX_TOKENS
        if not result.token_ids:
            assert choose(next_logits(self.history), job.decoding, len(self.tokens))[0] == EOS_ID
            reason = FinishReason.EOS
        assert (result.position, result.finish_reason) == (len(self.tokens), reason)
        if reason is not None:
            self._done(job)

    def _failed(self, job: Job, error: CarouselError, position: int, tokens: list[int]) -> None:
        """Checks and records a failure. tokens: those that the job may have consumed in part."""
        assert job in self.unanswered, "a job is answered for good only once"
        is_first = self._is_next(job)
        if isinstance(error, PositionMismatchError):
            start = self.starts[job]
            assert is_first
            assert start not in (None, len(self.tokens))
            assert error.message.endswith(f" = {start}, but the session is at position {position}")
        elif isinstance(error, IllegalRequestError):
            assert is_first
            assert not self.has_start, "a start token can always be run"
            assert not self.tokens, "there is something to go on from"
        else:
            assert isinstance(error, RequestCancelledError | EngineError)
            assert job in self.may_end or self.lane.is_closed
            if is_first and isinstance(job, FeedJob | StepBatchJob):
                consumed = max(0, position - len(self.tokens))
                assert consumed <= max(0, len(tokens) - 1)
                self.tokens += tokens[:consumed]
            if job in self.searches and is_first:
                # the session may have consumed a part of the best hypothesis
                hypotheses = search_plainly(self.history, self.searches[job]) if position > len(self.tokens) else []
                for hypothesis in hypotheses[:1]:
                    self.tokens += hypothesis.tokens[: position - len(self.tokens)]
        if is_first:
            assert position == len(self.tokens)
        elif not isinstance(job, StepBatchJob) and not isinstance(self.unanswered[0], StepBatchJob):
            assert position == len(self.tokens), "what a step batch's row has consumed is known when it is reported"
        self._done(job)

    def _done(self, job: Job) -> None:
        if isinstance(job, GenerateJob):
            self.num_produced = 0
        self.unanswered.remove(job)
