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
    """Yields tokens one by one, as the server chooses them. Made by `Client.generate` and `Session.generate`.

    A model that outputs values yields one `ValueToken` a step. A generation can be iterated once. Leaving the loop
    early, or `close`, ends the generation at the server. Raises the error that ended it early: see `carousel.errors`.
    One thread at a time may use it: a second thread gets ConcurrentUseError.
    """

    def __init__(self, state: GenerationState, pull: Callable[[], None], leave: Callable[[], None]) -> None:
        """pull: waits until the state is ready. leave: ends the generation at the server; it must not raise."""
        self._state = state
        self._pull = pull
        self._leave = leave

    def vectors(self) -> list[Vector]:
        """Waits for the end of the generation. Returns the values of each step, for a model that outputs values.

        Raises TypeError for a model that generates tokens.
        """
        with self:
            found: list[Vector] = []
            while (item := self._take()) is not None:
                found.append(vector_of(item))
            return found

    def close(self) -> None:
        """Ends the generation at the server, if it still runs, and drops the tokens that were not read.

        After this call, the session's position is known. Raises nothing: if the session failed, its next call raises
        the error.
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
    """A sequence whose state the server keeps between calls. Made by `Client.session`; close it, or use `with`.

    Calls block. One thread at a time may use a session: a second thread gets ConcurrentUseError at once, and the first
    thread's call continues. Only `cancel` may be called from any thread. Use one session per thread, or `AsyncClient`.
    A session cannot be pickled or used in a forked process: see `Client`.
    """

    def __init__(
        self,
        stub: InferenceStub,
        request: pb.Open,
        protocol: SessionProtocol,
        timeout: float | None,
        sessions: Sessions,
    ) -> None:
        """timeout: default in seconds for all calls, and for this opening; None for no limit."""
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
        """Makes the session consume tokens, or feature vectors. Returns the model's prediction of what comes next.

        tokens: names or ids, or one of them.
        features: for models that read vectors, in place of tokens: [steps, features] as nested sequences of numbers or
            as an array, such as NumPy's; or [numbers], the numbers of one or more steps in one sequence. For a model
            with named inputs (see `inputs`), a dict of those names, each [steps, ...] or, for one step, [...].
            `carousel.Frames` cuts samples that arrive in any number into steps.
        top_k: return the k most likely tokens with log-probabilities. Default: the most likely token, or the values of
            a model that outputs values.
        logits: return the logits of the whole vocabulary.
        outputs: False returns only the position.
        every_position: return an output after each token, not only after the last.
        mark: keep the session's state after this feed, for `rewind`.
        trace: also return the gates and states inside the steps, for models with a trace.
        end: this feed is the session's last; for models that read this flag, with features by name.
        timeout: seconds; default the session's.

        Raises InvalidArgumentError for a token outside the vocabulary, no tokens, or numbers that do not fill the last
        step; the session is unchanged. ResourceExhaustedError when the feed is too large for the server.
        DeadlineExceededError when no answer came in time: send the same feed again, the server applies it once. Any
        other call cancels that feed, and raises PositionMismatchError once if the feed had moved the session; then
        `position` is right. UnavailableError when the session was not resumed within `resume_timeout`; a later call
        tries again. SessionClosedError and NotFoundError when the session no longer exists.
        """

        def exchange() -> Exchange[Step]:  # builds the message inside the turn, so `cancel` waits for a large one
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
        """Lets the server choose the next tokens, from the session's position. It starts at the first `next`.

        decoding: see `DecodingOptions`. timeout: seconds for the whole generation, from its start; default the
        session's. The session's next call ends an unfinished generation.
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
        """Lets a model that outputs values continue from the session's position, which moves by `horizon`.

        horizon: steps, 1 to the server's limit. timeout: seconds for the whole forecast; default the session's. Returns
        `horizon` vectors. Raises InvalidArgumentError for a model that cannot forecast, and the errors of `feed`.
        """
        return self.generate(max_tokens=horizon, timeout=timeout).vectors()

    def score(
        self, targets: Sequence[Source], *, with_end: bool = False, timeout: float | None = None
    ) -> tuple[TargetScore, ...]:
        """Returns how likely each target is from the session's position, which does not change.

        targets: a list of sequences; each is text, token names or token ids. with_end: also score the end token after
        each target. timeout: seconds; default the session's.

        Raises InvalidArgumentError for a token outside the vocabulary, no targets, or more targets than the server
        accepts at once; ResourceExhaustedError when the server has too many in progress; and the errors of `feed`.
        """

        def exchange() -> Exchange[tuple[TargetScore, ...]]:  # builds the message inside the turn, as in `feed`
            return (yield from self._protocol.score(_requests.score_message(targets, with_end=with_end)))

        return self._stream.run(exchange(), Deadline(self._or_default(timeout)))

    def rewind(self, position: int, *, timeout: float | None = None) -> None:
        """Sets the session back to a mark. Ends an unfinished generation first.

        timeout: seconds; default the session's. Raises FailedPreconditionError when there is no mark at that position,
        and the errors of `feed`.
        """
        deadline = Deadline(self._or_default(timeout))
        self._stream.rewind(position, lambda: self._sessions.rewind(self.id, position), deadline)

    def cancel(self, *, timeout: float | None = None) -> int:
        """Cancels what is in flight: another thread's call, which raises RequestCancelledError, or what an earlier call
        left behind: a generation, or a feed that ran out of time. Such a feed may be consumed in part.

        timeout: seconds; default the session's. Any thread may call it. Returns the session's position; the session
        can be used from there.
        """
        return self._stream.cancel(Deadline(self._or_default(timeout)))

    def close(self, timeout: float | None = None) -> None:
        """Closes the session and its stream. Does nothing when it is already closed.

        timeout: seconds to wait for the server; default the session's, or 5 if there is none. Raises ConcurrentUseError
        while another thread is in a call of the session, and nothing else. If the server does not answer, it handles
        the end of the stream as `on_disconnect` says.
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
    """The token of an item; a vector becomes a `ValueToken`."""
    return item if isinstance(item, Token) else ValueToken(item)


def vector_of(item: Token | Vector) -> Vector:
    """The values of an item. Raises TypeError for a token."""
    if isinstance(item, Token):
        raise TypeError("the model generates tokens, not values: iterate over the generation")
    return item
