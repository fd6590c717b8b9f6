"""Many generations at the same time on one stream, each in its own session. Pure: no I/O, no clock, no threads.

1. Each source becomes two requests that are sent together, open and generate: the server runs the requests of one
   session in order. The session is closed after its sequence is complete; an earlier close would cancel the generation.
2. Results are returned in the order of the sources, and each only when it is complete.
3. If a source is refused, its result is the error, and the others continue. A source refused by a full server is sent
   again.
4. A lost stream ends its sessions. Sources without a result are sent again on another stream, from the beginning: with
   the same seed the server chooses the same tokens.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator

from carousel import _answers
from carousel._backoff import is_retried
from carousel._generation import GenerationState
from carousel._requests import Source, sequence_message
from carousel._session_errors import session_closed
from carousel.errors import CarouselError, UnavailableError
from carousel.v1 import inference_pb2 as pb
from carousel.values import GeneratedSequence, Token


class _Entry:
    """One source. session_id: its session on this stream. state: its generation. result: for the program; None until it
    is complete. refused_by: the error with which a full server refused it; None when it need not be sent again."""

    def __init__(self, source: Source | None, decoding: pb.Decoding) -> None:
        self.source = source
        self.session_id = ""
        self.state = GenerationState(decoding)
        self.result: GeneratedSequence | None = None
        self.refused_by: CarouselError | None = None


class ManyGenerations:
    """Implements `StreamOwner`. One thread or task at a time may use it."""

    id = ""
    route = 0

    def __init__(self, opening: pb.Open, decoding: pb.Decoding) -> None:
        """opening: the opening of every session, without a source."""
        self._opening = opening
        self._decoding = decoding
        self._entries: deque[_Entry] = deque()
        self._by_request: dict[int, _Entry] = {}
        self._last_request_id = 0
        self.num_done = 0
        """Results so far, including those that the program has read."""

    @property
    def num_entries(self) -> int:
        """Number of sources whose results the program has not read."""
        return len(self._entries)

    @property
    def num_in_flight(self) -> int:
        """Number of sources that were sent on this stream and have no result yet."""
        return len(set(map(id, self._by_request.values())))

    def add(self, source: Source | None) -> list[pb.StreamRequest]:
        """Returns the requests for another source. None for a source that cannot be sent: its result is the error."""
        entry = _Entry(source, self._decoding)
        self._entries.append(entry)
        try:
            return self._requests(entry)
        except (CarouselError, TypeError) as error:
            self._end(entry, error)
            return []

    def receive(self, response: pb.StreamResponse) -> list[pb.StreamRequest]:
        """Records a response. Returns the requests to send because of it. Raises UnavailableError when the server shuts
        down, and another stream is needed."""
        kind = response.WhichOneof("response")
        if kind == "go_away":
            raise UnavailableError("the server is leaving", reason="GO_AWAY")
        entry = self._by_request.get(response.request_id)
        if kind == "closed" and not response.request_id:
            entry = next((one for one in self._by_request.values() if one.session_id == response.session_id), None)
        if entry is None:
            return []
        if kind == "closed":  # by the server or by an admin call
            reason = _answers.close_reason(response.closed.reason)
            self._end(entry, session_closed(response.session_id, reason, response.position))
        elif kind == "error":
            error = _answers.error(response.error)
            if is_retried(error):
                self._forget(entry)
                entry.refused_by = error
            else:
                self._end(entry, error)
        elif kind == "generated":
            entry.state.receive(response.generated, response.position)
            if entry.state.is_ended:
                self._end(entry, None)
                return [self._numbered(pb.StreamRequest(close=pb.Close()), entry)]
        return []

    def take(self) -> Iterator[GeneratedSequence]:
        """Yields the complete results, in the order of the sources, up to the first that is not complete."""
        while self._entries and (result := self._entries[0].result) is not None:
            self._entries.popleft()
            yield result

    @property
    def refused_by(self) -> CarouselError | None:
        """The error of the first source that must be sent again; None if there is none."""
        return next((entry.refused_by for entry in self._entries if entry.refused_by is not None), None)

    def repeat(self) -> list[pb.StreamRequest]:
        """Returns the requests for the sources that a full server refused."""
        refused = [entry for entry in self._entries if entry.refused_by is not None]
        return [request for entry in refused for request in self._requests(entry)]

    def restart(self) -> list[pb.StreamRequest]:
        """Returns the requests for all sources without a result, to send them on another stream."""
        self._by_request.clear()
        self._last_request_id = 0
        unfinished = [entry for entry in self._entries if entry.result is None]
        return [request for entry in unfinished for request in self._requests(entry)]

    def lost(self, error: CarouselError) -> CarouselError:
        """See `StreamOwner`."""
        return error

    def interrupt(self) -> pb.StreamRequest | None:
        """See `StreamOwner`."""
        return None

    def _requests(self, entry: _Entry) -> list[pb.StreamRequest]:
        opening = pb.Open()
        opening.CopyFrom(self._opening)
        if entry.source is not None:
            opening.source.CopyFrom(sequence_message(entry.source, "open.source"))
        entry.state, entry.refused_by = GenerationState(self._decoding), None
        entry.session_id = secrets.token_urlsafe(9)
        requests = [
            self._numbered(pb.StreamRequest(open=opening), entry),
            self._numbered(pb.StreamRequest(generate=pb.Generate(decoding=self._decoding)), entry),
        ]
        self._by_request |= {request.request_id: entry for request in requests}
        return requests

    def _numbered(self, request: pb.StreamRequest, entry: _Entry) -> pb.StreamRequest:
        self._last_request_id += 1
        request.request_id, request.session_id = self._last_request_id, entry.session_id
        return request

    def _end(self, entry: _Entry, error: Exception | None) -> None:
        self._forget(entry)
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

    def _forget(self, entry: _Entry) -> None:
        self._by_request = {number: other for number, other in self._by_request.items() if other is not entry}
