"""The data of a session: its identity, its lane in the engine, its requests, and the answers kept for retries.

Knows no clock and no I/O. `lifecycle` says which events are legal in which state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from service.engine.jobs import Lane
from service.engine.results import Result
from service.errors import IllegalRequestError
from service.sessions.generation import Asked, Generation
from service.sessions.lifecycle import LIVE, OVER, TABLE, Event, State, Transition
from service.sessions.persistence import PLAIN_PERSISTENCE, Durability, Moment, Persistence, SessionPolicy
from service.sessions.served import Served


class CloseReason(Enum):
    """Why a session ended."""

    __hash__ = object.__hash__  # members are singletons; Enum.__hash__ hashes the name, in Python

    CLIENT = "client"
    DISCONNECT = "disconnect"
    IDLE = "idle"
    SHUTDOWN = "shutdown"
    FAILED = "failed"
    EXPIRED = "expired"
    MOVED = "moved"
    LOST = "lost"
    TAKEN = "taken"
    MAX_AGE = "max_age"


OnEnded = Callable[["Session", CloseReason], None]


@dataclass(slots=True, eq=False)
class Session:
    """One sequence in progress. Event loop only.

    id: `principal/name`, or only the name when the session has no principal. serial: the Unix time in microseconds at
    which this server created it, increased where needed to be unique. position: the position after the last answer;
    exact when no request is in flight. on_ended: called when anything except its own stream ends the session.
    last_used_s: monotonic seconds. handle: its number in step batches on its stream; 0 means none yet. last: the
    request that can be retried. deferred: each `Deferred` that waits for the session, in order; None while requests can
    go straight to the engine. older, newer: neighbours in the order of use; only `Directory` uses them.
    """

    id: str
    serial: int
    served: Served
    lane: Lane
    on_ended: OnEnded
    last_used_s: float
    position: int = 0
    state: State = State.OPENING
    num_in_flight: int = 0
    last: Asked | None = None
    persistence: Persistence = PLAIN_PERSISTENCE
    handle: int = 0
    deferred: deque[Any] | None = None
    older: Session | None = None
    newer: Session | None = None
    name: str = field(init=False)
    """The id without the principal."""

    def __post_init__(self) -> None:
        self.name = name_of(self.id)

    @property
    def why_unusable(self) -> str:
        """Returns why a stream cannot use this session of another stream, as a phrase for error messages."""
        if self.is_detached:
            return "is detached: resume it"
        return "is being opened by another call" if self.state is State.OPENING else "was opened on another stream"

    @property
    def policy(self) -> SessionPolicy:
        """The policy agreed when the session was opened."""
        return self.persistence.policy

    @property
    def opened_at(self) -> float:
        """When the session was opened, on any server, in Unix seconds."""
        restored = self.persistence.opened_at
        return self.serial / 1e6 if restored is None else restored

    @property
    def is_live(self) -> bool:
        """Whether the session has a slot that requests can use."""
        return self.state in LIVE

    @property
    def is_ready(self) -> bool:
        """Whether requests can run: the session has a slot, and this server is known to own it."""
        return self.state in LIVE and not self.persistence.is_unconfirmed

    @property
    def is_over(self) -> bool:
        """Whether the session has ended, as clients see it."""
        return self.state in OVER

    @property
    def is_detached(self) -> bool:
        """Whether no stream is attached."""
        return not self.persistence.is_attached

    @property
    def is_working(self) -> bool:
        """Whether the session does work that a client waits for. A generation without a listener does not count."""
        if self.state is State.GENERATING and isinstance(self.last, Generation):
            return self.last.request is not None
        return self.num_in_flight > 0 or bool(self.deferred) or bool(self.persistence.awaiting)

    @property
    def num_unanswered(self) -> int:
        """The number of requests in flight, plus requests whose last answer waits for the store."""
        return self.num_in_flight + self.persistence.num_awaiting

    @property
    def reportable_position(self) -> int:
        """The position that clients may see. For a strict session this is at most the stored position."""
        persistence = self.persistence
        if persistence.policy.durability is not Durability.STRICT or persistence.stored == (
            persistence.era,
            self.position,
        ):
            return self.position
        return 0 if persistence.stored is None else persistence.stored[1]

    def reportable(self, position: int | None) -> int:
        """An earlier position of the session as clients may see it. None: the present one."""
        return self.reportable_position if position is None else min(position, self.reportable_position)

    @property
    def moment(self) -> Moment:
        """The current point in the session's life, as the store orders them."""
        return self.persistence.era, self.position

    def own_persistence(self) -> Persistence:
        """Returns the session's own, mutable persistence. Creates it when the session still shares
        `PLAIN_PERSISTENCE`."""
        if self.persistence is PLAIN_PERSISTENCE:
            self.persistence = Persistence(PLAIN_PERSISTENCE.policy)
        return self.persistence

    def transition_for(self, event: Event) -> Transition:
        """Returns the transition for an event; changes nothing. Raises IllegalRequestError when the table has none."""
        following = TABLE.get((self.state, event))
        if following is None:
            raise IllegalRequestError(
                f"{event.value}: session {self.name!r} is {self.state.value} at position {self.reportable_position}"
                + (f": {self._how_to_end}" if self.state is State.GENERATING else ""),
                session_id=self.name,
                state=self.state.value,
            )
        return following

    @property
    def _how_to_end(self) -> str:
        """What a client can do about the session's generation, as a phrase for error messages."""
        if self.last is not None and self.last.request is None:  # its stream has ended
            return "no stream reads it: send a Cancel on a stream that resumes the session, or its Generate again"
        return "wait for its end, or cancel it"

    def check(self, event: Event) -> None:
        """Raises IllegalRequestError when the table has no transition for an event."""
        self.transition_for(event)

    def request_done(self, result: Result) -> None:
        """Records the last answer to one request in flight. Becomes IDLE when no other request is in flight."""
        self.position = result.position
        self.num_in_flight -= 1
        if not self.num_in_flight and self.state in LIVE:
            self.state = TABLE[self.state, Event.FINISH].state


def no_stream(session: Session, reason: CloseReason) -> None:
    """The `OnEnded` of a session without a stream. Does nothing."""


def name_of(session_id: str) -> str:
    """Returns the name in an id."""
    return session_id[session_id.find("/") + 1 :]


def owner_of(session_id: str) -> str:
    """Returns the principal in an id, or "" when there is none."""
    return session_id[: max(session_id.find("/"), 0)]
