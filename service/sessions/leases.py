"""Whose the records of this server's sessions are: they are renewed before they expire, and when this server's lease
has run out it asks the store before it speaks for them.

A server counts as there for its lease after each heartbeat (Gray and Cheriton 1989). Rules:

1. A lease is counted here from before its heartbeat was sent, in monotonic seconds: it ends here no later than there.
2. When it has run out, by the clock or because the store says that it had, every session with a record is unconfirmed:
   its requests wait, and answers in flight wait until they are stored, whatever its durability.
3. A session is confirmed by anything that the store takes under its epoch, and all are by a heartbeat which shows that
   the lease held after all. What the store was asked before the lease was looked at last confirms nothing, however late
   it is answered: another server can have had the session since. One that the store refuses is another server's. While
   the store fails, what waits is refused.
4. A record that the store has lost is written anew, unless another server can have had it meanwhile and left one that
   is gone by now. Every record lasts for the idle timeout at least, or until its session is too old: so when others
   have been there for longer than that while this server counted as gone, sessions without a record are lost; and a
   session's last record, which may be tried again for long, is not made anew later than that.

Event loop only; times come from the injected clock.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial

from service.errors import StoreUnavailableError
from service.sessions.ages import Ages
from service.sessions.deferral import Deferral
from service.sessions.image import Image
from service.sessions.session import Session
from service.sessions.storage import Put, Storage, WriteResult
from service.sessions.stores.base import Beat, Standing

_ALL = (sys.maxsize, 0)
"""Later than every moment."""
OnSession = Callable[[Session], None]


class Leases:
    """on_lost: called with sessions that another server has; on_missing: with those whose record the store has not;
    on_settled: with those of which more is stored, or which are known again to be this server's; idle_timeout_s: how
    long a record outlives a session that has no other time; ages: beyond which no record lasts.

    until_s: monotonic seconds up to which this server may speak for its sessions; `look` is to be called past it.
    """

    def __init__(
        self,
        storage: Storage,
        deferral: Deferral,
        *,
        on_lost: OnSession,
        on_missing: OnSession,
        on_settled: OnSession,
        ages: Ages,
        idle_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._idle_timeout_s = idle_timeout_s
        self.until_s = -math.inf if storage.lease_s is not None else math.inf
        self._storage = storage
        self._deferral = deferral
        self._on_lost = on_lost
        self._on_missing = on_missing
        self._on_settled = on_settled
        self._ages = ages
        self._clock = clock
        self._recorded: dict[Session, None] = {}
        """Those that have a record, or an id that is reserved, first those that were looked at longest ago."""
        self._unconfirmed: dict[Session, bool | None] = {}
        """Each with None until a heartbeat is heard; then, when the lease did run out and the store must be asked, with
        whether another server can have had the session and left no record of it."""
        self._confirming: set[Session] = set()
        self._looked_s = -math.inf
        """When the lease was found last to have run out, in monotonic seconds."""
        self._is_lapsed = False
        """Whether the lease has run out, and all sessions but those of `_since` are unconfirmed, or were since."""
        self._since: dict[Session, None] = {}
        self._term = ""
        """The store's name for the time for which this server's lease holds without a gap."""

    @property
    def is_cut(self) -> bool:
        """Whether the lease has run out: others may have the sessions that are stored."""
        return self._clock() > self.until_s

    def add(self, session: Session) -> None:
        """A session has a record, or a reservation, from here on."""
        self._recorded[session] = None
        if self._is_lapsed:
            self._since[session] = None

    def end(self, session: Session) -> None:
        """A session ended: its record is not renewed any more."""
        self._recorded.pop(session, None)
        self._unconfirmed.pop(session, None)
        self._since.pop(session, None)

    def ttl_s(self, session: Session) -> float:
        """How long a session may do without being used, and its record lasts."""
        return min(session.policy.duration_s + self._idle_timeout_s, self._ages.left_s(session.opened_at))

    def put_of(self, session: Session, image: Image | None, standing: Standing = Standing.OWNED) -> Put:
        """A write of a session's record. image: None leaves it as it is."""
        persistence = session.persistence
        now_s, ttl_s = self._clock(), self.ttl_s(session)
        if standing is Standing.FREE and session.is_detached:  # it was held for a part of its time
            ttl_s = max(self._idle_timeout_s, persistence.held_until_s - now_s)
        persistence.renew_at_s = now_s + 0.5 * ttl_s
        persistence.has_record = persistence.has_record or image is not None
        if not session.is_over and session not in self._recorded:
            self.add(session)
        make_until_s = math.inf if self._may_make(session) else -math.inf
        record_id = persistence.record_id or session.id
        gone_by_s = self._ages.gone_by_s(session.opened_at)
        return Put(record_id, persistence.epoch, image, ttl_s, standing, None, make_until_s, now_s, gone_by_s)

    def make_until_s(self, session: Session) -> float:
        """Until when a last record may be made of a session where the store has none, in monotonic seconds."""
        persistence = session.persistence
        if not persistence.has_record:
            return math.inf
        return (persistence.known_s if persistence.is_unconfirmed else self._known_s) + self._idle_timeout_s

    @property
    def _known_s(self) -> float:
        """When the last heartbeat was sent that was heard: nobody could claim anything before."""
        return self.until_s - (self._storage.lease_s or 0.0)

    def renew(self, session: Session) -> None:
        """Has the record of a session outlive it."""
        put = self.put_of(session, None)
        self._storage.put(put, partial(self._renewed, session, put.put_s))

    def renew_some(self, count: int) -> None:
        """Looks at so many sessions, those first that were looked at longest ago, and renews the records that would
        expire before long."""
        now_s = self._clock()
        for _ in range(min(count, len(self._recorded))):
            session = next(iter(self._recorded))
            del self._recorded[session]
            self._recorded[session] = None
            if session.persistence.renew_at_s < now_s:
                self.renew(session)

    def noted(self, session: Session, put_s: float, result: WriteResult) -> None:
        """A write of the record of a session, which has not ended, came to this result. put_s: see `Put`."""
        if result is WriteResult.REFUSED:
            self._on_lost(session)
        elif result is WriteResult.STORED:
            self.confirmed(session, put_s)
            self._on_settled(session)
        elif result is WriteResult.MISSING:
            if self._may_make(session):
                self._on_missing(session)
            elif self._unconfirmed[session] is None:
                self._storage.hasten_heartbeat()
            else:
                self._on_lost(session)
        else:
            session.persistence.renew_at_s = -math.inf  # it is renewed again, as soon as it is looked at
            if session.persistence.is_unconfirmed:
                self._refuse(session)

    def _may_make(self, session: Session) -> bool:
        """Whether a record may be made of a session where the store has none. Nobody can have had one that was never
        stored."""
        return self._unconfirmed.get(session, False) is False or session.persistence.stored is None

    def check(self) -> None:
        """Looks at the lease, before anything is told of a session."""
        if self.is_cut:
            self.look()

    def look(self) -> None:
        """The lease has run out: nothing is told of a stored session before the store was asked."""
        self._looked_s = self._clock()
        suspects = list(self._since if self._is_lapsed else self._recorded)
        self._since.clear()
        if not self._is_lapsed:
            self._is_lapsed = True
            self._storage.hasten_heartbeat()
        for session in suspects:
            persistence = session.persistence
            if persistence.record_id is None and not persistence.is_unconfirmed and not session.is_over:
                persistence.is_unconfirmed, persistence.known_s = True, self._known_s
                self._unconfirmed[session] = None
                self._deferral.suspend(session)

    def confirmed(self, session: Session, asked_s: float) -> None:
        """The store has taken something under a session's epoch. What waited runs. asked_s: monotonic seconds at which
        the store was asked: that does not count when the lease was found to have run out since."""
        if session.persistence.is_unconfirmed and asked_s >= self._looked_s:
            session.persistence.is_unconfirmed = False
            self._unconfirmed.pop(session, None)
            if self._is_lapsed:
                self._since[session] = None
            persistence = session.persistence
            persistence.resolve(persistence.stored if persistence.waits_for_store else _ALL, None)
            self._on_settled(session)
            self._deferral.run(session)

    def beaten(self, sent_s: float, beat: Beat) -> None:
        """A heartbeat that was sent at a monotonic time has reached the store."""
        lease_s = self._storage.lease_s
        if lease_s is None:
            return
        is_gap, self._term = bool(self._term) and beat.term != self._term, beat.term
        if is_gap:
            self.look()
            is_contested = beat.rivals_s > self._idle_timeout_s
            before = self._unconfirmed
            self._unconfirmed = {session: bool(known) or is_contested for session, known in before.items()}
        self.until_s = sent_s + lease_s
        if self.is_cut:  # its answer took longer than the lease
            self.look()
            return
        self._is_lapsed = False
        self._since.clear()
        for session, known in list(self._unconfirmed.items()):
            if known is None:
                self.confirmed(session, self._clock())
            else:
                self._confirm(session)

    def failed(self) -> None:
        """A heartbeat has failed: what waits for its session to be confirmed is refused."""
        for session in list(self._unconfirmed):
            self._refuse(session)

    def _confirm(self, session: Session) -> None:
        """Asks the store whether an unconfirmed session is this server's, once at a time."""
        if session not in self._confirming:
            self._confirming.add(session)
            self.renew(session)

    def _refuse(self, session: Session) -> None:
        error = StoreUnavailableError(
            f"session {session.name!r} may be with another server by now, and the session store does not answer: try"
            " again, or resume it elsewhere",
            retry_delay_s=1.0,
            session_id=session.name,
        )
        session.persistence.resolve(None, error)
        self._deferral.refuse(session, error)

    def _renewed(self, session: Session, put_s: float, result: WriteResult) -> None:
        self._confirming.discard(session)
        if not session.is_over:
            self.noted(session, put_s, result)
