"""Taking the records of sessions that this server does not have: each is claimed, read, and used here or given back.

Event loop only.
"""

from __future__ import annotations

import asyncio
import time

from service.errors import (
    CarouselError,
    SessionIdInUseError,
    SessionNotFoundError,
    SnapshotCorruptError,
    StoreUnavailableError,
)
from service.sessions.ending import Tombstone, Tombstones
from service.sessions.image import Image
from service.sessions.registry import Registry
from service.sessions.session import CloseReason, name_of
from service.sessions.storage import Storage
from service.sessions.stores.base import Claimed, Gone

_POLL_S = 0.05
"""Between two looks whether another server has handed a session over."""


class Claims:
    """patience_s: how long another server gets to hand a session over."""

    def __init__(self, registry: Registry, storage: Storage, patience_s: float) -> None:
        self._registry = registry
        self._storage = storage
        self._patience_s = patience_s

    async def take(self, session_id: str) -> tuple[int, Image]:
        """Takes a session's record: its epoch, and the image in it. Raises SessionNotFoundError, which says what became
        of the session; SessionIdInUseError for one opened here meanwhile; StoreUnavailableError; SnapshotError and its
        kin for a record that cannot be read here, which is given back, or set aside when it is corrupt."""
        epoch, payload = await self._claim(session_id)
        try:
            return epoch, await self._storage.decode(session_id, payload)
        except SnapshotCorruptError:  # it is set aside
            raise
        except CarouselError:  # another server may do better
            self.give_back(session_id, epoch)
            raise

    def give_back(self, session_id: str, epoch: int, duration_s: float = 0.0) -> None:
        """Lets any server claim a record that was taken and cannot be used here. duration_s: of its policy."""
        self._registry.last_records.give_back(session_id, epoch, self._registry.leases.idle_timeout_s + duration_s)

    async def _claim(self, session_id: str) -> tuple[int, bytes]:
        deadline = asyncio.get_running_loop().time() + self._patience_s
        while True:
            claimed = await self._storage.claim(session_id)
            if isinstance(claimed, Claimed):
                here = self._registry.directory.get(session_id)
                if here is not None and here.persistence.has_record and here.persistence.epoch == claimed.epoch:
                    raise SessionIdInUseError(f"session_id = {here.name!r} was opened here", field="session_id")
                if claimed.payload is None:
                    raise self._buried(session_id, claimed.epoch)
                return claimed.epoch, claimed.payload
            if claimed is None:
                raise self._registry.tombstones.not_found(session_id)
            if isinstance(claimed, Gone):
                raise Tombstones.error_in(session_id, claimed.payload)
            if asyncio.get_running_loop().time() >= deadline:
                raise StoreUnavailableError(
                    f"session {name_of(session_id)!r} is with another server, which has not handed it over: try again"
                    " later",
                    retry_delay_s=1.0,
                    session_id=name_of(session_id),
                )
            await asyncio.sleep(_POLL_S)

    def _buried(self, session_id: str, epoch: int) -> SessionNotFoundError:
        """The error for a session whose server ended before it was ever stored."""
        tombstone = Tombstone(CloseReason.LOST, 0, time.time())
        self._registry.tombstones.add(session_id, tombstone)
        self._registry.last_records.bury(session_id, epoch, tombstone.encode())
        return Tombstones.error_of(session_id, tombstone)
