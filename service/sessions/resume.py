"""Resuming sessions, wherever they are: on another stream, held, or in the store. And making them of snapshots.

Event loop only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

from service.background import Tasks, awaited
from service.errors import (
    CarouselError,
    RequestCancelledError,
    SessionIdInUseError,
    SessionMovedError,
    SessionNotFoundError,
    SessionNotOpenError,
    StoreUnavailableError,
)
from service.observer import SessionObserver
from service.sessions.checks import check_session_id
from service.sessions.claims import Claims
from service.sessions.image import Image
from service.sessions.lifecycle import State
from service.sessions.opening import Opening
from service.sessions.registry import Registry
from service.sessions.served import Served
from service.sessions.served_image import Find, served_image
from service.sessions.session import CloseReason, OnEnded, Session, name_of, owner_of
from service.sessions.spill import Spill
from service.sessions.storage import Storage
from service.sessions.tombstones import Tombstone

_SAME_S = 1e-5  # no two sessions of one server are opened within a microsecond
_NOT_OPENED = (SessionNotOpenError, SessionNotFoundError, RequestCancelledError)
"""What those hear who wait for a session that is not opened after all."""


class Resume:
    """Finds sessions and gives them to streams. patience_s: how long another server gets to hand one over."""

    def __init__(
        self,
        registry: Registry,
        opening: Opening,
        spill: Spill,
        *,
        storage: Storage,
        tasks: Tasks,
        observer: SessionObserver,
        find: Find,
        patience_s: float = 5.0,
    ) -> None:
        self._registry = registry
        self._opening = opening
        self._spill = spill
        self._storage = storage
        self._claims = Claims(registry, storage, tasks, patience_s)
        self._tasks = tasks
        self._observer = observer
        self._find = find
        self._patience_s = patience_s
        self._taking: dict[str, asyncio.Task[Session | int]] = {}
        """What is done with records that were claimed, by id."""

    def is_taking(self, session_id: str) -> bool:
        """Whether a record is being claimed, and what follows done."""
        return session_id in self._taking

    async def resume(
        self,
        session_id: str,
        on_ended: OnEnded,
        max_owned: int | None = None,
        *,
        is_over: Callable[[], bool] = lambda: False,
    ) -> tuple[Session, bool]:
        """Gives a session to a stream. Returns it, and whether nothing of it was lost because it was in this server's
        memory since a stream had it last. is_over: whether the stream has ended: it takes the session from no other.

        Raises SessionNotFoundError, which says what became of it; SnapshotError and its kin for a record that cannot be
        resumed here; StoreUnavailableError; SessionIdInUseError; ShuttingDownError; TooManySessionsError.
        """
        session, is_here = await self.meet(session_id, max_owned)
        if is_over():
            raise SessionNotOpenError(f"the stream that resumed session {session.name!r} has ended", field="session_id")
        self._registry.attach(session, on_ended)
        self.met(session, is_here=is_here)
        return session, is_here

    async def meet(
        self, session_id: str, max_owned: int | None = None, *, is_polite: bool = False
    ) -> tuple[Session, bool]:
        """A session of this server, or one of the store, which is then held here, and whether nothing of it was lost:
        see `resume`. Who goes on with it calls `met`. is_polite: see `Claims.take`. Raises what `resume` raises."""
        check_session_id(session_id)
        is_here = self._registry.directory.get(session_id) is not None
        while True:
            session = await self.find(session_id, max_owned, is_polite=is_polite)
            if session.persistence.is_unverified:
                await self._verify(session)
            if not session.is_over:
                return session, is_here and not session.persistence.is_fetched

    def met(self, session: Session, *, is_here: bool) -> None:
        """Somebody goes on with a session that `meet` has found."""
        session.own_persistence().is_fetched = False
        bundle = session.served.bundle
        source = "memory" if is_here else "store"
        self._observer.session_resumed(bundle.model, bundle.version, session.id, source)

    async def find(self, session_id: str, max_owned: int | None = None, *, is_polite: bool = False) -> Session:
        """A session of this server, or one of the store, which is then held here. is_polite: see `Claims.take`. Raises
        what `resume` raises."""
        while True:
            found = await self._find_or(session_id, lambda: self._fetch(session_id, max_owned, is_polite=is_polite))
            assert isinstance(found, Session)  # noqa: S101  # what is fetched is one
            with suppress(SessionMovedError, SessionNotFoundError):  # then another server has it
                return await self._confirmed(found)

    async def here(self, session_id: str) -> Session:
        """A session of this server, which is taken from nowhere else. Raises SessionNotFoundError, which says whether
        the store has it, SessionMovedError and StoreUnavailableError."""
        session = await self._opened(session_id)  # one that is being fetched does not know its position yet
        if session is None:
            if await self._storage.has(session_id):
                raise SessionNotFoundError(
                    f"session_id = {name_of(session_id)!r} is not in this server's memory: it is in the store, or has"
                    " moved: another server has it. Resume it, or send it a Step, to have it here",
                    field="session_id",
                    session_id=name_of(session_id),
                )
            session = self._registry.get(session_id)
        return await self._confirmed(session)

    async def close(self, session_id: str, *, opened_at: float | None = None) -> int:
        """Closes a session and returns its position. One that the store alone has takes no place here for that.
        opened_at: of the one that is meant; None: whichever has the id. Raises what `find` raises, but
        TooManySessionsError; StoreUnavailableError also when the end could not be recorded: this server records it
        later."""
        while True:
            found = await self._find_or(session_id, lambda: self._close_stored(session_id, opened_at))
            if isinstance(found, int):
                return found
            _check_same(session_id, found.opened_at, opened_at)
            closed, give = awaited()
            self._registry.close(found, CloseReason.CLIENT, notify=True, then=give)
            error: CarouselError | None = await closed
            if error is None:
                return found.position
            if not isinstance(error, SessionMovedError):
                raise error

    async def _find_or(self, session_id: str, take: Callable[[], Coroutine[Any, Any, Session | int]]) -> Session | int:
        """A session of this server; else what `take` makes of the id's record, of which one task at a time does
        anything."""
        check_session_id(session_id)
        self._registry.leases.check()
        directory = self._registry.directory
        deadline_s = asyncio.get_running_loop().time() + self._patience_s
        while True:
            session = await self._opened(session_id)
            if session is not None:
                return session
            taking = self._taking.get(session_id)
            if taking is not None and not taking.done():  # one that is done is awaited without a turn of the event loop
                with suppress(SessionIdInUseError, SessionNotOpenError):  # the latter of who asked politely
                    await asyncio.shield(taking)
                continue
            if directory.is_ending(session_id):
                await directory.ended(session_id, deadline_s - asyncio.get_running_loop().time())
                continue
            taking = self._taking[session_id] = self._tasks.start(take())
            # it ends whatever becomes of who asked first: a claim must not be left half done
            try:
                taken = await asyncio.shield(taking)
            except SessionIdInUseError as error:  # an opening of the id, which cannot succeed, came between
                if asyncio.get_running_loop().time() >= deadline_s:
                    raise StoreUnavailableError(
                        f"session {name_of(session_id)!r} cannot be had: its id is being opened again and again",
                        retry_delay_s=1.0,
                        session_id=name_of(session_id),
                    ) from error
                continue
            if isinstance(taken, int):
                return taken

    async def _confirmed(self, session: Session) -> Session:
        """The session, once it is known to be this server's: the claim that gave it may have been answered late. Raises
        the reason why it is not."""
        self._registry.leases.check()
        while session.persistence.is_unconfirmed:
            with suppress(RequestCancelledError):  # a Cancel is not meant for this; of an end the next turn tells
                await self._spill.act(session, lambda: None)
                break
        return session

    async def _opened(self, session_id: str) -> Session | None:
        """The session of this server that has the id, once it is open; None when none has it, or its opening failed:
        the store may have a session of the id, of another server."""
        while True:
            session = self._registry.directory.get(session_id)
            if session is None or session.state is not State.OPENING:
                return session
            with suppress(*_NOT_OPENED):
                await self._spill.act(session, lambda: None)

    async def restore(
        self,
        data: bytes,
        name: str,
        version: int | None,
        key: Callable[[str], str] = lambda name: name,
        *,
        owner: str = "",
        max_owned: int | None = None,
    ) -> Session:
        """Makes a session of a snapshot. name: empty for the snapshot's; version: None for the snapshot's; key: gives
        the id of a name.

        Raises SnapshotError and its kin, SessionIdInUseError, StoreUnavailableError, ShuttingDownError,
        TooManySessionsError.
        """
        self._registry.check_open()
        self._registry.directory.check_room(owner, max_owned)
        image = self._storage.codec.decode(data)
        self._registry.directory.ages.check_snapshot(image.opened_at)
        served = served_image(self._find, image, version, "snapshot")
        session_id = key(name or name_of(image.session_id))
        return await self.settle(image, served, session_id, owner=owner, max_owned=max_owned)

    async def settle(
        self, image: Image, served: Served, session_id: str, *, owner: str = "", max_owned: int | None = None
    ) -> Session:
        """Makes a session of an image, under an id that nobody has; empty: one is made."""
        image = replace(image, session_id=session_id)
        return await asyncio.shield(self._opening.make(image, served, session_id, owner=owner, max_owned=max_owned))

    async def _fetch(self, session_id: str, max_owned: int | None, *, is_polite: bool) -> Session:
        """A session from the store. Its record is this function's until the session exists, then the session's."""
        registry = self._registry
        try:
            registry.check_open()
            registry.directory.check_room(owner_of(session_id), max_owned)
            taken = await self._claims.take(
                session_id,
                lambda image: served_image(self._find, image, None, "session_id"),
                is_polite=is_polite,
            )
            try:
                served = served_image(self._find, taken.image, None, "session_id")
                await self._opened(session_id)  # one that came meanwhile cannot have the id, but does not know it yet
                making = self._opening.make(
                    taken.image, served, session_id, max_owned=max_owned, taken=taken, is_chosen=False
                )
            except CarouselError:  # another server may do better
                self._claims.give_back(session_id, taken)
                raise
            return await making
        finally:
            self._taking.pop(session_id, None)

    async def _close_stored(self, session_id: str, opened_at: float | None) -> int:
        """Ends a session that the store alone has. Returns its position."""
        registry = self._registry
        try:
            registry.check_open()
            epoch, image, _ = await self._claims.take(
                session_id,
                lambda image: _check_same(session_id, image.opened_at, opened_at),
                is_written=opened_at is not None,
            )
            position = image.lane.position
            tombstone = Tombstone(CloseReason.CLIENT, position, time.time())
            registry.tombstones.add(session_id, tombstone)
            ended = registry.directory.begin_ending(session_id)
            recorded, give = awaited()

            def tell(error: CarouselError | None) -> None:
                if error is None:
                    ended()
                give(error)

            registry.last_records.bury(session_id, epoch, tombstone.encode(), tell)
            self._observer.stored_session_closed(
                image.model, image.version, session_id, CloseReason.CLIENT.value, position
            )
            failure: CarouselError | None = await recorded
            if failure is not None:
                raise failure
            return position
        finally:
            self._taking.pop(session_id, None)

    async def _verify(self, session: Session) -> None:
        """Makes sure that a session whose id could not be checked when it was opened hides no stored one."""
        if await self._storage.has(session.id):
            raise SessionIdInUseError(
                f"session_id = {session.name!r} is the id of two sessions: one in the store, and one that was opened"
                " here while the store did not answer: close that one first",
                field="session_id",
                session_id=session.name,
            )
        session.persistence.is_unverified = False


def _check_same(session_id: str, opened_at: float, wanted: float | None) -> None:
    """Raises SessionNotFoundError when a session is another than the one that was opened at `wanted`."""
    if wanted is not None and abs(opened_at - wanted) > _SAME_S:
        raise SessionNotFoundError(
            f"session_id = {name_of(session_id)!r} is another session by now", field="session_id"
        )
