"""When sessions are stored: at intervals, after their answers; and at once, when an answer waits for the store, when a
session is many tokens ahead of its record, when its stream has ended, and when it is spilled or handed over.

Rules:

1. A session is stored as it is at a boundary between tokens. It is never stored twice at the same time: when it changes
   during a write, it is stored again afterwards. A copy that was read before a rewind is not given to the store after
   the rewind.
2. The answers of a strict or unconfirmed session (`Persistence.waits_for_store`) wait in `Persistence.awaiting`, in
   order, until the moment that they report is stored. Failures wait too, because they report a position.
3. When the store fails, sessions continue in memory and are stored when the store works again; so are sessions that
   only needed to renew their record. Answers that wait fail, and the client can send their requests again: see
   `unstored`.

Event loop only; times come from the injected clocks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

from service.engine.engine import Engine
from service.engine.results import Failed, Generated, LaneState, Result
from service.errors import CarouselError
from service.sessions.ending import LastRecords
from service.sessions.generation import Generation
from service.sessions.image import image_of
from service.sessions.leases import Leases
from service.sessions.not_stored import answer_not_stored
from service.sessions.persistence import Durability, Moment, OnDisconnect, WhenDone
from service.sessions.request import Request
from service.sessions.session import Session
from service.sessions.storage import Storage, Then, WriteResult
from service.sessions.stores.base import Ownership

MIDST_S = 0.005
"""Seconds between two attempts to read a session in the middle of a feed, while an answer waits for it."""

Do = Callable[[], None]
OnSession = Callable[[Session], None]


class Checkpoints:
    """Stores sessions that change. interval_s: for how many seconds a record may be older than its session. num_tokens:
    how many tokens a session may be ahead of its record before it is stored immediately. on_used: called with a session
    whose generation continues without its request."""

    def __init__(
        self,
        storage: Storage,
        last_records: LastRecords,
        leases: Leases,
        *,
        on_used: OnSession,
        interval_s: float,
        num_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_used = on_used
        self._storage = storage
        self._last_records = last_records
        self._leases = leases
        self._interval_s = interval_s
        self._num_tokens = num_tokens
        self._clock = clock
        self._ahead: dict[Session, float] = {}
        self._dirty: set[Session] = set()
        self._urgent: set[Session] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_urgent_due = False

    def changed(self, session: Session) -> None:
        """Schedules the storing of a changed session, if its policy says so. A session with KEEP and without
        checkpoints is stored only while no stream is attached."""
        persistence, policy = session.persistence, session.persistence.policy
        is_kept = policy.on_disconnect is OnDisconnect.KEEP and not persistence.is_attached
        if session.is_over or (policy.durability is Durability.NONE and not is_kept):
            return
        if not persistence.is_dirty:
            self._mark_dirty(session)
            self._ahead.setdefault(session, self._clock())
        if session.position - (persistence.checkpoint_position or 0) >= self._num_tokens:
            self._hasten(session)

    def deliver(self, request: Request, result: Result, on_unstored: Do | None = None) -> None:
        """Answers a request; when its session `waits_for_store`, only when the store has what the answer reports.
        on_unstored: called before the answer when the store fails."""
        session, persistence = request.session, request.session.persistence
        if not persistence.waits_for_store:
            request.deliver(result)
            return
        moment = (persistence.era, result.position)
        is_part = isinstance(result, Generated) and result.finish_reason is None
        if session.is_over and not persistence.is_releasing:
            moved = None if persistence.holds(moment) else persistence.moved
            request.deliver(result if moved is None else Failed(session.position, moved))
            return

        def answer(error: CarouselError | None) -> None:
            last = session.last
            if error is None:
                request.deliver(result)
                return
            if isinstance(last, Generation) and last.request is request:
                last.request = None  # a retry may become its listener
                self._on_used(session)
            if on_unstored is not None:
                on_unstored()
            request.deliver(Failed(session.position, error))

        if session.is_over:  # its last record is being written
            persistence.wait(moment, answer, is_part)
        else:
            self.when_stored(session, moment, answer, is_part)

    def after_pending(self, session: Session, call: WhenDone) -> None:
        """Calls `call` after the answers of a session that wait for the store. When the session `waits_for_store`, it
        is called after the current state is stored."""
        if session.persistence.waits_for_store and not session.is_over:
            self.when_stored(session, session.moment, call)
        else:
            call(None)

    def when_stored(self, session: Session, moment: Moment, call: WhenDone, is_part: bool = False) -> None:
        """Calls `call` when a session is stored up to a moment, or when it cannot be stored. is_part: see
        `Persistence.awaiting`."""
        persistence = session.persistence
        if not persistence.awaiting and not persistence.is_unconfirmed and persistence.holds(moment):
            call(None)
        else:
            persistence.wait(moment, call, is_part)
            self._hasten(session)

    def store(self, session: Session, then: Then) -> None:
        """Stores a session as it is now, whatever its policy. The result is FAILED also when the session has ended or
        is in the middle of a feed."""
        era = session.persistence.era

        def read(states: Sequence[LaneState | None]) -> None:
            state = states[0]
            if state is None or session.is_over or session.persistence.era != era:
                then(WriteResult.FAILED)
                return
            put = self._leases.put_of(session, image_of(session, state))
            self._storage.put(put, partial(self._stored, session, put.put_s, (era, state.position), then))

        session.served.engine.read([session.lane], read)

    def release(self, session: Session, then: Do, on_failed: Do, *, has_slot: bool) -> None:
        """Stores a session that ends, as it is now, so that any server can claim it. Calls `then` when it is stored,
        and `on_failed` at each failed attempt before. Without a slot, or in the middle of a feed, the record keeps the
        state that was stored last."""
        persistence = session.persistence

        def read(states: Sequence[LaneState | None]) -> None:
            image = None if (state := states[0]) is None else image_of(session, state)

            def written(result: WriteResult) -> None:
                if result is not WriteResult.STORED:  # another server owns the record: nothing counts as stored
                    persistence.stored = None
                elif state is not None:
                    persistence.stored = (persistence.era, state.position)
                then()

            make_until_s = self._leases.make_until_s(session)
            put = self._leases.put_of(session, image, Ownership.FREE)
            self._last_records.write(put._replace(make_until_s=make_until_s), written, on_failed)

        if has_slot:
            session.served.engine.read([session.lane], read)
        else:
            read([None])

    def end(self, session: Session) -> None:
        """Stops storing and renewing a session that has ended."""
        self.forget(session)
        self._leases.end(session)

    def forget(self, session: Session) -> None:
        """Cancels the storing of a session that is stored already or has ended."""
        self._dirty.discard(session)
        self._urgent.discard(session)
        self._ahead.pop(session, None)
        if session.persistence.is_dirty:
            session.persistence.is_dirty = False

    def rewrite(self, session: Session) -> None:
        """Stores a session whose record the store has lost, whatever its policy."""
        if session.is_live:
            self._mark_dirty(session)
            self._hasten(session)

    def hasten(self, session: Session) -> None:
        """Stores a session soon, if it has changes that are not stored."""
        if session in self._dirty:
            self._hasten(session)

    @property
    def lag_s(self) -> float:
        """The age in seconds of the oldest change that is not stored; 0 when there is none. Any thread."""
        since_s = list(self._ahead.values())
        return self._clock() - min(since_s) if since_s else 0.0

    def _mark_dirty(self, session: Session) -> None:
        session.persistence.is_dirty = True
        self._dirty.add(session)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._flush)

    def _hasten(self, session: Session) -> None:
        self._urgent.add(session)
        if not self._is_urgent_due:
            self._is_urgent_due = True
            asyncio.get_running_loop().call_soon(self._flush_urgent)

    def _flush(self) -> None:
        self._timer = None
        sessions, self._dirty = self._dirty, set()
        self._write(sessions, is_urgent=False)

    def _flush_urgent(self) -> None:
        self._is_urgent_due = False
        sessions, self._urgent = self._urgent, set()
        self._dirty -= sessions
        self._write(sessions, is_urgent=True)

    def _write(self, sessions: set[Session], *, is_urgent: bool) -> None:
        by_engine: dict[Engine, list[Session]] = {}
        for session in sessions:
            persistence = session.persistence
            if not session.is_live:  # spilled or being spilled, or ended
                persistence.is_dirty = False
                self._ahead.pop(session, None)
                continue
            if persistence.is_writing:
                self._mark_dirty(session)
                if is_urgent:
                    self._urgent.add(session)  # it is written again when this write has ended
                continue
            persistence.is_dirty, persistence.is_writing = False, True
            by_engine.setdefault(session.served.engine, []).append(session)
        for engine, some in by_engine.items():
            eras = [session.persistence.era for session in some]
            engine.read([session.lane for session in some], partial(self._read, some, eras))

    def _read(self, sessions: list[Session], eras: list[int], states: Sequence[LaneState | None]) -> None:
        for session, era, state in zip(sessions, eras, states, strict=True):
            persistence = session.persistence
            if session.is_over:
                persistence.is_writing = False
                continue
            if state is None or persistence.era != era:  # in the middle of a feed, or rewound meanwhile: try later
                persistence.is_writing = False
                self._mark_dirty(session)
                if persistence.awaiting:
                    asyncio.get_running_loop().call_later(MIDST_S, self._hasten, session)
                continue
            put = self._leases.put_of(session, image_of(session, state))
            self._storage.put(put, partial(self._written, session, put.put_s, (era, state.position)))

    def _written(self, session: Session, put_s: float, moment: Moment, result: WriteResult) -> None:
        persistence = session.persistence
        persistence.is_writing = False
        if session.is_over:
            return
        self._note(session, put_s, moment, result)
        if session.is_over:
            return
        if result is WriteResult.FAILED:
            self._mark_dirty(session)
        elif persistence.awaiting or session in self._urgent:
            self._hasten(session)

    def _stored(self, session: Session, put_s: float, moment: Moment, then: Then, result: WriteResult) -> None:
        if not session.is_over:
            self._note(session, put_s, moment, result)
        then(result)

    def _note(self, session: Session, put_s: float, moment: Moment, result: WriteResult) -> None:
        persistence = session.persistence
        if result is WriteResult.STORED:
            persistence.stored = moment
            self._stored_at_last(session)
        elif result is WriteResult.FAILED:
            persistence.resolve(None, answer_not_stored(session))
        self._leases.noted(session, put_s, result)
        if result is WriteResult.STORED and not persistence.is_unconfirmed:
            persistence.resolve(moment, None)

    def _stored_at_last(self, session: Session) -> None:
        now_s = self._clock()
        since_s = self._ahead.pop(session, None)
        if since_s is not None:
            self._storage.observer.session_stored(now_s - since_s)
        if session.persistence.is_dirty:  # it changed after it was read
            self._ahead[session] = now_s
