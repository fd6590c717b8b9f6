"""`AsyncClient.generate_many`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Unpack

from carousel import _arguments
from carousel._async_stream import AsyncStream
from carousel._constants import Constants
from carousel._deadline import Deadline, closing_deadline
from carousel._home import Unpicklable
from carousel._many import ManyGenerations
from carousel._many_run import ManyRun, protocol_of
from carousel._requests import Source
from carousel.errors import CarouselError
from carousel.v1 import inference_pb2 as pb
from carousel.values import DecodingOptions, GeneratedSequence

if TYPE_CHECKING:
    from carousel.v1.inference_pb2_grpc import InferenceAsyncStub  # exists only for type checkers

Sources = Iterable[Source | None] | AsyncIterable[Source | None]


class AsyncManyCalls(Unpicklable):
    """The call that runs many generations on one stream."""

    _inference: InferenceAsyncStub
    _timeout: float | None

    def generate_many(
        self,
        model: str,
        sources: Sources,
        *,
        version: int = 0,
        variant: str = "",
        constants: Constants | None = None,
        concurrency: int = 64,
        resume_timeout: float = 60.0,
        timeout: float | None = None,
        **decoding: Unpack[DecodingOptions],
    ) -> AsyncGenerator[GeneratedSequence]:
        """Generates a sequence for each source: see `Client.generate_many`.

        sources: an iterable that does not block, or an asynchronous one. A separate task reads it. To close the
        sessions at once, close the iterator with `aclose`.
        """
        concurrency = _arguments.at_least_one(concurrency, "concurrency")
        protocol = protocol_of(model, version=version, variant=variant, constants=constants, decoding=decoding)
        limit = self._timeout if timeout is None else timeout
        run = _Run(partial(AsyncStream, self._inference), protocol, resume_timeout, limit)
        return run.results(sources, concurrency)


class _Run(ManyRun[AsyncStream]):
    """One call of `generate_many`, with a task that reads its sources."""

    def __init__(
        self,
        connect: Callable[[ManyGenerations], AsyncStream],
        protocol: ManyGenerations,
        resume_timeout: float,
        timeout: float | None,
    ) -> None:
        super().__init__(connect, protocol, resume_timeout, timeout)
        self._received: asyncio.Task[pb.StreamResponse | CarouselError] | None = None
        """The task that waits for the stream's next response."""
        self._arrived: asyncio.Queue[tuple[Source | None]] = asyncio.Queue()

    async def results(self, sources: Sources, concurrency: int) -> AsyncGenerator[GeneratedSequence]:
        """See `AsyncManyCalls.generate_many`."""
        room = asyncio.Semaphore(concurrency)
        reading = asyncio.create_task(self._read(sources, room), name="carousel-sources")
        try:
            while True:
                was_idle = not self._protocol.num_in_flight
                while not self._arrived.empty():
                    self._post(self._protocol.add(*self._arrived.get_nowait()))
                for result in self._protocol.take():
                    room.release()
                    yield result
                if reading.done() and self._arrived.empty() and not self._protocol.num_entries:
                    await self._end(closing_deadline(self._timeout))  # gives the server time to close the last sessions
                    await reading  # raises the error of the sources, if there was one
                    return
                await self._settle(was_idle=was_idle)
                await self._wait(reading)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await self._end(Deadline(0))

    async def _read(self, sources: Sources, room: asyncio.Semaphore) -> None:
        if isinstance(sources, AsyncIterable):
            await room.acquire()
            async for source in sources:
                self._arrived.put_nowait((source,))
                await room.acquire()
        else:
            await room.acquire()
            for source in sources:
                self._arrived.put_nowait((source,))
                await room.acquire()

    async def _settle(self, *, was_idle: bool) -> None:
        """Sends waiting sources, once the server may have room for them. Renews the deadline after progress."""
        num_more = self._count()
        if (delay_s := self._delay_of_waiting(num_more)) is not None:
            await asyncio.sleep(delay_s)
            self._post(self._protocol.proceed(num_more + 1))
        if num_more or was_idle:
            self._renew_deadline()

    async def _wait(self, reading: asyncio.Task[None]) -> None:
        """Waits for a response, for another source, or for the end of the sources."""
        arrival = asyncio.create_task(self._arrived.get())
        waited: list[asyncio.Task[object]] = [arrival]
        if self._stream is not None:
            self._received = self._received or asyncio.create_task(self._stream.receive())
            waited.append(self._received)
        if not reading.done():
            waited.append(reading)
        try:
            await asyncio.wait(waited, timeout=self._deadline.remaining(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if arrival.done():
                self._post(self._protocol.add(*arrival.result()))
            arrival.cancel()
        if self._received is not None and self._received.done():
            received, self._received = self._received.result(), None
            await self._take_up(received)
        elif self._deadline.remaining() == 0.0:
            raise self._deadline.exceeded()

    async def _take_up(self, received: pb.StreamResponse | CarouselError) -> None:
        try:
            if isinstance(received, CarouselError):
                raise received
            self._post(self._protocol.receive(received))
        except CarouselError as error:
            await self._end(Deadline(0))
            if (delay_s := self._delay_of_restart(error)) is not None:
                await asyncio.sleep(delay_s)
                self._post(self._protocol.restart())

    async def _end(self, deadline: Deadline) -> None:
        stream, self._stream = self._stream, None
        if self._received is not None:
            self._received.cancel()
            self._received = None
        if stream is not None:
            await stream.end(deadline)
