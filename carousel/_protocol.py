"""The client's part of one session's exchanges with a server. Pure: no I/O, no clock, no threads.

Each verb (feed, score, ...) is an *exchange*: a generator that yields the request to send, or None to send nothing. The
caller resumes it with the next response on the session's stream, whichever request that response answers. It returns
the verb's result. A caller that stops waiting drops the generator. The rules:

1. Requests are numbered from 1. A response numbered 0 is a notice.
2. The position changes only when the caller learns of it, from the answer to an exchange that still runs. So a feed
   whose answer did not come in time is sent again with the same position. The server answers it again and does not
   apply it twice.
3. Any other request except a close first cancels an unanswered feed. If that feed had moved the session, a feed, score
   or generation then fails once with POSITION_MISMATCH, and nothing is sent; a cancel or rewind does not fail.
4. A refused request changes nothing, with two exceptions: a cancelled request and a mismatch report the position.
5. The late answer to a dropped exchange is discarded.
6. Before anything else except a close is sent, an unfinished generation is cancelled, and the cancellation is
   answered: only then is the position known. If the caller stops waiting for that answer, the next verb waits for it.
7. After the session was closed, or its stream was lost for good, nothing is sent, and each verb raises the cause.
"""

from __future__ import annotations

import copy

import grpc

from carousel import _answers, _arguments
from carousel._exchange import Exchange, LostError
from carousel._generation import GenerationState
from carousel._ports import ports
from carousel._recovery import Recovery
from carousel._session_errors import moved, session_closed
from carousel.errors import (
    CarouselError,
    PositionMismatchError,
    RequestCancelledError,
    ResourceExhaustedError,
    UnavailableError,
)
from carousel.v1 import inference_pb2 as pb
from carousel.values import CloseReason, Port, Step, StepOutput, TargetScore, Token

_UNUSABLE_HERE = ("SNAPSHOT_FORMAT", "SNAPSHOT_KEY", "SNAPSHOT_MODEL")
"""Reasons for which one server cannot resume a session, but another may: its version, key or models differ."""
_MAX_ROUTES = 6


class SessionProtocol:
    """One session. It runs one exchange at a time; its attributes are right between exchanges.

    recovery: None for a session that ends with its stream.
    """

    def __init__(self, session_id: str = "", recovery: Recovery | None = None) -> None:
        self.id = _arguments.text(session_id, "session_id")
        self.route = 0
        self.recovery = recovery
        self.model = ""
        self.version = 0
        self.variant = ""
        self.position = 0
        self.source: tuple[Token, ...] = ()
        self.inputs: tuple[Port, ...] = ()
        self.outputs: tuple[Port, ...] = ()
        self.feature_size = 0
        self.first: StepOutput | None = None
        self._last_request_id = 0
        self._generation: GenerationState | None = None
        self._cancel_id = 0  # the unanswered Cancel; 0 when there is none
        self._feed: pb.StreamRequest | None = None  # the unanswered feed
        self._score_id = 0  # the unanswered score; 0 when there is none
        self._mismatch: PositionMismatchError | None = None  # the next verb raises it: see rule 3
        self._ended_by: CarouselError | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the session is known to be unusable."""
        return self._ended_by is not None

    @property
    def is_working(self) -> bool:
        """Whether a feed or a score is not answered yet."""
        return self._feed is not None or self._score_id != 0

    def open(self, request: pb.Open) -> Exchange[None]:
        """Opens the session and fills in its attributes."""
        response = yield from self._ask(pb.StreamRequest(open=request))
        if self.recovery is not None:
            self.recovery.opened(response)
        self.id = response.session_id
        opened = response.opened
        self.model, self.version, self.variant = opened.model, opened.version, opened.variant
        self.source = _answers.tokens(opened.source)
        self.inputs, self.outputs = ports(opened.inputs), ports(opened.outputs)
        self.feature_size = opened.feature_size
        self.first = _answers.step_output(opened.output, self.outputs) if opened.HasField("output") else None

    def resume(self, post: object = None) -> Exchange[list[pb.StreamRequest]]:  # post is for batches only
        """Resumes the session on a new stream. Returns the requests to send again on it. See `Recovery.resume`."""
        assert self.recovery is not None  # noqa: S101  # a session that ends with its stream is never resumed
        try:
            return (yield from self.recovery.resume(self._numbered, self.position))
        except CarouselError as error:
            if not self.reroute(error):
                raise
            raise LostError(UnavailableError(str(error), reason=error.reason)) from error

    def reroute(self, error: CarouselError) -> bool:
        """Chooses another route to a server if this server cannot resume the session, but another may. The next stream
        has that route. Returns False if another route cannot help."""
        if error.reason not in _UNUSABLE_HERE or self.route >= _MAX_ROUTES:
            return False
        self.route += 1
        return True

    def synchronize(self) -> Exchange[None]:
        """Cancels all requests in flight, and updates the session's position."""
        self._check_open()
        yield from self._cancel()
        self._mismatch = None

    def interrupt(self) -> pb.StreamRequest | None:
        """Makes the request that cancels the feed, score or generation in flight. Returns None when there is none.

        The running exchange ends with the cancelled request's own answer: an error of code CANCELLED, which has the
        position. The next exchange waits for the answer to the Cancel: see rule 6.
        """
        if self._cancel_id or not (self.is_working or self._generation is not None):
            return None
        return self._number_cancel()

    def rewinding(self, position: int | None) -> None:
        """See `Recovery.rewinding`."""
        if self.recovery is not None:
            self.recovery.rewinding(position)

    def rewound(self, position: int) -> None:
        """Records that the session was rewound while no request was in flight."""
        self.position = position
        if self.recovery is not None:
            self.recovery.rewound(position)

    def feed(self, request: pb.Feed) -> Exchange[Step]:
        """Feeds the session from its current position."""
        request.position = self.position
        yield from self._cancel_earlier(request)
        request.position = self.position
        message = self._number(pb.StreamRequest(feed=request))
        self._feed = message
        response = yield from self._answer(message)
        return _answers.step(response.fed, response.position, self.outputs)

    def score(self, request: pb.Score) -> Exchange[tuple[TargetScore, ...]]:
        """Scores targets from the session's current position, which does not change."""
        yield from self._cancel_earlier()
        request.position = self.position
        message = self._number(pb.StreamRequest(score=request))
        self._score_id = message.request_id
        response = yield from self._answer(message)
        return _answers.target_scores(response.scored.scores)

    def pull(self, generation: GenerationState, decoding: pb.Decoding) -> Exchange[None]:
        """Waits until the generation has a token or has ended. The first pull starts the generation."""
        self._check_open()
        request = None
        if not generation.request_id:
            yield from self._cancel_earlier()
            generation.position = self.position
            request = self._number(pb.StreamRequest(generate=pb.Generate(position=self.position, decoding=decoding)))
            generation.request_id = request.request_id
            self._generation = generation
        while not generation.is_ready:
            self._absorb((yield request))
            request = None

    def leave(self, generation: GenerationState) -> Exchange[None]:
        """Ends a generation and drops its remaining tokens."""
        generation.leave()
        if generation is self._generation:
            yield from self._cancel_earlier()

    def close(self) -> Exchange[None]:
        """Closes the session. Does nothing when it is already closed."""
        if self._ended_by is None:
            response = yield from self._ask(pb.StreamRequest(close=pb.Close()))
            self._ended_by = session_closed(self.id, CloseReason.CLIENT, response.position)

    def abandon(self) -> None:
        """Records that the program has closed the session, although the server did not answer."""
        self.lost(session_closed(self.id, CloseReason.CLIENT, None))

    def lost(self, error: CarouselError) -> CarouselError:
        """Records that the session has ended for good. Returns the error to raise."""
        self._ended_by = self._ended_by or error
        return copy.copy(self._ended_by)

    def _ask(self, request: pb.StreamRequest) -> Exchange[pb.StreamResponse]:
        """Sends a request and returns its answer."""
        self._check_open()
        return (yield from self._answer(self._number(request)))

    def _answer(self, request: pb.StreamRequest) -> Exchange[pb.StreamResponse]:
        """Sends a numbered request, updates the position and returns the answer. Raises the server's refusal."""
        response = yield request
        while response.request_id != request.request_id:
            self._absorb(response)
            response = yield None
        self._done(response)
        if response.HasField("error"):
            raise self._refused(response)
        self.position = response.position
        return response

    def _cancel_earlier(self, feed: pb.Feed | None = None) -> Exchange[None]:
        """Cancels requests that an earlier exchange left in flight, so that the position is known.

        feed: the next request, if it is a feed. If it repeats the feed in flight, that feed is not cancelled.
        """
        self._check_open()
        is_repeated = self._feed is not None and self._feed.feed == feed
        if self._cancel_id or self._generation is not None or not (self._feed is None or is_repeated):
            yield from self._cancel()
        if self._mismatch is not None:
            error, self._mismatch = self._mismatch, None
            raise error

    def _cancel(self) -> Exchange[None]:
        request = None if self._cancel_id else self._number_cancel()
        while self._cancel_id:
            self._absorb((yield request))
            request = None

    def _absorb(self, response: pb.StreamResponse) -> None:
        """Records a response that the current exchange does not wait for.

        Raises SessionClosedError for the notice that the session was closed.
        """
        self._done(response)
        kind = response.WhichOneof("response")
        generation = self._generation
        if response.request_id == 0:
            if kind == "closed":
                reason = _answers.close_reason(response.closed.reason)
                raise self.lost(session_closed(self.id, reason, response.position))
        elif response.request_id == self._cancel_id:
            self._cancelled(response if kind == "cancelled" else None)
        elif generation is not None and response.request_id == generation.request_id:
            if kind == "generated":
                generation.receive(response.generated, response.position)
                self.position = generation.position
            elif kind == "error":
                generation.fail(self._refused(response))
                generation.position = self.position
            if generation.is_ended and not self._cancel_id:
                self._generation = None

    def _done(self, response: pb.StreamResponse) -> None:
        """Clears the unanswered feed or score if this is its answer."""
        if self._feed is not None and response.request_id == self._feed.request_id:
            self._feed = None
        if response.request_id == self._score_id:
            self._score_id = 0

    def _cancelled(self, response: pb.StreamResponse | None) -> None:
        """Records the answer to a Cancel; None when the Cancel was refused."""
        self._cancel_id = 0
        generation, self._generation = self._generation, None
        was_at = self.position
        if response is not None:
            self.position = response.position
        if generation is not None:
            generation.fail(RequestCancelledError("the generation was cancelled by the session's next request"))
            generation.position = self.position
        elif self.position != was_at:
            self._mismatch = moved(was_at, self.position)

    def _refused(self, response: pb.StreamResponse) -> CarouselError:
        error = _answers.error(response.error)
        if isinstance(error, PositionMismatchError):
            self.position = error.expected_position
        elif error.code is grpc.StatusCode.CANCELLED:
            self.position = response.position
        return error

    def _check_open(self) -> None:
        if self._ended_by is not None:
            raise copy.copy(self._ended_by)

    def _number_cancel(self) -> pb.StreamRequest:
        request = self._number(pb.StreamRequest(cancel=pb.Cancel()))
        self._cancel_id = request.request_id
        return request

    def _number(self, request: pb.StreamRequest) -> pb.StreamRequest:
        """Numbers a request and records it as pending. Raises ResourceExhaustedError for a request that is too
        large."""
        request = self._numbered(request)
        if self.recovery is not None:
            size, limit = request.ByteSize(), self.recovery.max_request_bytes
            if size > limit:
                kind = request.WhichOneof("request")
                raise ResourceExhaustedError(
                    f"{kind}: the request has {size} bytes, but the server accepts at most {limit}: send it in parts",
                    reason="MESSAGE_TOO_LARGE",
                    field=kind or "",
                )
            self.recovery.sent(request)
        return request

    def _numbered(self, request: pb.StreamRequest) -> pb.StreamRequest:
        self._last_request_id += 1
        request.request_id = self._last_request_id
        request.session_id = self.id
        return request
