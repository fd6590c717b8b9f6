"""One step batch, from its sending until the program takes its answer. Pure: messages go in, columns come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Protocol

from carousel._history import Consumed
from carousel._ports import taken_apart
from carousel._tensors import joined, pieces
from carousel.errors import CarouselError, OutOfRangeError
from carousel.v1 import inference_pb2 as pb
from carousel.values import Port

_COLUMNS = ("positions", "token_ids", "log_probabilities", "logits", "values", "num_limited")
_RAGGED = ("token_ids", "log_probabilities")


@dataclass(frozen=True, slots=True)
class StepBatchResult:
    """The answer to a step of many sessions: columns of N, in the order of `places`, 0 where a session was refused.

    positions: after the step; of refused sessions, where they stand. token_ids: the most likely next ones; with top_k
    so many for each session, most likely first; empty when logits or nothing was requested. log_probabilities: of each
    of token_ids, with top_k. logits: with logits, as many for each session as the vocabulary has tokens. errors: why
    sessions were refused, by place. values: of a model that gives values, as many for each session as it gives.
    outputs: the named parts of `values`, of a model that has those, one session's after the other's.

    Of a transducer, `token_ids` and `log_probabilities` are of the tokens that each session has emitted: as many as
    `counts` says, one session's after the other's. num_limited: as `StepOutput.num_limited`.
    """

    places: tuple[int, ...]
    positions: tuple[int, ...]
    token_ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    logits: tuple[float, ...]
    errors: Mapping[int, CarouselError]
    replayed: bool = False
    values: tuple[float, ...] = ()
    outputs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    counts: tuple[int, ...] = ()
    num_limited: tuple[int, ...] = ()


class Resumed(Protocol):
    """A session on a new stream. restored: the position that it had there first."""

    handle: int
    restored: int


class BatchStep:
    """A row is a session's part in it.

    request: as it was sent last. rows: those that have no last answer yet. errors: of rows that were refused.
    refusal: of the whole step batch. is_resent: whether rows were sent again on another stream.
    """

    __slots__ = ("_answer", "errors", "is_resent", "message", "places", "refusal", "request", "rows")

    def __init__(self, request: pb.StreamRequest, places: tuple[int, ...]) -> None:
        self.request = request
        self.message = request.step_batch
        self.places = places
        self.rows: Sequence[int] = range(len(places))
        self.errors: dict[int, CarouselError] = {}
        self.refusal: CarouselError | None = None
        self.is_resent = False
        self._answer: pb.BatchStepped | None = None

    @property
    def is_done(self) -> bool:
        """Whether every row has its last answer."""
        return not self.rows or self.refusal is not None

    @property
    def counts(self) -> Sequence[int]:
        """How many tokens each row has."""
        return self.message.counts or (1,) * len(self.places)

    def end(self, row: int) -> int:
        """The session's position after a row."""
        return self.message.positions[row] + self.counts[row]

    def tokens(self) -> list[Consumed]:
        """What each row makes its session consume."""
        message = self.message
        found: Consumed = pieces(message.features) if message.HasField("features") else list(message.token_ids)
        ends = list(accumulate(self.counts, initial=0))
        return [found[begin:end] for begin, end in pairwise(ends)]

    def feeds(self) -> list[tuple[int, pb.StreamRequest]]:
        """The rows that have no last answer, as feeds of their sessions, each with its place."""
        tokens, number = self.tokens(), self.request.request_id
        return [
            (self.places[row], pb.StreamRequest(request_id=number, feed=self._feed(row, tokens[row])))
            for row in self.rows
        ]

    def resend(self, sessions: Mapping[int, Resumed]) -> pb.StreamRequest:
        """Makes the request for the rows that have no last answer. sessions: by row.

        A session that was stored in the midst of its row gets the rest of it.
        """
        message, everything, counts = pb.StepBatch(outputs=self.message.outputs), self.tokens(), []
        vectors: list[bytes] = []
        for row in self.rows:
            start, tokens = self.message.positions[row], everything[row]
            restored = sessions[row].restored
            if start < restored < self.end(row):
                start, tokens = restored, tokens[restored - start :]
            message.handles.append(sessions[row].handle)
            message.positions.append(start)
            counts.append(len(tokens))
            if self.message.HasField("features"):
                vectors += tokens  # type: ignore[arg-type]  # they are vectors
            else:
                message.token_ids.extend(tokens)  # type: ignore[arg-type]  # likewise
        if vectors:
            message.features.CopyFrom(joined(vectors))
        if any(count != 1 for count in counts):
            message.counts.extend(counts)
        self.is_resent = True
        self.request = pb.StreamRequest(request_id=self.request.request_id, step_batch=message)
        return self.request

    def receive(self, part: pb.BatchStepped) -> None:
        """Takes in the answer for `rows`, without its errors."""
        if self._answer is None and len(self.rows) == len(self.places):
            self._answer = part
            return
        whole = self._whole()
        if part.counts:
            _take_ragged(whole, part, self.rows, len(self.places))
        for name in _COLUMNS:
            if part.counts and name in _RAGGED:
                continue
            column, found = getattr(whole, name), getattr(part, name)
            width = len(found) // len(self.rows)
            if not column:
                column.extend([0] * width * len(self.places))
            for at, row in enumerate(self.rows):
                column[row * width : (row + 1) * width] = found[at * width : (at + 1) * width]

    def fail(self, row: int, error: CarouselError, position: int) -> None:
        """Gives a row its error. position: where its session stands."""
        self.errors[row] = error
        self._whole().positions[row] = position
        self.rows = [other for other in self.rows if other != row]

    def lose_outputs(self, row: int) -> None:
        """Ends a row that was applied, and whose answer was lost with its stream: an error, if it asked for outputs."""
        end = self.end(row)
        self._whole().positions[row] = end
        if self.message.outputs.kind != pb.OUTPUT_KIND_NONE:
            self.errors[row] = OutOfRangeError(
                f"the session consumed the tokens from position {self.message.positions[row]} on, and the response was"
                f" lost with the connection: continue from position {end}",
                reason="OUTPUTS_LOST",
                metadata={"position": str(end)},
            )

    def position(self, row: int) -> int:
        """Where the session of a row stands after it."""
        return int(self._whole().positions[row])

    def result(self, outputs: Sequence[Port] = ()) -> StepBatchResult:
        """What the program gets. outputs: the named parts of the model's values."""
        answer = self._whole()
        return StepBatchResult(
            self.places,
            tuple(answer.positions),
            tuple(answer.token_ids),
            tuple(answer.log_probabilities),
            tuple(answer.logits),
            {self.places[row]: error for row, error in self.errors.items()},
            answer.replayed,
            tuple(answer.values),
            taken_apart(answer.values, outputs) if outputs else {},
            tuple(answer.counts),
            tuple(answer.num_limited),
        )

    def _feed(self, row: int, tokens: Consumed) -> pb.Feed:
        position = self.message.positions[row]
        if self.message.HasField("features"):
            return pb.Feed(position=position, features=joined(tokens))  # type: ignore[arg-type]  # they are vectors
        return pb.Feed(position=position, token_ids=tokens)  # type: ignore[arg-type]  # they are ids

    def _whole(self) -> pb.BatchStepped:
        if self._answer is None:
            self._answer = pb.BatchStepped(positions=[0] * len(self.places))
        return self._answer


def _take_ragged(whole: pb.BatchStepped, part: pb.BatchStepped, rows: Sequence[int], num_rows: int) -> None:
    """Takes in columns of which each row has a number of its own. rows: the places of the part's rows in the whole."""
    before = list(accumulate(whole.counts or [0] * num_rows, initial=0))
    after = list(accumulate(part.counts, initial=0))
    place_of = {row: at for at, row in enumerate(rows)}
    for name in _RAGGED:
        column, found = list(getattr(whole, name)), list(getattr(part, name))
        joined = [
            found[after[place_of[row]] : after[place_of[row] + 1]]
            if row in place_of
            else column[before[row] : before[row + 1]]
            for row in range(num_rows)
        ]
        del getattr(whole, name)[:]
        getattr(whole, name).extend(one for own in joined for one in own)
    counts = list(whole.counts or [0] * num_rows)
    for row, at in place_of.items():
        counts[row] = part.counts[at]
    del whole.counts[:]
    whole.counts.extend(counts)
