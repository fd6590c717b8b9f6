"""When sessions are stored: written behind, every so often, and at once where an answer waits for it.

Rules:

1. A session is stored as it is at a boundary between tokens, and never while it is being stored already: one that moves
   meanwhile is stored again.
2. A strict session's answers wait, in order, until what they tell is stored.
3. When the store fails, sessions go on in memory and are stored when it works again; answers that wait fail, and the
   requests may be sent again.

Event loop only; times come from the injected clocks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

from service.engine.engine import Engine
from service.engine.lane_state import LaneState
from service.engine.results import Failed, Result
from service.errors import CarouselError, StoreUnavailableError
from service.sessions.custody import Custody, WhenDone
from service.sessions.generation import Generation
from service.sessions.image import Image
from service.sessions.imaging import image_of
from service.sessions.session import Request, Session, State
from service.sessions.storage import Outcome, Put, Storage
from service.sessions.stores.base import Standing
from service.sessions.terms import Durability

_MIDST_S = 0.005
"""How long a session that is in the midst of a feed is let be, when an answer waits until it is stored."""

OnLost = Callable[[Session], None]


class Checkpoints:
    """Stores sessions that move. interval_s: how long a session may be ahead of what is stored, and num_tokens: how
    far; idle_timeout_s: how long a record outlives a session that has no other time; on_lost: told of sessions that are
    another server's now."""

    def __init__(
        self,
        storage: Storage,
        *,
        interval_s: float = 1.0,
        num_tokens: int = 1024,
        idle_timeout_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.on_lost: OnLost = lambda session: None
        self._storage = storage
        self._interval_s = interval_s
        self._num_tokens = num_tokens
        self._idle_timeout_s = idle_timeout_s
        self._wall_clock = wall_clock
        self._clock = clock
        self._ahead: dict[Session, float] = {}
        self._dirty: set[Session] = set()
        self._urgent: set[Session] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_urgent_due = False

    def changed(self, session: Session) -> None:
        """A session has moved."""
        custody = session.custody
        if custody is None or custody.terms.durability is Durability.NONE:
            return
        if not custody.is_dirty:
            custody.is_dirty = True
            self._dirty.add(session)
            self._ahead.setdefault(session, self._clock())
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._flush)
        if session.position - (custody.checkpoint_position or 0) >= self._num_tokens:
            self._hasten(session)

    def tell(self, request: Request, result: Result) -> None:
        """Answers a request; for a strict session as soon as what is told is stored. Failures need no storing, and wait
        for the answers before them."""
        custody = request.session.custody
        if custody is None or custody.terms.durability is not Durability.STRICT:
            request.reply(request, result)
            return
        if isinstance(result, Failed):
            self.in_turn(request.session, partial(request.reply, request, result))
            return

        def answer(error: CarouselError | None) -> None:
            last = request.session.last
            if error is not None and isinstance(last, Generation) and last.request is request:
                last.request = None  # it may be listened to again
            request.reply(request, result if error is None else Failed(request.session.position, error))

        self.when_stored(request.session, result.position, answer)

    def in_turn(self, session: Session, call: Callable[[], None]) -> None:
        """Calls `call` after the answers of a session that wait until they are stored."""
        custody = session.custody
        if custody is not None and custody.due:
            custody.due.append((custody.due[-1][0], lambda _: call()))
        else:
            call()

    def when_stored(self, session: Session, position: int, call: WhenDone) -> None:
        """Calls `call` when a strict session is stored up to a position."""
        custody = session.custody
        assert custody is not None  # noqa: S101  # strict sessions have one
        stored = custody.checkpoint_position
        if not custody.due and stored is not None and stored >= position:
            call(None)
        else:
            custody.due.append((position, call))
            self._hasten(session)

    def store(self, session: Session, then: Callable[[Outcome], None]) -> None:
        """Stores a session as it is now, and tells what became of it: FAILED also when it is in the midst of a feed, or
        closed."""

        def read(states: Sequence[LaneState | None]) -> None:
            state, custody = states[0], session.custody
            if state is None or custody is None:
                then(Outcome.FAILED)
                return
            put = self._put_of(session, custody, image_of(session, state))
            self._storage.put(put, partial(self._stored, session, state.position, then))

        session.served.engine.read([session.lane], read)

    def let_go(self, session: Session, *, ttl_s: float = 0.0) -> None:
        """Stores a session as it is now, for anybody to claim. It must be closed right after this, so that it goes no
        further here. One that is in the midst of a feed is left as it was stored last."""
        custody = session.custody
        assert custody is not None  # noqa: S101  # only such are let go

        def read(states: Sequence[LaneState | None]) -> None:
            image = None if states[0] is None else image_of(session, states[0])
            put_until_stored(self._put_of(session, custody, image, Standing.FREE, ttl_s))

        def put_until_stored(put: Put) -> None:
            self._storage.put(put, partial(written, put))

        def written(put: Put, outcome: Outcome) -> None:
            if outcome is Outcome.FAILED:
                asyncio.get_running_loop().call_later(self._interval_s, put_until_stored, put)

        if custody.is_asleep:
            put_until_stored(self._put_of(session, custody, None, Standing.FREE, ttl_s))
        else:
            session.served.engine.read([session.lane], read)

    def bury(self, session: Session, epitaph: bytes, ttl_s: float) -> None:
        """Stores that a session is gone, and how."""
        custody = session.custody
        assert custody is not None  # noqa: S101  # only such leave a record
        expires_at = self._wall_clock() + ttl_s
        put = Put(session.id, custody.epoch, None, expires_at, Standing.GONE, epitaph)
        self._storage.put(put, lambda outcome: None)

    def forget(self, session: Session) -> None:
        """A session need not be stored again as it is: it was closed, is another's, or is stored."""
        self._dirty.discard(session)
        self._urgent.discard(session)
        self._ahead.pop(session, None)
        if session.custody is not None:
            session.custody.is_dirty = False

    def flush(self) -> None:
        """Stores at once what is not stored yet."""
        self._urgent |= self._dirty
        self._flush_urgent()

    @property
    def lag_s(self) -> float:
        """How long ago the session moved that waits longest for its checkpoint; 0 when none waits. Any thread."""
        since_s = list(self._ahead.values())
        return self._clock() - min(since_s) if since_s else 0.0

    def _hasten(self, session: Session) -> None:
        self._urgent.add(session)
        if not self._is_urgent_due:
            self._is_urgent_due = True
            asyncio.get_running_loop().call_soon(self._flush_urgent)

    def _flush(self) -> None:
        self._timer = None
        sessions, self._dirty = self._dirty, set()
        self._write(sessions)

    def _flush_urgent(self) -> None:
        self._is_urgent_due = False
        sessions, self._urgent = self._urgent, set()
        self._dirty -= sessions
        self._write(sessions)

    def _write(self, sessions: set[Session]) -> None:
        by_engine: dict[Engine, list[Session]] = {}
        for session in sessions:
            custody = session.custody
            if custody is None or session.state is State.CLOSED:
                continue
            if custody.is_asleep:  # stored as it is, or about to be
                custody.is_dirty = False
                continue
            if custody.is_writing:
                self._again(session, custody)
                continue
            custody.is_dirty, custody.is_writing = False, True
            by_engine.setdefault(session.served.engine, []).append(session)
        for engine, some in by_engine.items():
            engine.read([session.lane for session in some], partial(self._read, some))

    def _read(self, sessions: list[Session], states: Sequence[LaneState | None]) -> None:
        for session, state in zip(sessions, states, strict=True):
            custody = session.custody
            if custody is None or session.state is State.CLOSED:
                continue
            if state is None:  # in the midst of a feed: when it is done, or when it is time again
                custody.is_writing = False
                self._again(session, custody)
                if custody.due:
                    asyncio.get_running_loop().call_later(_MIDST_S, self._hasten, session)
                continue
            put = self._put_of(session, custody, image_of(session, state))
            self._storage.put(put, partial(self._written, session, state.position))

    def _written(self, session: Session, position: int, outcome: Outcome) -> None:
        custody = session.custody
        assert custody is not None  # noqa: S101  # it was stored
        custody.is_writing = False
        if session.state is State.CLOSED:
            return
        self._note(session, custody, position, outcome)
        if outcome is Outcome.FAILED:
            self._again(session, custody)
        elif custody.due:
            self._hasten(session)

    def _stored(self, session: Session, position: int, then: Callable[[Outcome], None], outcome: Outcome) -> None:
        if session.custody is not None and session.state is not State.CLOSED:
            self._note(session, session.custody, position, outcome)
        then(outcome)

    def _note(self, session: Session, custody: Custody, position: int, outcome: Outcome) -> None:
        if outcome is Outcome.REFUSED:
            self.on_lost(session)
        elif outcome is Outcome.STORED:
            custody.checkpoint_position = position
            self._stored_at_last(session, custody)
            custody.settle(position, None)
        else:
            custody.settle(
                None,
                StoreUnavailableError(
                    f"session {session.name!r} was answered, but the answer could not be stored: send the request"
                    " again",
                    retry_delay_s=1.0,
                ),
            )

    def _stored_at_last(self, session: Session, custody: Custody) -> None:
        now_s = self._clock()
        since_s = self._ahead.pop(session, None)
        if since_s is not None:
            self._storage.observer.session_stored(now_s - since_s)
        if custody.is_dirty:  # it has moved since it was read out
            self._ahead[session] = now_s

    def _again(self, session: Session, custody: Custody) -> None:
        custody.is_dirty = True
        self._dirty.add(session)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._flush)

    def _put_of(
        self,
        session: Session,
        custody: Custody,
        image: Image | None,
        standing: Standing = Standing.OWNED,
        ttl_s: float = 0.0,
    ) -> Put:
        ttl_s = ttl_s or custody.terms.duration_s + self._idle_timeout_s
        return Put(session.id, custody.epoch, image, self._wall_clock() + ttl_s, standing)
