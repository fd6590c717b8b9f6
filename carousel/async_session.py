"""The asyncio session and generation."""

# ruff: noqa: ASYNC109 - the same `timeout` as in the blocking client; it also covers the wait for a turn

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self, Unpack

from carousel import _requests
from carousel._async_iteration import AsyncIteration
from carousel._async_reconnecting_stream import AsyncReconnectingStream
from carousel._deadline import Deadline, closing_deadline
from carousel._decoding import decoding_message
from carousel._exchange import Exchange
from carousel._generation import GenerationState, token_of, vector_of
from carousel._ports import Parts
from carousel._properties import GenerationProperties, SessionProperties
from carousel._protocol import SessionProtocol
from carousel._requests import Source, Tokens
from carousel._session_errors import generation_in_use
from carousel._tensors import Features, Vector
from carousel._tokens import uint
from carousel.async_sessions import AsyncSessions
from carousel.decoding_options import DecodingOptions
from carousel.errors import CarouselError, ConcurrentUseError
from carousel.v1 import inference_pb2 as pb
from carousel.v1 import inference_pb2_grpc
from carousel.values import Step, TargetScore, Token


class AsyncGeneration(GenerationProperties, AsyncIteration[Token]):
    """Yields tokens one by one, as the server chooses them. Made by `AsyncClient.generate` and `AsyncSession.generate`.

    A model that outputs values yields one `ValueToken` a step. A generation can be iterated once. Leaving the loop
    early, or `aclose`, ends the generation at the server. Raises the error that ended it early: see `carousel.errors`.
    One task at a time may use it. After a `break`, asyncio closes the iterator a moment later: to end the
    generation and know the session's position at once, use `async with` or `aclose`.
    """

    def __init__(
        self, state: GenerationState, pull: Callable[[], Awaitable[None]], leave: Callable[[], Awaitable[None]]
    ) -> None:
        """pull: waits until the state is ready. leave: ends the generation at the server; it must not raise."""
        self._state = state
        self._pull = pull
        self._leave = leave
        self._is_pulling = False

    async def vectors(self) -> list[Vector]:
        """Waits for the end of the generation. Returns the values of each step, for a model that outputs values.

        Raises TypeError for a model that generates tokens, when the first one has come: a session has moved by then.
        """
        async with self:
            found: list[Vector] = []
            while (item := await self._take()) is not None:
                found.append(vector_of(item))
            return found

    async def aclose(self) -> None:
        """Ends the generation at the server, if it still runs, and drops the tokens that were not read.

        After this call, the session's position is known if the server answered. Raises nothing: if the session failed,
        its next call raises the error.
        """
        await self._leave()

    async def _next(self) -> Token | None:
        item = await self._take()
        return None if item is None else token_of(item)

    async def _take(self) -> Token | Vector | None:
        if self._is_pulling:
            raise generation_in_use("task")
        if not self._state.is_ready:
            self._is_pulling = True
            try:
                while not self._state.is_ready:
                    await self._pull()
            finally:
                self._is_pulling = False
        return self._state.take()


class AsyncSession(SessionProperties):
    """A sequence whose state the server keeps between calls. Made by `AsyncClient.session`; close it, or use
    `async with`.

    Tasks of one event loop may share it: their calls take turns, but one task at a time may use a generation. Another
    event loop gets ConcurrentUseError. A session cannot be pickled or used in a forked process: see `AsyncClient`.
    """

    def __init__(
        self,
        stub: inference_pb2_grpc.InferenceAsyncStub,
        protocol: SessionProtocol,
        timeout: float | None,
        sessions: AsyncSessions,
    ) -> None:
        """Does not open the session: see `_opened`. timeout: default in seconds for all calls; None for no limit."""
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
        """Makes the session consume tokens, or feature vectors. Returns the model's prediction of what comes next.

        tokens: names or ids, or one of them.
        features: for models that read vectors, in place of tokens: [steps, features] as nested sequences of numbers or
            as an array, such as NumPy's; or [numbers], the numbers of one or more steps in one sequence. For a model
            with named inputs (see `inputs`), a dict of those names, each [steps, ...] or, for one step, [...].
            `carousel.Frames` cuts samples that arrive in any number into steps.
        top_k: return the k most likely tokens with log-probabilities. Default: the most likely token, or the values of
            a model that outputs values.
        logits: return the logits of the whole vocabulary.
        outputs: False returns only the position.
        every_position: return an output after each token, not only after the last.
        mark: keep the session's state after this feed, for `rewind`.
        trace: also return the gates and states inside the steps, for models with a trace.
        end: this feed is the session's last; for models that read this flag, with features by name.
        timeout: seconds; default the session's.

        Raises InvalidArgumentError for a token outside the vocabulary, no tokens, or numbers that do not fill the last
        step; the session is unchanged. ResourceExhaustedError when the feed is too large for the server.
        DeadlineExceededError when no answer came in time: send the same feed again, the server applies it once. Any
        other call except `close` cancels that feed. If that feed had moved the session, the next feed, score or
        generation raises PositionMismatchError once; then `position` is right. UnavailableError when the session was
        not resumed within `resume_timeout`; a later call tries again. SessionClosedError and NotFoundError when the
        session no longer exists.

        If the task is cancelled, also by `asyncio.wait_for`, the feed is cancelled at the server: `position` then says
        how much was consumed, and the rest may be fed from there. If the server does not answer within a second, the
        next call learns the position, and raises PositionMismatchError once if the feed had moved the session. A feed
        that reached its own `timeout` stays in flight: sending it again is safe.
        """

        def exchange() -> Exchange[Step]:  # builds the message inside the turn, so `cancel` waits for a large one
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
            return (yield from self._protocol.feed(message))

        return await self._stream.run(exchange(), Deadline(self._or_default(timeout)))

    def generate(self, *, timeout: float | None = None, **decoding: Unpack[DecodingOptions]) -> AsyncGeneration:
        """Lets the server choose the next tokens, from the session's position. It starts at the first `next`.

        decoding: see `DecodingOptions`. timeout: seconds for the whole generation, from its start; default the
        session's. The session's next call ends an unfinished generation.
        """
        message = decoding_message("generate", **decoding)
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
        """Lets a model that outputs values continue from the session's position, which moves by `horizon`.

        horizon: steps, 1 to the server's limit. timeout: seconds for the whole forecast; default the session's. Returns
        `horizon` vectors. Raises InvalidArgumentError for a model that cannot forecast, and the errors of `feed`.
        """
        _requests.check_can_forecast(self.feature_size)
        return await self.generate(max_tokens=horizon, timeout=timeout).vectors()

    async def score(
        self, targets: Sequence[Source], *, with_end: bool = False, timeout: float | None = None
    ) -> tuple[TargetScore, ...]:
        """Returns how likely each target is from the session's position, which does not change.

        targets: a list of sequences; each is text, token names or token ids. with_end: also score the end token after
        each target. timeout: seconds; default the session's.

        Raises InvalidArgumentError for a token outside the vocabulary, no targets, or more targets than the server
        accepts at once; ResourceExhaustedError when the server has too many in progress; and the errors of `feed`.
        """

        def exchange() -> Exchange[tuple[TargetScore, ...]]:  # builds the message inside the turn, as in `feed`
            return (yield from self._protocol.score(_requests.score_message(targets, with_end=with_end)))

        return await self._stream.run(exchange(), Deadline(self._or_default(timeout)))

    async def rewind(self, position: int, *, timeout: float | None = None) -> None:
        """Sets the session back to a mark. Ends an unfinished generation first.

        timeout: seconds; default the session's. Raises FailedPreconditionError when there is no mark at that position,
        InvalidArgumentError for a position below 0, and the errors of `feed`.
        """
        position, deadline = uint(position, 64, "position"), Deadline(self._or_default(timeout))
        await self._stream.rewind(position, lambda: self._sessions.rewind(self.id, position), deadline)

    async def cancel(self, *, timeout: float | None = None) -> int:
        """Cancels what is in flight: another task's call, which raises RequestCancelledError, or what an earlier call
        left behind: a generation, or a feed that ran out of time. Such a feed may be consumed in part. While the
        connection is lost, it first waits for the resume.

        timeout: seconds; default the session's. Calls that wait for their turn continue. Returns the session's
        position; the session can be used from there.
        """
        return await self._stream.cancel(Deadline(self._or_default(timeout)))

    async def close(self, timeout: float | None = None) -> None:
        """Closes the session and its stream. Does nothing when it is already closed.

        timeout: seconds to wait for the server; default the session's, or 5 if there is none. Raises ConcurrentUseError
        in another event loop, and nothing else. If the server does not answer, it handles the end of the stream as
        `on_disconnect` says.
        """
        deadline = closing_deadline(0.0 if self.closed else self._or_default(timeout))
        try:
            await self._stream.run(self._protocol.close(), deadline, is_closing=True)
        except ConcurrentUseError:
            raise
        except CarouselError:
            self._protocol.abandon()
        except BaseException:
            await self._stream.end(deadline)
            raise
        await self._stream.end(deadline)

    @classmethod
    async def _opened(
        cls,
        stub: inference_pb2_grpc.InferenceAsyncStub,
        request: pb.Open,
        protocol: SessionProtocol,
        timeout: float | None,
        sessions: AsyncSessions,
    ) -> Self:
        """Opens a session. timeout: for the opening, and the default for all calls."""
        deadline = Deadline(timeout)  # refuses a wrong timeout before there is a stream
        session = cls(stub, protocol, timeout, sessions)
        await session._open(request, deadline)
        return session

    async def _open(self, request: pb.Open, deadline: Deadline) -> None:
        while True:
            try:
                await self._stream.run(self._protocol.open(request), deadline)
                return
            except CarouselError as error:
                await self._stream.end(closing_deadline(deadline.remaining()))
                if not self._protocol.reroute(error):
                    raise
            except BaseException:
                await self._stream.end(Deadline(0))
                raise
            self._stream = AsyncReconnectingStream(self._stub, self._protocol)

    def _or_default(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout
