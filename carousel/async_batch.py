"""The asyncio batch of sessions: `carousel.batch` with asynchronous calls."""

# ruff: noqa: ASYNC109 - the same `timeout` as in the blocking client; it also covers the wait for a turn

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from carousel._async_reconnecting_stream import AsyncReconnectingStream
from carousel._batch import BatchProperties, BatchProtocol
from carousel._batch_step import StepBatchResult
from carousel._constants import Constants
from carousel._deadline import Deadline, closing_deadline
from carousel._ports import Parts
from carousel._requests import SessionPolicy, Source
from carousel._tensors import Features
from carousel.errors import CarouselError

if TYPE_CHECKING:
    from carousel.v1.inference_pb2_grpc import InferenceAsyncStub  # exists for type checkers alone


class AsyncSessionBatch(BatchProperties[AsyncReconnectingStream[BatchProtocol]]):
    """Many sessions of one model that step together, with one message for all. Made by `AsyncClient.batch`.

    Each session has a place, 0 and up, in the order of opening. Close the batch, or use `async with`: its sessions end
    with it. One task at a time may use it, except that `receive` may wait in another task. It resumes its sessions, and
    reports failures, as `SessionBatch` does.
    """

    def __init__(
        self,
        stub: InferenceAsyncStub,
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
        self._turn = nullcontext()

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
        """Opens a session and returns its place. source, session_id, constants, and errors: as in `Client.session`."""
        return (await self._open_all([(source, session_id)], constants, timeout))[0]

    async def open_many(
        self, sources: Sequence[Source | None], *, constants: Constants | None = None, timeout: float | None = None
    ) -> list[int]:
        """Opens a session for each source: see `SessionBatch.open_many`."""
        return await self._open_all([(source, "") for source in sources], constants, timeout)

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
        """Makes sessions consume tokens. Returns the model's prediction for each: see `SessionBatch.step`."""
        self._check_none_in_flight()
        self.send(tokens, features=features, places=places, top_k=top_k, logits=logits, outputs=outputs, end=end)
        return await self.receive(timeout)

    async def receive(self, timeout: float | None = None) -> StepBatchResult:
        """Waits for the answer to the oldest step in flight: see `step`. Raises LookupError when there is none."""
        return await self._stream.run(self._protocol.stepped(), Deadline(self._or_default(timeout)))

    async def close_session(self, place: int, *, timeout: float | None = None) -> None:
        """Closes one session: see `SessionBatch.close_session`."""
        await self._stream.run(
            self._protocol.close_session(place, self._stream.post), Deadline(self._or_default(timeout))
        )

    async def close(self, timeout: float | None = None) -> None:
        """Closes the sessions and the stream, and drops the steps in flight. Does nothing when it is already closed.

        timeout: seconds to wait for the server; default the batch's, or 5 if there is none. Raises nothing.
        """
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
        numbers = self._send_openings(openings)
        return [await self._stream.run(self._protocol.opened(number), deadline) for number in numbers]

    def _or_default(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout
