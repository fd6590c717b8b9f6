"""The sessions of a batch, and the tokens that they consumed. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from carousel._batch_step import BatchStep
from carousel._ports import ports
from carousel._recovery import Recovery
from carousel.errors import CarouselError, PositionMismatchError
from carousel.v1 import inference_pb2 as pb
from carousel.values import Port

_MAX_WAITING = 256
"""Consumed tokens a session, on average, after which the journal is written to the histories."""


class Member:
    """One session of a batch.

    position: where its next step begins, after the steps in flight. restored: its position at the last resume. is_away:
    the server has handed it over to another server. ended_by: why it ended. is_closed: the program has closed it.
    """

    def __init__(self, session_id: str, opening: pb.Open, timeout_s: float, *, has_own_id: bool) -> None:
        """has_own_id: whether this client made the id, not the program."""
        self.id = session_id
        self.opening = opening
        self.has_own_id = has_own_id
        self.recovery = Recovery(opening, timeout_s)
        self.handle = 0
        self.position = self.restored = 0
        self.inputs: tuple[Port, ...] = ()
        self.outputs: tuple[Port, ...] = ()
        self.feature_size = 0
        self.is_away = self.is_closed = False
        self.ended_by: CarouselError | None = None
        self._is_strict = False

    def opened(self, response: pb.StreamResponse) -> None:
        """Records the answer to the opening."""
        self.id, self.handle = response.session_id, response.opened.handle
        self.position = self.restored = response.position
        self.inputs, self.outputs = ports(response.opened.inputs), ports(response.opened.outputs)
        self.feature_size = response.opened.feature_size
        self._is_strict = response.opened.durability == pb.DURABILITY_STRICT
        self.recovery.opened(response)

    def release(self) -> None:
        """Drops what a resume would need, because the session has ended."""
        self.opening = pb.Open()
        self.recovery = Recovery(None, self.recovery.timeout_s)

    def consumed(self, position: int, tokens: list[object]) -> None:
        """Records tokens of answered steps. In a strict session, the server has stored them."""
        self.recovery.consumed(position, tokens)  # type: ignore[arg-type]  # all are of one kind
        if self._is_strict:
            self.recovery.stored(position + len(tokens))


class Journal:
    """Answered rows whose tokens are not in the sessions' histories yet. Writing many at once is cheaper.

    members: by place; the batch's own list.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._rows: list[tuple[BatchStep, Sequence[int]]] = []
        self._num_tokens = 0

    @property
    def is_due(self) -> bool:
        """Whether so many tokens wait that the journal should be written."""
        return self._num_tokens >= _MAX_WAITING * len(self._members)

    def add(self, step: BatchStep, rows: Sequence[int]) -> None:
        """Adds rows that have their last answer."""
        self._rows.append((step, rows))
        counts = step.message.counts
        self._num_tokens += sum(counts) if counts else len(rows)

    def write(self) -> None:
        """Writes all waiting tokens to the histories."""
        rows_of, self._rows, self._num_tokens = self._rows, [], 0
        runs: dict[int, tuple[int, list[object]]] = {}
        for step, rows in rows_of:
            everything = step.tokens()
            for row in rows:
                place, start, error = step.places[row], step.message.positions[row], step.errors.get(row)
                begin, tokens = runs.get(place, (0, []))
                if error is not None and error.reason != "OUTPUTS_LOST":
                    if isinstance(error, PositionMismatchError):
                        self._write(place, runs.pop(place, None))
                        self._members[place].recovery.stands_at(error.expected_position)
                elif tokens and begin + len(tokens) == start:
                    tokens.extend(everything[row])
                else:
                    self._write(place, runs.pop(place, None))
                    runs[place] = (start, list(everything[row]))
        for place, run in runs.items():
            self._write(place, run)

    def _write(self, place: int, run: tuple[int, list[object]] | None) -> None:
        if run is not None:
            self._members[place].consumed(*run)
