"""One gRPC stream of a session or batch, for asyncio: runs exchanges."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, TypeVar

import grpc

from carousel import _answers
from carousel._channel import session_metadata
from carousel._deadline import Deadline
from carousel._exchange import Exchange
from carousel._resumable import StreamOwner
from carousel.errors import CarouselError, InternalError, UnavailableError
from carousel.v1.inference_pb2 import StreamRequest, StreamResponse

if TYPE_CHECKING:
    from carousel.v1.inference_pb2_grpc import InferenceAsyncStub  # exists for type checkers alone

T = TypeVar("T")


class AsyncStream:
    """One gRPC stream. Concurrent exchanges take turns.

    gRPC cancels a stream when a task that reads or writes it is cancelled. So a stream has two tasks that a caller's
    cancellation does not reach: gRPC's task sends requests from the outbox, and the reader task puts responses into the
    inbox. When the stream ends, for any reason, the reader puts the error into the inbox as the last item, stops gRPC's
    task and ends.
    """

    def __init__(self, stub: InferenceAsyncStub, owner: StreamOwner) -> None:
        self._owner = owner
        self._outbox: asyncio.Queue[StreamRequest | None] = asyncio.Queue()
        self._inbox: asyncio.Queue[StreamResponse | CarouselError] = asyncio.Queue()
        self._turn = asyncio.Lock()
        self._call = stub.Stream(self._requests(), metadata=session_metadata(owner.id, owner.route))
        self._reader = asyncio.create_task(self._read(), name="carousel-stream")

    async def run(self, exchange: Exchange[T], deadline: Deadline) -> T:
        """Runs an exchange and returns its result.

        Raises what the exchange raises; DeadlineExceededError when the deadline passes; and the error that ended the
        stream. The exchange is dropped at the deadline and when the task is cancelled.
        """
        try:
            async with asyncio.timeout(deadline.remaining()), self._turn:
                request = next(exchange)
                while True:
                    if request is not None:
                        self._outbox.put_nowait(request)
                    received = await self.receive()
                    if isinstance(received, CarouselError):
                        raise self._owner.lost(received)
                    request = exchange.send(received)
        except StopIteration as end:
            result: T = end.value
            return result
        except TimeoutError:
            raise deadline.exceeded() from None

    def post(self, request: StreamRequest) -> None:
        """Sends a request whose answer another exchange waits for."""
        self._outbox.put_nowait(request)

    async def receive(self) -> StreamResponse | CarouselError:
        """Returns the next response; as the last item, the error that ended the stream."""
        return await self._inbox.get()

    async def end(self, deadline: Deadline) -> None:
        """Ends the request side, waits for the server to end the stream, and cancels the stream at the deadline."""
        self._outbox.put_nowait(None)
        try:
            await asyncio.wait((self._reader,), timeout=deadline.remaining())
        finally:
            self._call.cancel()
            await asyncio.wait((self._reader,))

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
