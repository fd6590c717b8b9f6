"""What a client keeps so that it can go on with its session when its stream is lost. Pure: no I/O, no clock, no
threads.

The rules:

1. A request that has no last answer yet is sent again on the next stream, as it was; the server applies it once.
2. What the session has consumed since it was stored last is kept here, and fed to it again when it was restored from
   behind that. A session that was never stored is opened again, and fed everything.
3. Outputs that have been received already, and come again, are dropped by their position: see `GenerationState`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import grpc

from carousel import _answers
from carousel._conversation import Conversation
from carousel._tensors import joined, pieces
from carousel.errors import CarouselError, UnavailableError
from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb
from carousel.values import CloseReason

Consumed: TypeAlias = Sequence[str] | Sequence[int] | Sequence[bytes]
"""Tokens by name or by id, or vectors as they are on the wire."""

_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 2.0
_TRANSIENT = ("SESSION_MOVED", "STORE_UNAVAILABLE", "SHUTTING_DOWN")
_RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED)


class LostError(Exception):
    """The stream is of no more use, and the session may be gone on with on another. error: what to tell if it
    cannot."""

    def __init__(self, error: CarouselError) -> None:
        super().__init__(str(error))
        self.error = error


class _Piece(NamedTuple):
    """Tokens that the session consumed, by name or by id, or vectors. start: the position of the first."""

    start: int
    tokens: Consumed

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class History:
    """What a session has consumed from `start` to `end`, as far as it has to be kept."""

    def __init__(self, start: int = 0) -> None:
        self.start = self.end = start
        self._pieces: list[_Piece] = []

    def add(self, position: int, tokens: Consumed) -> None:
        """Tokens were consumed from a position on. What is known already is passed over; after a gap all before it is
        forgotten."""
        if position > self.end:
            self.restart(position)
        fresh = tokens[self.end - position :]
        if fresh:
            self._pieces.append(_Piece(self.end, fresh))
            self.end += len(fresh)

    def restart(self, position: int) -> None:
        """Forgets everything: nothing is known of what comes before a position."""
        self.start = self.end = position
        self._pieces.clear()

    def forget(self, position: int) -> None:
        """What comes before a position is stored. Pieces are dropped as a whole."""
        kept = [piece for piece in self._pieces if piece.end > position]
        if len(kept) < len(self._pieces):
            self._pieces = kept
            self.start = kept[0].start if kept else max(self.start, self.end)

    def between(self, begin: int, end: int) -> Iterator[pb.Feed]:
        """Feeds that take a session from one position to another. Raises LookupError when that is not kept."""
        if begin < self.start or end > self.end:
            raise LookupError(f"positions {begin} to {end} are wanted, {self.start} to {self.end} are kept")
        for piece in self._pieces:
            tokens = piece.tokens[max(0, begin - piece.start) : end - piece.start if end < piece.end else None]
            if piece.end > begin and piece.start < end:
                feed = pb.Feed(position=max(begin, piece.start), outputs=pb.OutputSpec(kind=pb.OUTPUT_KIND_NONE))
                if isinstance(tokens[0], bytes):
                    feed.features.CopyFrom(joined(tokens))  # type: ignore[arg-type]  # all are of the first's kind
                elif isinstance(tokens[0], str):
                    feed.tokens.extend(tokens)  # type: ignore[arg-type]  # likewise
                else:
                    feed.token_ids.extend(tokens)  # type: ignore[arg-type]  # likewise
                yield feed


class Recovery:
    """Of one session. opening: as it is opened, None for one that others have opened; timeout_s: how long to try."""

    def __init__(self, opening: pb.Open | None, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._opening = opening
        self._history = History()
        self._unanswered: dict[int, pb.StreamRequest] = {}
        self._is_open = False
        self._is_stored = False
        self._is_kept = opening is not None and opening.on_disconnect.action == pb.DISCONNECT_ACTION_KEEP
        self._checkpoint: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a session to go on with."""
        return self._is_open

    @property
    def unanswered(self) -> list[pb.StreamRequest]:
        """The requests that have no last answer yet, in the order in which they were sent."""
        return list(self._unanswered.values())

    def sent(self, request: pb.StreamRequest) -> None:
        """Takes note of a request."""
        self._unanswered[request.request_id] = request

    def received(self, response: pb.StreamResponse) -> None:
        """Takes note of a response. Raises LostError when the session has to be gone on with elsewhere."""
        kind = response.WhichOneof("response")
        if kind == "go_away":
            raise LostError(UnavailableError("the server is leaving", reason="GO_AWAY"))
        is_asked = response.request_id in self._unanswered
        if self._is_open and is_asked and kind == "error" and _is_elsewhere(response.error):
            raise LostError(_answers.error(response.error))
        if kind == "closed" and (
            response.closed.reason == pb.CLOSE_REASON_MOVED
            or (self._is_kept and response.closed.reason == pb.CLOSE_REASON_IDLE)
        ):
            raise LostError(UnavailableError("the session is in the store, or with another server"))
        self._learn(response)
        request = self._unanswered.get(response.request_id)
        if kind == "generated":
            made: Consumed = [token.id for token in response.generated.tokens]
            if response.generated.HasField("values"):
                made = pieces(response.generated.values)
            self._consumed(response.position - len(made), made)
            if not response.generated.finish_reason:
                return
        elif request is not None and kind == "fed":
            self._consumed(request.feed.position, _consumed_by(request.feed))
        elif kind in ("error", "cancelled") and response.position > self._history.end:
            self._history.restart(response.position)
        self._unanswered.pop(response.request_id, None)

    def resume(self, number: Callable[[pb.StreamRequest], pb.StreamRequest], position: int) -> Conversation[None]:
        """Goes on with the session on a new stream. position: of the client. What has no answer is to be sent after it.

        number: gives a request its number. Raises what the server refuses it with; UnavailableError when what came
        after the checkpoint is not kept.
        """
        response = yield from _ask(number(pb.StreamRequest(open=pb.Open(resume=pb.Resume()))))
        if response.HasField("error"):
            if _is_elsewhere(response.error):
                raise UnavailableError(response.error.message, reason=response.error.reason)
            is_gone = response.error.code == grpc.StatusCode.NOT_FOUND.value[0]
            was_told = response.error.metadata.get("close_reason", "lost") != "lost"
            can_begin_anew = self._is_stored and self._checkpoint is None and not self._history.start
            if not is_gone or was_told or not can_begin_anew or self._opening is None:
                raise _answers.error(response.error)
            response = yield from _ask(number(pb.StreamRequest(open=self._opening)))
            if response.HasField("error"):
                raise _answers.error(response.error)
        self._learn(response)
        restored = response.position
        target = self._first_position(position)
        if restored < target:
            try:
                feeds = list(self._history.between(restored, target))
            except LookupError as error:
                raise CarouselError(
                    f"the session was restored at position {restored}, and the client cannot bring it to {target}:"
                    f" {error}",
                    code=grpc.StatusCode.DATA_LOSS,
                    reason="HISTORY_LOST",
                ) from error
            for feed in feeds:
                response = yield from _ask(number(pb.StreamRequest(feed=feed)))
                if response.HasField("error"):
                    if _is_elsewhere(response.error):
                        raise UnavailableError(response.error.message, reason=response.error.reason)
                    raise _answers.error(response.error)
                self._learn(response)
        for request in self._unanswered.values():
            if request.HasField("generate"):
                start = request.generate.position
                request.generate.received_position = max(start, min(position, restored))

    def opened(self, response: pb.StreamResponse) -> None:
        """The session is open, new or gone on with."""
        self._is_open = True
        self._is_stored = response.opened.durability in (pb.DURABILITY_CHECKPOINT, pb.DURABILITY_STRICT)
        self._history.restart(response.position)

    def rewound(self, position: int) -> None:
        """The session was set back or changed by another call; what came before is not to be fed to it again."""
        self._history.restart(position)

    def _learn(self, response: pb.StreamResponse) -> None:
        if response.HasField("checkpoint_position"):
            self._checkpoint = response.checkpoint_position
            self._history.forget(response.checkpoint_position)

    def _consumed(self, position: int, tokens: Consumed) -> None:
        if self._is_stored:
            self._history.add(position, tokens)
        else:
            self._history.restart(max(self._history.end, position + len(tokens)))

    def _first_position(self, position: int) -> int:
        """Where the session must be for the first of the requests that have no answer."""
        for request in self._unanswered.values():
            kind = request.WhichOneof("request")
            if kind in ("feed", "generate", "score"):
                return int(getattr(request, kind).position)
        return position


class Backoff:
    """How long to wait between attempts: twice as long each time, by chance up to half of it less. timeout_s: after
    that there is none."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._waited_s = 0.0
        self._delay_s = 0.0

    def next(self, error: CarouselError, remaining_s: float | None) -> float:
        """Seconds to wait before the next attempt. Raises `error` when it would not help, or the time is over."""
        if error.code not in _RETRIED:
            raise error
        delay_s = self._delay_s * random.uniform(0.5, 1.0)
        self._waited_s += delay_s
        if self._waited_s > self._timeout_s or (remaining_s is not None and delay_s > remaining_s):
            raise error
        self._delay_s = min(_LONGEST_DELAY_S, max(_FIRST_DELAY_S, 2 * self._delay_s))
        return delay_s

    def again(self, error: CarouselError, position: int, remaining_s: float | None) -> float:
        """As `next`, for a call that may be made again from the start. One that could not even begin is not."""
        if error.code is not grpc.StatusCode.UNAVAILABLE or not position:
            raise error
        return self.next(error, remaining_s)


def _is_elsewhere(error: error_pb2.Error) -> bool:
    """Whether an error tells that the session is to be looked for again, or the request sent again later."""
    return error.reason in _TRANSIENT or error.metadata.get("close_reason") == CloseReason.MOVED


def _consumed_by(feed: pb.Feed) -> Consumed:
    if feed.HasField("features"):
        return pieces(feed.features)
    return list(feed.tokens) or list(feed.token_ids)


def _ask(request: pb.StreamRequest) -> Conversation[pb.StreamResponse]:
    response = yield request
    while response.request_id != request.request_id:
        kind = response.WhichOneof("response")
        if kind == "go_away" or (kind == "closed" and response.closed.reason == pb.CLOSE_REASON_MOVED):
            raise UnavailableError("the server is leaving, or another one has the session")
        response = yield None
    return response
