"""Visits: calls that use a detached session and leave it detached.

Rules:

1. The visits of one id run one after another, in their order of arrival, also while the session is opened or claimed
   from the store.
2. A session with a stream cannot be visited. A stream may take a session during a visit; the visit's request in flight
   is still answered.
3. The time for which a detached session is held starts again at the end of each visit, however the visit ends. It does
   not run during a visit.

Event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.background import awaited
from service.errors import QueueFullError, SessionNotOpenError, quoted
from service.sessions.not_stored import position_for_client
from service.sessions.persistence import OnDisconnect
from service.sessions.registry import Registry
from service.sessions.resume import Resume
from service.sessions.session import CloseReason, Session, name_of
from service.sessions.tombstones import ClosingAnswer


class _Turns:
    """The turns of one id. num: visits that have their turn or wait for it."""

    __slots__ = ("lock", "num")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.num = 0


class Visits:
    """The visits of all sessions. max_waiting: visits of one session that may wait for their turn."""

    def __init__(self, registry: Registry, resume: Resume, max_waiting: int) -> None:
        self._registry = registry
        self._resume = resume
        self._max_waiting = max_waiting
        self._turns: dict[str, _Turns] = {}

    @property
    def num_visited(self) -> int:
        """Number of ids of which a visit has its turn or waits for it."""
        return len(self._turns)

    @asynccontextmanager
    async def turn(self, session_id: str) -> AsyncIterator[None]:
        """Waits for the caller's turn, which lasts until the block ends. Raises QueueFullError."""
        turns = self._turns.setdefault(session_id, _Turns())
        if turns.num > self._max_waiting:
            raise QueueFullError(
                f"{self._max_waiting} calls already wait for session {quoted(name_of(session_id))}, the limit"
                " (max_in_flight): wait for responses first",
                retry_delay_s=0.1,
                max_in_flight=self._max_waiting,
            )
        turns.num += 1
        try:
            async with turns.lock:
                yield
        finally:
            turns.num -= 1
            if not turns.num:
                del self._turns[session_id]

    async def find(self, session_id: str, max_owned: int | None = None) -> tuple[Session, bool]:
        """Begins the visit of an existing session. Returns it, and whether nothing of it was lost because it was in
        this server's memory.

        Raises SessionNotOpenError for a session with a stream, here or at another server, and what
        `Resume.find_for_use` raises.
        """
        session, is_here = await self._resume.find_for_use(session_id, max_owned, only_if_idle=True)
        self.check_free(session)
        if not is_here:
            self._resume.record_use(session, is_here=False)
        self._registry.used(session)
        self._registry.held.pop(session.id, None)
        return session, is_here

    @staticmethod
    def begin(session: Session) -> None:
        """Begins the visit of a session that the visit itself opens."""
        session.own_persistence().is_attached = False

    @staticmethod
    def check_free(session: Session) -> None:
        """Raises SessionNotOpenError when a stream has the session."""
        if not session.is_detached:
            raise SessionNotOpenError(
                f"session {session.name!r} is attached to a stream: use it on that stream, or end the stream",
                field="session_id",
                session_id=session.name,
            )

    async def position(self, session: Session) -> int:
        """Returns a session's position; for a strict session, the stored one. Raises what `position_for_client`
        raises."""
        position = session.position
        stored, give = awaited()
        self._registry.checkpoints.after_pending(session, give)
        return position_for_client(session, position, await stored)

    async def close(self, session: Session, reason: CloseReason, answer: ClosingAnswer | None = None) -> None:
        """Closes a session, and returns when the store has its end. answer: kept for retries of the call. Raises
        SessionNotOpenError when a stream has taken the session, and the reason when it is no longer here. Raises
        StoreUnavailableError when the store fails; the session is closed nevertheless."""
        self.check_free(self._registry.here(session))
        closed, give = awaited()
        self._registry.close(session, reason, notify=False, then=give)
        if answer is not None:  # also when the call is cancelled now, or the store fails: its client retries
            self._registry.tombstones.keep_answer(session.id, answer)
        error = await closed
        if error is not None:
            raise error

    def leave(self, session: Session) -> None:
        """Ends a visit: applies the session's policy."""
        if session.is_over or not session.is_detached:
            return
        policy = session.policy
        if self._registry.is_draining and policy.is_stored:
            self._registry.hand_over(session)
        elif policy.on_disconnect is OnDisconnect.FREE:
            self._registry.close(session, CloseReason.DISCONNECT, notify=False)
        else:
            self._registry.hold(session, policy.duration_s)
