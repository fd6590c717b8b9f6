"""`AsyncClient.generate_many`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from functools import partial
from typing import Unpack

from carousel import _arguments
from carousel._async_sources import AsyncSourceReader
from carousel._async_stream import AsyncStream
from carousel._constants import Constants
from carousel._deadline import Deadline, closing_deadline
from carousel._home import Unpicklable, check_client
from carousel._many_run import ManyRun, protocol_of
from carousel._requests import Source
from carousel.decoding_options import DecodingOptions
from carousel.errors import CarouselError
from carousel.v1 import inference_pb2_grpc
from carousel.values import GeneratedSequence


class AsyncManyCalls(Unpicklable):
    """The call that runs many generations on one stream."""

    _inference: inference_pb2_grpc.InferenceAsyncStub
    _timeout: float | None

    def generate_many(
        self,
        model: str,
        sources: Iterable[Source | None] | AsyncIterable[Source | None],
        *,
        version: int = 0,
        variant: str = "",
        constants: Constants | None = None,
        concurrency: int = 64,
        resume_timeout: float = 60.0,
        timeout: float | None = None,
        **decoding: Unpack[DecodingOptions],
    ) -> AsyncGenerator[GeneratedSequence]:
        """Generates a sequence for each source, all on one stream. Yields the results in the order of the sources.

        sources: an iterable that does not block, or an asynchronous one, which may be endless. A separate task reads
            it, at most `concurrency` ahead of the results that were yielded, so a slow iterable delays no result.
        version, variant, constants, decoding: as in `generate`. Without a seed, each source gets its own seed.
        concurrency: the most sessions at a time, 1 or more.
        resume_timeout: how many seconds to retry after a lost connection, or while the server is full, until another
            sequence is complete.
        timeout: the most seconds until another sequence is complete, in any order; default the client's. It does not
            limit the wait for a source, or for a server that is too full for any of them.

        If a source is refused, `GeneratedSequence.error` has the error, and the others continue. The iterator raises
        UnavailableError or a similar error when the server cannot be reached, DeadlineExceededError, and the errors
        that `sources` raises. Closing the iterator with `aclose` closes the sessions.
        """
        if isinstance(sources, str):
            raise TypeError("sources must be an iterable of sources, also for one source: [source]")
        concurrency = _arguments.at_least_one(concurrency, "concurrency")
        protocol = protocol_of(model, version=version, variant=variant, constants=constants, decoding=decoding)
        limit = self._timeout if timeout is None else timeout
        check, connect = partial(check_client, self._inference), partial(AsyncStream, self._inference)
        run = _Run(check, connect, protocol, resume_timeout, limit)
        return run.results(sources, concurrency)


class _Run(ManyRun[AsyncStream]):
    """One call of `generate_many`, with a reader of its sources."""

    async def results(
        self, sources: Iterable[Source | None] | AsyncIterable[Source | None], concurrency: int
    ) -> AsyncGenerator[GeneratedSequence]:
        """See `AsyncManyCalls.generate_many`."""
        reader = AsyncSourceReader(sources, concurrency, self._wake)
        is_over, end = False, None
        try:
            while True:
                was_idle = not self._protocol.num_in_flight
                while not is_over and not (self._protocol.num_entries and reader.is_empty):
                    arrived = await reader.next()
                    if isinstance(arrived, tuple):
                        self._post(self._protocol.add(*arrived))
                    else:
                        is_over, end = True, arrived
                for result in self._protocol.take():
                    reader.release()
                    yield result
                    self._check()
                if self._protocol.num_entries:
                    await self._send_waiting(was_idle=was_idle)
                    if reader.is_empty:
                        await self._receive()
                elif is_over:
                    await self._end(closing_deadline(self._timeout))  # gives the server time to close the last sessions
                    if end is not None:
                        raise end
                    return
        finally:
            await reader.stop()
            await self._end(Deadline(0))

    def _wake(self) -> None:
        stream = self._stream
        if stream is not None:
            stream.wake()

    async def _send_waiting(self, *, was_idle: bool) -> None:
        """Sends waiting sources, once the server may have room for them. Renews the deadline after progress."""
        num_more = self._count()
        if (delay_s := self._delay_of_waiting(num_more)) is not None:
            await asyncio.sleep(delay_s)
            self._post(self._protocol.proceed(num_more + 1))
        if num_more or was_idle:
            self._renew_deadline()

    async def _receive(self) -> None:
        """Waits for a response, or until the reader has another source."""
        assert self._stream is not None  # noqa: S101  # `_send_waiting` leaves a source in flight, so `_post` has connected
        received = await self._stream.receive(self._deadline)
        try:
            if isinstance(received, CarouselError):
                raise received
            if received is not None:
                self._post(self._protocol.receive(received))
        except CarouselError as error:
            await self._end(Deadline(0))
            if (delay_s := self._delay_of_restart(error)) is not None:
                await asyncio.sleep(delay_s)
                self._post(self._protocol.restart())

    async def _end(self, deadline: Deadline) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.end(deadline)
