"""One step batch, from its sending until the program reads its answer. Pure: messages in, columns out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Protocol

from carousel._history import Consumed
from carousel._ports import taken_apart
from carousel._tensors import pieces, tensor_of
from carousel.errors import CarouselError, OutOfRangeError
from carousel.v1 import inference_pb2 as pb
from carousel.values import Port

_COLUMNS = ("positions", "token_ids", "log_probabilities", "logits", "values", "num_limited")
_RAGGED = ("token_ids", "log_probabilities")


@dataclass(frozen=True, slots=True)
class StepBatchResult:
    """The answer to a step of N sessions: columns of N entries, in the order of `places`; 0 for a refused session.

    positions: after the step; for refused sessions, their current position. token_ids: the most likely next token; with
    top_k, the k most likely of each session, most likely first; empty if logits or no outputs were requested.
    log_probabilities: of token_ids, with top_k. logits: with logits, [N * V]. values: for a model that outputs values,
    all values of each session, one session after the other. outputs: the named parts of `values`, one session after the
    other, for a model that has named parts. errors: why sessions were refused, by place.

    For a transducer, `token_ids` and `log_probabilities` are the tokens that each session emitted, one session after
    the other; `counts` has their number for each session. num_limited: see `StepOutput.num_limited`.
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
    """A session on a new stream. restored: its first position there."""

    handle: int
    restored: int


class BatchStep:
    """One step batch. A row is one session's part of it.

    request: as it was sent last. rows: those without their last answer. errors: of refused rows. refusal: of the whole
    step batch. is_resent: whether rows were sent again on another stream.
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
        """The rows without their last answer, as feeds of their sessions, each with its place."""
        tokens, number = self.tokens(), self.request.request_id
        return [
            (self.places[row], pb.StreamRequest(request_id=number, feed=self._feed(row, tokens[row])))
            for row in self.rows
        ]

    def resend(self, sessions: Mapping[int, Resumed]) -> pb.StreamRequest:
        """Makes the request for the rows without their last answer. sessions: by row.

        If a session was stored after some of its row's tokens, the request has only the rest of the row.
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
                vectors += tokens  # type: ignore[arg-type]  # these are vectors
            else:
                message.token_ids.extend(tokens)  # type: ignore[arg-type]  # these are ids
        if vectors:
            message.features.CopyFrom(tensor_of(vectors))
        if any(count != 1 for count in counts):
            message.counts.extend(counts)
        self.is_resent = True
        self.request = pb.StreamRequest(request_id=self.request.request_id, step_batch=message)
        return self.request

    def receive(self, part: pb.BatchStepped) -> None:
        """Adds the answer for `rows`, except its errors."""
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
        """Ends a row with an error. position: the session's current position."""
        self.errors[row] = error
        self._whole().positions[row] = position
        self.rows = [other for other in self.rows if other != row]

    def lose_outputs(self, row: int) -> None:
        """Ends a row that was applied, and whose answer was lost. Adds an error if the step requested outputs."""
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
        """The position of a row's session after the row."""
        return int(self._whole().positions[row])

    def result(self, outputs: Sequence[Port] = ()) -> StepBatchResult:
        """Makes the result for the program. outputs: the named parts of the model's values."""
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
            return pb.Feed(position=position, features=tensor_of(tokens))  # type: ignore[arg-type]  # these are vectors
        return pb.Feed(position=position, token_ids=tokens)  # type: ignore[arg-type]  # these are ids

    def _whole(self) -> pb.BatchStepped:
        if self._answer is None:
            self._answer = pb.BatchStepped(positions=[0] * len(self.places))
        return self._answer


def _take_ragged(whole: pb.BatchStepped, part: pb.BatchStepped, rows: Sequence[int], num_rows: int) -> None:
    """Adds columns whose rows have different lengths. rows: the part's rows, as row numbers of the whole."""
    before = list(accumulate(whole.counts or [0] * num_rows, initial=0))
    after = list(accumulate(part.counts, initial=0))
    place_of = {row: at for at, row in enumerate(rows)}
    for name in _RAGGED:
        column, found = list(getattr(whole, name)), list(getattr(part, name))
        rows_of_column = [
            found[after[place_of[row]] : after[place_of[row] + 1]]
            if row in place_of
            else column[before[row] : before[row + 1]]
            for row in range(num_rows)
        ]
        del getattr(whole, name)[:]
        getattr(whole, name).extend(one for own in rows_of_column for one in own)
    counts = list(whole.counts or [0] * num_rows)
    for row, at in place_of.items():
        counts[row] = part.counts[at]
    del whole.counts[:]
    whole.counts.extend(counts)
