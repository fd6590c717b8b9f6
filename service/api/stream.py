"""One `Inference.Stream` call: its sessions, its requests, its responses.

A reader takes requests in and a writer writes responses; between them nothing waits but the engine. Rules:

1. A refused request is answered by an error and changes nothing; the stream goes on.
2. When the client has sent its last request the call ends as soon as all of them are answered.
3. However the call ends, every session opened on it is closed.
4. While too many responses wait for a slow reader, no request is read: it slows itself alone.
"""

from __future__ import annotations

from functools import partial

from carousel.v1 import inference_pb2 as pb
from service.api import answers, convert
from service.api.domain import Domain
from service.api.frames import StreamFrames
from service.api.outbox import Outbox
from service.api.part import Part, Parted
from service.api.status import TABLE
from service.engine.jobs import GenerateJob
from service.engine.results import Encoded, Failed, Fed, Generated, Result, Scored, Searched
from service.errors import CarouselError, InvalidFieldError, SessionAlreadyOpenError, SessionNotOpenError
from service.observer import ApiObserver
from service.sessions.session import CloseReason, Request, Session

_REQUESTS = ("open", "feed", "generate", "score", "step_batch", "cancel", "close")


class Stream:
    """The state of one call. `handle` takes a request in; `outbox` holds what is to be written. Event loop only."""

    def __init__(
        self,
        domain: Domain,
        observer: ApiObserver,
        outbox: Outbox[pb.StreamResponse],
    ) -> None:
        self._catalog = domain.catalog
        self._registry = domain.registry
        self._dispatcher = domain.dispatcher
        self._observer = observer
        self._outbox = outbox
        self._sessions: dict[str, Session] = {}
        self._frames = StreamFrames(domain.frames, self._answer)
        self._generations: dict[Request, Parted] = {}
        self._num_unanswered = 0
        self._is_last_read = False
        self._handlers = {
            "open": self._open,
            "feed": self._feed,
            "generate": self._generate,
            "score": self._score,
            "step_batch": self._step_batch,
            "cancel": self._cancel,
            "close": self._close,
        }

    def handle(self, request: pb.StreamRequest) -> None:
        """Takes one request in. Whatever is wrong with it is answered."""
        kind = request.WhichOneof("request")
        try:
            if kind is None:
                raise InvalidFieldError(f"request is missing: one of {', '.join(_REQUESTS)} must be given")
            self._handlers[kind](request)
        except CarouselError as error:
            session = self._meant(request, kind)
            self._refuse(request.request_id, session.id if session else request.session_id, session, error)

    def last_read(self) -> None:
        """The client will send nothing more."""
        self._is_last_read = True
        self._end_if_done()

    def disconnect(self) -> None:
        """The call is over: closes every session that is still open."""
        for session in self._sessions.values():
            self._registry.close(session, CloseReason.DISCONNECT, notify=False)
        self._sessions.clear()

    def _open(self, request: pb.StreamRequest) -> None:
        message = request.open
        known = self._sessions.get(request.session_id)
        if known is not None:
            raise SessionAlreadyOpenError(
                f"open: session {known.id!r} is open on this stream already, at position {known.position}",
                field="session_id",
                session_id=known.id,
                position=known.position,
            )
        served = self._catalog.find(message.model, message.version, message.variant)
        source = convert.source_ids(message.source, served.bundle) if message.HasField("source") else None
        outputs = None
        if message.HasField("outputs"):
            outputs = convert.output_spec(message.outputs, field="open.outputs")
        self._num_unanswered += 1
        try:
            session = self._registry.open(
                served,
                request.session_id,
                source,
                outputs,
                request_id=request.request_id,
                reply=partial(self._on_opened, source),
                on_closed=self._on_closed,
            )
        except CarouselError:
            self._num_unanswered -= 1
            raise
        self._sessions[session.id] = session
        if not session.handle:
            self._frames.add(session)

    def _feed(self, request: pb.StreamRequest) -> None:
        message = request.feed
        session = self._session(request, "feed")
        tokens = convert.feed_ids(message, session.served.bundle.target_vocabulary)
        outputs = convert.DEFAULT_OUTPUTS
        if message.HasField("outputs"):
            outputs = convert.output_spec(message.outputs, field="feed.outputs")
        position = message.position if message.HasField("position") else None
        self._num_unanswered += 1  # before: a lone session's feed is answered at once
        try:
            self._dispatcher.feed(session, position, tokens, outputs, request_id=request.request_id, reply=self._on_fed)
        except CarouselError:
            self._num_unanswered -= 1
            raise

    def _generate(self, request: pb.StreamRequest) -> None:
        message = request.generate
        session = self._session(request, "generate")
        bundle = session.served.bundle
        decoding = convert.decoding(
            message.decoding, bundle.target_vocabulary, bundle.manifest.max_tokens, field="generate.decoding"
        )
        position = message.position if message.HasField("position") else None
        if decoding.beam is not None:
            self._dispatcher.search(
                session,
                position,
                decoding,
                decoding.beam,
                request_id=request.request_id,
                reply=self._on_searched,
                field="generate.decoding",
            )
            self._num_unanswered += 1
            return
        job = self._dispatcher.generate(
            session,
            position,
            decoding,
            request_id=request.request_id,
            reply=self._on_generated,
            field="generate.decoding",
        )
        self._generations[job.tag] = Parted(job)
        self._num_unanswered += 1

    def _score(self, request: pb.StreamRequest) -> None:
        message = request.score
        session = self._session(request, "score")
        self._dispatcher.score(
            session,
            message.position if message.HasField("position") else None,
            convert.targets(message.targets, session.served.bundle.target_vocabulary, field="score.targets"),
            with_end=message.with_end,
            request_id=request.request_id,
            reply=self._on_scored,
            field="score.",
        )
        self._num_unanswered += 1

    def _step_batch(self, request: pb.StreamRequest) -> None:
        self._num_unanswered += 1  # before: a frame none of whose sessions can take part is answered at once
        try:
            self._frames.step(request)
        except CarouselError:
            self._num_unanswered -= 1
            raise

    def _cancel(self, request: pb.StreamRequest) -> None:
        session = self._session(request, "cancel")

        def cancelled(count: int) -> None:
            self._answer(answers.cancelled(request.request_id, session, count))

        self._dispatcher.cancel(session, cancelled)
        self._num_unanswered += 1

    def _close(self, request: pb.StreamRequest) -> None:
        session = self._session(request, "close")

        def closed() -> None:
            self._answer(answers.closed(request.request_id, session, CloseReason.CLIENT))

        self._num_unanswered += 1
        self._forget(session)
        self._registry.close(session, CloseReason.CLIENT, notify=False, then=closed)

    def _session(self, request: pb.StreamRequest, kind: str) -> Session:
        session_id = request.session_id
        if session_id:
            session = self._sessions.get(session_id)
            if session is None:
                elsewhere = self._registry.get(session_id)
                raise SessionNotOpenError(
                    f"{kind}: session {elsewhere.id!r} was opened on another stream", field="session_id"
                )
            return session
        if len(self._sessions) == 1:
            return next(iter(self._sessions.values()))
        if not self._sessions:
            raise SessionNotOpenError(f"{kind}: no session is open on this stream: send open first")
        raise InvalidFieldError(
            f"session_id is missing: {len(self._sessions)} sessions are open on this stream", field="session_id"
        )

    def _meant(self, request: pb.StreamRequest, kind: str | None) -> Session | None:
        """The session that a refused request was about, if it is one of ours."""
        if not request.session_id and kind != "open" and len(self._sessions) == 1:
            return next(iter(self._sessions.values()))
        return self._sessions.get(request.session_id)

    def _forget(self, session: Session) -> None:
        del self._sessions[session.id]
        self._frames.remove(session)

    def _on_opened(self, source: list[int] | None, request: Request, result: Result) -> None:
        session = request.session
        if isinstance(result, Encoded | Fed):
            if not session.handle:
                self._frames.add(session)  # a session that needs no run is open before `open` has it
            self._answer(answers.opened(request, result, source))
            return
        if session.id in self._sessions:
            self._forget(session)
        self._failed(request, result)

    def _on_fed(self, request: Request, result: Result) -> None:
        if isinstance(result, Fed):
            self._answer(answers.fed(request, result))
        else:
            self._failed(request, result)

    def _on_searched(self, request: Request, result: Result) -> None:
        if isinstance(result, Searched):
            self._answer(answers.found(request, result))
        else:
            self._failed(request, result)

    def _on_scored(self, request: Request, result: Result) -> None:
        if isinstance(result, Scored):
            self._answer(answers.scored(request, result))
        else:
            self._failed(request, result)

    def _on_generated(self, request: Request, result: Result) -> None:
        if not isinstance(result, Generated):
            self._generations.pop(request, None)
            self._failed(request, result)
            return
        generation = self._generations[request]
        part = generation.part
        if part is None or part.is_taken:
            part = generation.part = Part(request.session.served.bundle.target_vocabulary)
            self._outbox.put_later(
                partial(self._generated, request, part), partial(self._granted, request.session, generation.job, part)
            )
        part.add(result)
        if result.finish_reason is not None:
            del self._generations[request]
            self._num_unanswered -= 1
            self._end_if_done()

    def _generated(self, request: Request, part: Part) -> pb.StreamResponse:
        return pb.StreamResponse(
            request_id=request.request_id,
            session_id=request.session.id,
            generated=part.take(),
            position=part.position,
        )

    def _granted(self, session: Session, job: GenerateJob, part: Part) -> None:
        self._dispatcher.granted(session, job, len(part))

    def _on_closed(self, session: Session, reason: CloseReason) -> None:
        """Somebody else has closed a session of ours."""
        if session.id in self._sessions:
            self._forget(session)
            self._outbox.put(answers.closed(0, session, reason))

    def _failed(self, request: Request, result: Result | Encoded) -> None:
        assert isinstance(result, Failed)  # noqa: S101  # the callers have looked at every other result
        self._refuse(request.request_id, request.session.id, request.session, result.error)
        self._num_unanswered -= 1
        self._end_if_done()

    def _refuse(self, request_id: int, session_id: str, session: Session | None, error: CarouselError) -> None:
        row = TABLE[type(error)]
        model = session.served.bundle.model if session is not None else ""
        self._observer.request_failed(model, row.code.name, row.reason)
        self._outbox.put(answers.refused(request_id, session_id, session, error))

    def _answer(self, response: pb.StreamResponse) -> None:
        self._outbox.put(response)
        self._num_unanswered -= 1
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._is_last_read and self._num_unanswered == 0:
            self._outbox.close()
