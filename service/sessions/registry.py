"""Every live session of this server: opens them, finds them, closes them, lets them expire.

What an open session then does is `dispatcher`'s. A refused request changes nothing. Event loop only; times come from
the injected clocks.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from itertools import islice

from service.engine.jobs import EncodeJob, FeedJob, Job, OutputSpec
from service.engine.results import Encoded, Failed, Result
from service.errors import (
    CarouselError,
    EmptySequenceError,
    InvalidFieldError,
    SessionIdInUseError,
    ShuttingDownError,
    TooManySessionsError,
)
from service.observer import SessionObserver
from service.sessions.checks import check_length, check_outputs, check_session_id
from service.sessions.limits import SessionLimits
from service.sessions.live import LiveSessions
from service.sessions.session import CloseReason, Event, OnClosed, Reply, Request, Served, Session, State
from service.sessions.tombstones import Tombstone, Tombstones

_ID_BYTES = 9
"""Random bytes of an id made here, 12 characters: of a million sessions two would meet once in ten thousand million."""


class Registry:
    """The live sessions. clock: monotonic seconds; wall_clock: Unix seconds."""

    def __init__(
        self,
        live: LiveSessions,
        limits: SessionLimits,
        observer: SessionObserver,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.limits = limits
        self.is_draining = False
        self._live = live
        self._observer = observer
        self._clock = clock
        self._wall_clock = wall_clock
        self._tombstones = Tombstones(limits.num_tombstones)
        self._last_serial = 0

    def __len__(self) -> int:
        return len(self._live)

    @property
    def num_generating(self) -> int:
        """Sessions that are generating now."""
        return sum(session.state is State.GENERATING for session in self._live.opened_after(0))

    def get(self, session_id: str) -> Session:
        """A live session. Raises SessionNotFoundError saying what became of it, if that is known."""
        session = self._live.get(session_id)
        if session is None:
            raise self._tombstones.not_found(session_id)
        return session

    def page(self, after_serial: int, size: int, model: str) -> list[Session]:
        """Up to `size` sessions opened after the one with that serial; of one model, or of all when it is empty."""
        found = self._live.opened_after(after_serial)
        return list(islice((s for s in found if not model or s.served.bundle.model == model), size))

    def open(
        self,
        served: Served,
        session_id: str,
        source: list[int] | None,
        outputs: OutputSpec | None,
        *,
        request_id: int,
        reply: Reply,
        on_closed: OnClosed,
    ) -> Session:
        """Opens a session and returns it at once. When it is ready `reply` is called with the result of its last step,
        `Fed` when `outputs` were asked for; when that fails, with `Failed`, and the session is closed.

        Raises InvalidFieldError, SessionIdInUseError, ShuttingDownError, TooManySessionsError, QueueFullError.
        """
        self._check_open(served, session_id, source, outputs)
        lane = served.engine.open()
        self._last_serial += 1
        session = Session(
            session_id or secrets.token_urlsafe(_ID_BYTES),
            self._last_serial,
            served,
            lane,
            on_closed,
            opened_at=self._wall_clock(),
            last_used_s=self._clock(),
        )
        request = Request(session, request_id, reply, session.last_used_s)
        jobs: list[Job] = []
        if source is not None:
            jobs.append(EncodeJob(reply=self._on_prepared, tag=request, source=source))
        if outputs is not None:
            jobs.append(FeedJob(reply=self._on_prepared, tag=request, start=0, tokens=[], outputs=outputs))
        if jobs:
            jobs[-1].reply = self._on_opened
        try:
            served.engine.submit(lane, *jobs)
        except CarouselError:
            served.engine.close(lane)
            raise
        self._live.add(session)
        self._observer.session_opened(served.bundle.model, served.bundle.version, session.id)
        if jobs:
            session.state = session.after(Event.FEED)
            session.num_in_flight = len(jobs)
        else:
            reply(request, Encoded(0))
        return session

    def close(
        self,
        session: Session,
        reason: CloseReason,
        *,
        notify: bool,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Closes a session: its id is free at once, its slot before the next batch. Closing it again does nothing.

        notify: tell the session's own stream. then: called when its work has ended and each request was answered.
        """
        if session.state is State.CLOSED:
            return
        session.state = session.after(Event.CLOSE)
        self._live.remove(session.id)
        self._tombstones.add(session.id, Tombstone(reason, session.position, self._wall_clock()))
        session.served.engine.close(session.lane, then)
        bundle = session.served.bundle
        self._observer.session_closed(bundle.model, bundle.version, session.id, reason.value, session.position)
        if notify:
            session.on_closed(session, reason)

    def expire(self) -> None:
        """Closes the sessions that have been idle for longer than `idle_timeout_s`."""
        for session in self._live.unused_since(self._clock() - self.limits.idle_timeout_s):
            if session.state is State.IDLE:
                self.close(session, CloseReason.IDLE, notify=True)
            else:
                self._live.touch(session, self._clock())

    def close_all(self) -> None:
        """Closes every session because the server shuts down, telling their streams."""
        for session in list(self._live.opened_after(0)):
            self.close(session, CloseReason.SHUTDOWN, notify=True)

    def _check_open(
        self, served: Served, session_id: str, source: list[int] | None, outputs: OutputSpec | None
    ) -> None:
        if self.is_draining:
            raise ShuttingDownError("the server is shutting down: open the session elsewhere", retry_delay_s=1.0)
        if session_id:
            check_session_id(session_id)
            if self._live.get(session_id) is not None:
                raise SessionIdInUseError(
                    f"session_id = {session_id!r} is in use by another stream",
                    field="session_id",
                    session_id=session_id,
                )
        manifest = served.bundle.manifest
        if manifest.encoder is None:
            if source is not None:
                raise InvalidFieldError(f"source must not be given: {manifest.model} has no encoder", field="source")
        elif source is None:
            raise EmptySequenceError(f"source is missing: {manifest.model} reads one", field="source")
        else:
            check_length(len(source), manifest.encoder.max_source_length, field="source")
        if outputs is not None:
            check_outputs(
                outputs,
                num_tokens=1,
                vocabulary_size=manifest.target_vocabulary.size,
                max_bytes=self.limits.max_answer_bytes,
                field="open.outputs",
            )
            if manifest.special_tokens.bos_id is None:
                raise InvalidFieldError(
                    f"open.outputs needs a start token, and {manifest.model} has none", field="open.outputs"
                )
        if len(self._live) >= self.limits.max_sessions:
            raise TooManySessionsError(
                f"{self.limits.max_sessions} sessions are open, the most this server holds: try again later",
                retry_delay_s=1.0,
                max_sessions=self.limits.max_sessions,
            )

    def _on_prepared(self, job: Job, result: Result) -> None:
        """A step of opening that is not the last. When it fails the last one fails with it."""
        job.tag.session.ended(result)

    def _on_opened(self, job: Job, result: Result) -> None:
        request: Request = job.tag
        request.session.ended(result)
        if request.session.state is not State.CLOSED:
            self._live.touch(request.session, self._clock())
        if isinstance(result, Failed):
            self.close(request.session, CloseReason.FAILED, notify=False)
        request.reply(request, result)
