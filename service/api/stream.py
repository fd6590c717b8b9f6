"""One `Inference.Stream` call: its sessions, its requests, its responses.

A reader takes requests in and a writer writes responses; between them nothing waits but the engine. Rules:

1. A refused request is answered by an error and changes nothing; the stream goes on.
2. When the client has sent its last request the call ends as soon as all of them are answered.
3. However the call ends, what becomes of its sessions is as was agreed when they were opened.
4. While too many responses wait for a slow reader, no request is read: it slows itself alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from carousel.v1 import inference_pb2 as pb
from service.api import answers, convert
from service.api.caller import Caller
from service.api.domain import Domain
from service.api.frames import StreamFrames
from service.api.openings import Openings, Spawn
from service.api.outbox import Outbox
from service.api.parking import AsleepError, Parking
from service.api.replies import Replies
from service.engine.items import Item
from service.engine.results import Encoded, Fed, Result
from service.errors import CarouselError, InvalidFieldError, SessionNotOpenError
from service.observer import ApiObserver
from service.sessions.session import CloseReason, Request, Session

_REQUESTS = ("open", "feed", "generate", "score", "step_batch", "cancel", "close")


class Stream:
    """The state of one call. `handle` takes a request in; `outbox` holds what is to be written. Event loop only."""

    def __init__(
        self,
        domain: Domain,
        caller: Caller,
        observer: ApiObserver,
        outbox: Outbox[pb.StreamResponse],
        spawn: Spawn,
    ) -> None:
        self._caller = caller
        self._registry = domain.registry
        self._departures = domain.departures
        self._dispatcher = domain.dispatcher
        self._residency = domain.residency
        self.replies = Replies(outbox, observer)
        self._sessions: dict[str, Session] = {}
        self._frames = StreamFrames(domain.frames, self.replies.answer)
        self._generations = domain.generations
        self._parking = Parking(self.handle, self._refuse_parked, domain.registry.limits.max_in_flight)
        self._openings = Openings(domain, caller, self, self._parking, spawn)
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
            self._caller.admit()
            if kind is None:
                raise InvalidFieldError(f"request is missing: one of {', '.join(_REQUESTS)} must be given")
            if not self._parking.takes(request):
                self._handlers[kind](request)
        except AsleepError as asleep:
            self._parking.park(request)
            self._wake(request.session_id, asleep.sessions)
        except CarouselError as error:
            session = self._meant(request, kind)
            self.replies.refuse(request.request_id, session.name if session else request.session_id, session, error)

    def last_read(self) -> None:
        """The client will send nothing more."""
        self.replies.last_read()

    def disconnect(self) -> None:
        """The call is over: does with every session that is still open what was agreed."""
        for session in self._sessions.values():
            self._generations.leave(session)
            self._departures.detach(session)
        self._sessions.clear()

    def go_away(self, grace_s: float) -> None:
        """Tells the client that the server is leaving."""
        self.replies.tell(answers.go_away(grace_s))

    def took(self, session: Session) -> None:
        """See `openings.Stream`."""
        self._sessions[session.name] = session
        if not session.handle:
            self._frames.add(session)

    def _open(self, request: pb.StreamRequest) -> None:
        self.replies.num_unanswered += 1
        try:
            self._openings.open(request, self._sessions.get(request.session_id))
        except CarouselError:
            self.replies.num_unanswered -= 1
            raise

    def _feed(self, request: pb.StreamRequest) -> None:
        message = request.feed
        session = self._session(request, "feed")
        bundle = session.served.bundle
        tokens = convert.feed_items(message, bundle)
        outputs = convert.default_outputs(bundle)
        if message.HasField("outputs"):
            outputs = convert.output_spec(message.outputs, bundle, field="feed.outputs")
        position = message.position if message.HasField("position") else None
        self.replies.num_unanswered += 1  # before: a lone session's feed is answered at once
        try:
            self._dispatcher.feed(
                session,
                position,
                tokens,
                outputs,
                request_id=request.request_id,
                reply=self.replies.on_fed,
                has_mark=message.mark,
            )
        except CarouselError:
            self.replies.num_unanswered -= 1
            raise

    def _generate(self, request: pb.StreamRequest) -> None:
        message = request.generate
        session = self._session(request, "generate")
        bundle = session.served.bundle
        decoding = convert.decoding(
            message.decoding, bundle.target_vocabulary, bundle.manifest.max_tokens, field="generate.decoding"
        )
        position = message.position if message.HasField("position") else None
        self.replies.num_unanswered += 1  # before: one that is sent again may be answered at once
        try:
            if decoding.beam is not None:
                self._generations.search(
                    session,
                    position,
                    decoding,
                    decoding.beam,
                    request_id=request.request_id,
                    reply=self.replies.on_searched,
                    field="generate.decoding",
                )
            else:
                self._generations.generate(
                    session,
                    position,
                    decoding,
                    request_id=request.request_id,
                    reply=self.replies.on_generated,
                    field="generate.decoding",
                    received=message.received_position if message.HasField("received_position") else None,
                )
        except CarouselError:
            self.replies.num_unanswered -= 1
            raise

    def _score(self, request: pb.StreamRequest) -> None:
        message = request.score
        session = self._session(request, "score")
        self._dispatcher.score(
            session,
            message.position if message.HasField("position") else None,
            convert.targets(message.targets, session.served.bundle.target_vocabulary, field="score.targets"),
            with_end=message.with_end,
            request_id=request.request_id,
            reply=self.replies.on_scored,
            field="score.",
        )
        self.replies.num_unanswered += 1

    def _step_batch(self, request: pb.StreamRequest) -> None:
        self.replies.num_unanswered += 1  # before: a frame none of whose sessions can take part is answered at once
        try:
            self._frames.step(request)
        except CarouselError:
            self.replies.num_unanswered -= 1
            raise

    def _cancel(self, request: pb.StreamRequest) -> None:
        session = self._session(request, "cancel")

        def cancelled(count: int) -> None:
            self.replies.answer(answers.cancelled(request.request_id, session, count))

        self._dispatcher.cancel(session, cancelled)
        self.replies.num_unanswered += 1

    def _close(self, request: pb.StreamRequest) -> None:
        session = self._session(request, "close")

        def closed() -> None:
            self.replies.answer(answers.closed(request.request_id, session, CloseReason.CLIENT))

        self.replies.num_unanswered += 1
        self._forget(session)
        self._registry.close(session, CloseReason.CLIENT, notify=False, then=closed)

    def _session(self, request: pb.StreamRequest, kind: str) -> Session:
        session_id = request.session_id
        if session_id:
            session = self._sessions.get(session_id)
            if session is None:
                elsewhere = self._registry.get(self._caller.key(session_id))
                raise SessionNotOpenError(
                    f"{kind}: session {elsewhere.name!r} was opened on another stream", field="session_id"
                )
            return _awake(session)
        if len(self._sessions) == 1:
            return _awake(next(iter(self._sessions.values())))
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
        del self._sessions[session.name]
        self._frames.remove(session)

    def _wake(self, session_id: str, sessions: list[Session]) -> None:
        """Takes what waits for sessions in, when all of them are there."""
        num_left, failure = len(sessions), None

        def woken(error: CarouselError | None) -> None:
            nonlocal num_left, failure
            num_left -= 1
            failure = failure or error
            if not num_left:
                self._parking.release(session_id, failure)

        for session in sessions:
            self._residency.wake(session, woken)

    def _refuse_parked(self, request: pb.StreamRequest, error: CarouselError) -> None:
        self.replies.refuse(request.request_id, request.session_id, self._sessions.get(request.session_id), error)

    def on_opened(self, source: Sequence[Item] | None, request: Request, result: Result) -> None:
        """See `openings.Stream`."""
        session = request.session
        if isinstance(result, Encoded | Fed):
            if not session.handle:
                self._frames.add(session)  # a session that needs no run is open before `open` has it
            self.replies.answer(answers.opened(request, result, source))
            return
        if session.name in self._sessions:
            self._forget(session)
        self.replies.failed(request, result)

    def on_closed(self, session: Session, reason: CloseReason) -> None:
        """See `openings.Stream`."""
        if session.name in self._sessions:
            self._forget(session)
            self.replies.tell(answers.closed(0, session, reason))


def _awake(session: Session) -> Session:
    """The session. Raises AsleepError."""
    if session.custody is not None and session.custody.is_asleep:
        raise AsleepError([session])
    return session
