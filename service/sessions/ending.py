"""How a session ends: why, who is to know, and the errors of the requests that its end leaves undone. Pure."""

from __future__ import annotations

from service.errors import CarouselError, RequestCancelledError, SessionMovedError, ShuttingDownError
from service.sessions.lifecycle import State
from service.sessions.persistence import WhenDone
from service.sessions.session import CloseReason, Session
from service.sessions.tombstones import Tombstone


class Ending:
    """Why a session ends, and who is to know. then: called when everything is answered and recorded; with an error when
    the store failed to record it."""

    __slots__ = ("before", "error", "is_freed", "is_recorded", "notifies", "reason", "then", "tombstone")

    def __init__(self, reason: CloseReason, *, notifies: bool, then: WhenDone | None = None) -> None:
        self.reason = reason
        self.notifies = notifies
        self.then = then
        self.before = State.OPENING
        self.tombstone: Tombstone | None = None
        self.is_freed = self.is_recorded = False
        self.error: CarouselError | None = None

    def report(self) -> None:
        """Calls `then`, once, as soon as both are known: that the slot is free, and the fate of the record."""
        if self.is_freed and self.is_recorded and self.then is not None:
            then, self.then = self.then, None
            then(self.error)


def error_of(session: Session, reason: CloseReason) -> CarouselError:
    """The error for requests that a session's end leaves undone."""
    if reason is CloseReason.MOVED:
        return SessionMovedError(
            f"session {session.name!r} was handed over: resume it on a new stream", session_id=session.name
        )
    if reason is CloseReason.SHUTDOWN:
        return ShuttingDownError(f"session {session.name!r} ended because the server shuts down", retry_delay_s=1.0)
    if reason is CloseReason.TAKEN:
        return SessionMovedError(f"session {session.name!r} was resumed on another stream", session_id=session.name)
    if reason is CloseReason.LOST:
        return SessionMovedError(f"session {session.name!r} was lost: {reason.value}", session_id=session.name)
    return RequestCancelledError("the session was closed", close_reason=reason.value)
