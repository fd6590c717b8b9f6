"""The sessions that this process has in hand: by id, in the order of opening, and in the order of use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from service.sessions.session import Session, owner_of


class _Order:
    """Sessions from the least recently used on, linked through themselves: 16 bytes each, where an OrderedDict takes
    10 times as much."""

    def __init__(self) -> None:
        self.oldest: Session | None = None
        self.newest: Session | None = None

    def __iter__(self) -> Iterator[Session]:
        session = self.oldest
        while session is not None:
            following = session.newer
            yield session
            session = following

    def link(self, session: Session) -> None:
        session.older = self.newest
        if self.newest is None:
            self.oldest = session
        else:
            self.newest.newer = session
        self.newest = session

    def unlink(self, session: Session) -> None:
        if session.older is None:
            self.oldest = session.newer
        else:
            session.older.newer = session.newer
        if session.newer is None:
            self.newest = session.older
        else:
            session.newer.older = session.older
        session.older = session.newer = None


class LiveSessions:
    """A dictionary in the order of opening, and two orders of use: of those that have a slot, and of those that are
    asleep. Event loop only."""

    def __init__(self) -> None:
        self._by_opening: dict[str, Session] = {}
        self._owned: Counter[str] = Counter()
        self._awake = _Order()
        self._asleep = _Order()

    def __len__(self) -> int:
        return len(self._by_opening)

    def add(self, session: Session) -> None:
        """Keeps a session whose id is not kept yet; it counts as just used."""
        self._by_opening[session.id] = session
        if owner := owner_of(session.id):
            self._owned[owner] += 1
        self._awake.link(session)

    def count(self, owner: str) -> int:
        """How many a principal has; for nobody in particular, how many there are."""
        return self._owned[owner] if owner else len(self)

    def get(self, session_id: str) -> Session | None:
        """The session of that id."""
        return self._by_opening.get(session_id)

    def remove(self, session_id: str) -> None:
        """Forgets a session. Raises KeyError when it is not kept."""
        session = self._by_opening.pop(session_id)
        if owner := owner_of(session_id):
            self._owned[owner] -= 1
        self._order(session).unlink(session)

    def touch(self, session: Session, now_s: float) -> None:
        """Notes that a kept session was used at the monotonic time `now_s`."""
        session.last_used_s = now_s
        order = self._order(session)
        if session is not order.newest:
            order.unlink(session)
            order.link(session)

    def lull(self, session: Session) -> None:
        """A kept session, which must have a custody, is asleep from here on."""
        assert session.custody is not None  # noqa: S101  # the caller has given it one
        self._awake.unlink(session)
        session.custody.is_asleep = True
        self._asleep.link(session)

    def rouse(self, session: Session) -> None:
        """A kept session is no longer asleep; it counts as just used."""
        assert session.custody is not None  # noqa: S101  # or it could not sleep
        self._asleep.unlink(session)
        session.custody.is_asleep = False
        self._awake.link(session)

    def awake(self) -> Iterator[Session]:
        """Those that have a slot, the least recently used first."""
        return iter(self._awake)

    def unused_since(self, time_s: float) -> list[Session]:
        """The sessions last used before the monotonic time `time_s`, the least recently used first, those that are
        asleep after the others."""
        found = []
        for order in (self._awake, self._asleep):
            for session in order:
                if session.last_used_s >= time_s:
                    break
                found.append(session)
        return found

    def opened_after(self, serial: int) -> Iterable[Session]:
        """The sessions with a greater serial, in the order in which they were opened."""
        return (session for session in self._by_opening.values() if session.serial > serial)

    def _order(self, session: Session) -> _Order:
        return self._asleep if session.custody is not None and session.custody.is_asleep else self._awake
