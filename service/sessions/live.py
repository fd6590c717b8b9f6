"""The sessions that this process has in hand: by id, in the order of opening, and in the order of use."""

from __future__ import annotations

from collections.abc import Iterable

from service.sessions.session import Session


class LiveSessions:
    """A dictionary in the order of opening, and a list through the sessions in the order of use. Event loop only.

    The links live in the sessions: 16 bytes each, where an OrderedDict takes 10 times as much.
    """

    def __init__(self) -> None:
        self._by_opening: dict[str, Session] = {}
        self._oldest: Session | None = None
        self._newest: Session | None = None

    def __len__(self) -> int:
        return len(self._by_opening)

    def add(self, session: Session) -> None:
        """Keeps a session whose id is not kept yet; it counts as just used."""
        self._by_opening[session.id] = session
        self._link(session)

    def get(self, session_id: str) -> Session | None:
        """The session of that id."""
        return self._by_opening.get(session_id)

    def remove(self, session_id: str) -> None:
        """Forgets a session. Raises KeyError when it is not kept."""
        self._unlink(self._by_opening.pop(session_id))

    def touch(self, session: Session, now_s: float) -> None:
        """Notes that a kept session was used at the monotonic time `now_s`."""
        session.last_used_s = now_s
        if session is not self._newest:
            self._unlink(session)
            self._link(session)

    def unused_since(self, time_s: float) -> list[Session]:
        """The sessions last used before the monotonic time `time_s`, the least recently used first."""
        found = []
        session = self._oldest
        while session is not None and session.last_used_s < time_s:
            found.append(session)
            session = session.newer
        return found

    def opened_after(self, serial: int) -> Iterable[Session]:
        """The sessions with a greater serial, in the order in which they were opened."""
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
