"""Going on with a session, wherever it is: on another stream, held, or in the store. And making one of a snapshot.

Event loop only.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

from service.errors import (
    CarouselError,
    NoSlotError,
    SessionIdInUseError,
    SessionNotFoundError,
    SnapshotError,
    SnapshotModelError,
    StoreUnavailableError,
)
from service.observer import SessionObserver
from service.sessions.checkpoints import Checkpoints
from service.sessions.checks import check_session_id
from service.sessions.custody import Custody
from service.sessions.departures import Departures
from service.sessions.generations import Generations
from service.sessions.image import Image
from service.sessions.live import LiveSessions
from service.sessions.registry import Registry
from service.sessions.residency import Residency
from service.sessions.session import CloseReason, OnClosed, Served, Session, name_of
from service.sessions.storage import Outcome, Put, Storage
from service.sessions.stores.base import Claimed, Gone, Held, Standing
from service.sessions.terms import PLAIN, Terms
from service.sessions.tombstones import Tombstone, Tombstones

Find = Callable[[str, int, str], Served]
"""Finds what serves a model, by name, version and variant. Raises ModelNotFoundError and ModelUnavailableError."""

_POLL_S = 0.05
"""Between two looks whether another server has let a session go."""
_ID_BYTES = 9


class Resumption:
    """Goes on with sessions. patience_s: how long another server gets to let one go."""

    def __init__(
        self,
        live: LiveSessions,
        registry: Registry,
        residency: Residency,
        *,
        generations: Generations,
        departures: Departures,
        checkpoints: Checkpoints,
        storage: Storage,
        observer: SessionObserver,
        find: Find,
        patience_s: float = 5.0,
    ) -> None:
        self._live = live
        self._registry = registry
        self._residency = residency
        self._generations = generations
        self._departures = departures
        self._checkpoints = checkpoints
        self._storage = storage
        self._observer = observer
        self._find = find
        self._patience_s = patience_s
        self._coming: dict[str, asyncio.Task[Session]] = {}

    async def resume(self, session_id: str, on_closed: OnClosed) -> tuple[Session, bool]:
        """Gives a session to a stream. Returns it, and whether it was in this server's memory.

        Raises SessionNotFoundError, which tells what became of it; SnapshotError and its kin for a record that cannot
        be gone on with here; StoreUnavailableError; ShuttingDownError; TooManySessionsError.
        """
        check_session_id(session_id)
        is_here = self._live.get(session_id) is not None
        session = await self.find(session_id)
        if self._live.get(session_id) is not session:  # it has left again, in the turn in which it came
            raise self._registry.tombstones.not_found(session_id)
        if session.custody is None:
            session.custody = Custody(PLAIN)
        self._generations.leave(session)
        self._registry.attach(session, on_closed)
        bundle = session.served.bundle
        source = "memory" if is_here else "store"
        self._observer.session_resumed(bundle.model, bundle.version, session.id, source)
        return session, is_here

    async def find(self, session_id: str) -> Session:
        """A live session, or one of the store, which is then held here. Raises what `resume` raises."""
        session = self._live.get(session_id)
        if session is not None:
            return session
        coming = self._coming.get(session_id)
        if coming is None:
            coming = self._coming[session_id] = asyncio.create_task(self._fetch(session_id))
            coming.add_done_callback(lambda task: self._coming.pop(session_id))
        # it comes whatever becomes of who asked first: a claim must not be left half done
        return await asyncio.shield(coming)

    async def reserve(self, session_id: str, terms: Terms) -> int:
        """Takes an id that a client has chosen for a session that is to be stored. Returns its epoch. Raises
        SessionIdInUseError and StoreUnavailableError."""
        self._registry.check_room(session_id)
        expires_at = time.time() + terms.duration_s + self._registry.limits.idle_timeout_s
        epoch = await self._storage.reserve(session_id, expires_at)
        if epoch is None:
            raise SessionIdInUseError(
                f"session_id = {name_of(session_id)!r} is in use: there is a stored session of that name",
                field="session_id",
                session_id=name_of(session_id),
            )
        return epoch

    async def restore(
        self, data: bytes, name: str, version: int | None, key: Callable[[str], str] = lambda name: name
    ) -> Session:
        """Makes a session of a snapshot. name: empty for the snapshot's; version: None for the snapshot's; key: gives
        the id of a name.

        Raises SnapshotError and its kin, SessionIdInUseError, StoreUnavailableError, ShuttingDownError,
        TooManySessionsError.
        """
        image = self._storage.codec.decode(data)
        served = self._served(image, version)
        return await self.settle(image, served, key(name or name_of(image.session_id)))

    async def settle(self, image: Image, served: Served, session_id: str) -> Session:
        """Makes a session of an image, under an id that nobody has; empty: one is made."""
        session_id = session_id or secrets.token_urlsafe(_ID_BYTES)
        epoch = 1 if image.terms.is_plain else await self.reserve(session_id, image.terms)
        session = await self._adopt(replace(image, session_id=session_id), served, session_id, epoch)
        self._checkpoints.changed(session)
        return session

    async def _fetch(self, session_id: str) -> Session:
        """A session from the store."""
        claimed = await self._claim(session_id)
        if claimed.payload is None:
            error = self._buried(session_id, claimed)
            raise error
        try:
            image = self._storage.codec.decode(claimed.payload)
        except SnapshotError as error:
            await self._storage.set_aside(session_id, error)
            raise
        try:
            session = await self._adopt(image, self._served(image, None), session_id, claimed.epoch)
        except CarouselError:  # another server may do better
            self._storage.put(
                Put(session_id, claimed.epoch, None, time.time() + self._ttl_s(image.terms), Standing.FREE), _ignore
            )
            raise
        assert session.custody is not None  # noqa: S101  # adopted sessions have one
        session.custody.checkpoint_position = session.position
        return session

    async def _claim(self, session_id: str) -> Claimed:
        deadline = asyncio.get_running_loop().time() + self._patience_s
        while True:
            claimed = await self._storage.claim(session_id)
            if isinstance(claimed, Claimed):
                return claimed
            if claimed is None:
                raise self._registry.tombstones.not_found(session_id)
            if isinstance(claimed, Gone):
                raise Tombstones.told(session_id, Tombstone.decode(claimed.payload))
            assert isinstance(claimed, Held)  # noqa: S101  # there is no fourth
            if asyncio.get_running_loop().time() >= deadline:
                raise StoreUnavailableError(
                    f"session {name_of(session_id)!r} is with another server, which has not let it go: try again later",
                    retry_delay_s=1.0,
                    session_id=name_of(session_id),
                )
            await asyncio.sleep(_POLL_S)

    async def _adopt(self, image: Image, served: Served, session_id: str, epoch: int) -> Session:
        while True:
            try:
                session = self._registry.adopt(image, served, session_id, epoch)
            except NoSlotError as error:
                await self._residency.make_room(served.engine, error)
                continue
            assert session.custody is not None  # noqa: S101  # adopted sessions have one
            duration_s = max(image.terms.duration_s, self._registry.limits.idle_timeout_s)
            self._departures.hold(session, session.custody, duration_s)
            return session

    def _served(self, image: Image, version: int | None) -> Served:
        try:
            served = self._find(image.model, version or image.version, image.variant)
        except CarouselError as error:
            raise SnapshotModelError(
                f"snapshot is of {image.model} version {image.version} ({image.variant}), which is not served here:"
                f" {error.message}",
                field="snapshot" if version is None else "version",
                model=image.model,
                version=image.version,
            ) from error
        if version is None and served.bundle.manifest_digest != image.manifest_digest:
            raise SnapshotModelError(
                f"snapshot is of another bundle that was called {image.model} version {image.version}: its manifest's"
                f" digest was {image.manifest_digest[:16]}..., and is {served.bundle.manifest_digest[:16]}... here",
                field="snapshot",
                model=image.model,
                version=image.version,
            )
        return served

    def _buried(self, session_id: str, claimed: Claimed) -> SessionNotFoundError:
        """The error for a session whose server ended before it was ever stored."""
        tombstone = Tombstone(CloseReason.LOST, 0, time.time())
        self._registry.tombstones.add(session_id, tombstone)
        put = Put(session_id, claimed.epoch, None, time.time() + 3600.0, Standing.GONE, tombstone.encode())
        self._storage.put(put, _ignore)
        return Tombstones.told(session_id, tombstone)

    def _ttl_s(self, terms: Terms) -> float:
        return terms.duration_s + self._registry.limits.idle_timeout_s


def _ignore(outcome: Outcome) -> None:
    """Nobody waits for it."""
