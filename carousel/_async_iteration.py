"""Base class of iterators that end a call at the server when the program leaves them: generations and watches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from carousel._home import Unpicklable

T = TypeVar("T")


class AsyncIteration(Unpicklable, Generic[T]):
    """Yields items one by one. Leaving the loop early, or the `async with` block, closes it."""

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
        """Ends the iteration at the server. Raises nothing."""

    @abstractmethod
    async def _next(self) -> T | None:
        """Waits for the next item. Returns None at the end."""
