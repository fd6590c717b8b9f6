"""The reasons why sessions ended: a bounded memory, for clients that ask for them later."""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from service.errors import SessionNotFoundError
from service.sessions.session import CloseReason, name_of

_REASONS = {
    CloseReason.CLIENT: "was closed by a client",
    CloseReason.DISCONNECT: "was closed because the stream that had opened it ended",
    CloseReason.IDLE: "was closed because it was idle for too long",
    CloseReason.SHUTDOWN: "was closed because the server shut down",
    CloseReason.FAILED: "was closed because opening it failed",
    CloseReason.EXPIRED: "expired: no stream resumed it for as long as it was held after its stream had ended",
    CloseReason.MOVED: "has moved: another server has it",
    CloseReason.TAKEN: "was taken over by another stream",
    CloseReason.LOST: "was lost: its server ended before it was stored",
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
        """Remembers a session; the oldest memory goes when there are too many."""
        self._by_id[session_id] = tombstone
        self._by_id.move_to_end(session_id)
        if len(self._by_id) > self._capacity:
            self._by_id.popitem(last=False)

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
