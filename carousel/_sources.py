"""Reads the sources of `Client.generate_many` ahead, in a thread. `_async_sources` reads them in a task."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable

from carousel import _waiting
from carousel._arguments import iterable
from carousel._deadline import Deadline
from carousel._requests import Source


class SourceReader:
    """Reads sources in its own thread, and calls `notify` after each."""

    def __init__(self, sources: Iterable[Source | None], num_ahead: int, notify: Callable[[], None]) -> None:
        """num_ahead: how many sources it reads before the first `release`; each `release` lets it read one more."""
        self._arrived: queue.SimpleQueue[tuple[Source | None] | Exception | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(num_ahead)
        self._is_stopped = False
        self._sources = iterable(sources, "sources", "sources")
        self._notify = notify
        threading.Thread(target=self._read, name="carousel-sources", daemon=True).start()

    @property
    def is_empty(self) -> bool:
        """Whether `next` would have to wait."""
        return self._arrived.empty()

    def next(self) -> tuple[Source | None] | BaseException | None:
        """Waits for the next source, and returns it in a tuple; then None, or the error that the iterable raised."""
        return _waiting.get(self._arrived, Deadline(None))

    def release(self) -> None:
        """Lets the reader read one more source."""
        self._room.release()

    def stop(self) -> None:
        """Makes the reader end after the source that it waits for."""
        self._is_stopped = True
        self._room.release()

    def _read(self) -> None:
        end: Exception | None = None
        try:
            self._room.acquire()
            for source in self._sources:
                self._arrived.put((source,))
                self._notify()
                self._room.acquire()
                if self._is_stopped:
                    return
        except Exception as error:  # `next` returns it
            end = error
        self._arrived.put(end)
        self._notify()
