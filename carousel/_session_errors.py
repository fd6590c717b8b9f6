"""The errors that the client makes itself of what it knows of a session."""

from __future__ import annotations

from carousel.errors import PositionMismatchError, SessionClosedError
from carousel.values import CloseReason


def session_closed(session_id: str, reason: CloseReason, position: int) -> SessionClosedError:
    """The error of a session that was closed at a position."""
    return SessionClosedError(
        f"session {session_id!r} was closed ({reason}) at position {position}",
        reason="SESSION_CLOSED",
        metadata={"session_id": session_id, "close_reason": reason.value, "position": str(position)},
    )


def moved(expected: int, position: int) -> PositionMismatchError:
    """The error of a session that a feed moved whose answer was not awaited."""
    return PositionMismatchError(
        f"position = {expected}, but the session is at {position}: a feed whose answer was not awaited had moved it",
        reason="POSITION_MISMATCH",
        metadata={"position": str(position)},
    )
