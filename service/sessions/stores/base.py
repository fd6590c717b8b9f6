"""What a session store must do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from service.sessions.session import Session


class SessionStore(Protocol):
    """Keeps the live sessions by id, and knows which was used least recently. Event loop only."""

    def __len__(self) -> int:
        """How many sessions are kept."""

    def add(self, session: Session) -> None:
        """Keeps a session whose id is not kept yet; it counts as just used."""

    def get(self, session_id: str) -> Session | None:
        """The session of that id."""

    def remove(self, session_id: str) -> None:
        """Forgets a session. Raises KeyError when it is not kept."""

    def touch(self, session: Session, now_s: float) -> None:
        """Notes that a kept session was used at the monotonic time `now_s`."""

    def unused_since(self, time_s: float) -> list[Session]:
        """The sessions last used before the monotonic time `time_s`, the least recently used first."""

    def opened_after(self, serial: int) -> Iterable[Session]:
        """The sessions with a greater serial, in the order in which they were opened."""
