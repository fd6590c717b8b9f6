"""Replacements for parts of the service in the simulation: an engine without a thread, an observer that counts, a
virtual clock and seeded ids. Also decodes the service's records and repeats its sampling.

Only this file and `system.py` know parts of the service by name.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

import service.hosting
from service.api import stream as api_stream
from service.engine.core import Progress
from service.engine.decoding import Choice, Decoding, Sampling, choose_batch
from service.engine.engine import Engine
from service.sessions import session as session_module
from service.sessions.snapshot import Codec
from simulation import arithmetic
from simulation.bundles import make_bundle
from simulation.loop import SimulatedLoop
from simulation.states import State, after, of_arrays

EPOCH = 1_700_000_000.0
"""Unix seconds at the virtual time 0."""
CODEC = Codec(b"a key of the simulation")
_CALL_S = 0.0002
"""Seconds by which the virtual clock moves when the service reads its performance counter, because work takes time."""


class LoopEngine(Engine):
    """An engine that uses the event loop instead of a thread: each batch for the thread runs at a later time, drawn by
    `rng`."""

    rng: random.Random
    is_stopped = False

    def start(self) -> None:
        """Warms up the engine without starting a thread."""
        self._handed_over = cast(Any, SimpleNamespace(put=self._take))
        self._core.warm_up()

    def stop(self) -> None:
        """Answers pending requests, as `Engine.stop` does."""
        self.is_stopped = self._is_stopping = True
        self._loop.call_soon(self._refuse_all)

    def has_other_work(self) -> bool:
        """See `Engine`. Also draws the end of a burst at random."""
        return super().has_other_work() or self.rng.random() < 0.3

    def _take(self, drives: bool) -> None:
        if drives and not self.is_stopped:
            self._loop.call_later(self.rng.random() * 0.003, self._drive_one)

    def _drive_one(self) -> None:
        """Does the work of one turn of `Engine._drive`."""
        if self.is_stopped:
            return
        try:
            progress = self._core.step(driver=self)
            if progress is Progress.RAN:
                self._num_threaded += 1
                self.deliver()
        except BaseException as error:
            self._on_crash(error)
            raise
        if progress is Progress.RAN:
            self._take(True)
            return
        self._produced.append(self._core.take_results())
        self._loop.call_soon(self._take_back)


class Observer:
    """Accepts every report, and keeps the gauges as `service.telemetry` does."""

    is_tracing = False

    def __init__(self) -> None:
        self.gauges: Counter[str] = Counter({"sessions_active": 0, "sessions_spilled": 0, "calls_active": 0})

    def __getattr__(self, name: str) -> Callable[..., None]:
        changes = {
            "session_opened": ("sessions_active", 1),
            "session_closed": ("sessions_active", -1),
            "session_spilled": ("sessions_spilled", 1),
            "session_unspilled": ("sessions_spilled", -1),
        }
        gauge, change = changes.get(name, ("", 0))

        def hear(*args: object, **facts: object) -> None:
            if gauge:
                self.gauges[gauge] += change

        hear.__name__ = name
        self.__dict__[name] = hear
        return hear

    def trace_call(self, method: str, metadata: object) -> None:
        """See `ApiObserver`. No call is traced."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The content of a record. hidden: after all tokens up to `position`, including pending ones; opened_at: when the
    session was first opened, which distinguishes sessions with the same id."""

    position: int
    hidden: State
    opened_at: float


@cache
def stored_in(payload: bytes) -> Stored:
    """Decodes a record or a snapshot."""
    image = CODEC.decode(payload)
    hidden = of_arrays(image.model, image.lane.states, image.lane.contexts)
    return Stored(image.lane.position, after(hidden, map(int, image.lane.pending)), image.opened_at)


@cache
def sampled(hidden: State, position: int, seed: int, num_produced: int, min_tokens: int) -> int:
    """Returns the token that a generation with this seed draws."""
    decoding = Decoding(64, sampling=Sampling(seed=seed), min_tokens=min_tokens)
    choice = Choice(decoding, position, num_produced, None, arithmetic.EOS_ID)
    tokens, _ = choose_batch(np.array([hidden.logits], np.float32), [choice])
    return int(tokens[0])


@contextmanager
def deterministic(loop: SimulatedLoop, rng: random.Random, models: Sequence[str]) -> Iterator[None]:
    """Gives the service the virtual clock and ids from the seed, and makes the order of its sets of objects
    deterministic. models: names of the models that are served."""

    def performance() -> float:
        loop.spend(_CALL_S)
        return loop.time()

    clock = SimpleNamespace(
        time=lambda: EPOCH + loop.time(), monotonic=loop.time, perf_counter=performance, sleep=lambda seconds: None
    )
    secrets = SimpleNamespace(
        token_urlsafe=lambda size: f"made-{rng.getrandbits(48):012x}",
        token_hex=lambda size: f"{rng.getrandbits(48):012x}",
    )
    replaced: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, value: Any) -> None:
        replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    for name, module in list(sys.modules.items()):
        if name.startswith("service."):
            if getattr(module, "perf_counter", None) is time.perf_counter:
                replace(module, "perf_counter", performance)
            if getattr(module, "time", None) is time:
                replace(module, "time", clock)
            if getattr(getattr(module, "secrets", None), "__name__", "") == "secrets":
                replace(module, "secrets", secrets)
    replace(session_module.Session, "__hash__", lambda self: hash(self.serial))
    counter = iter(range(1, 1_000_000))
    replace(api_stream.Stream, "__hash__", lambda self: self.__dict__.setdefault("_order", next(counter)))
    replace(service.hosting, "versions_in", lambda folder: [(model, 1) for model in models])
    replace(service.hosting, "stamps_of", lambda folder, name: ((), frozenset()))
    replace(service.hosting, "load_version", lambda folder, key, runtimes: make_bundle(key[0], key[1], lambda: False))
    try:
        yield
    finally:
        for owner, name, value in reversed(replaced):
            setattr(owner, name, value)
