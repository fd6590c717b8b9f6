"""One session's half of the conversation with a server. Pure: no I/O, no clock, no threads.

Each verb is a *conversation*: a generator that yields what to send (or None, to send nothing), is resumed with the next
response that comes on the session's stream, whichever request that answers, and returns the verb's result. A shell that
waits no longer just drops the generator. The rules:

1. Requests are numbered from 1. A response numbered 0 is a notice.
2. The position moves only by what the caller is told: by the answer to a conversation that is still going on. So a feed
   that is sent again because its answer did not come has the same position again, and the server answers it again
   without applying it. Something else sent in its place is refused when the feed was applied after all.
3. A refusal changes nothing, but for two: what was cancelled half-way, and a mismatch, tell where the session is.
4. The late answer to a conversation that was dropped is dropped too.
5. A generation left unfinished is cancelled, and the cancellation answered, before anything else is sent: only then is
   the position known. When the wait for that is dropped, the next verb takes it up.
6. When the session was closed or the stream was lost, nothing is sent any more and each verb raises why.
"""

from __future__ import annotations

import copy
from typing import Protocol

import grpc

from carousel import _answers
from carousel._conversation import Conversation
from carousel._generation import GenerationState
from carousel._recovery import Recovery
from carousel.errors import CarouselError, PositionMismatchError, RequestCancelledError, SessionClosedError
from carousel.v1 import inference_pb2 as pb
from carousel.values import CloseReason, Step, StepOutput, TargetScore, Token


class StreamOwner(Protocol):
    """What a stream knows of whose it is. id: the session's, when it has one alone."""

    id: str

    def lost(self, error: CarouselError) -> CarouselError:
        """Takes note that the stream has ended. Returns what to raise."""


class SessionProtocol:
    """One session. One conversation at a time; the attributes are true between conversations.

    recovery: None for a session that ends with its stream.
    """

    def __init__(self, session_id: str = "", recovery: Recovery | None = None) -> None:
        self.id = session_id
        self.recovery = recovery
        self.model = ""
        self.version = 0
        self.variant = ""
        self.position = 0
        self.source: tuple[Token, ...] = ()
        self.first: StepOutput | None = None
        self._last_request_id = 0
        self._generation: GenerationState | None = None
        self._cancel_id = 0  # of the Cancel that is not answered yet
        self._ended_by: CarouselError | None = None

    @property
    def is_closed(self) -> bool:
        """Whether it is known that the session can no longer be used."""
        return self._ended_by is not None

    def open(self, request: pb.Open) -> Conversation[None]:
        """Opens the session and fills in what is known of it."""
        response = yield from self._ask(pb.StreamRequest(open=request))
        if self.recovery is not None:
            self.recovery.opened(response)
        self.id = response.session_id
        opened = response.opened
        self.model, self.version, self.variant = opened.model, opened.version, opened.variant
        self.source = _answers.tokens(opened.source)
        self.first = _answers.step_output(opened.output) if opened.HasField("output") else None

    def resume(self) -> Conversation[None]:
        """Goes on with the session on a new stream, on which nothing else is under way. See `Recovery.resume`."""
        assert self.recovery is not None  # noqa: S101  # one that ends with its stream is never gone on with
        yield from self.recovery.resume(self._numbered, self.position)

    def rewound(self, position: int) -> None:
        """The session was set back, or its state was written, by another call."""
        self.position = position
        if self.recovery is not None:
            self.recovery.rewound(position)

    def feed(self, request: pb.Feed) -> Conversation[Step]:
        """Feeds from where the session is."""
        yield from self._settle()
        request.position = self.position
        response = yield from self._ask(pb.StreamRequest(feed=request))
        return _answers.step(response.fed, response.position)

    def score(self, request: pb.Score) -> Conversation[tuple[TargetScore, ...]]:
        """Scores from where the session is, which stays there."""
        yield from self._settle()
        request.position = self.position
        response = yield from self._ask(pb.StreamRequest(score=request))
        return _answers.target_scores(response.scored.scores)

    def pull(self, generation: GenerationState, decoding: pb.Decoding) -> Conversation[None]:
        """Goes on until the generation is ready to tell something. The first pull starts it."""
        self._check_open()
        request = None
        if not generation.request_id:
            yield from self._settle()
            generation.position = self.position
            request = self._number(pb.StreamRequest(generate=pb.Generate(position=self.position, decoding=decoding)))
            generation.request_id = request.request_id
            self._generation = generation
        while not generation.is_ready:
            self._absorb((yield request))
            request = None

    def leave(self, generation: GenerationState) -> Conversation[None]:
        """Ends a generation because nobody wants the rest."""
        generation.leave()
        if generation is self._generation:
            yield from self._settle()

    def close(self) -> Conversation[None]:
        """Closes the session. Does nothing when it is closed."""
        if self._ended_by is None:
            response = yield from self._ask(pb.StreamRequest(close=pb.Close()))
            self._ended_by = _closed(self.id, CloseReason.CLIENT, response.position)

    def lost(self, error: CarouselError) -> CarouselError:
        """Takes note that the stream has ended. Returns what to raise."""
        self._ended_by = self._ended_by or error
        return copy.copy(self._ended_by)

    def _ask(self, request: pb.StreamRequest) -> Conversation[pb.StreamResponse]:
        """Sends a request and returns its answer, having moved to its position. Raises what refused it."""
        self._check_open()
        response = yield self._number(request)
        while response.request_id != request.request_id:
            self._absorb(response)
            response = yield None
        if response.HasField("error"):
            raise self._refused(response)
        self.position = response.position
        return response

    def _settle(self) -> Conversation[None]:
        """Ends a generation that was left unfinished, so that the position is known."""
        if self._generation is None:
            return
        self._check_open()
        request = None
        if not self._cancel_id:
            request = self._number(pb.StreamRequest(cancel=pb.Cancel()))
            self._cancel_id = request.request_id
        while self._cancel_id:
            self._absorb((yield request))
            request = None

    def _absorb(self, response: pb.StreamResponse) -> None:
        """Takes note of a response that the present conversation does not wait for.

        Raises SessionClosedError for the notice that the session was closed.
        """
        kind = response.WhichOneof("response")
        generation = self._generation
        if response.request_id == 0:
            if kind == "closed":
                reason = _answers.close_reason(response.closed.reason)
                raise self.lost(_closed(self.id, reason, response.position))
        elif response.request_id == self._cancel_id:
            self._cancel_id = 0
            if kind == "cancelled":
                self.position = response.position
            if generation is not None:
                generation.fail(RequestCancelledError("the generation was ended for the session's next request"))
                generation.position = self.position
                self._generation = None
        elif generation is not None and response.request_id == generation.request_id:
            if kind == "generated":
                generation.receive(response.generated, response.position)
                self.position = generation.position
            elif kind == "error":
                generation.fail(self._refused(response))
                generation.position = self.position
            if generation.is_ended and not self._cancel_id:
                self._generation = None

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

    def _number(self, request: pb.StreamRequest) -> pb.StreamRequest:
        request = self._numbered(request)
        if self.recovery is not None:
            self.recovery.sent(request)
        return request

    def _numbered(self, request: pb.StreamRequest) -> pb.StreamRequest:
        self._last_request_id += 1
        request.request_id = self._last_request_id
        request.session_id = self.id
        return request


class SessionFacts:
    """What both kinds of session tell of themselves."""

    _protocol: SessionProtocol

    @property
    def id(self) -> str:
        """The session's id, as asked for or as made by the server."""
        return self._protocol.id

    @property
    def model(self) -> str:
        """The model's name."""
        return self._protocol.model

    @property
    def version(self) -> int:
        """The version that serves the session, 1 or more."""
        return self._protocol.version

    @property
    def variant(self) -> str:
        """Which way of computing the model serves the session, such as `fp32`."""
        return self._protocol.variant

    @property
    def position(self) -> int:
        """How many target tokens the session has consumed or generated, as last told to the caller."""
        return self._protocol.position

    @property
    def source(self) -> tuple[Token, ...]:
        """The source as the model read it; empty for a model without an encoder."""
        return self._protocol.source

    @property
    def first(self) -> StepOutput | None:
        """What may come first, at position 0; None unless asked for at the opening."""
        return self._protocol.first

    @property
    def closed(self) -> bool:
        """Whether the session is known to be closed, or its stream lost. A notice is read by the next call."""
        return self._protocol.is_closed


def _closed(session_id: str, reason: CloseReason, position: int) -> SessionClosedError:
    return SessionClosedError(
        f"session {session_id!r} was closed ({reason}) at position {position}",
        reason="SESSION_CLOSED",
        metadata={"session_id": session_id, "close_reason": reason.value, "position": str(position)},
    )
