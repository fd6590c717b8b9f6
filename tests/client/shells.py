"""One interface for both clients, so that they run the same scenarios."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from carousel import (
    AsyncClient,
    AsyncGeneration,
    AsyncSession,
    Client,
    Generation,
    ModelInfo,
    Session,
    SessionInfo,
    SessionStep,
    Step,
    TargetScore,
    Token,
    WatchEvent,
)


class Shell(ABC):
    """A client. Keyword arguments are passed to the client's methods."""

    @abstractmethod
    def __init__(self, target: str, **options: Any) -> None: ...
    @abstractmethod
    async def open(self, model: str = "toy", source: Any = "ab", **options: Any) -> OpenSession: ...
    @abstractmethod
    async def generate(self, model: str, source: Any = "ab", **options: Any) -> list[Token]: ...
    @abstractmethod
    async def generate_one(self, model: str, source: Any, **options: Any) -> Token:
        """Returns the first token and leaves the generation."""

    @abstractmethod
    async def score(self, model: str, targets: Any, **options: Any) -> tuple[TargetScore, ...]: ...
    @abstractmethod
    async def step(self, session_id: str = "", tokens: Any = None, **options: Any) -> SessionStep: ...
    @abstractmethod
    async def watch(self, session_id: str, count: int | None = None, **options: Any) -> list[WatchEvent]:
        """Returns `count` events and leaves the watch; None: returns all events."""

    @abstractmethod
    async def models(self) -> tuple[ModelInfo, ...]: ...
    @abstractmethod
    async def model(self, name: str) -> ModelInfo: ...
    @abstractmethod
    async def load_models(self, name: str = "", version: int = 0) -> tuple[ModelInfo, ...]: ...
    @abstractmethod
    async def unload_model(self, name: str, version: int) -> int: ...
    @abstractmethod
    async def list_sessions(self, model: str | None = None) -> list[SessionInfo]: ...
    @abstractmethod
    async def get_session(self, session_id: str) -> SessionInfo: ...
    @abstractmethod
    async def close_session(self, session_id: str) -> int: ...
    @abstractmethod
    async def close(self) -> None: ...


class OpenSession(ABC):
    """An open session. facts: the client's session object, for its attributes."""

    facts: Session | AsyncSession

    @abstractmethod
    async def feed(self, tokens: Any, **options: Any) -> Step: ...
    @abstractmethod
    def generate(self, **options: Any) -> Generation | AsyncGeneration: ...
    @abstractmethod
    async def cancel(self) -> int: ...
    @abstractmethod
    async def close(self) -> None: ...


class BlockingShell(Shell):
    def __init__(self, target: str, **options: Any) -> None:
        self.client = Client(target, **options)

    async def open(self, model: str = "toy", source: Any = "ab", **options: Any) -> OpenSession:
        return BlockingSession(self.client.session(model, source, **{"on_disconnect": "free", **options}))

    async def generate(self, model: str, source: Any = "ab", **options: Any) -> list[Token]:
        return list(self.client.generate(model, source, **options))

    async def generate_one(self, model: str, source: Any, **options: Any) -> Token:
        for token in self.client.generate(model, source, **options):
            return token
        raise AssertionError("no token came")

    async def score(self, model: str, targets: Any, **options: Any) -> tuple[TargetScore, ...]:
        return self.client.score(model, targets, **options)

    async def step(self, session_id: str = "", tokens: Any = None, **options: Any) -> SessionStep:
        return self.client.step(session_id, tokens, **options)

    async def watch(self, session_id: str, count: int | None = None, **options: Any) -> list[WatchEvent]:
        with self.client.watch(session_id, **options) as watch:
            return list(watch) if count is None else [next(watch) for _ in range(count)]

    async def models(self) -> tuple[ModelInfo, ...]:
        return self.client.models()

    async def model(self, name: str) -> ModelInfo:
        return self.client.model(name)

    async def load_models(self, name: str = "", version: int = 0) -> tuple[ModelInfo, ...]:
        return self.client.load_models(name, version)

    async def unload_model(self, name: str, version: int) -> int:
        return self.client.unload_model(name, version)

    async def list_sessions(self, model: str | None = None) -> list[SessionInfo]:
        return list(self.client.sessions.list(model))

    async def get_session(self, session_id: str) -> SessionInfo:
        return self.client.sessions.get(session_id)

    async def close_session(self, session_id: str) -> int:
        return self.client.sessions.close(session_id)

    async def close(self) -> None:
        self.client.close()


class BlockingSession(OpenSession):
    def __init__(self, session: Session) -> None:
        self.facts = self._session = session

    async def feed(self, tokens: Any, **options: Any) -> Step:
        return self._session.feed(tokens, **options)

    def generate(self, **options: Any) -> Generation:
        return self._session.generate(**options)

    async def cancel(self) -> int:
        return self._session.cancel()

    async def close(self) -> None:
        self._session.close()


class AsyncioShell(Shell):
    def __init__(self, target: str, **options: Any) -> None:
        self.client = AsyncClient(target, **options)

    async def open(self, model: str = "toy", source: Any = "ab", **options: Any) -> OpenSession:
        return AsyncioSession(await self.client.session(model, source, **{"on_disconnect": "free", **options}))

    async def generate(self, model: str, source: Any = "ab", **options: Any) -> list[Token]:
        return [token async for token in self.client.generate(model, source, **options)]

    async def generate_one(self, model: str, source: Any, **options: Any) -> Token:
        async with self.client.generate(model, source, **options) as generation:
            async for token in generation:
                return token
        raise AssertionError("no token came")

    async def score(self, model: str, targets: Any, **options: Any) -> tuple[TargetScore, ...]:
        return await self.client.score(model, targets, **options)

    async def step(self, session_id: str = "", tokens: Any = None, **options: Any) -> SessionStep:
        return await self.client.step(session_id, tokens, **options)

    async def watch(self, session_id: str, count: int | None = None, **options: Any) -> list[WatchEvent]:
        async with self.client.watch(session_id, **options) as watch:
            if count is None:
                return [event async for event in watch]
            return [await anext(watch) for _ in range(count)]

    async def models(self) -> tuple[ModelInfo, ...]:
        return await self.client.models()

    async def model(self, name: str) -> ModelInfo:
        return await self.client.model(name)

    async def load_models(self, name: str = "", version: int = 0) -> tuple[ModelInfo, ...]:
        return await self.client.load_models(name, version)

    async def unload_model(self, name: str, version: int) -> int:
        return await self.client.unload_model(name, version)

    async def list_sessions(self, model: str | None = None) -> list[SessionInfo]:
        return [info async for info in self.client.sessions.list(model)]

    async def get_session(self, session_id: str) -> SessionInfo:
        return await self.client.sessions.get(session_id)

    async def close_session(self, session_id: str) -> int:
        return await self.client.sessions.close(session_id)

    async def close(self) -> None:
        await self.client.close()


class AsyncioSession(OpenSession):
    def __init__(self, session: AsyncSession) -> None:
        self.facts = self._session = session

    async def feed(self, tokens: Any, **options: Any) -> Step:
        return await self._session.feed(tokens, **options)

    def generate(self, **options: Any) -> AsyncGeneration:
        return self._session.generate(**options)

    async def cancel(self) -> int:
        return await self._session.cancel()

    async def close(self) -> None:
        await self._session.close()


async def take(generation: Generation | AsyncGeneration, count: int | None = None) -> list[Token]:
    """Returns the next `count` tokens of a generation; None: all remaining tokens."""
    tokens: list[Token] = []
    while count is None or len(tokens) < count:
        try:
            tokens.append(await anext(generation) if isinstance(generation, AsyncGeneration) else next(generation))
        except (StopIteration, StopAsyncIteration):
            break
    return tokens


async def leave(generation: Generation | AsyncGeneration) -> None:
    """Closes a generation."""
    if isinstance(generation, AsyncGeneration):
        await generation.aclose()
    else:
        generation.close()
