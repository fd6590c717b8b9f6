"""Sessions kept in this process's memory, and gone with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from service.sessions.session import Session


class MemoryStore:
    """A `SessionStore` of two dictionaries: one in the order of opening, one in the order of use."""

    def __init__(self) -> None:
        self._by_opening: dict[str, Session] = {}
        self._by_use: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_opening)

    def add(self, session: Session) -> None:
        """See `SessionStore`."""
        self._by_opening[session.id] = session
        self._by_use[session.id] = session

    def get(self, session_id: str) -> Session | None:
        """See `SessionStore`."""
        return self._by_opening.get(session_id)

    def remove(self, session_id: str) -> None:
        """See `SessionStore`."""
        del self._by_opening[session_id]
        del self._by_use[session_id]

    def touch(self, session: Session, now_s: float) -> None:
        """See `SessionStore`."""
        session.last_used_s = now_s
        self._by_use.move_to_end(session.id)

    def unused_since(self, time_s: float) -> list[Session]:
        """See `SessionStore`."""
        found = []
        for session in self._by_use.values():
            if session.last_used_s >= time_s:
                break
            found.append(session)
        return found

    def opened_after(self, serial: int) -> Iterable[Session]:
        """See `SessionStore`."""
        return (session for session in self._by_opening.values() if session.serial > serial)
