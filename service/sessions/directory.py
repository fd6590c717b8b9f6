"""The sessions of this server by id, in the order of opening, and in the order of use.

An id belongs to one session from `add`, after the checks of its opening, until `remove`, when the session begins to
end. `wait_until_ended` returns when the store has the last record of an earlier session with the id. Event loop only.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from service.errors import SessionIdInUseError, StoreUnavailableError, TooManySessionsError
from service.sessions.ages import Ages
from service.sessions.lifecycle import State
from service.sessions.session import Session, name_of, owner_of


def random_name() -> str:
    """Returns a session's name of 9 random bytes (12 characters). Among a million names, the probability of a collision
    is 1e-10."""
    return secrets.token_urlsafe(9)


class _Order:
    """Sessions from the least to the most recently used, as a linked list through the sessions: 16 bytes each, where an
    OrderedDict takes 10 times as much."""

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


class Directory:
    """Sessions by id, by age, and in two orders of use: sessions with a usable slot, and all others. max_sessions: the
    most at one time."""

    def __init__(self, max_sessions: int, ages: Ages) -> None:
        self.ages = ages
        self._max_sessions = max_sessions
        self._by_id: dict[str, Session] = {}
        self._owned: Counter[str] = Counter()
        self._live = _Order()
        self._other = _Order()
        self._ending: dict[str, list[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_id.values()))

    def check_room(self, owner: str, max_owned: int | None) -> None:
        """Raises TooManySessionsError when one more session exceeds the limit of the server or of its principal."""
        if len(self._by_id) >= self._max_sessions:
            raise TooManySessionsError(
                f"{self._max_sessions} sessions are open, the limit of this server (max_sessions): try again later",
                retry_delay_s=1.0,
                max_sessions=self._max_sessions,
            )
        if max_owned is not None and self.count(owner) >= max_owned:
            raise TooManySessionsError(
                f"principal {owner!r} has {max_owned} sessions open, the limit (its max_sessions): close one",
                retry_delay_s=1.0,
                max_sessions=max_owned,
            )

    def check_free(self, session_id: str) -> None:
        """Raises SessionIdInUseError when a session of this server has the id, and StoreUnavailableError when another
        server may own that session."""
        session = self._by_id.get(session_id)
        if session is not None and session.persistence.is_unconfirmed:
            raise StoreUnavailableError(
                f"session_id = {session.name!r} is in use by a session that may belong to another server, or have"
                " ended there: try again later",
                retry_delay_s=1.0,
                field="session_id",
                session_id=name_of(session_id),
            )
        if session is not None:
            how = "by another stream"
            if session.state is State.OPENING:
                how = "by a session that is being opened"
            elif session.is_detached:
                how = "by a session that is detached: resume it, or close it"
            raise SessionIdInUseError(
                f"session_id = {session.name!r} is in use {how}",
                field="session_id",
                session_id=name_of(session_id),
            )

    def add(self, session: Session, max_owned: int | None = None) -> None:
        """Adds a session under its id, as the most recently used. Raises SessionIdInUseError, StoreUnavailableError and
        TooManySessionsError."""
        self.check_free(session.id)
        owner = owner_of(session.id)
        self.check_room(owner, max_owned)
        self._by_id[session.id] = session
        if owner:
            self._owned[owner] += 1
        self._order(session).link(session)
        self.ages.add(session)

    def remove(self, session: Session) -> None:
        """Removes a session. Its id can be used again."""
        if self._by_id.get(session.id) is session:
            del self._by_id[session.id]
            if owner := owner_of(session.id):
                self._owned[owner] -= 1
                if not self._owned[owner]:
                    del self._owned[owner]
            self._order(session).unlink(session)
            self.ages.remove()

    def move(self, session: Session, state: State) -> None:
        """Sets a session's state, and moves the session to the order of use of that state."""
        before = self._order(session)
        session.state = state
        after = self._order(session)
        if before is not after and self._by_id.get(session.id) is session:
            before.unlink(session)
            after.link(session)

    def get(self, session_id: str) -> Session | None:
        """Returns the session with the id."""
        return self._by_id.get(session_id)

    def count(self, owner: str) -> int:
        """Returns the number of sessions of a principal; of all sessions when `owner` is ""."""
        return self._owned[owner] if owner else len(self)

    def touch(self, session: Session, now_s: float) -> None:
        """Marks a session as used at the monotonic time `now_s`. A session that was removed keeps its place."""
        session.last_used_s = now_s
        order = self._live if session.is_live else self._other
        if session is not order.newest and self._by_id.get(session.id) is session:
            order.unlink(session)
            order.link(session)

    def live(self) -> Iterator[Session]:
        """Iterates over the sessions with a usable slot, the least recently used first."""
        return iter(self._live)

    def unused_since(self, time_s: float) -> list[Session]:
        """Returns the sessions last used before the monotonic time `time_s`: first those with a usable slot, then the
        others, each from the least recently used."""
        found = []
        for order in (self._live, self._other):
            for session in order:
                if session.last_used_s >= time_s:
                    break
                found.append(session)
        return found

    @property
    def num_generating(self) -> int:
        """The number of sessions whose running generation has a listener."""
        return sum(session.state is State.GENERATING and session.is_working for session in self._by_id.values())

    def page(self, after_serial: int, size: int, model: str, owner: str | None = None) -> list[Session]:
        """Returns up to `size` sessions opened after the session with serial `after_serial`, in order of opening.
        model: "" means all models. owner: None means all principals."""
        found: Iterable[Session] = (session for session in self._by_id.values() if session.serial > after_serial)
        if model:
            found = (session for session in found if session.served.bundle.model == model)
        if owner is not None:
            found = (session for session in found if owner_of(session.id) == owner)
        return list(islice(found, size))

    def begin_ending(self, session_id: str) -> Callable[[], None]:
        """Marks that the last record of a session with this id is being written. Returns a callback that removes the
        mark; `wait_until_ended` waits for it. Further calls of the callback do nothing."""
        future = asyncio.get_running_loop().create_future()
        waiting = self._ending.setdefault(session_id, [])
        waiting.append(future)

        def end() -> None:
            if future.done():
                return
            waiting.remove(future)
            if not waiting:
                del self._ending[session_id]
            future.set_result(None)

        return end

    def is_ending(self, session_id: str) -> bool:
        """Whether the last record of an earlier session with this id is not stored yet."""
        return session_id in self._ending

    async def wait_until_ended(self, session_id: str, timeout_s: float) -> None:
        """Returns when no last record of an earlier session with this id is being written. Raises StoreUnavailableError
        after `timeout_s`."""
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                while waiting := self._ending.get(session_id):
                    await asyncio.shield(waiting[-1])
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"session {name_of(session_id)!r} is in use until its last record is stored, but the store does not"
                " answer: try again later",
                retry_delay_s=1.0,
                session_id=name_of(session_id),
            ) from error

    def _order(self, session: Session) -> _Order:
        return self._live if session.is_live else self._other
