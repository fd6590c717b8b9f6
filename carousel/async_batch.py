"""The asyncio batch of sessions: `carousel.batch` with awaits."""

# ruff: noqa: ASYNC109 - the same `timeout` as in the blocking client; it also covers the wait for a turn

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from carousel import _requests
from carousel._async_stream import AsyncStream
from carousel._batch import BatchProtocol, BatchStep
from carousel._deadline import Deadline, closing_deadline
from carousel._requests import Source
from carousel.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from carousel.v1.inference_pb2_grpc import InferenceAsyncStub  # exists for type checkers alone


class AsyncSessionBatch:
    """Many sessions of one model that step together, a message for all of them. Made by `AsyncClient.batch`.

    Sessions have places, 0 and up, in the order of their opening. Close it, or use `async with`: its sessions end with
    it. For one task at a time, but for `receive`, which may wait in another.
    """

    def __init__(
        self, stub: InferenceAsyncStub, model: str, *, version: int, variant: str, timeout: float | None
    ) -> None:
        """timeout: seconds for calls that set none; None for no limit."""
        self._model = model
        self._version = version
        self._variant = variant
        self._timeout = timeout
        self._protocol = BatchProtocol()
        self._stream = AsyncStream(stub, self._protocol)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __len__(self) -> int:
        return len(self._protocol.handles)

    @property
    def positions(self) -> tuple[int, ...]:
        """Of each session, by place, the steps in flight counted."""
        return tuple(self._protocol.positions)

    async def open(self, source: Source | None = None, *, session_id: str = "", timeout: float | None = None) -> int:
        """Opens a session. Returns its place. source, session_id: as in `Client.session`. Raises what that raises."""
        return (await self._open_all([(source, session_id)], timeout))[0]

    async def open_many(self, sources: Sequence[Source | None], *, timeout: float | None = None) -> list[int]:
        """Opens a session for each source: see `SessionBatch.open_many`."""
        return await self._open_all([(source, "") for source in sources], timeout)

    async def step(
        self,
        tokens: Sequence[int] | Sequence[Sequence[int]],
        *,
        places: Sequence[int] | None = None,
        top_k: int | None = None,
        logits: bool = False,
        outputs: bool = True,
        timeout: float | None = None,
    ) -> BatchStep:
        """Makes sessions consume tokens and tells what comes next in each: see `SessionBatch.step`."""
        if self._protocol.num_in_flight:
            raise LookupError("other steps are in flight: `receive` their answers first")
        self.send(tokens, places=places, top_k=top_k, logits=logits, outputs=outputs)
        return await self.receive(timeout)

    def send(
        self,
        tokens: Sequence[int] | Sequence[Sequence[int]],
        *,
        places: Sequence[int] | None = None,
        top_k: int | None = None,
        logits: bool = False,
        outputs: bool = True,
    ) -> None:
        """Sends a step and does not wait for its answer: see `step`, and `receive`. Several may be in flight."""
        protocol = self._protocol
        places = range(len(protocol.handles)) if places is None else places
        message = _requests.frame_message(
            [protocol.handles[place] for place in places],
            tokens,
            [protocol.positions[place] for place in places],
            top_k=top_k,
            logits=logits,
            outputs=outputs,
        )
        self._stream.post(protocol.frame(message, places))

    async def receive(self, timeout: float | None = None) -> BatchStep:
        """Waits for the answer to the first of the steps in flight: see `step`. Raises LookupError without any."""
        return await self._stream.run(self._protocol.stepped(), Deadline(self._or_default(timeout)))

    async def close(self, timeout: float | None = None) -> None:
        """Ends the stream, and with it the sessions. Closing it again does nothing.

        timeout: seconds for the server to answer; default the client's, or else 5. Raises nothing.
        """
        await self._stream.end(closing_deadline(self._or_default(timeout)))

    async def _open_all(self, sessions: list[tuple[Source | None, str]], timeout: float | None) -> list[int]:
        deadline = Deadline(self._or_default(timeout))
        sent: list[pb.StreamRequest] = []
        for source, session_id in sessions:
            message = _requests.open_message(self._model, source=source, version=self._version, variant=self._variant)
            sent.append(self._protocol.open(message, session_id))
        for request in sent:
            self._stream.post(request)
        return [await self._stream.run(self._protocol.opened(request.request_id), deadline) for request in sent]

    def _or_default(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout
