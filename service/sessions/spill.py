"""Slots for sessions. When an engine has no free slot, the session that was idle for longest is stored and its slot is
freed. A request restores it.

A session that is stored under its own id is spilled into that record. Any other session is spilled under a name that no
client can choose, so that it never collides with the record of another session. Event loop only.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import TypeVar

from service.background import Tasks, awaited
from service.engine.arena import Slot
from service.engine.engine import Engine
from service.engine.jobs import Item, Lane
from service.errors import CarouselError, NoSlotError, SessionNotFoundError, SnapshotError, StoreUnavailableError
from service.sessions.constants import Given
from service.sessions.deferral import Deferred, Failures
from service.sessions.image import Image
from service.sessions.lifecycle import Event, State
from service.sessions.registry import Registry
from service.sessions.session import CloseReason, Session
from service.sessions.storage import Storage, WriteResult
from service.sessions.stores.base import NO_ID, Claimed, Held
from service.sessions.watches import Change

NO_LANE = Lane(Slot(0, -1), [])
"""The lane of sessions without a slot. No job is ever submitted to it."""
_MAX_ROUNDS = 16
"""How often another session may take the slot that was freed for this one, before the attempt fails."""
T = TypeVar("T")


class Spill:
    """Spills sessions and restores them."""

    def __init__(self, registry: Registry, storage: Storage, tasks: Tasks) -> None:
        self._registry = registry
        self._storage = storage
        self._tasks = tasks
        self._prefix = f"{NO_ID}{secrets.token_hex(8)}"
        self.num_moves = 0
        """How often a session got or lost a lane. Caches of lanes are valid while this number stays the same."""

    async def lane(self, engine: Engine, source: Sequence[Item] = (), given: Given = None) -> Lane:
        """Returns a lane of an engine (see `Engine.open`). Spills a session when no slot is free. Raises NoSlotError
        when no session can be spilled, and StoreUnavailableError."""
        for _ in range(_MAX_ROUNDS):
            try:
                return engine.open(source, given)
            except NoSlotError as error:
                await self._make_room(engine, error)
        return engine.open(source, given)

    def when_live(self, deferred: Deferred) -> None:
        """Defers a request until all its sessions have slots and its turn has come. Restores those that are spilled. A
        session that has ended is refused here; its stream may not be notified yet. Raises QueueFullError."""
        self._registry.deferral.defer(deferred)
        for session in deferred.sessions:
            if session.is_over:
                error = session.persistence.moved or self._registry.tombstones.not_found(session.id)
                self._registry.deferral.refuse(session, error)
            elif session.state is State.SPILLED:
                self._restore(session)

    async def act(self, session: Session, act: Callable[[], T]) -> T:
        """Calls `act` when the session has a slot and its turn has come. Returns what `act` returns. Raises what `act`
        raises, or the reason why the session has no slot."""
        if session.deferred is None:
            return act()
        self._registry.here(session)
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def run(failures: Failures) -> None:
            if done.done():
                return
            try:
                done.set_result(act())
            except CarouselError as error:
                done.set_exception(error)

        def refuse(error: CarouselError) -> None:
            if not done.done():
                done.set_exception(error)

        self.when_live(Deferred([session], run, refuse))
        return await done

    async def _make_room(self, engine: Engine, error: NoSlotError) -> None:
        """Spills a session to free a slot. Raises `error` when no session can be spilled, and StoreUnavailableError."""
        session = self._idlest(engine)
        if session is None:
            raise error
        # starts before the first await, and finishes also when the caller is cancelled
        self._move(session, Event.SPILL)
        self._registry.deferral.suspend(session)
        persistence = session.own_persistence()
        if persistence.record_id is None and not session.policy.is_stored:
            persistence.record_id = f"{self._prefix}/{session.serial}"
        await asyncio.shield(self._tasks.start(self._spill(session)))

    async def _spill(self, session: Session) -> None:
        """Stores a session and frees its slot. Raises StoreUnavailableError."""
        checkpoints = self._registry.checkpoints
        stored, give = awaited()
        checkpoints.store(session, give)
        result: WriteResult = await stored
        if session.is_over:
            return  # its end has freed the slot
        if result is not WriteResult.STORED:
            self._move(session, Event.NOT_STORED)
            checkpoints.changed(session)
            self._registry.deferral.run(session)
            raise StoreUnavailableError(
                "no session could be spilled to free a slot: the store fails", retry_delay_s=1.0
            )
        self._move(session, Event.STORED)
        checkpoints.forget(session)
        freed, give = awaited()
        session.served.engine.close(session.lane, lambda: give(None))
        session.lane = NO_LANE
        self.num_moves += 1
        bundle = session.served.bundle
        self._registry.observer.session_spilled(bundle.model, bundle.version, session.id)
        self._registry.watches.changed(session, Change.SPILLED)
        if session.deferred:
            self._restore(session)
        await freed

    def _idlest(self, engine: Engine) -> Session | None:
        """Returns the session of an engine that was idle for longest and that no request or write needs."""
        for session in self._registry.directory.live():
            persistence = session.persistence
            if (
                session.served.engine is engine
                and session.state is State.IDLE
                and session.deferred is None
                and not persistence.is_writing
                and not persistence.awaiting
            ):
                return session
        return None

    def _restore(self, session: Session) -> None:
        self._move(session, Event.RESTORE)
        self._tasks.start(self._read_back(session))

    async def _read_back(self, session: Session) -> None:
        registry, engine = self._registry, session.served.engine
        asked_s = registry.clock()
        try:
            image = await self._read(session)
            lane = await self.lane(engine)
        except CarouselError as error:
            if session.is_over:
                return
            if isinstance(error, SnapshotError | SessionNotFoundError):
                registry.close(session, CloseReason.LOST, notify=True)
            else:
                self._move(session, Event.NOT_RESTORED)
                registry.deferral.refuse(session, error)
            return
        if session.is_over:
            engine.close(lane)
            return
        engine.write(lane, image.lane)
        session.lane = lane
        registry.leases.confirmed(session, asked_s)  # its record was claimed
        session.persistence.marks = dict(image.marks)
        self.num_moves += 1
        self._move(session, Event.RESTORED)
        registry.directory.touch(session, registry.clock())
        bundle = session.served.bundle
        registry.observer.session_unspilled(bundle.model, bundle.version, session.id)
        registry.watches.changed(session, Change.UNSPILLED)
        registry.deferral.run(session)

    async def _read(self, session: Session) -> Image:
        """Returns the image in the record of a spilled session. Raises StoreUnavailableError, SnapshotError and its
        subclasses, and SessionNotFoundError when another server owns the record or there is none."""
        persistence = session.own_persistence()
        record_id = persistence.record_id or session.id
        with persistence.claiming():
            claimed = await self._storage.claim_again(record_id)
            if isinstance(claimed, Claimed):
                persistence.epoch = claimed.epoch
        if isinstance(claimed, Held):
            self._registry.lose(session)
        if not isinstance(claimed, Claimed) or claimed.payload is None:
            raise self._registry.tombstones.not_found(session.id)
        return await self._storage.decode(record_id, claimed.payload)

    def _move(self, session: Session, event: Event) -> None:
        self._registry.directory.move(session, session.transition_for(event).state)
