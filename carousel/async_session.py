"""The asyncio session and generation: `carousel.session` with asynchronous calls."""

# ruff: noqa: ASYNC109 - the same `timeout` as in the blocking client; it also covers the wait for a turn

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from carousel import _requests
from carousel._async_iteration import AsyncIteration
from carousel._async_reconnecting_stream import AsyncReconnectingStream
from carousel._deadline import Deadline, closing_deadline
from carousel._decoding import decoding_message
from carousel._generation import GenerationState
from carousel._home import Unpicklable
from carousel._ports import Parts
from carousel._properties import GenerationProperties, SessionProperties
from carousel._protocol import SessionProtocol
from carousel._requests import Source, Tokens
from carousel._tensors import Features, Vector
from carousel.async_sessions import AsyncSessions
from carousel.errors import CarouselError
from carousel.session import token_of, vector_of
from carousel.v1 import inference_pb2 as pb
from carousel.values import DecodingOptions, Step, TargetScore, Token

if TYPE_CHECKING:
    from carousel.v1.inference_pb2_grpc import InferenceAsyncStub  # exists for type checkers alone


class AsyncGeneration(GenerationProperties, AsyncIteration[Token]):
    """Yields tokens one by one, as the server chooses them. Made by `AsyncClient.generate` and `AsyncSession.generate`.

    A model that outputs values yields one `ValueToken` a step. A generation can be iterated once. Leaving the loop
    early, or `aclose`, ends the generation at the server. After a `break`, asyncio closes the iterator a moment later:
    to end the generation and know the session's position at once, use `async with` or `aclose`. Raises the error that
    ended it
    early: see `carousel.errors`. One task at a time may use it.
    """

    def __init__(
        self, state: GenerationState, pull: Callable[[], Awaitable[None]], leave: Callable[[], Awaitable[None]]
    ) -> None:
        """pull: waits until the state is ready. leave: ends the generation at the server; it must not raise."""
        self._state = state
        self._pull = pull
        self._leave = leave

    async def aclose(self) -> None:
        """Ends the generation at the server, if it still runs, and drops the tokens that were not read.

        After this call, the session's position is known. Raises nothing: if the session failed, its next call raises
        the error.
        """
        await self._leave()

    async def vectors(self) -> list[Vector]:
        """Waits for the end of the generation. Returns the values of each step: see `Generation.vectors`."""
        found: list[Vector] = []
        async with self:
            while (vector := await self._take()) is not None:
                found.append(vector_of(vector))
        return found

    async def _next(self) -> Token | None:
        item = await self._take()
        return None if item is None else token_of(item)

    async def _take(self) -> Token | Vector | None:
        while not self._state.is_ready:
            await self._pull()
        return self._state.take()


class AsyncSession(SessionProperties):
    """A sequence whose state the server keeps between calls. Made by `AsyncClient.session`; close it, or use
    `async with`.

    Tasks of one event loop may share it: their calls take turns. Another event loop gets ConcurrentUseError. A session
    cannot be pickled or used in a forked process: see `Client`.
    """

    def __init__(
        self, stub: InferenceAsyncStub, protocol: SessionProtocol, timeout: float | None, sessions: AsyncSessions
    ) -> None:
        """Does not open the session: see `SessionOpening`. timeout: default in seconds for all calls; None for no
        limit."""
        self._timeout = timeout
        self._protocol = protocol
        self._sessions = sessions
        self._stub = stub
        self._stream = AsyncReconnectingStream(stub, protocol)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def feed(
        self,
        tokens: Tokens | None = None,
        *,
        features: Features | Parts | None = None,
        top_k: int | None = None,
        logits: bool = False,
        outputs: bool = True,
        every_position: bool = False,
        mark: bool = False,
        trace: bool = False,
        end: bool = False,
        timeout: float | None = None,
    ) -> Step:
        """Makes the session consume tokens or vectors. Returns the model's prediction: see `Session.feed`.

        If the task is cancelled, also by `asyncio.wait_for`, the feed is cancelled at the server: `position` then says
        how much was consumed, and the rest may be fed from there. If the server does not answer within a second, the
        next call learns the position, and raises PositionMismatchError once if the feed had moved the session. A feed
        that reached its own `timeout` stays in flight: sending it again is safe.
        """
        message = _requests.feed_message(
            tokens,
            features=_requests.vectors(features, self._protocol.inputs, "feed.features", is_last=end),
            feature_size=self._protocol.feature_size,
            top_k=top_k,
            logits=logits,
            outputs=outputs,
            every_position=every_position,
            mark=mark,
            trace=trace,
        )
        return await self._stream.run(self._protocol.feed(message), Deadline(self._or_default(timeout)))

    def generate(self, *, timeout: float | None = None, **decoding: Unpack[DecodingOptions]) -> AsyncGeneration:
        """Lets the server choose the next tokens: see `Session.generate`."""
        message = decoding_message(**decoding)
        state = GenerationState(message)
        deadline: Deadline | None = None

        async def pull() -> None:
            nonlocal deadline
            deadline = deadline or Deadline(self._or_default(timeout))
            await self._stream.run(self._protocol.pull(state, message), deadline)

        async def leave() -> None:
            with suppress(CarouselError):
                await self._stream.run(self._protocol.leave(state), deadline or Deadline(None))

        return AsyncGeneration(state, pull, leave)

    async def forecast(self, horizon: int, *, timeout: float | None = None) -> list[Vector]:
        """Lets a model that outputs values continue from the session's position: see `Session.forecast`."""
        return await self.generate(max_tokens=horizon, timeout=timeout).vectors()

    async def score(
        self, targets: Sequence[Source], *, with_end: bool = False, timeout: float | None = None
    ) -> tuple[TargetScore, ...]:
        """Returns how likely each target is from the session's position: see `Session.score`."""
        message = _requests.score_message(targets, with_end=with_end)
        return await self._stream.run(self._protocol.score(message), Deadline(self._or_default(timeout)))

    async def rewind(self, position: int, *, timeout: float | None = None) -> None:
        """Sets the session back to a mark: see `Session.rewind`."""
        deadline = Deadline(self._or_default(timeout))
        await self._stream.rewind(position, lambda: self._sessions.rewind(self.id, position), deadline)

    async def cancel(self, *, timeout: float | None = None) -> int:
        """Cancels what is in flight, including another task's call: see `Session.cancel`.

        Calls of other tasks that wait for their turn are not cancelled.
        """
        return await self._stream.cancel(Deadline(self._or_default(timeout)))

    async def close(self, timeout: float | None = None) -> None:
        """Closes the session and its stream: see `Session.close`."""
        deadline = closing_deadline(self._or_default(timeout))
        try:
            with suppress(CarouselError):
                await self._stream.run(self._protocol.close(), deadline, is_closing=True)
        finally:
            await self._stream.end(deadline)

    async def _open(self, request: pb.Open) -> None:
        deadline = Deadline(self._timeout)
        while True:
            try:
                await self._stream.run(self._protocol.open(request), deadline)
                return
            except CarouselError as error:
                await self._stream.end(closing_deadline(deadline.remaining()))
                if not self._protocol.reroute(error):
                    raise
                self._stream = AsyncReconnectingStream(self._stub, self._protocol)
            except BaseException:
                await self._stream.end(Deadline(0))
                raise

    def _or_default(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout


class SessionOpening(Unpicklable):
    """What `AsyncClient.session` returns: `await` it to get an open session, or enter it with `async with`.

    It opens one session. Awaiting or entering it again returns the same session.
    """

    def __init__(
        self,
        stub: InferenceAsyncStub,
        request: pb.Open,
        protocol: SessionProtocol,
        timeout: float | None,
        sessions: AsyncSessions,
    ) -> None:
        self._arguments = (stub, protocol, timeout, sessions)
        self._request = request
        self._session: AsyncSession | None = None

    def __await__(self) -> Generator[object, None, AsyncSession]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncSession:
        return await self._open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def _open(self) -> AsyncSession:
        if self._session is None:
            session = AsyncSession(*self._arguments)
            await session._open(self._request)
            self._session = session
        return self._session
