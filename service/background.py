"""Tasks that run beside calls. A task's error is always reported, and a periodic task continues after an error.

Event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

from service.errors import CarouselError

log = structlog.get_logger()

_LONGEST_DELAY_S = 30.0


class _Owner:
    """Owns tasks until they end; its length is their number."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    async def stop(self) -> None:
        """Cancels every task and waits until all have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _own(self, task: asyncio.Task[Any], on_done: Callable[[asyncio.Task[Any]], None]) -> None:
        self._tasks.add(task)  # because the event loop has only weak references to tasks
        task.add_done_callback(on_done)


class Background(_Owner):
    """Owns tasks that only report their errors. `stop` cancels those that still run."""

    def repeat(self, name: str, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        """Awaits `work()` every `interval_s` seconds, without end. Logs an error as `background.failed` and tries again
        after `interval_s`; each further error in a row doubles the delay, up to 30 s."""
        self._start(name, self._repeat(name, interval_s, work))

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Runs the work once. Logs an error as `background.failed`."""
        self._start(name, self._once(name, work))

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._own(asyncio.create_task(work, name=name), self._tasks.discard)

    async def _once(self, name: str, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:
            log.error("background.failed", task=name, exc_info=error)

    async def _repeat(self, name: str, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        delay_s = interval_s
        while True:
            await asyncio.sleep(delay_s)
            try:
                await work()
            except Exception as error:
                log.error("background.failed", task=name, retry_delay_s=delay_s, exc_info=error)
                delay_s = max(interval_s, min(2 * delay_s, _LONGEST_DELAY_S))
            else:
                delay_s = interval_s


T = TypeVar("T")


def awaited() -> tuple[asyncio.Future[Any], Callable[[Any], None]]:
    """Returns a future and a function that sets its result. The function does nothing when the future already has a
    result or the task that waits for it was cancelled."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def give(result: Any) -> None:
        if not future.done():
            future.set_result(result)

    return future, give


class Tasks(_Owner):
    """Owns tasks that their callers await. Only the code that awaits a task receives its CarouselError; any other error
    is also reported to the event loop."""

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts a task."""
        task = asyncio.get_running_loop().create_task(work)
        self._own(task, self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, CarouselError):
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a background task failed", "exception": error}
            )
