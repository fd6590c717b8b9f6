"""The blocking session and generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self, Unpack

from carousel import _requests
from carousel._deadline import Deadline, closing_deadline
from carousel._decoding import decoding_message
from carousel._exchange import Exchange
from carousel._generation import GenerationState
from carousel._iteration import Iteration
from carousel._ports import Parts
from carousel._properties import GenerationProperties, SessionProperties
from carousel._protocol import SessionProtocol
from carousel._reconnecting_stream import ReconnectingStream
from carousel._requests import Source, Tokens
from carousel._tensors import Features, Vector
from carousel.errors import CarouselError, ConcurrentUseError
from carousel.sessions import Sessions
from carousel.v1 import inference_pb2 as pb
from carousel.v1.inference_pb2_grpc import InferenceStub
from carousel.values import DecodingOptions, Step, TargetScore, Token, ValueToken


class Generation(GenerationProperties, Iteration[Token]):
    """Tokens as the server chooses them, one by one. Made by `Client.generate` and `Session.generate`.

    A model that gives values yields a `ValueToken` a step. Iterate over it once; leaving the loop early, or `close`,
    ends the generation at the server. Raises the error that ended it early: see `carousel.errors`. One thread at a time
    may use it; ConcurrentUseError for a second.
    """

    def __init__(self, state: GenerationState, pull: Callable[[], None], leave: Callable[[], None]) -> None:
        """pull: waits until the state is ready. leave: ends the generation at the server, and raises nothing."""
        self._state = state
        self._pull = pull
        self._leave = leave

    def vectors(self) -> list[Vector]:
        """Waits for the end. Returns the values of every step, of a model that gives values.

        Raises TypeError for a model that generates tokens.
        """
        with self:
            found: list[Vector] = []
            while (item := self._take()) is not None:
                found.append(vector_of(item))
            return found

    def close(self) -> None:
        """Ends the generation at the server, if it still runs, and drops the tokens that were not taken.

        A session's position is right again when this returns. Raises nothing: the session's next call raises its
        error.
        """
        self._leave()

    def _next(self) -> Token | None:
        item = self._take()
        return None if item is None else token_of(item)

    def _take(self) -> Token | Vector | None:
        while not self._state.is_ready:
            self._pull()
        return self._state.take()


class Session(SessionProperties):
    """A sequence that the server keeps the state of. Made by `Client.session`; close it, or use `with`.

    Its calls block. One thread at a time may use it: a second thread gets ConcurrentUseError at once, and the first
    goes on; only `cancel` may be called meanwhile. Use a session per thread, or `AsyncClient`. It cannot be pickled, or
    used in a forked process: see `Client`.
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
        deadline = Deadline(timeout)
        is_open = False
        while not is_open:
            self._stream = ReconnectingStream(stub, protocol)
            try:
                self._stream.run(self._protocol.open(request), deadline)
                is_open = True
            except CarouselError as error:
                self._stream.end(closing_deadline(deadline.remaining()))
                if not protocol.reroute(error):
                    raise
            except BaseException:
                self._stream.end(Deadline(0))
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
        features: Features | Parts | None = None,
        top_k: int | None = None,
        logits: bool = False,
        outputs: bool = True,
        every_position: bool = False,
        mark: bool = False,
        trace: bool = False,
        end: bool = False,
        timeout: float | None = None,
    ) -> Step:
        """Makes the session consume tokens and returns what comes next.

        tokens: names or ids, or one of them. features: instead, of models that read those, vectors, [steps, features]:
        nested sequences of numbers, or an array such as NumPy's; or their numbers one after the other, [numbers], of
        one step or of several; of a model whose inputs have names, a dict of those (see `inputs`), each [steps, ...]
        or, of one step, [...]. `carousel.Frames` makes steps of samples that come in any number. By default the most
        likely next token is returned, or the values of a model that gives those. top_k: the k most likely, with
        log-probabilities. logits: the logits of the whole vocabulary. outputs=False: nothing but the position.
        every_position: an output after each token, not after the last alone. mark: keep the session's state after this
        feed, for `rewind`. trace: also return the gates and states inside the steps, of models that have a trace. end:
        this is the last that the session is fed, of models that read that, with features by name. timeout: seconds;
        default the client's.

        Raises InvalidArgumentError for a token outside the vocabulary or none at all, and for numbers that do not fill
        the last step, having changed nothing.
        ResourceExhaustedError for a feed that is too large for the server. DeadlineExceededError when no answer came in
        time: then send the same feed again, which is applied once. Another call in its place cancels it, and raises
        PositionMismatchError, once, when the feed had moved the session; `position` is then right.
        UnavailableError when the session was not resumed within `resume_timeout`; a later call tries again.
        SessionClosedError and NotFoundError when the session is gone.
        """

        def exchange() -> Exchange[Step]:  # made in its turn, so that `cancel` waits for a large message
            message = _requests.feed_message(
                tokens,
                features=_requests.vectors(features, self._protocol.inputs, "feed.features", is_last=end),
                feature_size=self._protocol.feature_size,
                top_k=top_k,
                logits=logits,
                outputs=outputs,
                every_position=every_position,
                mark=mark,
                trace=trace,
            )
            return (yield from self._protocol.feed(message))

        return self._stream.run(exchange(), Deadline(self._or_default(timeout)))

    def generate(self, *, timeout: float | None = None, **decoding: Unpack[DecodingOptions]) -> Generation:
        """Lets the server choose the next tokens, from the session's position. It starts with the first `next`.

        decoding: see `DecodingOptions`. timeout: seconds for the whole generation, from its start; default the
        client's. The session's next call ends a generation that is not at its end.
        """
        message = decoding_message(**decoding)
        state = GenerationState(message)
        deadline: Deadline | None = None

        def pull() -> None:
            nonlocal deadline
            deadline = deadline or Deadline(self._or_default(timeout))
            self._stream.run(self._protocol.pull(state, message), deadline)

        def leave() -> None:
            with suppress(CarouselError):
                self._stream.run(self._protocol.leave(state), deadline or Deadline(None))

        return Generation(state, pull, leave)

    def forecast(self, horizon: int, *, timeout: float | None = None) -> list[Vector]:
        """Lets a model that gives values continue from the session's position, which moves by `horizon`.

        horizon: steps, 1 to the server's limit. timeout: seconds for the whole forecast; default the client's.
        Returns `horizon` vectors. Raises InvalidArgumentError for a model that cannot forecast, and what `feed` raises.
        """
        return self.generate(max_tokens=horizon, timeout=timeout).vectors()

    def score(
        self, targets: Sequence[Source], *, with_end: bool = False, timeout: float | None = None
    ) -> tuple[TargetScore, ...]:
        """Returns how likely targets are from the session's position, which does not change.

        targets: a list of sequences, each text, or names, or ids. with_end: each with the end token after it. timeout:
        seconds; default the client's.

        Raises InvalidArgumentError for a token outside the vocabulary, no target, or more than the server takes at
        once, ResourceExhaustedError when the server has too many in progress, and what `feed` raises.
        """

        def exchange() -> Exchange[tuple[TargetScore, ...]]:  # as that of a feed
            return (yield from self._protocol.score(_requests.score_message(targets, with_end=with_end)))

        return self._stream.run(exchange(), Deadline(self._or_default(timeout)))

    def rewind(self, position: int, *, timeout: float | None = None) -> None:
        """Sets the session back to a mark. A generation that is not at its end is ended first.

        timeout: seconds; default the client's. Raises FailedPreconditionError when there is no mark at that position,
        and what `feed` raises.
        """
        deadline = Deadline(self._or_default(timeout))
        self._stream.rewind(position, lambda: self._sessions.rewind(self.id, position), deadline)

    def cancel(self, *, timeout: float | None = None) -> int:
        """Cancels what is in flight: the call that another thread is in, which raises RequestCancelledError, or what an
        earlier call left, a generation or a feed that ran out of time. A feed may have been consumed in part.

        timeout: seconds; default the client's. Any thread may call it. Returns the session's position, which is then
        known: the session can be used from there.
        """
        return self._stream.cancel(Deadline(self._or_default(timeout)))

    def close(self, timeout: float | None = None) -> None:
        """Closes the session and its stream. Closing it again does nothing.

        timeout: seconds for the server to answer; default the client's, or else 5. Raises ConcurrentUseError while
        another thread is in a call of the session, and else nothing: a server that does not answer closes the session,
        or holds it as was agreed, when the stream ends.
        """
        deadline = closing_deadline(self._or_default(timeout))
        try:
            self._stream.run(self._protocol.close(), deadline, is_closing=True)
        except ConcurrentUseError:
            raise
        except CarouselError:
            pass
        except BaseException:
            self._stream.end(deadline)
            raise
        self._stream.end(deadline)

    def _or_default(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout


def token_of(item: Token | Vector) -> Token:
    """What an iteration yields."""
    return item if isinstance(item, Token) else ValueToken(item)


def vector_of(item: Token | Vector) -> Vector:
    """The values of a step. Raises TypeError for a token."""
    if isinstance(item, Token):
        raise TypeError("the model generates tokens, not values: iterate over the generation")
    return item
