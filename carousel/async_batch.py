"""The asyncio batch of sessions."""

# ruff: noqa: ASYNC109 - the same `timeout` as in the blocking client; it also covers the wait for a turn

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from carousel._arguments import iterable
from carousel._async_reconnecting_stream import AsyncReconnectingStream
from carousel._async_turn import AsyncTurn
from carousel._batch import BatchProtocol
from carousel._batch_properties import BatchProperties
from carousel._batch_step import StepBatchResult
from carousel._constants import Constants
from carousel._deadline import Deadline, closing_deadline
from carousel._ports import Parts
from carousel._requests import SessionPolicy, Source
from carousel._tensors import Features
from carousel.errors import CarouselError
from carousel.v1 import inference_pb2_grpc


class AsyncSessionBatch(BatchProperties[AsyncReconnectingStream[BatchProtocol]]):
    """Many sessions of one model that step together, with one message for all: for gateways. Made by
    `AsyncClient.batch`.

    Each session has a place, 0 and up, in the order of opening. Close the batch, or use `async with`: its sessions end
    with it. One task at a time may use it, except that `receive` may wait in another task.

    When the stream is lost, or the server shuts down, the client resumes the sessions on another stream and sends the
    unanswered steps again, unless `on_disconnect` is `free`. A session that cannot be resumed has ended: each later
    step reports the reason in `StepBatchResult.errors` and steps the other sessions. After the whole batch has ended,
    each call raises the error that ended it; after `close`, FailedPreconditionError.
    """

    _turn: AsyncTurn

    def __init__(
        self,
        stub: inference_pb2_grpc.InferenceAsyncStub,
        model: str,
        *,
        version: int,
        variant: str,
        policy: SessionPolicy,
        resume_timeout: float,
        timeout: float | None,
    ) -> None:
        """timeout: default in seconds for all calls; None for no limit."""
        self._model = model
        self._version = version
        self._variant = variant
        self._timeout = timeout
        self._protocol = BatchProtocol(policy, resume_timeout)
        self._stream = AsyncReconnectingStream(stub, self._protocol, "batch")
        self._turn = AsyncTurn("batch")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def open(
        self,
        source: Source | None = None,
        *,
        session_id: str = "",
        constants: Constants | None = None,
        timeout: float | None = None,
    ) -> int:
        """Opens a session and returns its place.

        source, session_id, constants, and errors: as in `AsyncClient.session`.
        If the stream is lost before the answer, the opening is sent again, unless the program chose the id.
        """
        places = await self._open_all([(source, session_id)], constants, timeout)
        return places[0]

    async def open_many(
        self, sources: Sequence[Source | None], *, constants: Constants | None = None, timeout: float | None = None
    ) -> list[int]:
        """Opens a session for each source and returns their places. A source is None for a model without an encoder.
        constants: for all of them.

        Raises the errors of `AsyncClient.session` for the first one that is refused. The sessions before it are open.
        Sessions after it may be open too, but have no place: they end with the batch.
        """
        return await self._open_all(
            [(source, "") for source in iterable(sources, "sources", "sources")], constants, timeout
        )

    async def step(
        self,
        tokens: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        features: Features | Parts | None = None,
        places: Sequence[int] | None = None,
        top_k: int | None = None,
        logits: bool = False,
        outputs: bool = True,
        end: bool | Sequence[bool] = False,
        timeout: float | None = None,
    ) -> StepBatchResult:
        """Makes sessions consume tokens, in one round trip. Returns the model's prediction for each.

        tokens: for each session, one token id or a sequence of them.
        features: for models that read vectors, in place of tokens: one vector for each session, a dict of named parts
            as in `AsyncSession.feed`, or the numbers of all vectors in one sequence.
        places: which sessions; default all, except those that `close_session` has closed.
        top_k, logits, outputs: as in `AsyncSession.feed`.
        end: as in `AsyncSession.feed`, for all these sessions, or one flag for each.
        timeout: seconds; default the batch's.

        `StepBatchResult.errors` has the sessions that were refused; the others are stepped. An OutOfRangeError with
        reason OUTPUTS_LOST means: the session consumed the tokens, but the connection was lost before the answer came.
        The session continues from its position.

        Raises InvalidArgumentError when the step itself is wrong; IndexError for an unknown place; LookupError when
        other steps are in flight; DeadlineExceededError when no answer came in time, and UnavailableError when the
        sessions were not resumed within `resume_timeout`. After these two the step is still in flight, and `receive`
        waits for it again.
        """
        with self._turn:
            self._check_none_in_flight()
            deadline = Deadline(self._or_default(timeout))  # refuses a wrong timeout before anything is sent
            self._send(tokens, features, places, top_k=top_k, logits=logits, outputs=outputs, end=end)
            return await self._stream.run(self._protocol.stepped(), deadline)

    async def receive(self, timeout: float | None = None) -> StepBatchResult:
        """Waits for the answer to the oldest step in flight: see `step`. Raises LookupError when there is none."""
        with self._turn:
            return await self._stream.run(self._protocol.stepped(), Deadline(self._or_default(timeout)))

    async def close_session(self, place: int, *, timeout: float | None = None) -> None:
        """Closes one session. The others stay open, and its place stays empty. Does nothing when it is already closed.

        place: as `open` returned it. timeout: seconds; default the batch's. Raises IndexError for an unknown place,
        LookupError while a step of the session is in flight, DeadlineExceededError and UnavailableError when the server
        does not answer; the session is closed when the answer arrives.
        """
        exchange = self._protocol.close_session(place, self._stream.post)
        with self._turn:
            await self._stream.run(exchange, Deadline(self._or_default(timeout)))

    async def close(self, timeout: float | None = None) -> None:
        """Closes the sessions and the stream, and drops the steps in flight. Does nothing when it is already closed.

        timeout: seconds to wait for the server; default the batch's, or 5 if there is none. Raises nothing.
        """
        if not self._turn.is_here:
            return  # in a forked process, the sessions still belong to the parent
        with self._turn:
            deadline = closing_deadline(self._or_default(timeout))
            try:
                with suppress(CarouselError):
                    await self._stream.run(self._protocol.close(self._stream.post), deadline, is_closing=True)
            finally:
                self._protocol.closed()
                await self._stream.end(deadline)

    async def _open_all(
        self, sessions: list[tuple[Source | None, str]], constants: Constants | None, timeout: float | None
    ) -> list[int]:
        deadline = Deadline(self._or_default(timeout))
        openings = [
            self._protocol.opening(
                self._model, source, session_id, version=self._version, variant=self._variant, constants=constants
            )
            for source, session_id in sessions
        ]
        with self._turn:
            numbers = self._send_openings(openings)
            return [await self._stream.run(self._protocol.opened(number), deadline) for number in numbers]

    def _or_default(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout
