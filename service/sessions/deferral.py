"""Requests that wait until their sessions have a slot and are confirmed, while a session is opened, spilled, restored
or confirmed.

Rules:

1. The requests of a session run in their order of arrival: while one waits, all later ones wait behind it.
2. A request of several sessions (a step batch) waits in the queue of each session. It runs when it is the first in all
   these queues and all sessions have a slot.
3. Each request is either run or refused, once. A request that raises is refused, and does not affect the others.
4. Both the number of waiting requests of a session, and the bytes of all waiting requests, are limited.

Event loop only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from service.errors import INTERNAL, CarouselError, EngineError, QueueFullError, guarded
from service.sessions.session import Session

Failures = dict[Session, CarouselError]
"""The sessions that a request of several sessions must skip, and why."""


class Deferred:
    """One deferred request. run(failures) carries it out; refuse(error) answers it with an error; num_bytes: memory it
    takes.

    blocked: those of its sessions that have no slot yet, or in whose queue this request is not the first.
    """

    __slots__ = ("blocked", "failures", "is_started", "num_bytes", "refuse", "run", "sessions")

    def __init__(
        self,
        sessions: Sequence[Session],
        run: Callable[[Failures], None],
        refuse: Callable[[CarouselError], None],
        num_bytes: int = 0,
    ) -> None:
        self.sessions = sessions
        self.run = run
        self.refuse = refuse
        self.num_bytes = num_bytes
        self.blocked = set(sessions)
        self.failures: Failures = {}
        self.is_started = False


class Deferral:
    """The queues of all sessions. `Session.deferred` is None while a session is ready and has no waiting request.

    max_requests: waiting requests of one session. max_bytes: bytes of the waiting requests of all sessions.
    """

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self.num_bytes = 0

    def defer(self, deferred: Deferred) -> None:
        """Adds a request to the end of its queues. Raises QueueFullError, and changes nothing, when too many wait."""
        for session in deferred.sessions:
            if session.deferred is not None and len(session.deferred) >= self._max_requests:
                raise QueueFullError(
                    f"{len(session.deferred)} requests already wait for session {session.name!r}, the limit"
                    " (max_in_flight): wait for responses first",
                    retry_delay_s=0.1,
                    max_in_flight=self._max_requests,
                )
        self.reserve(deferred.num_bytes)
        for session in deferred.sessions:
            if session.deferred is None:
                session.deferred = deque()
            session.deferred.append(deferred)
            if len(session.deferred) == 1 and session.is_ready:
                deferred.blocked.discard(session)

    def reserve(self, num_bytes: int) -> None:
        """Counts the bytes of an opening that waits. Raises QueueFullError when there are too many."""
        if self.num_bytes + num_bytes > self._max_bytes:
            raise QueueFullError(
                f"{self.num_bytes} bytes of requests wait for sessions that are opened or restored, the limit is"
                f" {self._max_bytes}: try again later",
                retry_delay_s=0.5,
                max_deferred_bytes=self._max_bytes,
            )
        self.num_bytes += num_bytes

    def release(self, num_bytes: int) -> None:
        """Subtracts the bytes of an opening that no longer waits."""
        self.num_bytes -= num_bytes

    def suspend(self, session: Session) -> None:
        """Makes the requests of a session wait from now on."""
        if session.deferred is None:
            session.deferred = deque()

    def run(self, session: Session) -> None:
        """Runs the waiting requests whose turn has come, because the session has a slot or was confirmed."""
        ready: list[Deferred] = []
        self._take_turn(session, ready)
        self._start(ready)

    def refuse(self, session: Session, error: CarouselError) -> int:
        """Refuses the waiting requests of a session that ended, was cancelled or cannot be restored. A request of
        several sessions runs without this session. Returns the number of refused requests."""
        waiting: Iterable[Deferred] = session.deferred or ()
        session.deferred = None if session.is_ready else deque()
        count = 0
        for deferred in waiting:
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
        """Runs requests whose turn has come, and then the next ones in their queues."""
        for deferred in ready:  # the list grows meanwhile
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
        """Gives the first request of a ready session its turn."""
        if not session.is_ready or session.deferred is None:
            return
        if not session.deferred:
            session.deferred = None
            return
        first: Deferred = session.deferred[0]
        first.blocked.discard(session)
        if not first.blocked and not first.is_started:
            ready.append(first)
