"""Errors that the client itself raises from what it knows of a session."""

from __future__ import annotations

from carousel.errors import ConcurrentUseError, PositionMismatchError, SessionClosedError
from carousel.values import CloseReason

_WORDS = {
    CloseReason.UNSPECIFIED: "the server gave a reason that this client does not know",
    CloseReason.CLIENT: "a client asked for it",
    CloseReason.DISCONNECT: "its stream or call ended, as its on_disconnect says",
    CloseReason.IDLE: "it was idle for longer than the server allows",
    CloseReason.SHUTDOWN: "the server is shutting down",
    CloseReason.FAILED: "opening it failed",
    CloseReason.EXPIRED: "it was not resumed or used in time",
    CloseReason.MOVED: "it has moved to another server",
    CloseReason.LOST: "its state is lost: open a new session",
    CloseReason.TAKEN: "another stream took it over",
    CloseReason.MAX_AGE: "it reached the age that the server allows",
}


def session_closed(session_id: str, reason: CloseReason, position: int | None) -> SessionClosedError:
    """The error for a session that was closed. position: None if the client does not know where."""
    metadata = {"session_id": session_id, "close_reason": reason.value}
    at = ""
    if position is not None:
        metadata["position"], at = str(position), f" at position {position}"
    return SessionClosedError(
        f"session {session_id!r} was closed ({reason}){at}: {_WORDS[reason]}",
        reason="SESSION_CLOSED",
        metadata=metadata,
    )


def generation_in_use(user: str) -> ConcurrentUseError:
    """The error for a second user of a generation. user: a task or a thread."""
    return ConcurrentUseError(
        f"this generation is used by another {user}: one {user} at a time may use it. Read it in one {user}",
        reason="CONCURRENT_USE",
    )


def moved(expected: int, position: int) -> PositionMismatchError:
    """The error for a session that was moved by a feed whose answer the program did not wait for."""
    return PositionMismatchError(
        f"expected position {expected}, but the session is at {position}: an earlier feed, whose answer was not"
        f" awaited, moved it. Continue from {position}",
        reason="POSITION_MISMATCH",
        metadata={"position": str(position)},
    )
