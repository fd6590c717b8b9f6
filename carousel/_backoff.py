"""Decides how long the client waits between attempts, and when it stops. Pure: the time is passed in."""

from __future__ import annotations

import random

import grpc

from carousel import _arguments
from carousel.errors import CarouselError

_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 2.0
_RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED)
_REFUSALS = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
_SHUTDOWN_REASONS = ("SHUTTING_DOWN", "SESSION_MOVED", "GO_AWAY")
_SHUTDOWN_CLOSE_REASONS = ("shutdown", "moved")
CONNECTION_LOST = "CONNECTION_LOST"
"""The reason of errors about a connection that broke during a call."""
CLIENT_CLOSED = "CLIENT_CLOSED"
"""The reason of errors about a client that the program closed."""


class Backoff:
    """Limits one recovery, from the first loss until a request makes progress.

    Each delay is twice the one before, up to a limit, and then reduced at random by up to half. Time between the
    program's calls, when no call waits for the session, does not count in the recovery's time, but in the delay: calls
    that are shorter than the delay wait for the same one in turn.
    """

    def __init__(self, timeout_s: float) -> None:
        """timeout_s: the most time that one recovery may take."""
        self.timeout_s = _arguments.seconds(timeout_s, "resume_timeout")
        self._spent_s = 0.0
        self._since_s: float | None = None
        self._delay_s = 0.0
        self._next_s: float | None = None
        """When the next attempt may begin. None: an attempt was made, and the delay after it has not begun."""

    def begin(self, now_s: float) -> None:
        """Records that a connection was lost, or that a call continues an earlier recovery. Idempotent."""
        if self._since_s is None:
            self._since_s = now_s

    def pause(self, now_s: float) -> None:
        """Records that the program's call ended before the recovery did."""
        self._spent_s, self._since_s = self._elapsed_s(now_s), None

    def reset(self) -> None:
        """Records that a request made progress: the recovery has ended."""
        self._spent_s, self._since_s, self._delay_s, self._next_s = 0.0, None, 0.0, None

    def remaining_s(self, now_s: float) -> float:
        """Seconds that the recovery has left, 0 or more."""
        return max(0.0, self.timeout_s - self._elapsed_s(now_s))

    def next(self, error: CarouselError, now_s: float) -> float:
        """Returns the seconds to wait before the next attempt. Raises `error` when the recovery has no time left."""
        if self._next_s is None:
            self._next_s = now_s + self._delay_s * random.uniform(0.5, 1.0)
            self._delay_s = min(_LONGEST_DELAY_S, max(_FIRST_DELAY_S, 2 * self._delay_s))
        delay_s = max(0.0, self._next_s - now_s)
        if self.remaining_s(now_s) < delay_s:
            raise error
        return delay_s

    def attempted(self) -> None:
        """Records that an attempt has failed, or was sent. Not called for one that its call's timeout ended: the next
        call makes another at once."""
        self._next_s = None

    def _elapsed_s(self, now_s: float) -> float:
        return self._spent_s + (0.0 if self._since_s is None else now_s - self._since_s)


class Attempts:
    """Counts the attempts of one session's recovery, and decides whether another attempt can help."""

    def __init__(self) -> None:
        self.count = 0
        """Number of attempts made."""
        self._refusals: set[grpc.StatusCode] = set()

    def can_help(self, error: CarouselError) -> bool:
        """Whether a resume may succeed after `error`. A code of refusal that two attempts get is final.

        The error that lost the session, before the first attempt, does not count as a refusal.
        """
        if is_retried(error):
            return True
        if not is_refusal(error) or error.code in self._refusals:
            return False
        if self.count:
            self._refusals.add(error.code)
        return True


class CallBackoff:
    """The backoff of a call that has its own session and is repeated from its start."""

    def __init__(self, timeout_s: float) -> None:
        """timeout_s: the most time that one recovery may take."""
        self._backoff = Backoff(timeout_s)
        self._is_retrying = False
        self._progress = 0

    def next(self, error: CarouselError, progress: int, now_s: float, remaining_s: float | None) -> float:
        """Returns the seconds to wait before the call is repeated.

        progress: grows with each arriving token or sequence; 0 before. remaining_s: of the call's own timeout. Raises
        `error` when a retry cannot help. A server that was never reached is not retried: the address may be wrong.
        """
        if progress > self._progress:
            self._backoff.reset()
            self._progress = progress
        may_retry = is_shutdown_or_move(error) or (
            error.code is grpc.StatusCode.UNAVAILABLE
            and (progress > 0 or self._is_retrying or error.reason == CONNECTION_LOST)
        )
        if not may_retry:
            raise error
        self._is_retrying = True
        self._backoff.begin(now_s)
        self._backoff.attempted()
        delay_s = self._backoff.next(error, now_s)
        if remaining_s is not None and delay_s >= remaining_s:
            raise error
        return delay_s


def is_shutdown_or_move(error: CarouselError) -> bool:
    """Whether an error means that the server shuts down, or that another server has the session.

    Servers of version 0.1 answer calls with CANCELLED when they shut down; the metadata has the reason.
    """
    return error.reason in _SHUTDOWN_REASONS or error.metadata.get("close_reason") in _SHUTDOWN_CLOSE_REASONS


def is_retried(error: CarouselError) -> bool:
    """Whether a failed attempt to resume a session may succeed later.

    With RESOURCE_EXHAUSTED, a full server sends a retry delay. A server that refuses a message for its size, or gRPC
    itself, sends none.
    """
    is_full = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_delay is not None
    return error.code in _RETRIED or is_full


def is_refusal(error: CarouselError) -> bool:
    """Whether the end of a stream may be the answer to one of its requests, and not concern the whole session."""
    return error.code in _REFUSALS and error.reason != CLIENT_CLOSED
