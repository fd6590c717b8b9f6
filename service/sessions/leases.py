"""Which records of this server's sessions it still owns. Records are renewed before they expire. When this server's
lease has expired, it asks the store before it answers for its sessions.

A server counts as alive for the time of its lease after each heartbeat (Gray and Cheriton 1989). Rules:

1. This server counts its lease from before it sends the heartbeat, in monotonic seconds. So the lease ends here no
   later than in the store.
2. When the lease has expired, by the clock or as the store reports, every session with a record is unconfirmed: its
   requests wait, and its answers in flight wait until they are stored, whatever its durability.
3. What becomes of an unconfirmed session:
   - A heartbeat shows that the lease did not expire after all: all sessions are confirmed.
   - The store accepts a write or a claim under the session's epoch: the session is confirmed. But when it was sent
     before the expiry was last noticed, it confirms nothing, because another server can have had the session since.
   - The store refuses the write: the session belongs to another server, and ends here.
   - The store fails: the requests and answers that wait are refused.
4. What becomes of a session whose record the store does not have. Every record lasts at least for the idle timeout, or
   until its session is too old.
   - While this server counted as gone, no other server was alive for longer than the idle timeout: no other server's
     record can have expired. The store has lost the record, and it is written again.
   - Another server was alive for longer: it can have had the session, and its record can have expired. The session is
     contested, and is lost.
   - The session's last record, which may be retried for long, is not created anew after the idle timeout either.

Event loop only; times come from the injected clock.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from enum import Enum
from functools import partial

from service.errors import StoreUnavailableError
from service.sessions.ages import Ages
from service.sessions.deferral import Deferral
from service.sessions.image import Image
from service.sessions.session import Session
from service.sessions.storage import Put, Storage, WriteResult
from service.sessions.stores.base import Beat, Ownership

_ALL = (sys.maxsize, 0)
"""Later than every moment."""
OnSession = Callable[[Session], None]


class _Unconfirmed(Enum):
    """What is known about the owner of an unconfirmed session."""

    UNKNOWN = "unknown"  # no heartbeat was answered since: the lease may be valid after all
    EXPIRED = "expired"  # the lease did expire: the store must be asked
    CONTESTED = "contested"  # and another server can have had the session, and left no record


class Leases:
    """Renews records and confirms sessions. on_lost: called with a session that another server owns. on_missing: called
    with a session whose record the store does not have. on_more_stored: called when more of a session is stored, or
    when it is confirmed. idle_timeout_s: how long a record outlives a session whose policy has no duration. ages:
    limits how long records last.

    until_s: the monotonic time until which this server may answer for its sessions. After it, call `mark_unconfirmed`
    first.
    """

    def __init__(
        self,
        storage: Storage,
        deferral: Deferral,
        *,
        on_lost: OnSession,
        on_missing: OnSession,
        on_more_stored: OnSession,
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
        self._on_more_stored = on_more_stored
        self._ages = ages
        self._clock = clock
        self._recorded: dict[Session, None] = {}
        """Sessions with a record or a reservation, the one checked longest ago first."""
        self._unconfirmed: dict[Session, _Unconfirmed] = {}
        self._confirming: set[Session] = set()
        self._marked_s = -math.inf
        """When the expiry of the lease was last noticed, in monotonic seconds."""
        self._is_lapsed = False
        """Whether an expiry of the lease was noticed, and no heartbeat has renewed it yet."""
        self._owned_since_lapse: dict[Session, None] = {}
        """While the lease is lapsed, the sessions that were added or confirmed since. All other sessions are, or were,
        unconfirmed because of the lapse."""
        self._term = ""
        """The store's name for the period in which this server's lease holds without a gap."""

    @property
    def is_cut(self) -> bool:
        """Whether the lease has expired by the clock now: other servers may own the stored sessions."""
        return self._clock() > self.until_s

    def add(self, session: Session) -> None:
        """Adds a session that has a record or a reservation."""
        self._recorded[session] = None
        if self._is_lapsed:
            self._owned_since_lapse[session] = None

    def end(self, session: Session) -> None:
        """Removes a session that has ended: its record is no longer renewed."""
        self._recorded.pop(session, None)
        self._unconfirmed.pop(session, None)
        self._owned_since_lapse.pop(session, None)

    def ttl_s(self, session: Session) -> float:
        """Returns for how many seconds the record of a session lasts when the session is not used."""
        return min(session.policy.duration_s + self._idle_timeout_s, self._ages.left_s(session.opened_at))

    def put_of(self, session: Session, image: Image | None, ownership: Ownership = Ownership.OWNED) -> Put:
        """Returns a write of a session's record. image: None leaves the payload unchanged."""
        persistence = session.persistence
        now_s, ttl_s = self._clock(), self.ttl_s(session)
        if ownership is Ownership.FREE and session.is_detached:  # part of its time has passed
            ttl_s = max(self._idle_timeout_s, persistence.held_until_s - now_s)
        persistence.renew_at_s = now_s + 0.5 * ttl_s
        persistence.has_record = persistence.has_record or image is not None
        if not session.is_over and session not in self._recorded:
            self.add(session)
        make_until_s = math.inf if self._may_make(session) else -math.inf
        record_id = persistence.record_id or session.id
        gone_by_s = self._ages.gone_by_s(session.opened_at)
        return Put(record_id, persistence.epoch, image, ttl_s, ownership, None, make_until_s, now_s, gone_by_s)

    def make_until_s(self, session: Session) -> float:
        """Returns the monotonic time until which a last record may be created when the store has none."""
        persistence = session.persistence
        if not persistence.has_record:
            return math.inf
        return (persistence.known_s if persistence.is_unconfirmed else self._known_s) + self._idle_timeout_s

    @property
    def _known_s(self) -> float:
        """When the last answered heartbeat was sent. No other server could claim a record before."""
        return self.until_s - (self._storage.lease_s or 0.0)

    def renew(self, session: Session) -> None:
        """Extends the lifetime of a session's record."""
        put = self.put_of(session, None)
        self._storage.put(put, partial(self._renewed, session, put.put_s))

    def renew_some(self, count: int) -> None:
        """Checks `count` sessions, those checked longest ago first, and renews records that expire soon."""
        now_s = self._clock()
        for _ in range(min(count, len(self._recorded))):
            session = next(iter(self._recorded))
            del self._recorded[session]
            self._recorded[session] = None
            if session.persistence.renew_at_s < now_s:
                self.renew(session)

    def noted(self, session: Session, put_s: float, result: WriteResult) -> None:
        """Handles the result of a write of the record of an open session. put_s: see `Put`."""
        if result is WriteResult.REFUSED:
            self._on_lost(session)
        elif result is WriteResult.STORED:
            self.confirmed(session, put_s)
            self._on_more_stored(session)
        elif result is WriteResult.MISSING:
            if self._may_make(session):
                self._on_missing(session)
            elif self._unconfirmed[session] is _Unconfirmed.UNKNOWN:
                self._storage.hasten_heartbeat()
            else:
                self._on_lost(session)
        else:
            session.persistence.renew_at_s = -math.inf  # renews it again at the next check
            if session.persistence.is_unconfirmed:
                self._refuse(session)

    def _may_make(self, session: Session) -> bool:
        """Whether a record may be created when the store has none. A session that was never stored cannot have had a
        record at another server."""
        return self._unconfirmed.get(session) in (None, _Unconfirmed.EXPIRED) or session.persistence.stored is None

    def check(self) -> None:
        """Checks the lease. Call this before any answer about a session."""
        if self.is_cut:
            self.mark_unconfirmed()

    def mark_unconfirmed(self) -> None:
        """Marks the stored sessions as unconfirmed, because the lease has expired. The store must be asked before they
        are used."""
        self._marked_s = self._clock()
        sessions = list(self._owned_since_lapse if self._is_lapsed else self._recorded)
        self._owned_since_lapse.clear()
        if self.is_cut and not self._is_lapsed:  # when a heartbeat reports it, another one tells no more
            self._storage.hasten_heartbeat()
        self._is_lapsed = True
        for session in sessions:
            persistence = session.persistence
            if persistence.record_id is None and not persistence.is_unconfirmed and not session.is_over:
                persistence.is_unconfirmed, persistence.known_s = True, self._known_s
                self._unconfirmed[session] = _Unconfirmed.UNKNOWN
                self._deferral.suspend(session)

    def confirmed(self, session: Session, asked_s: float) -> None:
        """Handles that the store accepted something under a session's epoch: confirms the session and runs what waits.
        asked_s: the monotonic time of the question; ignored when the expiry was noticed after it."""
        if session.persistence.is_unconfirmed and asked_s >= self._marked_s:
            session.persistence.is_unconfirmed = False
            self._unconfirmed.pop(session, None)
            if self._is_lapsed:
                self._owned_since_lapse[session] = None
            persistence = session.persistence
            persistence.resolve(persistence.stored if persistence.waits_for_store else _ALL, None)
            self._on_more_stored(session)
            self._deferral.run(session)

    def beaten(self, sent_s: float, beat: Beat) -> None:
        """Handles the answer to a heartbeat. sent_s: the monotonic time at which it was sent."""
        lease_s = self._storage.lease_s
        if lease_s is None:
            return
        is_gap, self._term = bool(self._term) and beat.term != self._term, beat.term
        if is_gap:
            self.mark_unconfirmed()
            is_contested = beat.rivals_s > self._idle_timeout_s
            for session, known in self._unconfirmed.items():
                if known is not _Unconfirmed.CONTESTED:
                    self._unconfirmed[session] = _Unconfirmed.CONTESTED if is_contested else _Unconfirmed.EXPIRED
        was_cut, self.until_s = self.is_cut, sent_s + lease_s
        if self.is_cut:  # the answer took longer than the lease
            self.mark_unconfirmed()
            return
        self._is_lapsed = False
        self._owned_since_lapse.clear()
        for session, known in list(self._unconfirmed.items()):
            if known is _Unconfirmed.UNKNOWN:
                self.confirmed(session, self._clock())
            elif was_cut or session.persistence.renew_at_s > -math.inf:  # else a write failed, and `renew_some` asks
                self._confirm(session)

    def failed(self) -> None:
        """Handles a failed heartbeat: refuses what waits for a session to be confirmed."""
        for session in list(self._unconfirmed):
            self._refuse(session)

    def _confirm(self, session: Session) -> None:
        """Asks the store whether this server owns an unconfirmed session, unless it is being asked already."""
        if session not in self._confirming:
            self._confirming.add(session)
            self.renew(session)

    def _refuse(self, session: Session) -> None:
        error = StoreUnavailableError(
            f"session {session.name!r} may belong to another server, and the session store does not answer: try again,"
            " or resume it on another server",
            retry_delay_s=1.0,
            session_id=session.name,
        )
        session.persistence.resolve(None, error)
        self._deferral.refuse(session, error)

    def _renewed(self, session: Session, put_s: float, result: WriteResult) -> None:
        self._confirming.discard(session)
        if not session.is_over:
            self.noted(session, put_s, result)
