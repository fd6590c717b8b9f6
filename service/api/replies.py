"""Answers the requests of one stream: turns results into responses, puts these into the outbox, and counts the
requests.

A request is counted when it arrives, in `Stream.handle`, and when its last response is queued, in `_finish`; nothing
else counts requests. Event loop only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from carousel.v1 import inference_pb2 as pb
from service.api import answers
from service.api.convert import Numbers
from service.api.outbox import Made, Outbox
from service.api.part import Part, pieces
from service.api.refusals import refused
from service.api.status import TABLE
from service.api.text import text_after
from service.api.token_answer import TokenAnswer
from service.engine.jobs import Item
from service.engine.results import Failed, Fed, Generated, Result, Scored, Searched, Stepped
from service.errors import CarouselError, EngineError, report
from service.observer import ApiObserver, CallReport, current_call
from service.sessions.request import Request
from service.sessions.session import Session


class Replies:
    """Answers the requests of one stream. Must be made inside the stream's call: every error carries the id of that
    call.

    max_answer_bytes: the most bytes of one response.

    num_requests: requests that arrived; num_answered: requests whose last response is queued; num_more: responses
    besides the last ones; num_failed: requests, and sessions of step batches, that were refused or failed.
    num_tokens_in: tokens or vectors that requests fed or scored; num_tokens_out: tokens that requests generated.
    """

    _token_answer = TokenAnswer()
    """Shared by all streams: each response is serialized before the next one is filled in."""

    def __init__(self, outbox: Outbox[pb.StreamResponse], observer: ApiObserver, max_answer_bytes: int) -> None:
        self.num_requests = self.num_answered = self.num_more = self.num_failed = 0
        self.num_tokens_in = self.num_tokens_out = 0
        self._max_bytes = max_answer_bytes
        self._outbox = outbox
        self._observer = observer
        self._call_id = current_call().request_id
        self._parts: dict[Request, Part] = {}
        self.is_last_read = False

    @property
    def num_unanswered(self) -> int:
        """Number of requests that arrived and have no last response yet."""
        return self.num_requests - self.num_answered

    def last_read(self) -> None:
        """Records that no more requests will arrive. The outbox is closed as soon as all requests are answered."""
        self.is_last_read = True
        self._end_if_done()

    def notify(self, response: pb.StreamResponse) -> None:
        """Queues a notice that no request asked for."""
        self.num_more += 1
        self._outbox.put(response)

    def answer(self, request: Request, response: pb.StreamResponse) -> None:
        """Answers a request that needs no result of the engine. Does nothing if the request was answered already."""
        if not request.is_ended:
            request.is_ended = True
            self._outbox.put(response)
            self._finish()

    def refuse(
        self, request: Request, session_id: str, session: Session | None, error: CarouselError, model: str
    ) -> None:
        """Answers a request with an error. Does nothing if the request was answered already. session, model: what the
        request is about, if that is known."""
        if not request.is_ended:
            request.is_ended = True
            self._fail(request, session_id, session, error, model)

    def stepped(self, request: Request, result: Stepped, *, model: str, numbers: Numbers, error_length: int) -> None:
        """Answers a step batch. Does nothing if the request was answered already. model: the model of its sessions; the
        other arguments are those of `answers.stepped`."""
        if request.is_ended:
            return
        request.is_ended = True
        self.num_tokens_in += len(result.positions) - len(result.errors)
        if result.errors and not request.replayed:
            self.num_failed += len(result.errors)
            for kind, count in Counter(type(error) for _, error in result.errors).items():
                row = TABLE[kind]
                self._observer.request_failed(model, row.code.name, row.reason, count)
        is_large = request.answer_bytes or request.replayed
        make: Callable[..., Made[pb.StreamResponse]] = (
            answers.large_batch_stepped if is_large else answers.batch_stepped
        )
        self._put_later(
            request,
            partial(make, request, result, numbers=numbers, error_length=error_length, call_id=self._call_id),
        )
        self._finish()

    def on_opened(self, request: Request, result: Result, source: Sequence[Item] | None) -> None:
        """Answers an opening with its result. source: the source items, as the model reads them."""
        if isinstance(result, Failed):
            self.on_failed(request, result)
            return
        if request.answer_bytes and isinstance(result, Fed):
            self._put_later(request, partial(answers.large_opened, request, result, source))
        else:
            self._outbox.put(answers.opened(request, result, source))
        self.num_tokens_in += len(source or ())
        self._finish()

    def on_fed(self, request: Request, result: Result) -> None:
        """Answers a feed with its result."""
        if isinstance(result, Fed):
            if request.answer_bytes or request.replayed:
                self._put_later(request, partial(answers.large_fed, request, result))
            else:
                filled = self._token_answer.of(request, result) if self._outbox.is_at_once else None
                if filled is None or not self._outbox.put_at_once(filled):
                    self._outbox.put(answers.fed(request, result))
            self.num_tokens_in += request.num_tokens
            self._finish()
        else:
            self.on_failed(request, result)

    def on_searched(self, request: Request, result: Result) -> None:
        """Answers a beam search with its result."""
        if isinstance(result, Searched):
            self._put_later(request, partial(answers.found, request, result))
            self.num_tokens_out += request.num_tokens
            self._finish()
        else:
            self.on_failed(request, result)

    def on_scored(self, request: Request, result: Result) -> None:
        """Answers a score with its result."""
        if isinstance(result, Scored):
            self._put_later(request, partial(answers.scored, request, result))
            self.num_tokens_in += request.num_tokens
            self._finish()
        else:
            self.on_failed(request, result)

    def on_generated(self, request: Request, result: Result) -> None:
        """Queues the next tokens of a generation, or its end, or its error."""
        if not isinstance(result, Generated):
            self._parts.pop(request, None)
            self.on_failed(request, result)
            return
        self.num_tokens_out += len(result.token_ids)
        bundle = request.session.served.bundle
        for piece in pieces(result, bundle, self._max_bytes):
            part = self._parts.get(request)
            if part is None or part.is_taken or part.room < len(piece.token_ids):
                self.num_more += 1
                text = text_after(request.before or piece.before, bundle) if part is None else part.text
                part = self._parts[request] = Part(bundle, self._max_bytes, text)
                self._outbox.put_later(partial(self._generated, request, part), partial(_granted, request, part))
            part.add(piece)
        if result.finish_reason is not None:
            self.num_more -= 1  # `_finish` counts the last part
            del self._parts[request]
            self._finish()

    def on_failed(self, request: Request, result: Result) -> None:
        """Answers a request that failed in the engine, or whose result could not be stored."""
        assert isinstance(result, Failed)  # noqa: S101  # the callers have looked at every other result
        session = request.session
        self._fail(request, session.name, session, result.error, session.served.model, position=result.position)

    def _generated(self, request: Request, part: Part) -> pb.StreamResponse:
        """Makes the response for a part of a generation. If that fails, ends the generation with an error response."""
        try:
            return answers.generated(request, part)
        except Exception as error:
            if not request.is_ended:
                request.is_ended = True
                self._parts.pop(request, None)
                self._finish()
            session = request.session
            return self._refused(request, session.name, session, _failure(error))

    async def _made(self, request: Request, make: Callable[[], Made[pb.StreamResponse]]) -> pb.StreamResponse:
        """Makes a response. If that fails, returns an error response."""
        try:
            response = make()
            return response if isinstance(response, pb.StreamResponse) else await response
        except Exception as error:
            session: Session | None = request.session
            name = session.name if session else ""
            return self._refused(request, name, session, _failure(error))

    def _put_later(self, request: Request, make: Callable[[], Made[pb.StreamResponse]]) -> None:
        """Queues a response that is made when its turn to be written comes."""
        self._outbox.put_later(partial(self._made, request, make), request.release)

    def _fail(
        self,
        request: Request,
        session_id: str,
        session: Session | None,
        error: CarouselError,
        model: str,
        *,
        position: int | None = None,
    ) -> None:
        request.release()
        row = TABLE[type(error)]
        self._observer.request_failed(model, row.code.name, row.reason)
        self.num_failed += 1
        self._outbox.put(self._refused(request, session_id, session, error, position=position))
        self._finish()

    def _refused(
        self,
        request: Request,
        session_id: str,
        session: Session | None,
        error: CarouselError,
        *,
        position: int | None = None,
    ) -> pb.StreamResponse:
        number, call_id = request.request_id, self._call_id
        return refused(number, session_id, session, error, self._max_bytes, position=position, call_id=call_id)

    def _finish(self) -> None:
        """Counts a request as answered."""
        self.num_answered += 1
        if self.is_last_read:
            self._end_if_done()

    def report(self, call: CallReport) -> None:
        """Adds the counts to the report of the stream's call."""
        call.num_messages_in += self.num_requests
        call.num_messages_out += self.num_answered + self.num_more
        call.num_tokens_in += self.num_tokens_in
        call.num_tokens_out += self.num_tokens_out
        call.num_failed += self.num_failed

    def _end_if_done(self) -> None:
        if self.is_last_read and self.num_answered == self.num_requests:
            self._outbox.close()


def _failure(error: Exception) -> EngineError:
    """Reports the exception that making a response raised. Returns the error that the client gets."""
    report(error)
    return EngineError("the response could not be made: see the server's log")


def _granted(request: Request, part: Part) -> None:
    """Reports to the generation that a part was written, so that it may generate further tokens."""
    if request.granted is not None:
        request.granted(len(part), part.position)
