"""What a stream needs from its owner, a session or a batch of sessions, and what an owner needs from its stream."""

from __future__ import annotations

from collections import deque
from typing import Protocol, TypeVar

from carousel._exchange import Exchange
from carousel._resume import Post
from carousel.errors import CarouselError
from carousel.v1 import inference_pb2 as pb


class StreamOwner(Protocol):
    """The part of a session or batch that its stream reads.

    id: the session's; empty for a batch. route: see `session_metadata`.
    """

    id: str
    route: int


class StreamRecovery(Protocol):
    """What is kept for a resume after a lost connection: see `_recovery.Recovery`."""

    backlog: deque[pb.StreamResponse]
    timeout_s: float

    @property
    def is_open(self) -> bool:
        """Whether there is a session to resume."""

    def received(self, response: pb.StreamResponse) -> bool:
        """Records a response. Returns whether a request made progress.

        Raises LostError when another stream is needed, RepeatError when a request must be sent again on this one.
        """

    def stream_ended(self, error: CarouselError) -> None:
        """Records how the stream ended."""


class Resumable(StreamOwner, Protocol):
    """The owner of a stream that can be resumed."""

    @property
    def recovery(self) -> StreamRecovery | None:
        """None for a session that ends with its stream. If a batch ends with its stream, `is_open` is always False."""

    def lost(self, error: CarouselError) -> CarouselError:
        """Records that the stream has ended for good. Returns the error to raise."""

    def interrupt(self) -> pb.StreamRequest | None:
        """Makes the request that cancels what the running exchange waits for; None if nothing can be cancelled."""

    def resume(self, post: Post) -> Exchange[list[pb.StreamRequest]]:
        """Resumes on a new stream. Returns the requests to send again there. post: sends a request on it."""


class Poster(Protocol):
    """A stream that can send a request without waiting for its answer."""

    def post(self, request: pb.StreamRequest) -> None:
        """Sends a request whose answer another exchange waits for."""


AnyPoster = TypeVar("AnyPoster", bound=Poster)
