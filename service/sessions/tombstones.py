"""What is remembered of sessions that have ended: the tombstones, and what they say to whoever asks for one.

Event loop only; times come from the injected clock.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from service.errors import SessionNotFoundError
from service.sessions.session import CloseReason, name_of

_REASONS = {
    CloseReason.CLIENT: "was closed by a client",
    CloseReason.DISCONNECT: "was closed at the end of the stream or the call that had it, as its on_disconnect says",
    CloseReason.IDLE: "was closed because it was idle for too long",
    CloseReason.SHUTDOWN: "was closed because the server shut down",
    CloseReason.FAILED: "was closed because opening it failed",
    CloseReason.EXPIRED: "expired: no stream and no call came for it for as long as it was held",
    CloseReason.MOVED: "has moved: another server has it",
    CloseReason.TAKEN: "was taken over by another stream",
    CloseReason.LOST: "was lost: its server ended before it was stored, or the store no longer has its record",
    CloseReason.MAX_AGE: "was closed because it reached the age that the server allows (max_age_s)",
}


class Tombstone(NamedTuple):
    """closed_at: Unix seconds."""

    reason: CloseReason
    position: int
    closed_at: float

    def encode(self) -> bytes:
        """As bytes, for a store."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Tombstone:
        """From bytes. Raises msgspec.MsgspecError when they are none."""
        return msgspec.json.decode(data, type=cls)


class Tombstones:
    """Remembers the last `capacity` sessions that were closed. Event loop only."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._by_id: OrderedDict[str, Tombstone] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, session_id: str, tombstone: Tombstone) -> None:
        """Remembers a session; the oldest memory goes when there are too many. An opening that failed says nothing of
        the session that had the id before it."""
        if tombstone.reason is CloseReason.FAILED and session_id in self._by_id:
            return
        self._by_id[session_id] = tombstone
        self._by_id.move_to_end(session_id)
        if len(self._by_id) > self._capacity:
            self._by_id.popitem(last=False)

    def correct(self, session_id: str, tombstone: Tombstone | None, position: int) -> Tombstone | None:
        """The tombstone of a session that came to another position while it ended. It is remembered so, unless
        another session had the id since."""
        if tombstone is None or tombstone.position == position:
            return tombstone
        corrected = tombstone._replace(position=position)
        if self._by_id.get(session_id) is tombstone:
            self._by_id[session_id] = corrected
        return corrected

    def not_found(self, session_id: str) -> SessionNotFoundError:
        """The error for a session that is not live, saying what became of it when that is known."""
        tombstone = self._by_id.get(session_id)
        if tombstone is None:
            return SessionNotFoundError(
                f"session_id = {name_of(session_id)!r} is unknown: it was never opened here, or is long gone",
                field="session_id",
                session_id=name_of(session_id),
            )
        return self.error_of(session_id, tombstone)

    @classmethod
    def error_in(cls, session_id: str, data: bytes) -> SessionNotFoundError:
        """The error for a session whose tombstone a store has. One that another version of this server wrote may say
        what this one does not know."""
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
        """The error for a session with this tombstone."""
        when = datetime.fromtimestamp(tombstone.closed_at, UTC).isoformat(timespec="seconds")
        return SessionNotFoundError(
            f"session_id = {name_of(session_id)!r} is gone: it {_REASONS[tombstone.reason]}"
            f" at position {tombstone.position}, {when}",
            field="session_id",
            session_id=name_of(session_id),
            close_reason=tombstone.reason.value,
            position=tombstone.position,
        )
