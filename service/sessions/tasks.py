"""Tasks that finish whatever becomes of who asked for them: half of an opening, a spill or a claim must not be left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from service.errors import CarouselError

T = TypeVar("T")


def call_guarded(call: Callable[..., object], *args: object) -> bool:
    """Calls what belongs to one of many: what it raises is reported, and costs the others nothing. Returns whether it
    raised nothing."""
    try:
        call(*args)
    except Exception as error:
        asyncio.get_running_loop().call_exception_handler(
            {"message": "a callback of sessions failed", "exception": error}
        )
        return False
    return True


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
