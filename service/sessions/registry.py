"""Every live session of this server: opens them, finds them, closes them.

What an open session then does is `dispatcher`'s and `generations`', and when it leaves, `departures`'. A refused
request changes nothing. Event loop only; times come from the injected clocks.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from service.engine.items import Item
from service.engine.jobs import EncodeJob, FeedJob, Job, Lane, OutputSpec
from service.engine.results import Encoded, Failed, Result
from service.errors import (
    CarouselError,
    SessionIdInUseError,
    SessionMovedError,
    ShuttingDownError,
    TooManySessionsError,
)
from service.observer import SessionObserver
from service.sessions.checkpoints import Checkpoints
from service.sessions.checks import check_open, check_session_id
from service.sessions.custody import Custody
from service.sessions.image import Image
from service.sessions.imaging import check_fits, last_in
from service.sessions.limits import SessionLimits
from service.sessions.live import LiveSessions
from service.sessions.session import (
    CloseReason,
    Event,
    OnClosed,
    Reply,
    Request,
    Served,
    Session,
    State,
    name_of,
    owner_of,
)
from service.sessions.terms import PLAIN, Terms
from service.sessions.tombstones import Tombstone, Tombstones

_ID_BYTES = 9
"""Random bytes of an id made here, 12 characters: of a million sessions two would meet once in ten thousand million."""


_EPITAPH_S = 3600.0
"""How long a store remembers a session that is gone."""


class Registry:
    """The live sessions. clock: monotonic seconds; wall_clock: Unix seconds."""

    def __init__(
        self,
        live: LiveSessions,
        limits: SessionLimits,
        observer: SessionObserver,
        checkpoints: Checkpoints,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.limits = limits
        self.is_draining = False
        self.tombstones = Tombstones(limits.num_tombstones)
        self._live = live
        self._observer = observer
        self._checkpoints = checkpoints
        self._clock = clock
        self._wall_clock = wall_clock
        self._last_serial = 0
        checkpoints.on_lost = self.lose

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
            raise self.tombstones.not_found(session_id)
        return session

    def count(self, owner: str) -> int:
        """How many live sessions a principal has."""
        return self._live.count(owner)

    def page(self, after_serial: int, size: int, model: str, owner: str | None = None) -> list[Session]:
        """Up to `size` sessions opened after the one with that serial; of one model, or of all when it is empty; of one
        principal, or of all for None."""
        found: Iterable[Session] = self._live.opened_after(after_serial)
        if model:
            found = (session for session in found if session.served.bundle.model == model)
        if owner is not None:
            found = (session for session in found if owner_of(session.id) == owner)
        return list(islice(found, size))

    def open(
        self,
        served: Served,
        session_id: str,
        source: Sequence[Item] | None,
        outputs: OutputSpec | None,
        *,
        request_id: int,
        reply: Reply,
        on_closed: OnClosed,
        terms: Terms = PLAIN,
        epoch: int = 1,
    ) -> Session:
        """Opens a session and returns it at once. When it is ready `reply` is called with the result of its last step,
        `Fed` when `outputs` were asked for; when that fails, with `Failed`, and the session is closed. epoch: under
        which its id was reserved, if it was.

        Raises InvalidFieldError, SessionIdInUseError, ShuttingDownError, TooManySessionsError, QueueFullError.
        """
        self.check_room(session_id)
        check_open(
            served.bundle.manifest,
            source,
            outputs,
            max_answer_bytes=self.limits.max_answer_bytes,
            variant=served.variant,
        )
        lane = served.engine.open(source or ())
        session = self._make(served, session_id or secrets.token_urlsafe(_ID_BYTES), lane, on_closed)
        if not terms.is_plain:
            session.custody = Custody(terms, epoch)
        request = Request(session, request_id, reply, session.last_used_s)
        jobs: list[Job] = []
        if source is not None:
            jobs.append(EncodeJob(reply=self._on_prepared, tag=request, source=source))
        if outputs is not None:
            jobs.append(FeedJob(reply=self._on_prepared, tag=request, start=0, tokens=[], outputs=outputs))
        if jobs:
            jobs[-1].reply = self._on_opened
        try:
            served.engine.submit(session.lane, *jobs)
        except CarouselError:
            served.engine.close(session.lane)
            raise
        self._live.add(session)
        self._observer.session_opened(served.bundle.model, served.bundle.version, session.id)
        if jobs:
            session.state = session.after(Event.FEED)
            session.num_in_flight = len(jobs)
        else:
            self._checkpoints.changed(session)
            self._checkpoints.tell(request, Encoded(0))
        return session

    def adopt(self, image: Image, served: Served, session_id: str, epoch: int) -> Session:
        """Makes a session of an image, which no stream has yet. Raises SnapshotModelError when the model has other
        state, SessionIdInUseError, ShuttingDownError, TooManySessionsError."""
        self.check_room(session_id)
        check_fits(image, served)
        session = self._make(served, session_id, served.engine.open(), nobody)
        served.engine.write(session.lane, image.lane)
        session.position, session.last = image.lane.position, last_in(image)
        session.custody = Custody(
            image.terms, epoch, marks=dict(image.marks), is_attached=False, opened_at=image.opened_at
        )
        self._live.add(session)
        self._observer.session_opened(served.bundle.model, served.bundle.version, session.id)
        return session

    def attach(self, session: Session, on_closed: OnClosed) -> None:
        """Gives a live session to a stream; one that has it is told that it was taken."""
        custody = session.custody
        if custody is None or custody.is_attached:
            session.on_closed(session, CloseReason.TAKEN)
        session.on_closed = on_closed
        session.handle = 0
        if custody is not None:
            custody.is_attached = True
            custody.told_position = None
        self._live.touch(session, self._clock())

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
        custody = session.custody
        tombstone = Tombstone(reason, session.position, self._wall_clock())
        if custody is not None and (not custody.terms.is_plain or custody.checkpoint_position is not None):
            self._checkpoints.bury(session, tombstone.encode(), _EPITAPH_S)
        self.end(session, tombstone, notify=notify, then=then)

    def lose(self, session: Session) -> None:
        """Another server has a session: what this one has of it is worth nothing any more."""
        if session.state is not State.CLOSED:
            self.end(session, Tombstone(CloseReason.MOVED, session.position, self._wall_clock()), notify=True)

    def check_room(self, session_id: str) -> None:
        """Refuses a session that there is no room for, or whose id is taken, as `open` does."""
        if self.is_draining:
            raise ShuttingDownError("the server is shutting down: open the session elsewhere", retry_delay_s=1.0)
        if session_id:
            check_session_id(session_id)
            if self._live.get(session_id) is not None:
                raise SessionIdInUseError(
                    f"session_id = {name_of(session_id)!r} is in use by another stream",
                    field="session_id",
                    session_id=name_of(session_id),
                )
        if len(self._live) >= self.limits.max_sessions:
            raise TooManySessionsError(
                f"{self.limits.max_sessions} sessions are open, the most this server holds: try again later",
                retry_delay_s=1.0,
                max_sessions=self.limits.max_sessions,
            )

    def _make(self, served: Served, session_id: str, lane: Lane, on_closed: OnClosed) -> Session:
        self._last_serial = max(self._last_serial + 1, int(self._wall_clock() * 1e6))
        return Session(
            session_id,
            self._last_serial,
            served,
            lane,
            on_closed,
            last_used_s=self._clock(),
        )

    def end(
        self, session: Session, tombstone: Tombstone, *, notify: bool, then: Callable[[], None] | None = None
    ) -> None:
        """Takes a session out of the memory, and leaves what is stored of it as it is."""
        session.state = session.after(Event.CLOSE)
        self._live.remove(session.id)
        self._checkpoints.forget(session)
        self.tombstones.add(session.id, tombstone)
        session.served.engine.close(session.lane, then)
        bundle, reason = session.served.bundle, tombstone.reason
        if session.custody is not None and session.custody.is_asleep:
            self._observer.session_woken(bundle.model, bundle.version, session.id)
        self._observer.session_closed(bundle.model, bundle.version, session.id, reason.value, session.position)
        if session.custody is not None:
            moved = SessionMovedError(f"session {session.name!r} was ended: {reason.value}", session_id=session.name)
            session.custody.settle(None, moved)
            waiting, session.custody.waiting = session.custody.waiting, []
            for call in waiting:
                call(moved)
        if notify:
            session.on_closed(session, reason)

    def _on_prepared(self, job: Job, result: Result) -> None:
        """A step of opening that is not the last. When it fails the last one fails with it."""
        job.tag.session.ended(result)

    def _on_opened(self, job: Job, result: Result) -> None:
        request: Request = job.tag
        session = request.session
        session.ended(result)
        if session.state is not State.CLOSED:
            self._live.touch(session, self._clock())
            self._checkpoints.changed(session)
        if request.trace is not None:
            request.trace.ended("open", session.served.bundle.model, session.served.bundle.version, 0)
        if isinstance(result, Failed):
            self.close(session, CloseReason.FAILED, notify=False)
        self._checkpoints.tell(request, result)


def nobody(session: Session, reason: CloseReason) -> None:
    """No stream has the session."""
