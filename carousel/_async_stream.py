"""One gRPC stream of a session or batch, for asyncio. `_stream` has the same for blocking callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from carousel import _answers
from carousel._channel import session_metadata
from carousel._deadline import Deadline
from carousel._resumable import StreamOwner
from carousel.errors import CarouselError, InternalError, UnavailableError
from carousel.v1 import inference_pb2_grpc
from carousel.v1.inference_pb2 import StreamRequest, StreamResponse


class AsyncStream:
    """One gRPC stream. One task at a time may receive.

    gRPC cancels a stream when a task that reads or writes it is cancelled. So a stream has two tasks that a caller's
    cancellation does not reach: gRPC's task sends requests from the outbox, and the reader task puts responses into the
    inbox. When the stream ends, for any reason, the reader puts the error into the inbox as the last item, stops gRPC's
    task and ends.
    """

    def __init__(self, stub: inference_pb2_grpc.InferenceAsyncStub, owner: StreamOwner) -> None:
        self._outbox: asyncio.Queue[StreamRequest | None] = asyncio.Queue()
        self._inbox: asyncio.Queue[StreamResponse | CarouselError | None] = asyncio.Queue()
        self._call = stub.Stream(self._requests(), metadata=session_metadata(owner.id, owner.route))
        self._reader = asyncio.create_task(self._read(), name="carousel-stream")

    def post(self, request: StreamRequest) -> None:
        """Sends a request."""
        self._outbox.put_nowait(request)

    async def end(self, deadline: Deadline) -> None:
        """Ends the request side, waits for the server to end the stream, and cancels the stream at the deadline."""
        self._outbox.put_nowait(None)
        try:
            await asyncio.wait((self._reader,), timeout=deadline.remaining())
        finally:
            self._call.cancel()
            await asyncio.wait((self._reader,))

    def wake(self) -> None:
        """Makes `receive` return None once."""
        self._inbox.put_nowait(None)

    async def receive(self, deadline: Deadline) -> StreamResponse | CarouselError | None:
        """Returns the next response; None after a `wake`; or, as the last item, the error that ended the stream.

        Raises DeadlineExceededError. Loses no response when the task is cancelled.
        """
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await self._inbox.get()
        except TimeoutError:
            raise deadline.exceeded() from None

    async def _requests(self) -> AsyncIterator[StreamRequest]:
        while (request := await self._outbox.get()) is not None:
            yield request

    async def _read(self) -> None:
        end: CarouselError = InternalError("the stream could not be read")
        try:
            async for response in self._call:
                self._inbox.put_nowait(response)
            end = UnavailableError("the server ended the session's stream")
        except grpc.RpcError as error:
            end = _answers.rpc_error(error)
        except asyncio.CancelledError:
            end = _answers.client_closed()
            raise
        finally:
            self._outbox.put_nowait(None)
            self._inbox.put_nowait(end)
