"""What the server remembers of ended sessions: how they ended (tombstones), and the answers of calls that closed them.
Makes the errors for requests of sessions that end or have ended.

Event loop only; times come from the injected clock.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from service.errors import (
    CarouselError,
    RequestCancelledError,
    SessionMovedError,
    SessionNotFoundError,
    ShuttingDownError,
)
from service.sessions.answer_memory import Replays
from service.sessions.session import CloseReason, Session, name_of

_ENTRY_BYTES = 512
"""About the bytes of a `ClosingAnswer` without its response."""
_REASONS = {
    CloseReason.CLIENT: "was closed by a client",
    CloseReason.DISCONNECT: "was closed when its stream or call ended, as its on_disconnect says",
    CloseReason.IDLE: "was closed because it was idle for too long",
    CloseReason.SHUTDOWN: "was closed because the server shut down",
    CloseReason.FAILED: "was closed because opening it failed",
    CloseReason.EXPIRED: "expired: it was not resumed or used in time",
    CloseReason.MOVED: "has moved to another server",
    CloseReason.TAKEN: "was taken over by another stream",
    CloseReason.LOST: "was lost: its server stopped before it was stored, or the store no longer has its record",
    CloseReason.MAX_AGE: "was closed because it reached the age that the server allows (max_age_s)",
}


class Tombstone(NamedTuple):
    """How a session ended. closed_at: Unix seconds."""

    reason: CloseReason
    position: int
    closed_at: float

    def encode(self) -> bytes:
        """Returns the tombstone as bytes, for a store."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Tombstone:
        """Returns the tombstone in `data`. Raises msgspec.MsgspecError for other bytes."""
        return msgspec.json.decode(data, type=cls)


class ClosingAnswer:
    """The answer of a call that closed a session, kept for retries of this call. request: identifies the call's
    request. response: as bytes; None after it was dropped because all answers took too much memory."""

    __slots__ = ("__weakref__", "request", "response")

    def __init__(self, request: bytes, response: bytes) -> None:
        self.request = request
        self.response: bytes | None = response

    def drop(self) -> None:
        """Drops the response."""
        self.response = None


class Tombstones:
    """Remembers the last `capacity` closed sessions, and the latest closing answers, up to `max_answer_bytes`. Event
    loop only."""

    def __init__(self, capacity: int, max_answer_bytes: int) -> None:
        self._capacity = capacity
        self._by_id: OrderedDict[str, Tombstone] = OrderedDict()
        self._answers: dict[str, ClosingAnswer] = {}
        """By id. Each belongs to the tombstone of its id, and is dropped with it."""
        self._replays = Replays(max_answer_bytes, least=0)

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, session_id: str, tombstone: Tombstone) -> None:
        """Remembers a session, and drops the oldest one above the capacity. A failed opening does not replace what is
        known of an earlier session with the same id."""
        if tombstone.reason is CloseReason.FAILED and session_id in self._by_id:
            return
        self._by_id[session_id] = tombstone
        self._by_id.move_to_end(session_id)
        self._answers.pop(session_id, None)
        if len(self._by_id) > self._capacity:
            oldest, _ = self._by_id.popitem(last=False)
            self._answers.pop(oldest, None)

    def keep_answer(self, session_id: str, answer: ClosingAnswer) -> None:
        """Keeps the answer of the call that closed the session, as long as its tombstone. Call right after `add`."""
        if session_id in self._by_id and answer.response is not None:
            self._answers[session_id] = answer
            self._replays.keep(answer, _ENTRY_BYTES + len(answer.response))

    def answer_again(self, session_id: str, request: bytes) -> bytes | None:
        """Returns the response to the call that closed a session, if `request` is the same and the response is still
        kept."""
        answer = self._answers.get(session_id)
        return answer.response if answer is not None and answer.request == request else None

    def correct(self, session_id: str, tombstone: Tombstone | None, position: int) -> Tombstone | None:
        """Returns the tombstone with the final position of a session that moved while it ended. Also replaces the
        remembered one, unless a later session had the id."""
        if tombstone is None or tombstone.position == position:
            return tombstone
        corrected = tombstone._replace(position=position)
        if self._by_id.get(session_id) is tombstone:
            self._by_id[session_id] = corrected
        return corrected

    def not_found(self, session_id: str) -> SessionNotFoundError:
        """Returns the error for a session that is not in memory. It says how the session ended, if known."""
        tombstone = self._by_id.get(session_id)
        if tombstone is None:
            return SessionNotFoundError(
                f"session_id = {name_of(session_id)!r} is unknown: it was never opened here, or ended long ago",
                field="session_id",
                session_id=name_of(session_id),
            )
        return self.error_of(session_id, tombstone)

    @classmethod
    def error_in(cls, session_id: str, data: bytes) -> SessionNotFoundError:
        """Returns the error for a session whose tombstone comes from a store. Another version of this server may have
        written a tombstone that this one cannot read."""
        try:
            return cls.error_of(session_id, Tombstone.decode(data))
        except msgspec.MsgspecError:
            return SessionNotFoundError(
                f"session_id = {name_of(session_id)!r} is gone",
                field="session_id",
                session_id=name_of(session_id),
            )

    @staticmethod
    def error_of(session_id: str, tombstone: Tombstone) -> SessionNotFoundError:
        """Returns the error for a session with this tombstone. It has no position when the session was lost before its
        first write."""
        name, reason, position = name_of(session_id), tombstone.reason, tombstone.position
        when = datetime.fromtimestamp(tombstone.closed_at, UTC).isoformat(timespec="seconds")
        is_known = reason is not CloseReason.LOST or position > 0
        where, facts = (f" at position {position}", {"position": position}) if is_known else ("", {})
        return SessionNotFoundError(
            f"session_id = {name!r} is gone: it {_REASONS[reason]}{where}, {when}",
            field="session_id",
            session_id=name,
            close_reason=reason.value,
            **facts,
        )


def unfinished_error(session: Session, reason: CloseReason) -> CarouselError:
    """Returns the error for requests that are unfinished when a session ends."""
    if reason is CloseReason.MOVED:
        return SessionMovedError(
            f"session {session.name!r} was handed over: resume it on a new stream, or send the call again",
            session_id=session.name,
        )
    if reason is CloseReason.SHUTDOWN:
        return ShuttingDownError(
            f"session {session.name!r} ended because the server is shutting down", retry_delay_s=1.0
        )
    if reason is CloseReason.TAKEN:
        return SessionMovedError(f"session {session.name!r} was resumed on another stream", session_id=session.name)
    if reason is CloseReason.LOST:
        return SessionMovedError(f"session {session.name!r} was lost: {reason.value}", session_id=session.name)
    if reason is CloseReason.MAX_AGE:
        return RequestCancelledError(
            f"session {session.name!r} was closed: it reached the age that this server allows (max_age_s)",
            close_reason=reason.value,
        )
    return RequestCancelledError("the session was closed", close_reason=reason.value)
