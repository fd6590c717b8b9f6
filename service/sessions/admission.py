"""What every request of a session goes through: the check that it can be next, its being taken in, and its answer.

Event loop only; times come from the injected clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from service.engine.results import Result
from service.errors import QueueFullError, position_mismatch
from service.observer import SessionObserver
from service.sessions.checkpoints import Checkpoints
from service.sessions.limits import SessionLimits
from service.sessions.live import LiveSessions
from service.sessions.session import Request, Session, State


class Admission:
    """Shared by those who carry requests out. clock: monotonic seconds."""

    def __init__(
        self,
        live: LiveSessions,
        limits: SessionLimits,
        observer: SessionObserver,
        checkpoints: Checkpoints,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.observer = observer
        self.clock = clock
        self.checkpoints = checkpoints
        self._live = live

    def check_turn(self, session: Session, field: str, position: int | None) -> None:
        """Refuses what cannot be next, with PositionMismatchError or QueueFullError. While work is in flight the
        engine, which knows when it ends, is the judge."""
        if session.num_in_flight == 0 and position is not None and position != session.position:
            raise position_mismatch(field, position, session.position)
        if session.num_in_flight >= self.limits.max_in_flight:
            raise QueueFullError(
                f"session {session.name!r} has {session.num_in_flight} requests in flight, the most it may have:"
                " read its answers",
                retry_delay_s=0.1,
                max_in_flight=self.limits.max_in_flight,
            )

    def admitted(self, session: Session, following: State, now_s: float) -> None:
        """A request was given to the engine."""
        session.state = following
        session.num_in_flight += 1
        self._live.touch(session, now_s)

    def ended(self, session: Session, result: Result) -> None:
        """The last answer to a request has come."""
        session.ended(result)
        if session.state is not State.CLOSED:
            self._live.touch(session, self.clock())
            if session.custody is not None:
                self.checkpoints.changed(session)

    def answered(self, request: Request, name: str) -> None:
        """A request was done, and is reported."""
        bundle = request.session.served.bundle
        seconds = self.clock() - request.began_s
        self.observer.request_answered(
            bundle.model, bundle.version, name, seconds, request.num_tokens, trace=request.trace
        )

    def went_on(self, request: Request, num_tokens: int) -> None:
        """A generation has brought so many tokens, which is reported."""
        bundle, now_s = request.session.served.bundle, self.clock()
        if request.num_tokens == 0:
            self.observer.first_token(bundle.model, bundle.version, now_s - request.began_s)
        else:
            self.observer.next_tokens(bundle.model, bundle.version, (now_s - request.last_s) / num_tokens)
        request.last_s = now_s
        request.num_tokens += num_tokens

    def replayed(self, request: Request, name: str) -> None:
        """A request that was sent again is answered again, which is reported."""
        bundle = request.session.served.bundle
        self.observer.request_replayed(bundle.model, bundle.version, name)
