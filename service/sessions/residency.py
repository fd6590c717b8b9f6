"""Who has a slot: when slots run out, the session that was idle for longest goes to the store, and comes back when it
is asked for anything.

Event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from service.engine.engine import Engine
from service.errors import (
    CarouselError,
    NoSlotError,
    SessionNotFoundError,
    SnapshotError,
    StoreUnavailableError,
)
from service.observer import SessionObserver
from service.sessions.checkpoints import Checkpoints
from service.sessions.custody import Custody, WhenDone
from service.sessions.live import LiveSessions
from service.sessions.registry import Registry
from service.sessions.session import CloseReason, Session, State
from service.sessions.storage import Outcome, Storage
from service.sessions.stores.base import Claimed
from service.sessions.terms import PLAIN


class Residency:
    """Puts sessions to sleep and wakes them."""

    def __init__(
        self,
        live: LiveSessions,
        registry: Registry,
        checkpoints: Checkpoints,
        storage: Storage,
        observer: SessionObserver,
    ) -> None:
        self._live = live
        self._registry = registry
        self._checkpoints = checkpoints
        self._storage = storage
        self._observer = observer
        self._tasks: set[asyncio.Task[None]] = set()

    async def make_room(self, engine: Engine, error: NoSlotError) -> None:
        """Frees a slot of an engine that has none. Raises `error` when no session can give its own up, and
        StoreUnavailableError."""
        session = self._idlest(engine)
        if session is None:
            raise error
        custody = session.custody = session.custody or Custody(PLAIN)
        self._live.lull(session)
        # whatever becomes of who needs the slot: a session must not stay half asleep
        await asyncio.shield(self._start(self._put_aside(session, custody)))

    async def _put_aside(self, session: Session, custody: Custody) -> None:
        """Stores a session and gives its slot up. Raises StoreUnavailableError."""
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._checkpoints.store(session, lambda outcome: None if done.done() else done.set_result(outcome))
        outcome = await done
        if self._live.get(session.id) is not session:
            return  # it was closed, which has freed its slot too
        if outcome is Outcome.STORED:
            self._checkpoints.forget(session)
            custody.is_away = True
            session.served.engine.close(session.lane)
            self._observer.session_spilled(session.served.bundle.model, session.served.bundle.version, session.id)
            if custody.waiting:
                self._start(self._wake(session, custody))
            return
        self._live.rouse(session)
        self._checkpoints.changed(session)
        self._tell(custody, None)
        raise StoreUnavailableError("no session could be put aside: the store does not take it", retry_delay_s=1.0)

    def wake(self, session: Session, then: WhenDone) -> None:
        """Brings a session that is asleep back, then calls `then`."""
        custody = session.custody
        assert custody is not None  # noqa: S101  # or it could not sleep
        custody.waiting.append(then)
        if len(custody.waiting) == 1 and custody.is_away:
            self._start(self._wake(session, custody))

    async def awake(self, session: Session) -> None:
        """Returns when a session has its state here. Raises what `wake` tells."""
        if session.custody is None or not session.custody.is_asleep:
            return
        done: asyncio.Future[CarouselError | None] = asyncio.get_running_loop().create_future()
        self.wake(session, lambda error: None if done.done() else done.set_result(error))
        error = await done
        if error is not None:
            raise error

    def _idlest(self, engine: Engine) -> Session | None:
        """The session of an engine that was idle for longest, and is not being stored."""
        for session in self._live.awake():
            is_writing = session.custody is not None and session.custody.is_writing
            if session.served.engine is engine and session.state is State.IDLE and not is_writing:
                return session
        return None

    async def _wake(self, session: Session, custody: Custody) -> None:
        try:
            await self._load(session, custody)
        except CarouselError as error:
            if isinstance(error, SnapshotError | SessionNotFoundError):
                self._registry.close(session, CloseReason.LOST, notify=True)
            self._tell(custody, error)
            return
        custody.is_away = False
        self._live.rouse(session)
        self._observer.session_woken(session.served.bundle.model, session.served.bundle.version, session.id)
        self._tell(custody, None)

    async def _load(self, session: Session, custody: Custody) -> None:
        claimed = await self._storage.claim(session.id)
        if not isinstance(claimed, Claimed) or claimed.payload is None:
            self._registry.lose(session)
            raise self._registry.tombstones.not_found(session.id)
        custody.epoch = claimed.epoch
        try:
            image = self._storage.codec.decode(claimed.payload)
        except SnapshotError as error:
            await self._storage.set_aside(session.id, error)
            raise
        engine = session.served.engine
        while True:
            try:
                lane = engine.open()
                break
            except NoSlotError as error:
                await self.make_room(engine, error)
        if self._live.get(session.id) is not session:
            engine.close(lane)
            raise self._registry.tombstones.not_found(session.id)
        session.lane = lane
        engine.write(lane, image.lane)
        custody.marks = dict(image.marks)

    @staticmethod
    def _tell(custody: Custody, error: CarouselError | None) -> None:
        waiting, custody.waiting = custody.waiting, []
        for call in waiting:
            call(error)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, CarouselError):  # those are told to who waits
            asyncio.get_running_loop().call_exception_handler(
                {"message": "waking a session failed", "exception": error}
            )
