"""One `Inference.Stream` call: its sessions, its requests and its responses. Rules:

1. Each message is one request. It is counted when it arrives and when its last response is queued: see `replies`.
2. A refused request is answered with an error and changes nothing. The stream continues.
3. After the client's last request, the call ends as soon as all requests are answered.
4. However the call ends, each of its sessions is detached, as its own policy says.
5. No request is read while too many responses wait for a slow reader, while large answers take too much memory, or
   while too many sessions are being opened.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from carousel.v1 import inference_pb2 as pb
from service.api import answers, consumed, convert
from service.api.arrivals import Arrivals
from service.api.caller import Caller, Domain
from service.api.outbox import Outbox
from service.api.replies import Replies
from service.api.step_batches import Act, StreamBatches
from service.engine.results import Failed, Result
from service.errors import INTERNAL, CarouselError, EngineError, InvalidFieldError, SessionNotOpenError
from service.observer import ApiObserver
from service.sessions.answer_memory import StreamBudget
from service.sessions.deferral import Deferred, Failures
from service.sessions.lifecycle import OVER, State
from service.sessions.request import Reply, Request
from service.sessions.session import CloseReason, Session

_METHOD = "/carousel.v1.Inference/Stream"
Handler = Callable[[Request, pb.StreamRequest], None]


class Stream:
    """The state of one call. `handle` accepts a request; `outbox` holds the responses to write. Event loop only."""

    def __init__(
        self,
        domain: Domain,
        caller: Caller,
        observer: ApiObserver,
        outbox: Outbox[pb.StreamResponse],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        sessions, limits = domain.sessions, domain.sessions.limits
        self._caller = caller
        self._hosting = domain.hosting
        self._observer = observer
        self._outbox = outbox
        self._clock = clock
        self._is_rated = caller.principal.max_requests_per_s is not None
        self._budget = StreamBudget(sessions.answer_budget)
        self._registry = sessions.registry
        self._requests = sessions.requests
        self._generations = sessions.generations
        self._spill = sessions.spill
        self.sessions: dict[str, Session] = {}
        """The sessions that are open, or being opened, on this stream, by name."""
        self.models: set[str] = set()
        self.is_over = False
        self.is_ended_by_server = False
        """Whether the server ended the call before it read the client's last request."""
        replies = self.replies = Replies(outbox, observer, limits.max_answer_bytes)
        self._batches = StreamBatches(sessions.step_batches, sessions.spill, limits, replies, self._defer)
        self._arrivals = Arrivals(domain, caller, self)
        self._handlers: dict[str | None, tuple[Handler, Reply]] = {
            "open": (self._open, self._on_opened),
            "feed": (self._feed, replies.on_fed),
            "generate": (self._generate, replies.on_generated),
            "score": (self._score, replies.on_scored),
            "step_batch": (self._batches.step, replies.on_failed),
            "cancel": (self._cancel, replies.on_failed),
            "close": (self._close, replies.on_failed),
            None: (self._missing, replies.on_failed),
        }

    @property
    def is_full(self) -> bool:
        """Whether no request should be read for now."""
        return len(self._outbox.waiting) >= self._outbox.limit or self._arrivals.is_full or self._budget.is_full

    async def room(self) -> None:
        """Waits until a request may be read. Only one task may wait at a time."""
        while self.is_full:
            await self._outbox.room()
            await self._arrivals.room()
            await self._budget.room()

    def handle(self, message: pb.StreamRequest) -> None:
        """Accepts one request. Raises nothing: every error becomes the response to the request."""
        handler, reply = self._handlers[message.WhichOneof("request")]
        request = Request(None, message.request_id, reply, self._clock(), self._budget)
        self.replies.num_requests += 1
        try:
            if self._is_rated:
                self._caller.admit()
            if not (self._arrivals.resuming and self._arrivals.defers(request, message)):
                handler(request, message)
        except CarouselError as error:
            self.refuse(request, message, error)
        except Exception as error:  # a bug in one request must not stop the others
            self.crashed(request, message, error)

    def last_read(self) -> None:
        """Records that the client sends no more requests."""
        self.replies.last_read()

    def end(self) -> None:
        """Ends the call as soon as the requests that were read are answered, because the server shuts down."""
        self.is_ended_by_server = not self.replies.is_last_read
        self.replies.last_read()

    def disconnect(self) -> None:
        """Detaches the sessions of a call that has ended, and drops the responses that wait."""
        self.is_over = True
        self._outbox.abandon()
        self._budget.close()
        sessions, self.sessions = list(self.sessions.values()), {}
        self._arrivals.disconnect()
        for session in sessions:
            try:
                self._generations.leave(session)
                self._registry.detach(session)
            except Exception as error:  # a bug in one session must not keep the others attached
                self._observer.handler_crashed(_METHOD, error)

    def took(self, session: Session) -> None:
        """Adds a session to the stream. If the call has ended meanwhile, detaches the session at once."""
        if self.is_over:
            self._registry.detach(session)
            return
        self.models.add(session.served.model)
        self.sessions[session.name] = session
        if not session.handle:
            self._batches.add(session)

    def on_ended(self, session: Session, reason: CloseReason) -> None:
        """Removes a session that something other than this stream ended or took over, and notifies the client."""
        if self.sessions.get(session.name) is session:
            self._forget(session)
            self.replies.notify(answers.closed(0, session, reason))

    def refuse(self, request: Request, message: pb.StreamRequest, error: CarouselError) -> None:
        """Answers a request with an error."""
        session = request.session or self._meant(message)
        self._arrivals.opened(request)
        model = self._hosting.known(message.open.model) if session is None else session.served.model
        self.replies.refuse(request, session.name if session else message.session_id, session, error, model)

    def crashed(self, request: Request, message: pb.StreamRequest, error: Exception) -> None:
        """Reports a bug in the server to the observer, and answers the request with INTERNAL and a fixed text."""
        self._observer.handler_crashed(_METHOD, error)
        self.refuse(request, message, EngineError(INTERNAL))

    def _open(self, request: Request, message: pb.StreamRequest) -> None:
        known = self.sessions.get(message.session_id)
        if message.open.HasField("resume"):
            self._arrivals.resume(request, message, known)
        else:
            self._arrivals.open(request, message, known)

    def _feed(self, request: Request, message: pb.StreamRequest) -> None:
        session = self._session(request, message, "feed")
        if session is None:
            return
        feed, bundle = message.feed, session.served.bundle
        vocabulary, limit = bundle.step_vocabulary, self._requests.limits.max_feed_tokens
        if vocabulary is None or feed.HasField("features"):
            tokens = consumed.feed_items(feed, bundle, limit)
        else:
            tokens = consumed.feed_ids(feed, vocabulary, limit)
        if feed.HasField("outputs"):
            outputs = convert.output_spec(feed.outputs, bundle, field="feed.outputs")
        else:
            outputs = session.served.default_outputs
        position = feed.position if feed.HasField("position") else None
        self._requests.feed(request, position, tokens, outputs, has_mark=feed.mark)

    def _generate(self, request: Request, message: pb.StreamRequest) -> None:
        session = self._session(request, message, "generate")
        if session is None:
            return
        generate = message.generate
        decoding = convert.decoding(generate.decoding, session.served.bundle, field="generate.decoding")
        position = generate.position if generate.HasField("position") else None
        if decoding.beam is not None:
            request.reply = self.replies.on_searched
            self._generations.search(request, position, decoding, decoding.beam, field="generate.decoding")
            return
        received = generate.received_position if generate.HasField("received_position") else None
        self._generations.generate(request, position, decoding, field="generate.decoding", received=received)

    def _score(self, request: Request, message: pb.StreamRequest) -> None:
        session = self._session(request, message, "score")
        if session is None:
            return
        score = message.score
        targets = convert.targets(score.targets, session.served.bundle, self._requests.limits, field="score.targets")
        position = score.position if score.HasField("position") else None
        self._requests.score(request, position, targets, with_end=score.with_end, field="score.")

    def _cancel(self, request: Request, message: pb.StreamRequest) -> None:
        session = request.session = self._find(message, "cancel")

        def cancelled(count: int, position: int, error: CarouselError | None) -> None:
            if error is None:
                self.replies.answer(request, answers.cancelled(request.request_id, session, position, count))
            else:
                self.refuse(request, message, error)

        self._requests.cancel(session, cancelled)

    def _close(self, request: Request, message: pb.StreamRequest) -> None:
        session = request.session = request.session or self._find(message, "close")
        if session.state is State.OPENING:
            self._defer(request, message, [session])
            return
        if self.sessions.get(session.name) is not session:
            raise SessionNotOpenError(f"close: session {session.name!r} is not open on this stream", field="session_id")

        def closed(error: CarouselError | None) -> None:
            if error is None:
                self.replies.answer(request, answers.closed(request.request_id, session, CloseReason.CLIENT))
            else:
                self.refuse(request, message, error)

        self._forget(session)
        self._registry.close(session, CloseReason.CLIENT, notify=False, then=closed)

    def _missing(self, request: Request, message: pb.StreamRequest) -> None:
        raise InvalidFieldError(f"request is missing: set one of {', '.join(filter(None, self._handlers))}")

    def _session(self, request: Request, message: pb.StreamRequest, kind: str) -> Session | None:
        """Returns the session of a request; None when the request was deferred. Raises SessionNotOpenError,
        SessionNotFoundError and InvalidFieldError."""
        session = request.session
        if session is None:
            session = request.session = self.sessions.get(message.session_id) or self._find(message, kind)
            if session.deferred is not None:
                self._defer(request, message, [session])
                return None
        elif self.sessions.get(session.name) is not session:
            raise SessionNotOpenError(f"{kind}: session {session.name!r} is open on another stream", field="session_id")
        return session

    def _find(self, message: pb.StreamRequest, kind: str) -> Session:
        session_id = message.session_id
        if session_id:
            session = self.sessions.get(session_id)
            if session is None:
                elsewhere = self._registry.get(self._caller.key(session_id))
                raise SessionNotOpenError(
                    f"{kind}: session {elsewhere.name!r} {elsewhere.why_unusable}", field="session_id"
                )
        elif len(self.sessions) == 1:
            (session,) = self.sessions.values()
        elif not self.sessions:
            raise SessionNotOpenError(f"{kind}: no session is open on this stream: send open first")
        else:
            raise InvalidFieldError(
                f"session_id is missing: {len(self.sessions)} sessions are open on this stream", field="session_id"
            )
        return session if session.state not in OVER else self._registry.here(session)

    def _meant(self, message: pb.StreamRequest) -> Session | None:
        """Returns the session of this stream that a refused request is about, if there is one."""
        if not message.session_id and not message.HasField("open") and len(self.sessions) == 1:
            return next(iter(self.sessions.values()))
        return self.sessions.get(message.session_id)

    def _forget(self, session: Session) -> None:
        del self.sessions[session.name]
        self._batches.remove(session)

    def _defer(
        self, request: Request, message: pb.StreamRequest, sessions: list[Session], act: Act | None = None
    ) -> None:
        """Makes a request wait until its sessions have their slots. act: see `run`."""
        self._spill.when_live(
            Deferred(
                sessions,
                partial(self.run, request, message, act=act),
                partial(self.refuse, request, message),
                message.ByteSize(),
            )
        )

    def run(
        self, request: Request, message: pb.StreamRequest, failures: Failures | None = None, act: Act | None = None
    ) -> None:
        """Runs a request that had to wait. Calls act(failures); without `act`, handles the request like a new one."""
        if self.is_over:
            request.is_ended = True
            return
        try:
            if act is not None:
                act(failures or {})
            else:
                self._handlers[message.WhichOneof("request")][0](request, message)
        except CarouselError as error:
            self.refuse(request, message, error)
        except Exception as error:  # see `handle`
            self.crashed(request, message, error)

    def _on_opened(self, request: Request, result: Result) -> None:
        session = request.session
        if isinstance(result, Failed) and self.sessions.get(session.name) is session:
            self._forget(session)
        source = self._arrivals.source_of(request)
        self._arrivals.opened(request)
        self.replies.on_opened(request, result, source)
