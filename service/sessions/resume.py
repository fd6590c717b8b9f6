"""Resumes sessions from another stream, from memory or from the store, and makes sessions from snapshots.

Event loop only.
"""

from __future__ import annotations

import asyncio
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

_SAME_S = 1e-5  # two openings on one server are at least a microsecond apart
_NOT_OPENED = (SessionNotOpenError, SessionNotFoundError, RequestCancelledError)
"""The errors of requests that waited for a session whose opening failed."""


class Resume:
    """Finds sessions and attaches them to streams. patience_s: how long another server may take to hand one over."""

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
        patience_s: float,
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
        self.claiming: dict[str, asyncio.Task[Session | int]] = {}
        """The tasks that claim and use records, by id."""

    async def resume(
        self,
        session_id: str,
        on_ended: OnEnded,
        max_owned: int | None = None,
        *,
        is_over: Callable[[], bool] = lambda: False,
    ) -> tuple[Session, bool]:
        """Attaches a session to a stream. Returns it, and whether nothing of it was lost because it never left this
        server's memory. is_over: whether the resuming stream has ended; the session then stays where it is.

        Raises SessionNotFoundError, with what happened to the session; SnapshotError and its subclasses, for a record
        that cannot be resumed here; StoreUnavailableError, SessionIdInUseError, SessionNotOpenError, ShuttingDownError,
        TooManySessionsError.
        """
        session, is_here = await self.find_for_use(session_id, max_owned)
        if is_over():
            raise SessionNotOpenError(f"the stream that resumed session {session.name!r} has ended", field="session_id")
        self._registry.attach(session, on_ended)
        self.record_use(session, is_here=is_here)
        return session, is_here

    async def find_for_use(
        self, session_id: str, max_owned: int | None = None, *, only_if_idle: bool = False
    ) -> tuple[Session, bool]:
        """As `find`. Also returns whether nothing was lost: see `resume`. A caller that uses the session must call
        `record_use`."""
        check_session_id(session_id)
        is_here = self._registry.directory.get(session_id) is not None
        while True:
            session = await self.find(session_id, max_owned, only_if_idle=only_if_idle)
            if session.persistence.is_unverified:
                await self._verify(session)
            if not session.is_over:
                return session, is_here and not session.persistence.is_fetched

    def record_use(self, session: Session, *, is_here: bool) -> None:
        """Records that a caller uses a session that `find_for_use` returned."""
        session.own_persistence().is_fetched = False
        bundle = session.served.bundle
        source = "memory" if is_here else "store"
        self._observer.session_resumed(bundle.model, bundle.version, session.id, source)

    async def find(self, session_id: str, max_owned: int | None = None, *, only_if_idle: bool = False) -> Session:
        """Returns a session from memory, or from the store; the latter is held in memory from now on. only_if_idle: see
        `Claims.claim`. Raises what `resume` raises."""
        while True:
            found = await self._find_or(
                session_id, lambda: self._fetch(session_id, max_owned, only_if_idle=only_if_idle)
            )
            assert isinstance(found, Session)  # noqa: S101  # `_fetch` returns a session
            with suppress(SessionMovedError, SessionNotFoundError):  # another server owns it: search again
                return await self._confirmed(found)

    async def here(self, session_id: str) -> Session:
        """Returns a session of this server; claims none from elsewhere. Raises SessionNotFoundError, which says whether
        the store has the session, SessionMovedError and StoreUnavailableError."""
        session = await self._opened(session_id)  # a session that is being fetched does not know its position yet
        if session is None:
            if await self._storage.has(session_id):
                raise SessionNotFoundError(
                    f"session_id = {name_of(session_id)!r} is not in this server's memory: it is in the store, or has"
                    " moved to another server. Resume it, or send it a Step, to restore it here",
                    field="session_id",
                    session_id=name_of(session_id),
                )
            session = self._registry.get(session_id)
        return await self._confirmed(session)

    async def close(self, session_id: str, *, opened_at: float | None = None) -> int:
        """Closes a session and returns its position. A session that only the store has is not loaded for that.
        opened_at: the opening time of the session that is meant; None: any session with this id. Raises what `find`
        raises, except TooManySessionsError. Raises StoreUnavailableError also when the end could not be recorded; this
        server then records it later."""
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

    async def _find_or(self, session_id: str, claim: Callable[[], Coroutine[Any, Any, Session | int]]) -> Session | int:
        """Returns this server's session, or else the result of `claim`, which claims the record. Only one task at a
        time claims a record."""
        check_session_id(session_id)
        self._registry.leases.check()
        directory = self._registry.directory
        deadline_s = asyncio.get_running_loop().time() + self._patience_s
        while True:
            session = await self._opened(session_id)
            if session is not None:
                return session
            claiming = self.claiming.get(session_id)
            if claiming is not None and not claiming.done():  # awaiting a done task never yields
                with suppress(
                    SessionIdInUseError, SessionNotOpenError
                ):  # SessionNotOpenError: of a caller with only_if_idle
                    await asyncio.shield(claiming)
                continue
            if directory.is_ending(session_id):
                await directory.wait_until_ended(session_id, deadline_s - asyncio.get_running_loop().time())
                continue
            claiming = self.claiming[session_id] = self._tasks.start(claim())
            # the task finishes also when its first caller is cancelled: no claim may stay half done
            try:
                claimed = await asyncio.shield(claiming)
            except SessionIdInUseError as error:  # an opening of the same id, which cannot succeed, came first
                if asyncio.get_running_loop().time() >= deadline_s:
                    raise StoreUnavailableError(
                        f"session {name_of(session_id)!r} cannot be resumed: other requests keep opening a session"
                        " with its id: try again later",
                        retry_delay_s=1.0,
                        session_id=name_of(session_id),
                    ) from error
                continue
            if isinstance(claimed, int):
                return claimed

    async def _confirmed(self, session: Session) -> Session:
        """Returns the session when this server is known to own it. The store may have answered the claim late. Raises
        the reason when this server does not own it."""
        self._registry.leases.check()
        while session.persistence.is_unconfirmed:
            with suppress(RequestCancelledError):  # a Cancel is not meant for this call; the next round sees an end
                await self._spill.act(session, lambda: None)
                break
        return session

    async def _opened(self, session_id: str) -> Session | None:
        """Returns this server's session of the id, once it is open. None when there is none, or its opening failed;
        another server's session may be in the store."""
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
        """Makes a session from a snapshot. name: "" takes the snapshot's. version: None takes the snapshot's. key: maps
        a name to an id. owner: the principal. max_owned: how many sessions it may have.

        Raises SnapshotError and its subclasses, SessionIdInUseError, StoreUnavailableError, ShuttingDownError,
        TooManySessionsError.
        """
        self._registry.check_open()
        self._registry.directory.check_room(owner, max_owned)
        image = self._storage.codec.decode(data)
        self._registry.directory.ages.check_snapshot(image.opened_at)
        served = served_image(self._find, image, version, "snapshot")
        session_id = key(name or name_of(image.session_id))
        return await self.make_copy(image, served, session_id, max_owned)

    async def make_copy(self, image: Image, served: Served, session_id: str, max_owned: int | None) -> Session:
        """Makes a session from an image, under an id that is not in use. "" generates an id."""
        image = replace(image, session_id=session_id)
        return await asyncio.shield(self._opening.make(image, served, session_id, max_owned=max_owned))

    async def _fetch(self, session_id: str, max_owned: int | None, *, only_if_idle: bool) -> Session:
        """Loads a session from the store. This function owns the claimed record until the session exists."""
        registry = self._registry
        try:
            registry.check_open()
            registry.directory.check_room(owner_of(session_id), max_owned)
            claimed = await self._claims.claim(
                session_id,
                lambda image: served_image(self._find, image, None, "session_id"),
                only_if_idle=only_if_idle,
            )
            try:
                served = served_image(self._find, claimed.image, None, "session_id")
                await self._opened(session_id)  # an opening meanwhile must first fail and free the id
                making = self._opening.make(claimed.image, served, session_id, max_owned=max_owned, claimed=claimed)
            except CarouselError:  # another server may be able to use it
                self._claims.release_record(session_id, claimed)
                raise
            return await making
        finally:
            self.claiming.pop(session_id, None)

    async def _close_stored(self, session_id: str, opened_at: float | None) -> int:
        """Ends a session that only the store has. Returns its position."""
        registry = self._registry
        try:
            registry.check_open()
            epoch, image, _ = await self._claims.claim(
                session_id,
                lambda image: _check_same(session_id, image.opened_at, opened_at),
                is_written=opened_at is not None,
            )
            position = image.lane.position
            tombstone = Tombstone(CloseReason.CLIENT, position, registry.wall_clock())
            registry.tombstones.add(session_id, tombstone)
            ended = registry.directory.begin_ending(session_id)
            recorded, give = awaited()

            def recorded_or_failed(error: CarouselError | None) -> None:
                if error is None:
                    ended()
                give(error)

            registry.last_records.record_end(session_id, epoch, tombstone.encode(), recorded_or_failed)
            self._observer.stored_session_closed(
                image.model, image.version, session_id, CloseReason.CLIENT.value, position
            )
            failure: CarouselError | None = await recorded
            if failure is not None:
                raise failure
            return position
        finally:
            self.claiming.pop(session_id, None)

    async def _verify(self, session: Session) -> None:
        """Makes sure that the store has no session of this id: it did not answer when this one was opened."""
        if await self._storage.has(session.id):
            raise SessionIdInUseError(
                f"session_id = {session.name!r} is the id of two sessions: one in the store, and one that was opened"
                " here while the store did not answer: close that one first",
                field="session_id",
                session_id=session.name,
            )
        session.persistence.is_unverified = False


def _check_same(session_id: str, opened_at: float, wanted: float | None) -> None:
    """Raises SessionNotFoundError when the session was not opened at the `wanted` time."""
    if wanted is not None and abs(opened_at - wanted) > _SAME_S:
        raise SessionNotFoundError(
            f"session_id = {name_of(session_id)!r} now belongs to another session", field="session_id"
        )
