"""`Client.generate_many`."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Unpack

from carousel import _arguments
from carousel._constants import Constants
from carousel._deadline import Deadline, closing_deadline
from carousel._home import Unpicklable
from carousel._many_run import ManyRun, protocol_of
from carousel._requests import Source
from carousel._stream import Stream
from carousel.errors import CarouselError
from carousel.v1.inference_pb2_grpc import InferenceStub
from carousel.values import DecodingOptions, GeneratedSequence


class ManyCalls(Unpicklable):
    """The call that runs many generations on one stream."""

    _inference: InferenceStub
    _timeout: float | None

    def generate_many(
        self,
        model: str,
        sources: Iterable[Source | None],
        *,
        version: int = 0,
        variant: str = "",
        constants: Constants | None = None,
        concurrency: int = 64,
        resume_timeout: float = 60.0,
        timeout: float | None = None,
        **decoding: Unpack[DecodingOptions],
    ) -> Generator[GeneratedSequence]:
        """Generates a sequence for each source, all on one stream. Yields the results in the order of the sources.

        sources: an iterable, which may be endless. A separate thread reads it, at most `concurrency` ahead of the
            results that were yielded, so a slow iterable delays no result.
        version, variant, constants, decoding: as in `generate`. Without a seed, each source gets its own seed.
        concurrency: the most sessions at a time, 1 or more.
        resume_timeout: how many seconds to retry after a lost connection, or while the server is full, until another
            sequence is complete.
        timeout: the most seconds to wait for the next sequence.

        If a source is refused, `GeneratedSequence.error` has the error, and the others continue. The iterator raises
        UnavailableError or a similar error when the server cannot be reached, DeadlineExceededError, and the errors
        that `sources` raises. Closing the iterator closes the sessions.
        """
        concurrency = _arguments.at_least_one(concurrency, "concurrency")
        protocol = protocol_of(model, version=version, variant=variant, constants=constants, decoding=decoding)
        limit = self._timeout if timeout is None else timeout
        run = _Run(partial(Stream, self._inference), protocol, resume_timeout, limit)
        return run.results(sources, concurrency)


class _Reader:
    """Reads sources in its own thread, and calls `tell` after each."""

    def __init__(self, sources: Iterable[Source | None], num_ahead: int, tell: Callable[[], None]) -> None:
        self.arrived: queue.SimpleQueue[tuple[Source | None] | Exception | None] = queue.SimpleQueue()
        """Each source in a tuple; then None, or the error that the iterable raised."""
        self.room = threading.Semaphore(num_ahead)
        self.is_stopped = False
        self._sources = sources
        self._tell = tell
        threading.Thread(target=self._read, name="carousel-sources", daemon=True).start()

    def _read(self) -> None:
        end: Exception | None = None
        try:
            self.room.acquire()
            for source in self._sources:
                self.arrived.put((source,))
                self._tell()
                self.room.acquire()
                if self.is_stopped:
                    return
        except Exception as error:  # `results` raises it to the program
            end = error
        self.arrived.put(end)
        self._tell()


class _Run(ManyRun[Stream]):
    """One call of `generate_many`, with a reader of its sources."""

    def results(self, sources: Iterable[Source | None], concurrency: int) -> Generator[GeneratedSequence]:
        """See `ManyCalls.generate_many`."""
        reader = _Reader(sources, concurrency, self._wake)
        is_over, end = False, None
        try:
            while True:
                was_idle = not self._protocol.num_in_flight
                while not is_over and not (self._protocol.num_entries and reader.arrived.empty()):
                    arrived = reader.arrived.get()
                    if isinstance(arrived, tuple):
                        self._post(self._protocol.add(*arrived))
                    else:
                        is_over, end = True, arrived
                for result in self._protocol.take():
                    reader.room.release()
                    yield result
                if self._protocol.num_entries:
                    self._settle(was_idle=was_idle)
                    self._receive()
                elif is_over:
                    self._end(closing_deadline(self._timeout))  # gives the server time to close the last sessions
                    if end is not None:
                        raise end
                    return
        finally:
            reader.is_stopped = True
            reader.room.release()
            self._end(Deadline(0))

    def _wake(self) -> None:
        stream = self._stream
        if stream is not None:
            stream.wake()

    def _settle(self, *, was_idle: bool) -> None:
        """Sends waiting sources, once the server may have room for them. Renews the deadline after progress."""
        num_more = self._count()
        if (delay_s := self._delay_of_waiting(num_more)) is not None:
            time.sleep(delay_s)
            self._post(self._protocol.proceed(num_more + 1))
        if num_more or was_idle:
            self._renew_deadline()

    def _receive(self) -> None:
        """Waits for a response, or until the reader has another source."""
        assert self._stream is not None  # noqa: S101  # `_settle` leaves a source in flight, so `_post` has connected
        received = self._stream.receive(self._deadline)
        try:
            if isinstance(received, CarouselError):
                raise received
            if received is not None:
                self._post(self._protocol.receive(received))
        except CarouselError as error:
            self._end(Deadline(0))
            if (delay_s := self._delay_of_restart(error)) is not None:
                time.sleep(delay_s)
                self._post(self._protocol.restart())

    def _end(self, deadline: Deadline) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.end(deadline)
