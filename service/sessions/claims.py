"""Claims the records of sessions that this server does not have.

Rules:

1. A record is checked before its owner is asked for it. A record that cannot be used here stays where it is. A record
   without an owner is claimed, checked, and given back when it cannot be used, or set aside when it is corrupt. A
   session that is too old is ended.
2. An owner is asked for all wanted sessions at once, repeatedly, until it has released them or is gone.

Event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from service.background import Tasks
from service.errors import (
    CarouselError,
    SessionIdInUseError,
    SessionNotFoundError,
    SessionNotOpenError,
    SnapshotCorruptError,
    StoreUnavailableError,
)
from service.sessions.image import Image
from service.sessions.registry import Registry
from service.sessions.session import CloseReason, name_of
from service.sessions.storage import Storage
from service.sessions.stores.base import Claimed, Gone, Held, id_of, if_idle
from service.sessions.tombstones import Tombstone, Tombstones

_ASK_S = 0.05
"""Seconds between two requests to an owner."""
_MAX_ASKED = 1000
"""The most sessions in one request to an owner."""
Check = Callable[[Image], object]
"""Raises the reason why an image cannot be used here."""


class ClaimedImage(NamedTuple):
    """A record that this server owns. ttl_s: seconds after which it may vanish."""

    epoch: int
    image: Image
    ttl_s: float


class Claims:
    """Claims records. patience_s: how long another server may take to hand a session over."""

    def __init__(self, registry: Registry, storage: Storage, tasks: Tasks, patience_s: float) -> None:
        self._registry = registry
        self._storage = storage
        self._tasks = tasks
        self._patience_s = patience_s
        self._asked: dict[str, dict[str, asyncio.Future[None]]] = {}
        """The waiting callers: by owner, then by id."""

    async def claim(
        self,
        session_id: str,
        check: Check = lambda image: None,
        *,
        is_written: bool = False,
        only_if_idle: bool = False,
    ) -> ClaimedImage:
        """Claims a session's record. is_written: the session that is meant was stored before, so another server's
        record that was never written belongs to another session and is left alone. only_if_idle: a session stays at
        another server while a stream is attached there or while it works; raises SessionNotOpenError when it is not
        released in time.

        Raises what `check` raises; SessionNotFoundError, which says what happened to the session; SessionIdInUseError
        for a session opened here meanwhile; StoreUnavailableError; SnapshotError and its subclasses for a record that
        cannot be read here.
        """
        deadline_s = asyncio.get_running_loop().time() + self._patience_s
        is_checked = False
        while True:
            claimed = await self._storage.claim(session_id)
            if isinstance(claimed, Claimed):
                return await self._use(session_id, claimed, check)
            if claimed is None:
                raise self._registry.tombstones.not_found(session_id)
            if isinstance(claimed, Gone):
                raise Tombstones.error_in(session_id, claimed.payload)
            if claimed.payload is None and is_written:
                raise SessionNotFoundError(
                    f"session_id = {name_of(session_id)!r} now belongs to another session", field="session_id"
                )
            if claimed.payload is not None and not is_checked:
                check(self._storage.image_in(session_id, claimed.payload))
                is_checked = True
            await self._released(claimed, if_idle(session_id) if only_if_idle else session_id, deadline_s)

    def release_record(self, session_id: str, claimed: ClaimedImage) -> None:
        """Releases a claimed record that cannot be used here, so that any server can claim it."""
        gone_by_s = self._registry.directory.ages.gone_by_s(claimed.image.opened_at)
        self._registry.last_records.release_record(session_id, claimed.epoch, claimed.ttl_s, gone_by_s)

    async def _use(self, session_id: str, claimed: Claimed, check: Check) -> ClaimedImage:
        """Returns a claimed record, or gives it back when it cannot be used."""
        here = self._registry.directory.get(session_id)
        if here is not None and here.persistence.has_record and here.persistence.epoch == claimed.epoch:
            raise SessionIdInUseError(
                f"session_id = {here.name!r} is in use by a session that is open on this server", field="session_id"
            )
        if claimed.payload is None:  # its server ended before the first write
            raise await self._end_claimed(session_id, claimed.epoch, CloseReason.LOST)
        try:
            image = await self._storage.decode(session_id, claimed.payload)
        except SnapshotCorruptError:  # the record was set aside
            raise
        except CarouselError:  # another server may be able to use it
            self._registry.last_records.release_record(session_id, claimed.epoch, claimed.ttl_s)
            raise
        ages = self._registry.directory.ages
        if ages.is_over(image.opened_at):
            reason, position = CloseReason.MAX_AGE, image.lane.position
            observer = self._registry.observer
            observer.stored_session_closed(image.model, image.version, session_id, reason.value, position)
            raise await self._end_claimed(session_id, claimed.epoch, reason, position)
        usable = ClaimedImage(claimed.epoch, image, min(claimed.ttl_s, ages.left_s(image.opened_at)))
        try:
            check(image)
        except CarouselError:  # another server may be able to use it
            self.release_record(session_id, usable)
            raise
        return usable

    async def _released(self, held: Held, wanted: str, deadline_s: float) -> None:
        """Returns when the owner of a session has released it or is gone. wanted: the id, in the form for
        `StateStore.ask`. At the deadline, raises StoreUnavailableError, or SessionNotOpenError when the session
        is asked for `if_idle`."""
        waiting = self._asked.get(held.owner)
        if waiting is None:
            waiting = self._asked[held.owner] = {}
            self._tasks.start(self._ask(held.owner, waiting))
        released = waiting[wanted] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout_at(deadline_s):
                await released
        except TimeoutError as error:
            session_id = id_of(wanted)
            if wanted != session_id:
                raise SessionNotOpenError(
                    f"session {name_of(session_id)!r} belongs to another server, and there it has a stream or a"
                    " request in flight: use it there, or end that stream",
                    field="session_id",
                    session_id=name_of(session_id),
                ) from error
            raise StoreUnavailableError(
                f"session {name_of(session_id)!r} belongs to another server, which has not handed it over: try again"
                " later",
                retry_delay_s=1.0,
                session_id=name_of(session_id),
            ) from error
        finally:
            waiting.pop(wanted, None)

    async def _ask(self, owner: str, waiting: dict[str, asyncio.Future[None]]) -> None:
        """Asks an owner for its sessions until nothing waits for them."""
        try:
            while waiting:
                session_ids = list(islice(waiting, _MAX_ASKED))
                try:
                    released = await self._storage.ask(owner, session_ids)
                except StoreUnavailableError:
                    released = set()
                for session_id in session_ids:  # a session asked for now comes later in the next round
                    future = waiting.pop(session_id, None)
                    if future is None or future.done():
                        continue
                    if session_id in released:
                        future.set_result(None)
                    else:
                        waiting[session_id] = future
                await asyncio.sleep(_ASK_S if len(waiting) <= _MAX_ASKED else 0.0)
        finally:
            del self._asked[owner]

    async def _end_claimed(
        self, session_id: str, epoch: int, reason: CloseReason, position: int = 0
    ) -> SessionNotFoundError:
        """Ends a session whose record this server has claimed. Returns the error for it."""
        tombstone = Tombstone(reason, position, self._registry.wall_clock())
        self._registry.tombstones.add(session_id, tombstone)
        self._registry.last_records.record_end(session_id, epoch, tombstone.encode())
        await self._storage.after_writes(session_id)  # after this error a client may open the id anywhere
        return Tombstones.error_of(session_id, tombstone)
