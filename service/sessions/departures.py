"""When sessions leave: their stream ends, their time is over, another server wants them, or this one shuts down.

Event loop only; times come from the injected clocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from service.observer import SessionObserver
from service.sessions.checkpoints import Checkpoints
from service.sessions.custody import Custody
from service.sessions.live import LiveSessions
from service.sessions.registry import Registry, nobody
from service.sessions.session import CloseReason, Session, State
from service.sessions.terms import PLAIN, Durability, OnDisconnect
from service.sessions.tombstones import Tombstone


class Departures:
    """Lets sessions go as was agreed. clock: monotonic seconds; wall_clock: Unix seconds."""

    def __init__(
        self,
        live: LiveSessions,
        registry: Registry,
        checkpoints: Checkpoints,
        observer: SessionObserver,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._live = live
        self._registry = registry
        self._checkpoints = checkpoints
        self._observer = observer
        self._clock = clock
        self._wall_clock = wall_clock
        self._detached: dict[str, Session] = {}

    def detach(self, session: Session) -> None:
        """A session's stream has ended: does what was agreed for that."""
        custody = session.custody
        if session.state is State.CLOSED:
            return
        if custody is not None and self._registry.is_draining and self._is_movable(custody):
            self.move(session)
        elif custody is None or custody.terms.on_disconnect is OnDisconnect.FREE:
            self._registry.close(session, CloseReason.DISCONNECT, notify=False)
        else:
            session.on_closed = nobody
            custody.is_attached = False
            self.hold(session, custody, custody.terms.duration_s)
            self._observer.session_detached(session.served.bundle.model, session.served.bundle.version, session.id)
            if custody.terms.durability is not Durability.NONE:
                self._checkpoints.flush()
            elif custody.terms.on_disconnect is OnDisconnect.KEEP and not custody.is_asleep:
                self._checkpoints.store(session, lambda outcome: None)

    def hold(self, session: Session, custody: Custody, duration_s: float) -> None:
        """Holds a session that no stream has, for so long."""
        custody.held_until_s = self._clock() + duration_s
        self._detached[session.id] = session

    def move(self, session: Session) -> None:
        """Lets a session go: it is stored as it is, and its stream told, so that it can be gone on with elsewhere."""
        custody = session.custody
        if session.state is State.CLOSED or custody is None:
            return
        ttl_s = 0.0 if custody.is_attached else max(1.0, custody.held_until_s - self._clock())
        self._checkpoints.let_go(session, ttl_s=ttl_s)
        self._registry.end(session, Tombstone(CloseReason.MOVED, session.position, self._wall_clock()), notify=True)

    def wanted(self, session_id: str) -> None:
        """Another server wants a session of this one: its client has gone there."""
        session = self._live.get(session_id)
        if session is not None:
            self.move(session)

    def expire(self) -> None:
        """Closes the sessions that have been idle for longer than `idle_timeout_s`, and those that were held for long
        enough; those that are to be kept leave the memory."""
        now_s = self._clock()
        for session in list(self._detached.values()):
            custody = session.custody
            if custody is None or custody.is_attached or self._live.get(session.id) is not session:
                del self._detached[session.id]
            elif now_s >= custody.held_until_s and session.state is State.IDLE:
                self._registry.close(session, CloseReason.EXPIRED, notify=False)
        for session in self._live.unused_since(now_s - self._registry.limits.idle_timeout_s):
            terms = PLAIN if session.custody is None else session.custody.terms
            is_attached = session.custody is None or session.custody.is_attached
            is_kept = terms.on_disconnect is OnDisconnect.KEEP
            if session.state is not State.IDLE or not (is_attached or is_kept):
                self._live.touch(session, now_s)
            elif is_kept:
                self._rest(session)
            else:
                self._registry.close(session, CloseReason.IDLE, notify=True)

    def close_all(self) -> None:
        """Ends every session because the server shuts down, telling their streams: those that are stored can be gone on
        with elsewhere."""
        for session in list(self._live.opened_after(0)):
            if session.custody is not None and self._is_movable(session.custody):
                self.move(session)
            else:
                self._registry.close(session, CloseReason.SHUTDOWN, notify=True)

    @staticmethod
    def _is_movable(custody: Custody) -> bool:
        """Whether a session can be gone on with on another server, or after this one."""
        return custody.terms.durability is not Durability.NONE or custody.terms.on_disconnect is OnDisconnect.KEEP

    def _rest(self, session: Session) -> None:
        """A session that is to be kept leaves the memory."""
        custody = session.custody
        assert custody is not None  # noqa: S101  # it has terms
        ttl_s = custody.terms.duration_s
        if not custody.is_attached:
            ttl_s = max(1.0, custody.held_until_s - self._clock())
        self._checkpoints.let_go(session, ttl_s=ttl_s)
        tombstone = Tombstone(CloseReason.IDLE, session.position, self._wall_clock())
        self._registry.end(session, tombstone, notify=True)
