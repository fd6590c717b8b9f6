"""The blocking batch of sessions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from carousel._batch import BatchProperties, BatchProtocol
from carousel._batch_step import StepBatchResult
from carousel._constants import Constants
from carousel._deadline import Deadline, closing_deadline
from carousel._ports import Parts
from carousel._reconnecting_stream import ReconnectingStream
from carousel._requests import SessionPolicy, Source
from carousel._tensors import Features
from carousel._turn import Turn
from carousel.errors import CarouselError
from carousel.v1.inference_pb2_grpc import InferenceStub


class SessionBatch(BatchProperties[ReconnectingStream[BatchProtocol]]):
    """Many sessions of one model that step together, a message for all of them: for gateways. Made by `Client.batch`.

    Sessions have places, 0 and up, in the order of their opening. Close it, or use `with`: its sessions end with it.
    Its calls block. One thread at a time may use it: a second thread gets ConcurrentUseError.

    When its stream is lost, or its server leaves, the sessions are resumed on another stream and the steps that have no
    answer are sent again, unless `on_disconnect` is `free`. A session that cannot be resumed is over: each later step
    reports the reason in `StepBatchResult.errors`, and the other sessions are stepped. After the batch is over each
    call raises the error that ended it; after `close`, FailedPreconditionError.
    """

    def __init__(
        self,
        stub: InferenceStub,
        model: str,
        *,
        version: int,
        variant: str,
        policy: SessionPolicy,
        resume_timeout: float,
        timeout: float | None,
    ) -> None:
        """timeout: seconds for calls that set none; None for no limit."""
        self._model = model
        self._version = version
        self._variant = variant
        self._timeout = timeout
        self._protocol = BatchProtocol(policy, resume_timeout)
        self._stream = ReconnectingStream(stub, self._protocol, "batch")
        self._turn = Turn("batch")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(
        self,
        source: Source | None = None,
        *,
        session_id: str = "",
        constants: Constants | None = None,
        timeout: float | None = None,
    ) -> int:
        """Opens a session. Returns its place. source, session_id, constants: as in
        `Client.session`. Raises what that raises.

        An opening whose stream is lost is made again, unless the program chose the id.
        """
        return self._open_all([(source, session_id)], constants, timeout)[0]

    def open_many(
        self, sources: Sequence[Source | None], *, constants: Constants | None = None, timeout: float | None = None
    ) -> list[int]:
        """Opens a session for each source, None for a model without an encoder. Returns their places. constants: of
        all of them.

        Raises what `Client.session` raises, for the first that is refused; those before it are open.
        """
        return self._open_all([(source, "") for source in sources], constants, timeout)

    def step(
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
        """Makes sessions consume tokens and returns what comes next in each, in one round trip.

        tokens: by id, one for each session, or a sequence of them. features: instead, of models that read those, one
        vector for each, or a dict of their named parts, as in `Session.feed`, or the numbers of all of them, one after
        the other. places: which sessions; default all but those that `close_session` has closed. top_k, logits,
        outputs: as in `Session.feed`. end: as in `Session.feed`, of all of these sessions, or one flag for each.
        timeout: seconds; default the client's.

        `StepBatchResult.errors` tells which sessions were refused; the others are stepped. An OutOfRangeError with the
        reason OUTPUTS_LOST: the session consumed the tokens, and the connection was lost before the answer came. It
        goes on from its position.

        Raises InvalidArgumentError when the step itself is wrong, IndexError for an unknown place;
        DeadlineExceededError when no answer came in time,
        and UnavailableError when the sessions were not resumed within `resume_timeout`: the step is in flight, and
        `receive` waits for it again; LookupError when other steps are in flight.
        """
        with self._turn:
            self._check_none_in_flight()
            self._send(tokens, features, places, top_k=top_k, logits=logits, outputs=outputs, end=end)
            return self._receive(timeout)

    def receive(self, timeout: float | None = None) -> StepBatchResult:
        """Waits for the answer to the oldest step in flight: see `step`. Raises LookupError without any."""
        with self._turn:
            return self._receive(timeout)

    def close_session(self, place: int, *, timeout: float | None = None) -> None:
        """Closes one session, and leaves the others open. Its place stays empty. Closing it again does nothing.

        place: as `open` returned it. timeout: seconds; default the client's. Raises IndexError for an unknown place,
        LookupError while a step of the session is in flight, DeadlineExceededError and UnavailableError when the server
        does not answer: the session is closed when it does.
        """
        exchange = self._protocol.close_session(place, self._stream.post)
        with self._turn:
            self._stream.run(exchange, Deadline(self._or_default(timeout)))

    def close(self, timeout: float | None = None) -> None:
        """Closes the sessions and the stream. Steps in flight are dropped. Closing it again does nothing.

        timeout: seconds for the server to answer; default the client's, or else 5. Raises ConcurrentUseError while
        another thread is in a call of the batch, and else nothing: see `Session.close`.
        """
        with self._turn:
            deadline = closing_deadline(self._or_default(timeout))
            try:
                with suppress(CarouselError):
                    self._stream.run(self._protocol.close(self._stream.post), deadline, is_closing=True)
            finally:
                self._protocol.closed()
                self._stream.end(deadline)

    def _open_all(
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
            return [self._stream.run(self._protocol.opened(number), deadline) for number in numbers]

    def _receive(self, timeout: float | None) -> StepBatchResult:
        return self._stream.run(self._protocol.stepped(), Deadline(self._or_default(timeout)))

    def _or_default(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout
