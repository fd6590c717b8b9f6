"""Ends sessions that are idle, too old or not resumed in time.

Event loop only.
"""

from __future__ import annotations

from service.errors import guarded
from service.sessions.lifecycle import State
from service.sessions.persistence import OnDisconnect
from service.sessions.registry import Registry
from service.sessions.session import CloseReason, Session

_RENEWALS = 1000
"""The number of records whose expiry is checked in one turn."""


class Expiry:
    """Ends sessions as their policies say. idle_timeout_s: seconds after `last_used_s` at which a session ends;
    includes the delay with which `last_used_s` is updated."""

    def __init__(self, registry: Registry, idle_timeout_s: float) -> None:
        self._registry = registry
        self._idle_timeout_s = idle_timeout_s

    def expire(self) -> None:
        """Ends sessions that are too old, also busy ones; sessions that were idle for longer than `idle_timeout_s`; and
        detached sessions whose time is over. Sessions with KEEP are stored and leave the memory. Renews records that
        would expire before their sessions."""
        for session in self._registry.directory.ages.overdue():
            guarded(self._expire_old, session)
        now_s = self._registry.clock()
        for session in list(self._registry.held.values()):
            guarded(self._expire_held, session, now_s)
        for session in self._registry.directory.unused_since(now_s - self._idle_timeout_s):
            guarded(self._expire_idle, session, now_s)
        self._registry.leases.renew_some(_RENEWALS)

    def _expire_old(self, session: Session) -> None:
        self._registry.close(session, CloseReason.MAX_AGE, notify=True)

    def _expire_held(self, session: Session, now_s: float) -> None:
        if session.is_over or not session.is_detached:
            self._registry.held.pop(session.id, None)
        elif now_s >= session.persistence.held_until_s:
            self._registry.close(session, CloseReason.EXPIRED, notify=False)

    def _expire_idle(self, session: Session, now_s: float) -> None:
        if session.is_over:
            return
        is_kept = session.policy.on_disconnect is OnDisconnect.KEEP
        # an opening always ends and is answered; an unconfirmed session may belong to another server.
        is_busy = session.is_working or session.state is State.OPENING or session.persistence.is_unconfirmed
        if is_busy or (session.is_detached and not is_kept):
            self._registry.directory.touch(session, now_s)
        elif is_kept:
            self._registry.hand_over(session, CloseReason.IDLE)
        else:
            self._registry.close(session, CloseReason.IDLE, notify=True)
