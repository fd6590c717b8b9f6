"""Many generations at the same time on one stream, each in its own session. Pure: no I/O, no clock, no threads.

1. Each source becomes two requests that are sent together, open and generate: the server runs the requests of one
   session in order. The session is closed when its sequence is complete, because an earlier close would cancel the
   generation, or when its generation is refused.
2. Results are returned in the order of the sources, and each only when it is complete.
3. If a source is refused, its result is the error, and the others continue. A source that a full server refuses waits,
   and so do the sources after it. When sources complete, as many waiting ones are sent and one more, until none waits.
4. A lost stream ends its sessions. Sources without a result are sent again on another stream, from the beginning: with
   the same seed, the same version of the model chooses the same tokens.
5. A request that is too large ends the stream, and the server does not say which request it was. All sources without a
   result are then sent one at a time, until one of them ends the stream alone: its result is the refusal.
"""

from __future__ import annotations

import bisect
import secrets
from collections import deque
from collections.abc import Callable, Iterator

import grpc

from carousel import _answers
from carousel._backoff import is_retried
from carousel._generation import GenerationState
from carousel._requests import Source, sequence_message
from carousel._session_errors import session_closed
from carousel.errors import CarouselError, UnavailableError
from carousel.v1 import inference_pb2 as pb
from carousel.values import GeneratedSequence, Token


class _Entry:
    """One source.

    number: its place among the sources. opening, generate: its requests. session_id: its session on this stream, which
    the request opening_id opens. is_suspect: whether its request may be too large. state: its generation. result: for
    the program; None until it is complete.
    """

    def __init__(self, number: int, source: Source | None, opening: pb.Open, decoding: pb.Decoding) -> None:
        self.number = number
        self.source = source
        self.opening = pb.Open()
        self.opening.CopyFrom(opening)
        self.generate = pb.Generate(decoding=decoding)
        self.session_id = ""
        self.opening_id = 0
        self.is_suspect = False
        self.state = GenerationState(decoding)
        self.result: GeneratedSequence | None = None


class ManyGenerations:
    """Implements `StreamOwner`. One thread or task at a time may use it."""

    id = ""
    route = 0

    def __init__(self, opening: pb.Open, decoding: Callable[[], pb.Decoding]) -> None:
        """opening: the opening of every session, without a source. decoding: makes the decoding of a source, with a new
        seed for each source unless the program gave one."""
        self._opening = opening
        self._decoding = decoding
        self._entries: deque[_Entry] = deque()
        self._in_flight: dict[str, _Entry] = {}
        """By session id."""
        self._waiting: list[_Entry] = []
        """Sources to send, in the order of the sources."""
        self._num_sources = 0
        self._last_request_id = 0
        self.num_done = 0
        """Number of results so far, including those that the program has read."""
        self.refused_by: CarouselError | None = None
        """The error with which a full server refused a source; None when no source waits for that reason."""

    @property
    def num_entries(self) -> int:
        """Number of sources whose results the program has not read."""
        return len(self._entries)

    @property
    def num_in_flight(self) -> int:
        """Number of sources that were sent on this stream and have no result yet."""
        return len(self._in_flight)

    @property
    def num_waiting(self) -> int:
        """Number of sources that wait to be sent by `proceed`."""
        return len(self._waiting)

    def add(self, source: Source | None) -> list[pb.StreamRequest]:
        """Returns the requests for another source: none for a source that waits behind others, and none for a source
        that cannot be sent, whose result is the error."""
        entry = _Entry(self._num_sources, source, self._opening, self._decoding())
        self._num_sources += 1
        self._entries.append(entry)
        try:
            if source is not None:
                entry.opening.source.CopyFrom(sequence_message(source, "open.source"))
        except (CarouselError, TypeError) as error:
            self._end(entry, error)
            return []
        is_behind = bool(self._waiting) or self._has_suspect
        self._waiting.append(entry)
        return [] if is_behind else self.proceed(1)

    def receive(self, response: pb.StreamResponse) -> list[pb.StreamRequest]:
        """Records a response. Returns the requests to send because of it. Raises UnavailableError when the server shuts
        down, and another stream is needed."""
        kind = response.WhichOneof("response")
        if kind == "go_away":
            raise UnavailableError("the server is shutting down", reason="GO_AWAY")
        entry = self._in_flight.get(response.session_id)
        if entry is None:  # it has its result: this answers `close`, or a request behind a refused one
            return []
        if kind == "opened":
            entry.opening.version = response.opened.version  # for a retry on another stream
        elif kind == "closed":  # by the server or by an admin call
            reason = _answers.close_reason(response.closed.reason)
            self._end(entry, session_closed(response.session_id, reason, response.position))
        elif kind == "error":
            error = _answers.error(response.error)
            if is_retried(error):
                del self._in_flight[entry.session_id]
                bisect.insort(self._waiting, entry, key=lambda one: one.number)
                self.refused_by = error
            else:
                self._end(entry, error)
            if response.request_id != entry.opening_id:  # the session is open, or will be: refusals may arrive first
                return [self._closing(entry)]
        elif kind == "generated":
            entry.state.receive(response.generated, response.position)
            if entry.state.is_ended:
                self._end(entry, None)
                return [self._closing(entry)]
        return []

    def take(self) -> Iterator[GeneratedSequence]:
        """Yields the complete results, in the order of the sources, up to the first that is not complete."""
        while self._entries and (result := self._entries[0].result) is not None:
            self._entries.popleft()
            yield result

    def proceed(self, at_most: int) -> list[pb.StreamRequest]:
        """Returns the requests of waiting sources. at_most: how many to send if the server was full."""
        requests: list[pb.StreamRequest] = []
        num_sent = 0
        while self._waiting:
            if self._has_suspect or (self._waiting[0].is_suspect and self._in_flight):
                break
            if self.refused_by is not None and num_sent == at_most:
                break
            requests += self._requests(self._waiting.pop(0))
            num_sent += 1
        if not self._waiting:
            self.refused_by = None
        return requests

    def mark_suspects(self, error: CarouselError) -> bool:
        """Marks the sources in flight as suspects if a request that was too large ended the stream. If it is only one,
        this error becomes its result. Returns whether it was so: then `restart` helps, without delay."""
        if error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED or error.reason or error.retry_delay is not None:
            return False  # gRPC's error has no reason, the server's has one
        suspects = list(self._in_flight.values())
        if len(suspects) == 1:
            self._end(suspects[0], error)
        for entry in suspects:
            entry.is_suspect = True
        return True

    def restart(self) -> list[pb.StreamRequest]:
        """Returns the requests of sources without a result, to send them on another stream."""
        self._in_flight.clear()
        self._last_request_id = 0
        self._waiting = [entry for entry in self._entries if entry.result is None]
        self.refused_by = None
        return self.proceed(len(self._waiting))

    @property
    def _has_suspect(self) -> bool:
        """Whether a source is in flight that must be the only one, because it may be too large."""
        return len(self._in_flight) == 1 and next(iter(self._in_flight.values())).is_suspect

    def _requests(self, entry: _Entry) -> list[pb.StreamRequest]:
        entry.state = GenerationState(entry.generate.decoding)
        entry.session_id = secrets.token_urlsafe(9)
        self._in_flight[entry.session_id] = entry
        opening = self._numbered(pb.StreamRequest(open=entry.opening), entry)
        entry.opening_id = opening.request_id
        return [opening, self._numbered(pb.StreamRequest(generate=entry.generate), entry)]

    def _closing(self, entry: _Entry) -> pb.StreamRequest:
        return self._numbered(pb.StreamRequest(close=pb.Close()), entry)

    def _numbered(self, request: pb.StreamRequest, entry: _Entry) -> pb.StreamRequest:
        self._last_request_id += 1
        request.request_id, request.session_id = self._last_request_id, entry.session_id
        return request

    def _end(self, entry: _Entry, error: Exception | None) -> None:
        self._in_flight.pop(entry.session_id, None)
        if error is not None:
            entry.result = GeneratedSequence(entry.source, error=error)
        else:
            items = list(iter(entry.state.take, None))  # all are tokens, or all are vectors, which are tuples
            entry.result = GeneratedSequence(
                entry.source,
                tokens=tuple(item for item in items if isinstance(item, Token)),
                values=tuple(item for item in items if isinstance(item, tuple)),
                text=entry.state.text,
                finish_reason=entry.state.finish_reason,
                hypotheses=entry.state.hypotheses,
            )
        self.num_done += 1
