"""What is iterated over once, and ends at the server when it is left: generations and watches, and those of asyncio."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from carousel._home import Unpicklable

T = TypeVar("T")


class Iteration(Unpicklable, Generic[T]):
    """One item after the other. Leaving the loop early, or the `with`, closes it."""

    def __iter__(self) -> Iterator[T]:
        try:
            while (item := self._next()) is not None:
                yield item
        finally:
            self.close()

    def __next__(self) -> T:
        item = self._next()
        if item is None:
            raise StopIteration
        return item

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Ends it. Raises nothing."""

    @abstractmethod
    def _next(self) -> T | None:
        """Waits for an item; None at the end."""


class AsyncIteration(Unpicklable, Generic[T]):
    """See `Iteration`."""

    async def __aiter__(self) -> AsyncIterator[T]:
        try:
            while (item := await self._next()) is not None:
                yield item
        finally:
            await self.aclose()

    async def __anext__(self) -> T:
        item = await self._next()
        if item is None:
            raise StopAsyncIteration
        return item

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @abstractmethod
    async def aclose(self) -> None:
        """Ends it. Raises nothing."""

    @abstractmethod
    async def _next(self) -> T | None:
        """Waits for an item; None at the end."""
