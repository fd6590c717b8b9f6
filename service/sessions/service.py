"""Makes and connects the parts of the session layer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from service.background import Tasks
from service.engine.engine import Engine
from service.errors import CarouselError, StoreUnavailableError
from service.observer import SessionObserver
from service.sessions.admin import Admin
from service.sessions.ages import Ages
from service.sessions.answer_memory import AnswerBudget, Replays
from service.sessions.closing import Closing
from service.sessions.deferral import Deferral
from service.sessions.directory import Directory
from service.sessions.ending import Ending
from service.sessions.expiry import Expiry
from service.sessions.generations import Generations
from service.sessions.handover import Handover
from service.sessions.limits import SessionLimits
from service.sessions.opening import Opening
from service.sessions.registry import Registry
from service.sessions.requests import Requests
from service.sessions.resume import Resume
from service.sessions.served_image import Find
from service.sessions.session import CloseReason, Session
from service.sessions.spill import Spill
from service.sessions.step_batches import StepBatches
from service.sessions.storage import Storage
from service.sessions.stores.base import Beat, id_of
from service.sessions.tombstones import Tombstone
from service.sessions.visits import Visits
from service.sessions.watches import Watches

_MAX_CLOSES = 60
"""The most attempts to close a session that another server owns."""
_CLOSE_S = 1.0
"""Seconds between two attempts."""


class SessionService:
    """The session layer over one store. find: see `served_image`. patience_s: see `Resume`. interval_s, num_tokens: see
    `Checkpoints`. clock: monotonic seconds. wall_clock: Unix seconds."""

    def __init__(
        self,
        storage: Storage,
        limits: SessionLimits,
        observer: SessionObserver,
        *,
        find: Find,
        interval_s: float,
        num_tokens: int,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.storage = storage
        self.limits = limits
        self.tasks = Tasks()
        self._has_missed = False
        """Whether the last heartbeat failed."""
        ages = Ages(limits.max_age_s, clock=clock, wall_clock=wall_clock)
        self.directory = Directory(limits.max_sessions, ages)
        self.deferral = Deferral(max_requests=limits.max_in_flight, max_bytes=limits.max_deferred_bytes)
        self.answer_budget = AnswerBudget(limits.max_unwritten_bytes)
        self.watches = Watches(limits.max_unwritten_bytes)
        self.registry = Registry(
            self.directory,
            self.deferral,
            self.watches,
            observer,
            storage=storage,
            interval_s=interval_s,
            num_tokens=num_tokens,
            idle_timeout_s=limits.idle_timeout_s,
            num_tombstones=limits.num_tombstones,
            max_replay_bytes=limits.max_replay_bytes,
            on_elsewhere=self._elsewhere,
            clock=clock,
            wall_clock=wall_clock,
        )
        self.checkpoints = self.registry.checkpoints
        self.leases = self.registry.leases
        self.spill = Spill(self.registry, storage, self.tasks)
        self.opening = Opening(self.registry, self.spill, storage, self.tasks, limits)
        self.handover = Handover(self.registry)
        self.expiry = Expiry(self.registry, limits.idle_timeout_s + limits.mark_s)
        replays = Replays(limits.max_replay_bytes)
        self.requests = Requests(self.registry, replays, limits, observer)
        self.generations = Generations(self.requests)
        self.step_batches = StepBatches(self.registry, replays, limits, observer, self.requests.unstored)
        self.resume = Resume(
            self.registry,
            self.opening,
            self.spill,
            storage=storage,
            tasks=self.tasks,
            observer=observer,
            find=find,
            patience_s=patience_s,
        )
        self.visits = Visits(self.registry, self.resume, limits.max_in_flight)
        self.closing = Closing(self.registry, self.resume, storage)
        self.admin = Admin(self.registry, self.resume, self.spill, codec=storage.codec, observer=observer)

    def start(self) -> None:
        """Starts the tasks of the store. Other servers can ask for sessions from now on."""
        self.storage.start(self.wanted, self._beaten, self._missed)

    def _beaten(self, sent_s: float, beat: Beat) -> None:
        self.leases.beaten(sent_s, beat)
        if self._has_missed:
            self._has_missed = False
            self.registry.last_records.hasten()

    def _missed(self) -> None:
        self._has_missed = True
        self.leases.failed()

    def _elsewhere(self, session: Session, end: Ending) -> None:
        """Handles that a session which ended here belongs to another server. If a client was
        informed that the session is closed, closes it there."""
        tombstone = Tombstone(CloseReason.MOVED, session.position, self.registry.wall_clock())
        self.registry.tombstones.add(session.id, tombstone)
        if end.is_promised:
            self.tasks.start(self._close_elsewhere(session.id, session.opened_at))

    async def _close_elsewhere(self, session_id: str, opened_at: float) -> None:
        for _ in range(_MAX_CLOSES):
            try:
                await self.resume.close(session_id, opened_at=opened_at)
            except StoreUnavailableError:
                await asyncio.sleep(_CLOSE_S)
            except CarouselError:  # it is gone, or another session has its id
                return
            else:
                return

    def wanted(self, wanted: str) -> None:
        """Handles that another server wants a session; called by the tasks of the store. Releases a record that this
        server owns without a session, because the answer to its claim was lost. wanted: the id, in the form in which
        the other server asked."""
        directory, session_id = self.directory, id_of(wanted)
        is_here = directory.get(session_id) is not None or directory.is_ending(session_id)
        if is_here or session_id in self.resume.claiming:
            self.handover.wanted(session_id, only_if_idle=wanted != session_id)
        else:
            self.storage.undo_claim(session_id)

    async def stop(self, timeout_s: float) -> None:
        """Ends unfinished tasks, writes what waits for at most `timeout_s`, and closes the store."""
        await self.tasks.stop()
        await self.storage.stop(timeout_s)

    def num_sessions(self, engine: Engine) -> int:
        """Returns how many sessions use an engine, including those being opened."""
        return sum(session.served.engine is engine for session in self.directory)

    def count(self, model: str, version: int) -> int:
        """Returns how many sessions use a version."""
        bundles = (session.served.bundle for session in self.directory)
        return sum(bundle.model == model and bundle.version == version for bundle in bundles)
