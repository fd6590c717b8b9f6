"""Reads the sources of `AsyncClient.generate_many` ahead, in a task. `_sources` reads them in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable

from carousel._arguments import iterable
from carousel._requests import Source


class AsyncSourceReader:
    """Reads sources in its own task, and calls `notify` after each."""

    def __init__(
        self,
        sources: Iterable[Source | None] | AsyncIterable[Source | None],
        num_ahead: int,
        notify: Callable[[], None],
    ) -> None:
        """num_ahead: how many sources it reads before the first `release`; each `release` lets it read one more."""
        self._arrived: asyncio.Queue[tuple[Source | None] | BaseException | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(num_ahead)
        self._sources = sources if isinstance(sources, AsyncIterable) else iterable(sources, "sources", "sources")
        self._notify = notify
        self._task = asyncio.create_task(self._read(), name="carousel-sources")

    @property
    def is_empty(self) -> bool:
        """Whether `next` would have to wait."""
        return self._arrived.empty()

    async def next(self) -> tuple[Source | None] | BaseException | None:
        """Waits for the next source, and returns it in a tuple; then None, or the error that the iterable raised."""
        return await self._arrived.get()

    def release(self) -> None:
        """Lets the reader read one more source."""
        self._room.release()

    async def stop(self) -> None:
        """Cancels the task, and waits for its end."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        end: BaseException | None = None
        try:
            await self._room.acquire()
            if isinstance(self._sources, AsyncIterable):
                async for source in self._sources:
                    await self._add(source)
            else:
                for source in self._sources:
                    await self._add(source)
        except (Exception, asyncio.CancelledError) as error:  # `next` returns it
            end = error
        self._arrived.put_nowait(end)
        self._notify()

    async def _add(self, source: Source | None) -> None:
        self._arrived.put_nowait((source,))
        self._notify()
        await self._room.acquire()
