"""An asyncio event loop with a virtual clock, for one thread and one seed.

Rules:

1. When nothing is ready, the clock jumps to the next timer. Callbacks that are ready run in asyncio's own order.
2. `run_in_executor` runs the function on this thread, at a later time drawn from the seed. Functions of one executor
   run one after another, in order. The default executor (`asyncio.to_thread`) has no order.
3. Every callback, timer and task belongs to the `Life` in whose context it was made. When a life ends, its timers and
   executor calls are dropped and its tasks are cancelled, because a killed process does nothing more.
4. A paused life does nothing until it is continued. Then it runs everything that became due meanwhile, in order.
5. The number of turns is bounded. A loop that has nothing to wait for raises `Stalled`.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")
_MAX_TURNS = 300_000
"""Maximum turns of one simulation. A seed takes some thousands."""
_MAX_TURNS_AT_ONE_TIME = 5_000
"""Maximum turns in which the clock does not move. More turns mean a loop that never waits."""

_MOST_TIMERS = 400
"""Number of timers of a life above which finished timers are removed."""
_TICK_S = 1e-6
"""Seconds between two calls of one executor, because timers at the same time have no order."""


class Stalled(Exception):  # a state of the simulation, not a fault of its caller
    """Nothing is ready and no timer is set, or the loop turns without end."""


class Life:
    """One life of a process. Everything that it started ends with it.

    name: for the trace. is_over: whether it was killed. tasks: tasks that it started and that are not done.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_over = False
        self.tasks: dict[SimulatedTask[Any], None] = {}
        self.errors: list[str] = []
        self._timers: list[asyncio.TimerHandle] = []
        self.context = copy_context()
        self.context.run(LIFE.set, self)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Runs a coroutine as a task of this life."""
        return asyncio.get_running_loop().create_task(work, context=self.context.copy())

    def keep(self, timer: asyncio.TimerHandle) -> None:
        """Registers a timer that ends with this life."""
        if self.is_over:
            timer.cancel()
            return
        self._timers.append(timer)
        if len(self._timers) > _MOST_TIMERS:
            now_s = asyncio.get_running_loop().time()
            self._timers = [one for one in self._timers if one.when() > now_s - 1.0 and not one.cancelled()]

    def end(self) -> None:
        """Kills the process: drops its timers and cancels its tasks."""
        self.is_over = True
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for task in list(self.tasks):
            task.cancel()


LIFE: ContextVar[Life | None] = ContextVar("life", default=None)
"""The process to which the running code belongs; None for the simulation itself."""


class SimulatedTask(asyncio.Task[T]):
    """A task whose hash does not depend on its memory address, so that sets of tasks have the same order in each
    run."""

    num_made = 0
    """How many tasks this simulation has made."""

    def __init__(self, coro: Generator[Any, None, T] | Coroutine[Any, Any, T], **options: Any) -> None:
        SimulatedTask.num_made += 1
        self._number = SimulatedTask.num_made
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _NoSelector:
    """A selector that moves the clock instead of waiting for sockets."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        self._loop.turn(timeout)
        return []


class SimulatedLoop(asyncio.BaseEventLoop):
    """An event loop with the rules above. delay: draws the seconds of one half of an executor's call."""

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, delay: Callable[[], float], start_s: float = 1000.0) -> None:
        super().__init__()
        self._now_s = start_s
        self._delay = delay
        self.slowness_s = 0.0
        """Seconds that every call of an executor takes in addition."""
        self._selector = _NoSelector(self)
        self._busy_until_s: dict[int, float] = {}
        self._executors: list[Any] = []
        self._paused: dict[Life | None, list[asyncio.Handle]] = {}
        """The paused lives, each with the callbacks that it must run when it is continued."""
        self.num_turns = 0
        self._most_turns = _MAX_TURNS
        self._num_turns_now = 0
        SimulatedTask.num_made = 0
        self.set_task_factory(_make_task)

    def time(self) -> float:
        """Returns the virtual time in seconds."""
        return self._now_s

    def spend(self, seconds: float) -> None:
        """Moves the clock forward, as work on this thread does."""
        self._now_s += seconds

    def pause(self, life: Life, seconds: float) -> None:
        """Pauses a life, as SIGSTOP pauses a process. Pausing a paused life does nothing."""
        if life in self._paused:
            return
        self._paused[life] = []
        wake_at_s = self._now_s + seconds
        for timer in sorted(timer for timer in self._scheduled if _life_of(timer) is life):
            wake_at_s += _TICK_S
            timer._when = max(timer.when(), wake_at_s)  # type: ignore[attr-defined]  # not in its stub
        heapq.heapify(self._scheduled)
        self.call_at(self._now_s + seconds, self._wake, life)

    def _wake(self, life: Life) -> None:
        self._ready.extend(self._paused.pop(life, ()))

    def _run_once(self) -> None:
        for life in [one for one in self._paused if one is not None and one.is_over]:
            self._wake(life)
        if self._paused:
            ready = list(self._ready)
            self._ready.clear()
            for handle in ready:
                self._paused.get(_life_of(handle), self._ready).append(handle)
        super()._run_once()  # type: ignore[misc]  # asyncio's own method, not in its stub

    def turn(self, timeout: float | None) -> None:
        """Counts one turn of the loop and moves the clock. timeout: seconds until the next timer; None: there is no
        timer. Raises Stalled."""
        self.num_turns += 1
        self._num_turns_now += 1
        if timeout is None:
            raise Stalled("nothing is ready and no timer is set")
        if timeout:
            self._now_s += timeout
            self._num_turns_now = 0
        if self.num_turns > self._most_turns:
            self._most_turns += _MAX_TURNS  # so that the rest of the simulation can be ended
            raise Stalled(f"{self.num_turns} turns of the loop, the most that a simulation takes")
        if self._num_turns_now > _MAX_TURNS_AT_ONE_TIME:
            self._num_turns_now = 0
            raise Stalled(f"{_MAX_TURNS_AT_ONE_TIME} turns of the loop at one time: something never waits")

    def call_at(  # type: ignore[override]  # asyncio's stub is more precise
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Sets a timer as asyncio does. The timer ends with the life that sets it."""
        timer = super().call_at(when, callback, *args, context=context)
        life = LIFE.get()
        if life is not None:
            life.keep(timer)
        return timer

    def call_soon_threadsafe(  # type: ignore[override]  # asyncio's stub is more precise
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Does the same as `call_soon`, because there is only one thread."""
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]  # asyncio's stub also allows a coroutine
        """Runs `func` at a later virtual time, and delivers its result still later."""
        future: asyncio.Future[T] = self.create_future()
        run_at_s = self._now_s + self._delay() + self.slowness_s
        if executor is not None:
            if id(executor) not in self._busy_until_s:
                self._executors.append(executor)  # keeps it alive, so that no other object gets its id
            run_at_s = max(run_at_s, self._busy_until_s.get(id(executor), 0.0) + _TICK_S)
        done_at_s = run_at_s + self._delay() + _TICK_S
        if executor is not None:
            self._busy_until_s[id(executor)] = done_at_s

        def run() -> None:
            try:
                result = func(*args)
            except Exception as error:  # delivered to the caller, as from a thread
                self.call_at(max(done_at_s, self._now_s), _deliver, future, None, error)
            else:
                self.call_at(max(done_at_s, self._now_s), _deliver, future, result, None)

        self.call_at(run_at_s, run)
        return future

    def _process_events(self, event_list: list[Any]) -> None:
        """Does nothing: there are no events of sockets."""

    def _write_to_self(self) -> None:
        """Does nothing: there is no other thread, so no selector to wake."""


def _life_of(handle: asyncio.Handle) -> Life | None:
    """Returns the life to which a callback belongs."""
    context: Context = handle._context  # type: ignore[attr-defined]  # not in its stub
    return context.get(LIFE)


def _deliver(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _make_task(loop: asyncio.AbstractEventLoop, coro: Any, context: Context | None = None) -> asyncio.Task[Any]:
    task: SimulatedTask[Any] = SimulatedTask(coro, loop=loop, context=context)
    life = LIFE.get() if context is None else context.get(LIFE)
    if life is not None:
        life.tasks[task] = None
        task.add_done_callback(lambda done: life.tasks.pop(task, None))
        if life.is_over:
            task.cancel()
    return task


def delays(rng: random.Random, scale_s: float) -> Callable[[], float]:
    """Returns a function that draws delays in seconds: most are short, a few are much longer."""

    def delay() -> float:
        drawn = rng.random()
        if drawn < 0.1:
            return 0.0
        return rng.random() * scale_s * (30.0 if drawn > 0.97 else 1.0)

    return delay
