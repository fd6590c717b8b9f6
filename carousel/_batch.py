"""Many sessions' half of their exchanges with a server, on one stream. Pure: no I/O, no clock, no threads.

As in `_protocol`, an exchange waits for an answer. Requests may also be sent ahead, and their answers awaited later, in
any order. The rules:

1. Sessions have places, 0 and up, in the order of their opening, and handles that the server gave.
2. A session's position is the one that its next step batch begins at, those in flight counted. So a step batch always
   names its sessions' positions, and one that is sent again is applied once.
3. A row that is refused tells where its session is. Step batches in flight behind it are refused for that session too.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from carousel import _answers, _requests
from carousel._exchange import Exchange
from carousel._tensors import Features
from carousel.errors import CarouselError
from carousel.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class StepBatchResult:
    """The answer to a step of many sessions: columns of N, in the order of `places`, 0 where a session was refused.

    positions: after the step; of refused sessions, where they stand. token_ids: the most likely next ones; with top_k
    so many for each session, most likely first; empty when logits or nothing was requested. log_probabilities: of each
    of token_ids, with top_k. logits: with logits, as many for each session as the vocabulary has tokens. errors: why
    sessions were refused, by place. values: of a model that gives values, as many for each session as it gives.
    """

    places: tuple[int, ...]
    positions: tuple[int, ...]
    token_ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    logits: tuple[float, ...]
    errors: Mapping[int, CarouselError]
    replayed: bool = False
    values: tuple[float, ...] = ()


class _InFlight(NamedTuple):
    """A step batch in flight. counts: tokens of each of its sessions."""

    places: tuple[int, ...]
    counts: tuple[int, ...]


class BatchProtocol:
    """The sessions of one stream."""

    id = ""

    def __init__(self) -> None:
        self.handles: list[int] = []
        self.positions: list[int] = []
        self._last_request_id = 0
        self._in_flight: OrderedDict[int, _InFlight] = OrderedDict()
        self._answers: dict[int, pb.StreamResponse] = {}
        self._ended_by: CarouselError | None = None

    @property
    def num_in_flight(self) -> int:
        """Step batches that were sent, and whose answers were not taken yet."""
        return len(self._in_flight)

    def open(self, request: pb.Open, session_id: str) -> pb.StreamRequest:
        """Makes the request to send; see `opened`."""
        return self._number(pb.StreamRequest(open=request, session_id=session_id))

    def opened(self, request_id: int) -> Exchange[int]:
        """Waits for the answer to an opening. Returns the session's place."""
        response = yield from self._wait(request_id)
        self.handles.append(response.opened.handle)
        self.positions.append(0)
        return len(self.handles) - 1

    def step_batch(self, message: pb.StepBatch, places: Sequence[int]) -> pb.StreamRequest:
        """Makes the request to send; see `stepped`. message: with the handles and the positions of those places."""
        request = self._number(pb.StreamRequest(step_batch=message))
        counts = tuple(message.counts) or (1,) * len(places)
        for place, count in zip(places, counts, strict=True):
            self.positions[place] += count
        self._in_flight[request.request_id] = _InFlight(tuple(places), counts)
        return request

    def stepped(self) -> Exchange[StepBatchResult]:
        """Waits for the answer to the oldest step batch in flight. Raises LookupError without any."""
        if not self._in_flight:
            raise LookupError("no step is in flight")
        request_id, sent = next(iter(self._in_flight.items()))
        try:
            response = yield from self._wait(request_id)
        except CarouselError:
            if self._ended_by is None:  # refused as a whole: no session has moved
                del self._in_flight[request_id]
                for place, count in zip(sent.places, sent.counts, strict=True):
                    self.positions[place] -= count
            raise
        del self._in_flight[request_id]
        message = response.batch_stepped
        errors = {}
        for refused in message.errors:
            place = sent.places[refused.index]
            errors[place] = _answers.error(refused.error)
            self.positions[place] = message.positions[refused.index]
        return StepBatchResult(
            sent.places,
            tuple(message.positions),
            tuple(message.token_ids),
            tuple(message.log_probabilities),
            tuple(message.logits),
            errors,
            message.replayed,
            tuple(message.values),
        )

    def lost(self, error: CarouselError) -> CarouselError:
        """Records that the stream ended. Returns the error to raise."""
        self._ended_by = self._ended_by or error
        return copy.copy(self._ended_by)

    def check_open(self) -> None:
        """Raises the error that ended the stream, if it has ended."""
        if self._ended_by is not None:
            raise copy.copy(self._ended_by)

    def _wait(self, request_id: int) -> Exchange[pb.StreamResponse]:
        """Waits for the answer to a request. Raises the refusal."""
        self.check_open()
        while request_id not in self._answers:
            response = yield None
            if response.request_id:  # else a notice: the session's next step reports the same
                self._answers[response.request_id] = response
        answer = self._answers.pop(request_id)
        if answer.HasField("error"):
            raise _answers.error(answer.error)
        return answer

    def _number(self, request: pb.StreamRequest) -> pb.StreamRequest:
        self.check_open()
        self._last_request_id += 1
        request.request_id = self._last_request_id
        return request


class Poster(Protocol):
    """A stream that sends without waiting."""

    def post(self, request: pb.StreamRequest) -> None:
        """Sends a request whose answer another exchange waits for."""


P = TypeVar("P", bound=Poster)


class BatchProperties(Generic[P]):
    """The parts of blocking and asyncio batches that do not wait."""

    _protocol: BatchProtocol
    _stream: P
    _turn: AbstractContextManager[None]

    def __len__(self) -> int:
        return len(self._protocol.handles)

    @property
    def positions(self) -> tuple[int, ...]:
        """The position of each session, by place, the steps in flight counted."""
        return tuple(self._protocol.positions)

    def send(
        self,
        tokens: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        features: Features | None = None,
        places: Sequence[int] | None = None,
        top_k: int | None = None,
        logits: bool = False,
        outputs: bool = True,
    ) -> None:
        """Sends a step and does not wait for its answer: see `step`, and `receive`. Several may be in flight."""
        with self._turn:
            self._send(tokens, features, places, top_k=top_k, logits=logits, outputs=outputs)

    def _send(
        self,
        tokens: Sequence[int] | Sequence[Sequence[int]] | None,
        features: Features | None,
        places: Sequence[int] | None,
        *,
        top_k: int | None,
        logits: bool,
        outputs: bool,
    ) -> None:
        protocol = self._protocol
        places = range(len(protocol.handles)) if places is None else places
        message = _requests.step_batch_message(
            [protocol.handles[place] for place in places],
            tokens,
            [protocol.positions[place] for place in places],
            features=features,
            top_k=top_k,
            logits=logits,
            outputs=outputs,
        )
        self._stream.post(protocol.step_batch(message, places))

    def _check_none_in_flight(self) -> None:
        if self._protocol.num_in_flight:
            raise LookupError("other steps are in flight: `receive` their answers first")

    def _send_openings(self, openings: Sequence[tuple[pb.Open, str]]) -> list[int]:
        """Returns the requests' numbers."""
        requests = [self._protocol.open(message, session_id) for message, session_id in openings]
        for request in requests:
            self._stream.post(request)
        return [request.request_id for request in requests]
