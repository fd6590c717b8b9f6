"""Requests that wait until their sessions have a slot, and are known to be this server's: while a session is opened,
spilled, restored, or confirmed.

Rules:

1. The requests of a session run in the order in which they came: while one waits, all that come later wait behind it.
2. A request of several sessions (a step batch) waits in the queue of each of them, and runs when it is the first in all
   of them and all have a slot.
3. Each is run or refused, once. One that raises costs no other anything: it is refused.
4. Both their number for a session and the bytes of all of them are bounded.

Event loop only.
"""

from __future__ import annotations

from collections import deque

from service.errors import INTERNAL, CarouselError, EngineError, QueueFullError, guarded
from service.sessions.session import Deferred, Session


class Deferral:
    """The queues of all sessions: `Session.deferred`, which is None while a session is ready and nothing waits for it.

    max_requests: of one session; max_bytes: of all sessions.
    """

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self.num_bytes = 0

    def defer(self, deferred: Deferred) -> None:
        """Puts a request behind those that wait. Raises QueueFullError when there are too many, having changed
        nothing."""
        for session in deferred.sessions:
            if session.deferred is not None and len(session.deferred) >= self._max_requests:
                raise QueueFullError(
                    f"{len(session.deferred)} requests wait for session {session.name!r} already, the most that may"
                    " (max_in_flight): wait for its answers",
                    retry_delay_s=0.1,
                    max_in_flight=self._max_requests,
                )
        self.take(deferred.num_bytes)
        for session in deferred.sessions:
            if session.deferred is None:
                session.deferred = deque()
            session.deferred.append(deferred)
            if len(session.deferred) == 1 and session.is_ready:
                deferred.blocked.discard(session)

    def take(self, num_bytes: int) -> None:
        """Counts the bytes of an opening that waits. Raises QueueFullError when there are too many."""
        if self.num_bytes + num_bytes > self._max_bytes:
            raise QueueFullError(
                f"{self.num_bytes} bytes of requests wait for sessions that are opened or restored, the most is"
                f" {self._max_bytes}: try again later",
                retry_delay_s=0.5,
                max_deferred_bytes=self._max_bytes,
            )
        self.num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """The bytes of an opening wait no longer."""
        self.num_bytes -= num_bytes

    def suspend(self, session: Session) -> None:
        """The session is not ready from here on: its requests wait."""
        if session.deferred is None:
            session.deferred = deque()

    def run(self, session: Session) -> None:
        """The session has a slot, or is confirmed: runs what waited, as far as its turn has come."""
        ready: list[Deferred] = []
        self._take_turn(session, ready)
        self._start(ready)

    def refuse(self, session: Session, error: CarouselError) -> int:
        """The session ended, was cancelled, or cannot be restored: refuses what waits for it alone, and lets a request
        of several sessions run without it. Returns how many were refused."""
        waiting, session.deferred = session.deferred, None if session.is_ready else deque()
        count = 0
        for deferred in waiting or ():
            if len(deferred.sessions) == 1:
                count += 1
                deferred.is_started = True
                self.num_bytes -= deferred.num_bytes
                guarded(deferred.refuse, error)
            else:
                deferred.failures.setdefault(session, error)
                deferred.blocked.discard(session)
                if not deferred.blocked:
                    self._start([deferred])
        return count

    def _start(self, ready: list[Deferred]) -> None:
        """Runs requests whose turn has come, and what comes next in their queues."""
        for deferred in ready:  # which grows meanwhile
            if deferred.is_started:
                continue
            deferred.is_started = True
            self.num_bytes -= deferred.num_bytes
            for session in deferred.sessions:
                if session.deferred and session.deferred[0] is deferred:
                    session.deferred.popleft()
            if not guarded(deferred.run, deferred.failures):
                guarded(deferred.refuse, EngineError(INTERNAL))
            for session in deferred.sessions:
                self._take_turn(session, ready)

    @staticmethod
    def _take_turn(session: Session, ready: list[Deferred]) -> None:
        """Lets the first request of a session with a slot have its turn there."""
        if not session.is_ready or session.deferred is None:
            return
        if not session.deferred:
            session.deferred = None
            return
        first = session.deferred[0]
        first.blocked.discard(session)
        if not first.blocked and not first.is_started:
            ready.append(first)
