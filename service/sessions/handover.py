"""Hands sessions over to other servers: one that another server wants, and all when this server shuts down.

Event loop only.
"""

from __future__ import annotations

from collections.abc import Callable

from service.errors import guarded
from service.sessions.lifecycle import State
from service.sessions.registry import Registry
from service.sessions.session import CloseReason, Session


class Handover:
    """Stores sessions so that any server can resume them."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def wanted(self, session_id: str, *, only_if_idle: bool) -> None:
        """Hands a session over to another server, whose client asked for it. A new session that is not open yet is
        kept, because the client can only mean an earlier session of that id. only_if_idle: also keeps a session that a
        stream has, that a `Step` uses, or that works."""
        session = self._registry.directory.get(session_id)
        if session is None or not session.policy.is_stored:
            return
        if only_if_idle and (session_id not in self._registry.held or session.is_working):
            return
        if session.state is not State.OPENING or session.persistence.is_in_store:
            self._registry.hand_over(session)

    def busy(self) -> Callable[[], bool]:
        """Returns a function that says whether any session that is busy now still runs the same request. Generating
        sessions do not count: see `Directory.num_generating`."""
        busy = [(session, session.last) for session in self._registry.directory if session.state is State.BUSY]
        return lambda: any(session.state is State.BUSY and session.last is last for session, last in busy)

    def end_all(self) -> None:
        """Ends every session because the server shuts down, and notifies their streams. Stored sessions can be resumed
        elsewhere."""
        for session in self._registry.directory:
            guarded(self._end, session)

    def _end(self, session: Session) -> None:
        if session.policy.is_stored:
            self._registry.hand_over(session)
        else:
            self._registry.close(session, CloseReason.SHUTDOWN, notify=True)
