"""The data of a session: its identity, its lane in the engine, its requests, and the answers kept for retries.

Knows no clock and no I/O. A new `Request` reads the trace of its call, and reports a `reply` that raises to the event
loop. `lifecycle` says which events are legal in which state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from service.engine.before import Before
from service.engine.jobs import Lane
from service.engine.results import Failed, Generated, Result
from service.errors import CarouselError, EngineError, IllegalRequestError, guarded, report
from service.observer import CALL_TRACE
from service.sessions.answer_memory import SMALL_ANSWER, StreamBudget
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


class Request:
    """One request of one session, from its arrival to its last answer. Event loop only.

    `deliver` passes each answer to reply(request, result). A generation has many answers, and the last one carries its
    finish reason; every other request has one answer.

    began_s: arrival, in monotonic seconds. last_s: when its last tokens came, in monotonic seconds. num_tokens: tokens
    that it has fed or generated so far, without those that a resumed generation made before it. is_ended: whether the
    last answer was delivered. before: for a generation that continues an earlier one, the tokens before the first one
    delivered, if the model keeps them. granted: set for a generation; the caller calls it with the number of tokens
    written to the client and the position after them. retries: for a feed, its retries that arrived while it was in
    flight. trace: None when the call is not traced. budget: the memory budget of the stream that the answer is written
    to, None without a stream. answer_bytes: bytes of that budget that this request holds.
    """

    __slots__ = (
        "answer_bytes",
        "before",
        "began_s",
        "budget",
        "granted",
        "is_ended",
        "last_s",
        "num_tokens",
        "replayed",
        "reply",
        "request_id",
        "retries",
        "session",
        "trace",
    )

    def __init__(
        self,
        session: Session | None,
        request_id: int,
        reply: Reply,
        began_s: float,
        budget: StreamBudget | None = None,
    ) -> None:
        self.session: Session = session  # type: ignore[assignment]  # set before anything is delivered
        self.request_id = request_id
        self.reply = reply
        self.began_s = self.last_s = began_s
        self.num_tokens = 0
        self.budget = budget
        self.answer_bytes = 0
        self.is_ended = False
        self.replayed = False
        self.before: Before | None = None
        self.retries: list[Request] | None = None
        self.granted: Callable[[int, int], None] | None = None
        call = CALL_TRACE.get()
        self.trace = None if call is None else call.request()

    def reserve(self, num_bytes: int) -> None:
        """Takes `num_bytes`, the largest possible size of the answer, from the stream's budget. Small answers are not
        counted. Raises QueueFullError."""
        if num_bytes > SMALL_ANSWER and self.budget is not None:
            self.budget.reserve(num_bytes)
            self.answer_bytes += num_bytes

    def release(self) -> None:
        """Returns the reserved bytes to the budget: the answer was written, or no large answer will come."""
        num_bytes, self.answer_bytes = self.answer_bytes, 0
        if num_bytes and self.budget is not None:
            self.budget.release(num_bytes)

    def deliver(self, result: Result) -> None:
        """Passes a result to `reply`. When `reply` raises, delivers a failure instead. Results after the last answer
        are dropped."""
        if not self.is_ended:
            if type(result) is Failed and "close_reason" in result.error.facts:
                result.error.facts.setdefault("position", result.position)
            self.is_ended = not isinstance(result, Generated) or result.finish_reason is not None
            try:
                self.reply(self, result)
            except Exception as error:  # a bug in one answer must not leave the request unanswered
                report(error)
                self.is_ended = True
                failure = EngineError("the response could not be made: see the server's log")
                guarded(self.reply, self, Failed(result.position, failure))


Reply = Callable[[Request, Result], None]
OnEnded = Callable[["Session", CloseReason], None]


Failures = dict["Session", CarouselError]
"""The sessions that a request of several sessions must skip, and why."""


class Deferred:
    """One deferred request. run(failures) carries it out; refuse(error) answers it with an error; num_bytes: memory it
    takes.

    blocked: those of its sessions that have no slot yet, or in whose queue this request is not the first.
    """

    __slots__ = ("blocked", "failures", "is_started", "num_bytes", "refuse", "run", "sessions")

    def __init__(
        self,
        sessions: Sequence[Session],
        run: Callable[[Failures], None],
        refuse: Callable[[CarouselError], None],
        num_bytes: int = 0,
    ) -> None:
        self.sessions = sessions
        self.run = run
        self.refuse = refuse
        self.num_bytes = num_bytes
        self.blocked = set(sessions)
        self.failures: Failures = {}
        self.is_started = False


@dataclass(slots=True, eq=False)
class Session:
    """One sequence in progress. Event loop only.

    id: `principal/name`, or only the name when the session has no principal. serial: the Unix time in microseconds at
    which this server created it, increased where needed to be unique. position: the position after the last answer;
    exact when no request is in flight. on_ended: called when anything except its own stream ends the session.
    last_used_s: monotonic seconds. handle: its number in step batches on its stream; 0 means none yet. last: the
    request that can be retried. deferred: the requests that wait for the session, in order; None while requests can go
    straight to the engine. older, newer: neighbours in the order of use; only `Directory` uses them.
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
    deferred: deque[Deferred] | None = None
    older: Session | None = None
    newer: Session | None = None
    name: str = field(init=False)
    """The id without the principal."""

    def __post_init__(self) -> None:
        self.name = name_of(self.id)

    @property
    def whereabouts(self) -> str:
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
                + (": wait for its end, or cancel it" if self.state is State.GENERATING else ""),
                session_id=self.name,
                state=self.state.value,
            )
        return following

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
