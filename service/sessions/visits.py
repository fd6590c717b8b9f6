"""Visits: calls that use a session which no stream has, and leave it without one.

Rules:

1. The visits of one id come one after the other, in the order in which they came, also while the session is opened or
   taken from the store.
2. A session that a stream has is left to it. A stream may take one while it is visited: the visit's request in flight
   is answered all the same.
3. The time for which a session is held begins anew at the end of each visit, however the visit ends; none passes
   meanwhile.

Event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.background import awaited
from service.errors import QueueFullError, SessionNotOpenError, quoted
from service.sessions.ending import position_to_tell
from service.sessions.persistence import OnDisconnect
from service.sessions.registry import Registry
from service.sessions.resume import Resume
from service.sessions.session import CloseReason, Session, name_of


class _Turns:
    """Of one id. num: visits that have their turn or wait for it."""

    __slots__ = ("lock", "num")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.num = 0


class Visits:
    """max_waiting: visits of one session that may wait for their turn."""

    def __init__(self, registry: Registry, resume: Resume, max_waiting: int) -> None:
        self._registry = registry
        self._resume = resume
        self._max_waiting = max_waiting
        self._turns: dict[str, _Turns] = {}

    @asynccontextmanager
    async def turn(self, session_id: str) -> AsyncIterator[None]:
        """Waits for its turn, and has it until the block ends. Raises QueueFullError."""
        turns = self._turns.setdefault(session_id, _Turns())
        if turns.num > self._max_waiting:
            raise QueueFullError(
                f"{self._max_waiting} calls wait for session {quoted(name_of(session_id))} already, the most that may"
                " (max_in_flight): wait for their answers",
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
        """Begins the visit of a session that is there. Returns it, and whether nothing of it was lost because it was in
        this server's memory.

        Raises SessionNotOpenError for one that a stream has, here or at another server, and what `Resume.meet` raises.
        """
        session, is_here = await self._resume.meet(session_id, max_owned, is_polite=True)
        self.check_free(session)
        if not is_here:
            self._resume.met(session, is_here=False)
        self._registry.used(session)
        self._registry.detached.pop(session.id, None)
        return session, is_here

    @staticmethod
    def begin(session: Session) -> None:
        """Begins the visit of a session that it opens."""
        session.own_persistence().is_attached = False

    @staticmethod
    def check_free(session: Session) -> None:
        """Raises SessionNotOpenError when a stream has the session."""
        if not session.is_detached:
            raise SessionNotOpenError(
                f"session {session.name!r} is open on a stream, which keeps it: feed it there, or end that stream",
                field="session_id",
                session_id=session.name,
            )

    async def position(self, session: Session) -> int:
        """Where a session is; of a strict one as far as it is stored. Raises what `position_to_tell` raises."""
        position = session.position
        settled, give = awaited()
        self._registry.checkpoints.after_pending(session, give)
        return position_to_tell(session, position, await settled)

    async def close(self, session: Session, reason: CloseReason) -> None:
        """Closes a session, and returns when the store knows it. Raises SessionNotOpenError when a stream has it by
        now, the reason why it is here no more, and StoreUnavailableError: it is closed all the same."""
        self.check_free(self._registry.here(session))
        closed, give = awaited()
        self._registry.close(session, reason, notify=False, then=give)
        error = await closed
        if error is not None:
            raise error

    def leave(self, session: Session) -> None:
        """The visit is over: does what the session's policy says."""
        if session.is_over or not session.is_detached:
            return
        policy = session.policy
        if self._registry.is_draining and policy.is_stored:
            self._registry.hand_over(session)
        elif policy.on_disconnect is OnDisconnect.FREE:
            self._registry.close(session, CloseReason.DISCONNECT, notify=False)
        else:
            self._registry.hold(session, policy.duration_s)
