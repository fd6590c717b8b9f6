"""Tasks that run beside calls: none ends without a word, and a periodic one never ends by an error. And futures whose
task may have given up waiting.

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


class Background:
    """The tasks. `stop` cancels those that are left."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def repeat(self, name: str, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        """Does the work every `interval_s`, for ever. An error is logged as `background.failed`; the next attempt comes
        after `interval_s`, and after twice as long for each further error in a row, up to 30 s."""
        self._start(name, self._repeat(name, interval_s, work))

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Does the work once. An error is logged as `background.failed`."""
        self._start(name, self._once(name, work))

    async def stop(self) -> None:
        """Cancels every task, and waits until all have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)  # the event loop itself holds tasks by weak references alone
        task.add_done_callback(self._tasks.discard)

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
    """A future, and the function that gives it its result; nothing happens when the task that waits for it has given
    up, or when it has a result."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def give(result: Any) -> None:
        if not future.done():
            future.set_result(result)

    return future, give


class Tasks:
    """Owns tasks until they end. A domain error goes to whoever awaits the task; any other is reported. Event loop
    only."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Starts a task."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def stop(self) -> None:
        """Cancels those that have not ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, CarouselError):
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a task of sessions failed", "exception": error}
            )
