"""What a stream answers, as it comes: requests' results become responses in its outbox.

Event loop only.
"""

from __future__ import annotations

from functools import partial

from carousel.v1 import inference_pb2 as pb
from service.api import answers
from service.api.outbox import Outbox
from service.api.part import Part
from service.api.status import TABLE
from service.engine.results import Failed, Fed, Generated, Result, Scored, Searched
from service.errors import CarouselError
from service.observer import ApiObserver
from service.sessions.session import Request, Session


class Replies:
    """The answers of one stream. num_unanswered: requests that were taken in and have none yet."""

    def __init__(self, outbox: Outbox[pb.StreamResponse], observer: ApiObserver) -> None:
        self.num_unanswered = 0
        self._outbox = outbox
        self._observer = observer
        self._parts: dict[Request, Part] = {}
        self._is_last_read = False

    def last_read(self) -> None:
        """No more requests will come: the outbox is closed as soon as all are answered."""
        self._is_last_read = True
        self._end_if_done()

    def tell(self, response: pb.StreamResponse) -> None:
        """Writes what nobody has asked for."""
        self._outbox.put(response)

    def on_fed(self, request: Request, result: Result) -> None:
        """A feed is done, or has failed."""
        if isinstance(result, Fed):
            self.answer(answers.fed(request, result))
        else:
            self.failed(request, result)

    def on_searched(self, request: Request, result: Result) -> None:
        """A beam search is done, or has failed."""
        if isinstance(result, Searched):
            self.answer(answers.found(request, result))
        else:
            self.failed(request, result)

    def on_scored(self, request: Request, result: Result) -> None:
        """A score is done, or has failed."""
        if isinstance(result, Scored):
            self.answer(answers.scored(request, result))
        else:
            self.failed(request, result)

    def on_generated(self, request: Request, result: Result) -> None:
        """A generation has gone on, or has ended."""
        if not isinstance(result, Generated):
            self._parts.pop(request, None)
            self.failed(request, result)
            return
        part = self._parts.get(request)
        if part is None or part.is_taken:
            part = self._parts[request] = Part(request.session.served.bundle)
            self._outbox.put_later(partial(self._generated, request, part), partial(_granted, request, part))
        part.add(result)
        if result.finish_reason is not None:
            del self._parts[request]
            self.done()

    def _generated(self, request: Request, part: Part) -> pb.StreamResponse:
        response = pb.StreamResponse(
            request_id=request.request_id,
            session_id=request.session.name,
            generated=part.take(),
            position=part.position,
        )
        return answers.with_news(response, request.session)

    def failed(self, request: Request, result: Result) -> None:
        """A request has failed."""
        assert isinstance(result, Failed)  # noqa: S101  # the callers have looked at every other result
        self.refuse(request.request_id, request.session.name, request.session, result.error)
        self.done()

    def refuse(self, request_id: int, session_id: str, session: Session | None, error: CarouselError) -> None:
        """Tells why something was refused. session: that it was about, if it is known."""
        row = TABLE[type(error)]
        model = session.served.bundle.model if session is not None else ""
        self._observer.request_failed(model, row.code.name, row.reason)
        self._outbox.put(answers.refused(request_id, session_id, session, error))

    def answer(self, response: pb.StreamResponse) -> None:
        """Answers a request for good."""
        self._outbox.put(response)
        self.done()

    def done(self) -> None:
        """A request has its last answer."""
        self.num_unanswered -= 1
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._is_last_read and self.num_unanswered == 0:
            self._outbox.close()


def _granted(request: Request, part: Part) -> None:
    """A part has been written."""
    if request.granted is not None:
        request.granted(len(part), part.position)
