"""Generations side by side on one stream, each in a session of its own. Pure: no I/O, no clock, no threads.

1. A source becomes two requests that are sent together, open and generate: the server carries out the requests of one
   session in order. The session is closed when its sequence is complete, as closing it earlier would cancel that.
2. Results leave in the order of the sources, each whole.
3. A source that is refused has its error as its result; the others go on. One that a full server refuses is sent again.
4. A lost stream ends its sessions. What has no result is sent again on another stream, from its beginning: with the
   same seed the server chooses the same tokens.
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
    """One source. session_id: of its session on this stream. state: of its generation. result: what the program gets;
    None before the end. refused_by: why a full server did not open its session; it waits to be sent again."""

    def __init__(self, source: Source | None, decoding: pb.Decoding) -> None:
        self.source = source
        self.session_id = ""
        self.state = GenerationState(decoding)
        self.result: GeneratedSequence | None = None
        self.refused_by: CarouselError | None = None


class ManyGenerations:
    """Implements `StreamOwner`. One thread, or task, at a time."""

    id = ""
    route = 0

    def __init__(self, opening: pb.Open, decoding: pb.Decoding) -> None:
        """opening: of every session, without a source."""
        self._opening = opening
        self._decoding = decoding
        self._entries: deque[_Entry] = deque()
        self._by_request: dict[int, _Entry] = {}
        self._last_request_id = 0
        self.num_done = 0
        """Results so far, those that were taken and those that were not."""

    @property
    def num_entries(self) -> int:
        """Sources whose results were not taken yet."""
        return len(self._entries)

    @property
    def num_in_flight(self) -> int:
        """Sources that were sent on this stream and have no result yet."""
        return len(set(map(id, self._by_request.values())))

    def add(self, source: Source | None) -> list[pb.StreamRequest]:
        """Returns the requests for another source; none for a source that cannot be sent, whose result is the error."""
        entry = _Entry(source, self._decoding)
        self._entries.append(entry)
        try:
            return self._requests(entry)
        except (CarouselError, TypeError) as error:
            self._end(entry, error)
            return []

    def receive(self, response: pb.StreamResponse) -> list[pb.StreamRequest]:
        """Records a response, and returns the requests that follow from it. Raises UnavailableError when the server is
        leaving: another stream is needed."""
        kind = response.WhichOneof("response")
        if kind == "go_away":
            raise UnavailableError("the server is leaving", reason="GO_AWAY")
        entry = self._by_request.get(response.request_id)
        if kind == "closed" and not response.request_id:
            entry = next((one for one in self._by_request.values() if one.session_id == response.session_id), None)
        if entry is None:
            return []
        if kind == "closed":  # by the server, or by an admin
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
        """Returns the results that are due, in the order of the sources."""
        while self._entries and (result := self._entries[0].result) is not None:
            self._entries.popleft()
            yield result

    @property
    def refused_by(self) -> CarouselError | None:
        """Why a source waits to be sent again; None when none does."""
        return next((entry.refused_by for entry in self._entries if entry.refused_by is not None), None)

    def repeat(self) -> list[pb.StreamRequest]:
        """Returns the requests of the sources that a full server has refused."""
        refused = [entry for entry in self._entries if entry.refused_by is not None]
        return [request for entry in refused for request in self._requests(entry)]

    def restart(self) -> list[pb.StreamRequest]:
        """Returns the requests of all sources without a result, for another stream."""
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
            items = list(iter(entry.state.take, None))  # all tokens, or all vectors, which are tuples
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
