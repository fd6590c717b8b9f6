"""Sessions kept in this process's memory, and gone with it."""

from __future__ import annotations

from collections.abc import Iterable

from service.sessions.session import Session


class MemoryStore:
    """A `SessionStore`: a dictionary in the order of opening, and a list through the sessions in the order of use.

    The links live in the sessions: 16 bytes each, where an OrderedDict takes 10 times as much.
    """

    def __init__(self) -> None:
        self._by_opening: dict[str, Session] = {}
        self._oldest: Session | None = None
        self._newest: Session | None = None

    def __len__(self) -> int:
        return len(self._by_opening)

    def add(self, session: Session) -> None:
        """See `SessionStore`."""
        self._by_opening[session.id] = session
        self._link(session)

    def get(self, session_id: str) -> Session | None:
        """See `SessionStore`."""
        return self._by_opening.get(session_id)

    def remove(self, session_id: str) -> None:
        """See `SessionStore`."""
        self._unlink(self._by_opening.pop(session_id))

    def touch(self, session: Session, now_s: float) -> None:
        """See `SessionStore`."""
        session.last_used_s = now_s
        if session is not self._newest:
            self._unlink(session)
            self._link(session)

    def unused_since(self, time_s: float) -> list[Session]:
        """See `SessionStore`."""
        found = []
        session = self._oldest
        while session is not None and session.last_used_s < time_s:
            found.append(session)
            session = session.newer
        return found

    def opened_after(self, serial: int) -> Iterable[Session]:
        """See `SessionStore`."""
        return (session for session in self._by_opening.values() if session.serial > serial)

    def _link(self, session: Session) -> None:
        session.older = self._newest
        if self._newest is None:
            self._oldest = session
        else:
            self._newest.newer = session
        self._newest = session

    def _unlink(self, session: Session) -> None:
        if session.older is None:
            self._oldest = session.newer
        else:
            session.older.newer = session.newer
        if session.newer is None:
            self._newest = session.older
        else:
            session.newer.older = session.older
        session.older = session.newer = None
