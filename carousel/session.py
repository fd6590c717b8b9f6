"""The blocking session and generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self, Unpack, cast

from carousel import _requests
from carousel._deadline import Deadline, closing_deadline
from carousel._generation import GenerationFacts, GenerationState
from carousel._line import Line
from carousel._protocol import SessionFacts, SessionProtocol
from carousel._requests import Source, Tokens
from carousel._tensors import Features, Vector
from carousel.errors import CarouselError
from carousel.sessions import Sessions
from carousel.v1 import inference_pb2 as pb
from carousel.v1.inference_pb2_grpc import InferenceStub
from carousel.values import DecodingOptions, Step, TargetScore, Token


class Generation(GenerationFacts):
    """Tokens as the server chooses them, one by one. Made by `Client.generate` and `Session.generate`.

    Iterate over it once; leaving the loop early, or `close`, ends the generation at the server. Raises what ended it
    early: see `carousel.errors`. For one thread at a time.
    """

    def __init__(self, state: GenerationState, pull: Callable[[], None], leave: Callable[[], None]) -> None:
        """pull: waits until the state is ready. leave: ends the generation at the server, raising nothing."""
        self._state = state
        self._pull = pull
        self._leave = leave

    def __iter__(self) -> Iterator[Token]:
        try:
            while (token := self._take()) is not None:
                yield cast(Token, token)
        finally:
            self.close()

    def __next__(self) -> Token:
        token = self._take()
        if token is None:
            raise StopIteration
        return cast(Token, token)

    def vectors(self) -> list[Vector]:
        """All that is generated, of a model that gives values, when it is done."""
        with self:
            return list(iter(lambda: cast(Vector, self._take()), None))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the generation at the server, if it goes on, and drops what has come of it.

        A session's position is right again when this returns. Raises nothing: what is wrong with a session its next
        call tells.
        """
        self._leave()

    def _take(self) -> Token | Vector | None:
        while not self._state.is_ready:
            self._pull()
        return self._state.take()


class Session(SessionFacts):
    """A sequence that the server keeps the state of. Made by `Client.session`; close it, or use `with`.

    Its calls block. One thread at a time may use it.
    """

    def __init__(
        self,
        stub: InferenceStub,
        request: pb.Open,
        protocol: SessionProtocol,
        timeout: float | None,
        sessions: Sessions,
    ) -> None:
        """timeout: seconds for calls that set none, this opening included; None for no limit."""
        self._timeout = timeout
        self._protocol = protocol
        self._sessions = sessions
        self._line = Line(stub, protocol)
        deadline = Deadline(timeout)
        try:
            self._line.run(self._protocol.open(request), deadline)
        except CarouselError:
            self._line.end(closing_deadline(deadline.remaining()))
            raise
        except BaseException:
            self._line.end(Deadline(0))
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def feed(
        self,
        tokens: Tokens | None = None,
        *,
        features: Features | None = None,
        top_k: int | None = None,
        logits: bool = False,
        outputs: bool = True,
        every_position: bool = False,
        mark: bool = False,
        trace: bool = False,
        timeout: float | None = None,
    ) -> Step:
        """Makes the session consume tokens and tells what comes next.

        tokens: names or ids, or one of them. features: instead, of models that read those, vectors, [steps, features]:
        nested sequences of numbers, or an array such as NumPy's. By default the most likely next token is returned, or
        the values of a model that gives those. top_k: the k most likely, with log-probabilities. logits: the logits of
        the whole vocabulary. outputs=False: nothing but the position. every_position: an output after each token, not
        after the last alone. mark: keep the session as it is after this feed, for `rewind`. trace: also what the steps
        did inside, of models that can be looked into. timeout: seconds; default the client's.

        Raises InvalidArgumentError for a token outside the vocabulary or none at all, having changed nothing.
        DeadlineExceededError when no answer came in time: then the same feed may simply be sent again, and is applied
        once. PositionMismatchError when something else is sent in its place and it was applied after all.
        SessionClosedError, UnavailableError when the session is gone.
        """
        message = _requests.feed_message(
            tokens,
            features=features,
            top_k=top_k,
            logits=logits,
            outputs=outputs,
            every_position=every_position,
            mark=mark,
            trace=trace,
        )
        return self._line.run(self._protocol.feed(message), Deadline(self._or_default(timeout)))

    def generate(self, *, timeout: float | None = None, **decoding: Unpack[DecodingOptions]) -> Generation:
        """Lets the server choose the next tokens, from where the session is. It starts when the first is asked for.

        decoding: see `DecodingOptions`. timeout: seconds for the whole of it, from its start; default the client's. A
        generation that is not at its end is ended by the session's next call.
        """
        state = GenerationState()
        message = _requests.decoding_message(**decoding)
        deadline: Deadline | None = None

        def pull() -> None:
            nonlocal deadline
            deadline = deadline or Deadline(self._or_default(timeout))
            self._line.run(self._protocol.pull(state, message), deadline)

        def leave() -> None:
            with suppress(CarouselError):
                self._line.run(self._protocol.leave(state), deadline or Deadline(None))

        return Generation(state, pull, leave)

    def forecast(self, horizon: int, *, timeout: float | None = None) -> list[Vector]:
        """Lets a model that gives values go on by itself from where the session is, which then stands after it.

        horizon: steps, 1 to the server's limit. Returns as many vectors. timeout: seconds for the whole of it; default
        the client's. Raises InvalidArgumentError for a model that cannot, and what `feed` raises.
        """
        return self.generate(max_tokens=horizon, timeout=timeout).vectors()

    def score(
        self, targets: Sequence[Source], *, with_end: bool = False, timeout: float | None = None
    ) -> tuple[TargetScore, ...]:
        """Tells how likely targets are from where the session is, which stays there.

        targets: a list of sequences, each text, or names, or ids. with_end: each with the end token after it. timeout:
        seconds; default the client's.

        Raises InvalidArgumentError for a token outside the vocabulary, no target, or more than the server takes at
        once, ResourceExhaustedError when the server has too many at work, and what `feed` raises.
        """
        message = _requests.score_message(targets, with_end=with_end)
        return self._line.run(self._protocol.score(message), Deadline(self._or_default(timeout)))

    def rewind(self, position: int) -> None:
        """Sets the session back to a mark. Raises FailedPreconditionError when there is none at that position, or a
        generation goes on."""
        self._protocol.rewound(self._sessions.rewind(self.id, position).position)

    def close(self, timeout: float | None = None) -> None:
        """Closes the session and its stream. Closing it again does nothing.

        timeout: seconds for the server to answer; default the client's, or else 5. Raises nothing: a server that does
        not answer closes the session when it sees the stream end.
        """
        deadline = closing_deadline(self._or_default(timeout))
        try:
            with suppress(CarouselError):
                self._line.run(self._protocol.close(), deadline, 0.0)
        finally:
            self._line.end(deadline)

    def _or_default(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout
