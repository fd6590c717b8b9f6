"""Opens and resumes the sessions of one stream.

Requests for a session that is being resumed wait here, in order, until the session is found. From then on they wait in
the queue of the session (`Session.deferred`). A second Open of an id waits here as well while the first is not
answered, and so do all later requests for this id: its result depends on the result of the first. The openings of one
stream that are not answered yet are bounded: at the limit, no request of the stream is read. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from carousel.v1 import inference_pb2 as pb
from service.api import answers, openings, session_messages
from service.api.caller import Caller, Domain
from service.api.replies import Replies
from service.engine.jobs import Item
from service.errors import CarouselError, InvalidFieldError, QueueFullError, SessionAlreadyOpenError, quoted
from service.sessions.deferral import Failures
from service.sessions.not_stored import position_for_client
from service.sessions.request import Request
from service.sessions.session import Session

_MAX_OPENINGS = 64
_MAX_BYTES = 16 * 1024 * 1024
"""The most openings of one stream that may be unanswered, and the most bytes of them."""


class Stream(Protocol):
    """The part of `stream.Stream` that `Arrivals` uses."""

    sessions: dict[str, Session]
    replies: Replies
    is_over: bool

    def took(self, session: Session) -> None:
        """Adds a session to the stream."""

    def on_ended(self, session: Session, reason: Any) -> None:
        """Called when something other than this stream ended a session or took it over."""

    def refuse(self, request: Request, message: pb.StreamRequest, error: CarouselError) -> None:
        """Answers a request with an error."""

    def crashed(self, request: Request, message: pb.StreamRequest, error: Exception) -> None:
        """Reports a bug in the server to the observer, and answers the request with a fixed error."""

    def run(self, request: Request, message: pb.StreamRequest, failures: Failures | None = None) -> None:
        """Runs a request that had to wait."""


class Arrivals:
    """Opens and resumes the sessions of one stream."""

    def __init__(self, domain: Domain, caller: Caller, stream: Stream) -> None:
        self._domain = domain
        self._sessions = domain.sessions
        self._caller = caller
        self._stream = stream
        self.is_full = False
        """Whether too many openings are unanswered, so that no request should be read."""
        self._unanswered: dict[Request, tuple[int, Sequence[Item] | None]] = {}
        self._num_bytes = 0
        self._room: asyncio.Future[None] | None = None
        self.resuming: dict[str, list[tuple[Request, pb.StreamRequest]]] = {}
        """The requests that wait for each session that is being resumed or was opened twice, by session id."""
        self._opening: dict[str, Request] = {}
        """The requests that open new sessions and are not answered yet, by session name."""

    async def room(self) -> None:
        """Waits while `is_full` is true. Only one task may wait at a time."""
        while self.is_full:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def open(self, request: Request, message: pb.StreamRequest, known: Session | None) -> None:
        """Opens a new session.

        known: the session of this stream that already has the id, if any.

        Raises SessionAlreadyOpenError if `known` is open, and other subclasses of CarouselError if the request is
        refused.
        """
        openings.check(message.open)
        if known is not None and self._waits_for_first(request, message):
            return
        if known is not None:
            raise SessionAlreadyOpenError(
                f"open: session {known.name!r} is already open on this stream, at position {known.reportable_position}",
                field="session_id",
                session_id=known.name,
                position=known.reportable_position,
            )
        num_bytes = message.ByteSize()
        new = openings.prepare(
            self._domain,
            self._caller,
            message.open,
            message.session_id,
            request=request,
            on_ended=self._stream.on_ended,
            num_bytes=num_bytes,
        )
        self._count(request, num_bytes, new.source)
        self._opening[new.session.name] = request
        self._stream.took(new.session)
        self._sessions.opening.begin(new)

    def resume(self, request: Request, message: pb.StreamRequest, known: Session | None) -> None:
        """Resumes a session.

        known: the session of this stream that already has the id, if any.

        Raises a subclass of CarouselError if the request is refused at once. Later errors are answered to the client.
        """
        session_messages.check_resume(message.open)
        session_id = message.session_id
        if not session_id:
            raise InvalidFieldError(
                "session_id is missing: set it to the id of the session to resume", field="session_id"
            )
        if known is not None and self._waits_for_first(request, message):
            return
        if known is not None:
            self._sessions.registry.used(self._sessions.registry.here(known))
            self._answer(request, message, known, is_here=True)
            return
        if self._waits(request, message):
            return
        key = self._caller.key(session_id)
        self.resuming[session_id] = []
        self._count(request, 0, None)
        self._sessions.tasks.start(self._resume(request, message, key))

    def defers(self, request: Request, message: pb.StreamRequest) -> bool:
        """Queues a request if its session is being resumed. Returns whether it did. Raises QueueFullError."""
        return self._waits(request, message)

    def opened(self, request: Request) -> None:
        """Stops counting an opening, because it is answered or is about to be. Ignores all other requests."""
        session: Session | None = request.session
        if session is not None and self._opening.get(session.name) is request:
            del self._opening[session.name]
            if session.name in self.resuming:  # later: an opening that failed must free its id first
                asyncio.get_running_loop().call_soon(self._run_waiting, session.name)
        num_bytes, _ = self._unanswered.pop(request, (0, None))
        self._num_bytes -= num_bytes
        self.is_full = len(self._unanswered) >= _MAX_OPENINGS or self._num_bytes >= _MAX_BYTES
        if self._room is not None and not self._room.done() and not self.is_full:
            self._room.set_result(None)

    def source_of(self, request: Request) -> Sequence[Item] | None:
        """Returns the source items of an unanswered opening; None when it has none."""
        return self._unanswered[request][1] if request in self._unanswered else None

    def disconnect(self) -> None:
        """Drops the requests that wait, because the stream has ended."""
        for waiting in self.resuming.values():
            for _, message in waiting:
                self._sessions.deferral.release(message.ByteSize())
            waiting.clear()

    def _answer(self, request: Request, message: pb.StreamRequest, session: Session, *, is_here: bool) -> None:
        """Answers a resume request with the position of `position_for_client`. is_here: whether the session was in
        memory."""
        position = session.position  # later requests may move the session before this answer

        def answer(error: CarouselError | None) -> None:
            try:
                reported = position_for_client(session, position, error)
            except CarouselError as refusal:
                self._stream.refuse(request, message, refusal)
                return
            self.opened(request)
            self._stream.replies.answer(
                request, answers.resumed(request.request_id, session, reported, is_here=is_here)
            )

        self._sessions.checkpoints.after_pending(session, answer)

    def _count(self, request: Request, num_bytes: int, source: Sequence[Item] | None) -> None:
        self._unanswered[request] = (num_bytes, source)
        self._num_bytes += num_bytes
        self.is_full = len(self._unanswered) >= _MAX_OPENINGS or self._num_bytes >= _MAX_BYTES

    def _waits_for_first(self, request: Request, message: pb.StreamRequest) -> bool:
        """Queues an opening if the first opening of its id is not answered yet. Returns whether it did. Raises
        QueueFullError."""
        name = message.session_id
        if name not in self._opening:
            return False
        self.resuming.setdefault(name, [])
        try:
            self._waits(request, message)
        except QueueFullError:
            if not self.resuming[name]:
                del self.resuming[name]
            raise
        self._count(request, 0, None)
        return True

    def _run_waiting(self, session_id: str) -> None:
        """Runs the requests that wait, in order. If one of them opens the id again, the rest wait again."""
        for request, message in self.resuming.pop(session_id, ()):
            self._sessions.deferral.release(message.ByteSize())
            try:
                if not self._waits(request, message):
                    self._stream.run(request, message)
            except QueueFullError as error:
                self._stream.refuse(request, message, error)

    def _waits(self, request: Request, message: pb.StreamRequest) -> bool:
        session_id = message.session_id
        if not session_id and len(self.resuming) == 1 and not self._stream.sessions:
            session_id = next(iter(self.resuming))
        waiting = self.resuming.get(session_id)
        if waiting is None:
            return False
        limit = self._sessions.limits.max_in_flight
        if len(waiting) >= limit:
            raise QueueFullError(
                f"{len(waiting)} requests already wait for session {quoted(session_id)}, the limit (max_in_flight):"
                " wait for responses first",
                retry_delay_s=0.1,
                max_in_flight=limit,
            )
        self._sessions.deferral.reserve(message.ByteSize())
        waiting.append((request, message))
        return True

    async def _resume(self, request: Request, message: pb.StreamRequest, key: str) -> None:
        stream, session_id = self._stream, message.session_id
        try:
            session, is_here = await self._sessions.resume.resume(
                key, stream.on_ended, self._caller.principal.max_sessions, is_over=lambda: stream.is_over
            )
        except CarouselError as error:
            stream.refuse(request, message, error)
        except Exception as error:  # the requests that wait must run all the same
            stream.crashed(request, message, error)
        else:
            request.session = session
            stream.took(session)
            self._sessions.generations.leave(session)  # its generation has no receiver until a retry
            self._answer(request, message, session, is_here=is_here)
        self._run_waiting(session_id)
