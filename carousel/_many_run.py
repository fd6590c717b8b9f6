"""One call of `generate_many`, without waiting: what blocking and asyncio share. It decides what is sent when, and how
long to wait before that; the two wait in their own way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Generic

from carousel import _requests
from carousel._backoff import Backoff, CallBackoff
from carousel._constants import Constants
from carousel._deadline import Deadline
from carousel._decoding import decoding_message
from carousel._many import ManyGenerations
from carousel._resumable import AnyPoster
from carousel.decoding_options import DecodingOptions
from carousel.errors import CarouselError
from carousel.v1 import inference_pb2 as pb


class ManyRun(Generic[AnyPoster]):
    """Connects the protocol and one stream after another."""

    def __init__(
        self,
        check: Callable[[], None],
        connect: Callable[[ManyGenerations], AnyPoster],
        protocol: ManyGenerations,
        resume_timeout: float,
        timeout: float | None,
    ) -> None:
        """check: raises if the client cannot be used here. timeout: seconds to wait for a sequence; None for no
        limit."""
        self._check = check
        self._connect = partial(connect, protocol)
        self._protocol = protocol
        self._timeout = timeout
        self._stream: AnyPoster | None = None
        self._lost = CallBackoff(resume_timeout)
        self._full = Backoff(resume_timeout)
        self._deadline = Deadline(None)
        self._num_done = 0
        """Number of complete sequences at the last `_count`."""

    def _post(self, requests: Iterable[pb.StreamRequest]) -> None:
        """Sends requests, on a new stream if there is none."""
        for request in requests:
            self._stream = self._stream or self._connect()
            self._stream.post(request)

    def _count(self) -> int:
        """Returns the number of sequences that were completed since the last call."""
        num_more = self._protocol.num_done - self._num_done
        self._num_done = self._protocol.num_done
        if num_more:
            self._full.reset()
        return num_more

    def _delay_of_waiting(self, num_more: int) -> float | None:
        """Returns the seconds to wait before `proceed`; None if no source is to be sent now. Raises the error of a full
        server when its time is over."""
        if not self._protocol.num_waiting or (not num_more and self._protocol.num_in_flight):
            return None
        if (refused_by := self._protocol.refused_by) is None:
            return 0.0
        self._full.begin(time.monotonic())
        self._full.attempted()
        return self._full.next(refused_by, time.monotonic())

    def _renew_deadline(self) -> None:
        self._deadline = Deadline(self._timeout if self._protocol.num_in_flight else None)

    def _delay_of_restart(self, error: CarouselError) -> float | None:
        """Returns the seconds to wait before `restart`, on another stream; None if nothing is to be sent again. Raises
        `error` when another stream cannot help."""
        if not self._protocol.num_entries:
            return None
        if self._protocol.mark_suspects(error):
            return 0.0
        return self._lost.next(error, self._protocol.num_done, time.monotonic(), self._deadline.remaining())


def protocol_of(
    model: str, *, version: int, variant: str, constants: Constants | None, decoding: DecodingOptions
) -> ManyGenerations:
    """Makes the protocol of one call. Raises the errors of arguments that no message can hold."""
    opening = _requests.open_message(model, source=None, version=version, variant=variant, constants=constants)
    decoding_message("generate_many", **decoding)
    return ManyGenerations(opening, partial(decoding_message, "generate_many", **decoding))
