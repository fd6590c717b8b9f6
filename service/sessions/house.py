"""The parts that sessions need, made and joined."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.observer import SessionObserver
from service.sessions.access import Access
from service.sessions.admission import Admission
from service.sessions.checkpoints import Checkpoints
from service.sessions.departures import Departures
from service.sessions.dispatcher import Dispatcher
from service.sessions.frames import Frames
from service.sessions.generations import Generations
from service.sessions.limits import SessionLimits
from service.sessions.live import LiveSessions
from service.sessions.registry import Registry
from service.sessions.residency import Residency
from service.sessions.resumption import Find, Resumption
from service.sessions.storage import Storage


class House:
    """Everything about sessions, over one store. find: see `Resumption`; interval_s, num_tokens: see `Checkpoints`;
    patience_s: how long another server gets to let a session go; clock: monotonic seconds; wall_clock: Unix seconds."""

    def __init__(
        self,
        storage: Storage,
        limits: SessionLimits,
        observer: SessionObserver,
        *,
        find: Find,
        interval_s: float = 1.0,
        num_tokens: int = 4096,
        patience_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.live = LiveSessions()
        self.storage = storage
        self.checkpoints = Checkpoints(
            storage,
            interval_s=interval_s,
            num_tokens=num_tokens,
            idle_timeout_s=limits.idle_timeout_s,
            clock=clock,
            wall_clock=wall_clock,
        )
        self.registry = Registry(self.live, limits, observer, self.checkpoints, clock=clock, wall_clock=wall_clock)
        self.departures = Departures(
            self.live, self.registry, self.checkpoints, observer, clock=clock, wall_clock=wall_clock
        )
        storage.on_wanted = self.departures.wanted
        admission = Admission(self.live, limits, observer, self.checkpoints, clock=clock)
        self.dispatcher = Dispatcher(admission)
        self.generations = Generations(admission)
        self.frames = Frames(self.live, limits, observer, self.checkpoints, clock=clock)
        self.residency = Residency(self.live, self.registry, self.checkpoints, storage, observer)
        self.resumption = Resumption(
            self.live,
            self.registry,
            self.residency,
            generations=self.generations,
            departures=self.departures,
            checkpoints=self.checkpoints,
            storage=storage,
            observer=observer,
            find=find,
            patience_s=patience_s,
        )
        self.access = Access(
            self.live, self.resumption, self.residency, self.checkpoints, codec=storage.codec, observer=observer
        )

    def count(self, model: str, version: int) -> int:
        """How many live sessions are with a version."""
        bundles = (session.served.bundle for session in self.live.opened_after(0))
        return sum(bundle.model == model and bundle.version == version for bundle in bundles)
