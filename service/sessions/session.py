"""A session's data: its identity, its lane in the engine, its requests, and what it can answer again.

Pure: no asyncio, no clock. `lifecycle` says what may happen to it when.
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
from service.sessions.persistence import NOT_STORED, Durability, Moment, Persistence, SessionPolicy
from service.sessions.served import Served


class CloseReason(Enum):
    """Why a session ended."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hashes the name, in Python

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

    `deliver` passes answers to reply(request, result): one, or many for a generation, of which the last says so.

    began_s: monotonic seconds of its arrival; last_s: of its last tokens. num_tokens: fed or generated so far.
    is_ended: whether its last answer was delivered. before: the tokens before those of a generation that it goes on
    with, if the model has them. granted: of a generation; the caller calls it with the number of
    tokens that were written to the client, and the position after them. retries: of a feed, those that came while it
    was in flight. trace: None when its call is not traced. budget: of the stream that its answer is written to, if it
    is on one; answer_bytes: what the answer takes of it.
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
        """Counts an answer of so many bytes at most. Raises QueueFullError."""
        if num_bytes > SMALL_ANSWER and self.budget is not None:
            self.budget.take(num_bytes)
            self.answer_bytes += num_bytes

    def release(self) -> None:
        """The answer was written, or none that is large will be."""
        num_bytes, self.answer_bytes = self.answer_bytes, 0
        if num_bytes and self.budget is not None:
            self.budget.give_back(num_bytes)

    def deliver(self, result: Result) -> None:
        """Passes an answer on; a failure in place of one that cannot be. What comes after the last answer is
        dropped."""
        if not self.is_ended:
            if type(result) is Failed and "close_reason" in result.error.facts:
                result.error.facts.setdefault("position", result.position)
            self.is_ended = not isinstance(result, Generated) or result.finish_reason is not None
            try:
                self.reply(self, result)
            except Exception as error:  # a bug with one answer must not leave a request without any
                report(error)
                self.is_ended = True
                failure = EngineError("the answer could not be made: the server's log says more")
                guarded(self.reply, self, Failed(result.position, failure))


Reply = Callable[[Request, Result], None]
OnEnded = Callable[["Session", CloseReason], None]


Failures = dict["Session", CarouselError]
"""The sessions that a request of several must do without, and why."""


class Deferred:
    """One request that waits. run(failures): carries it out; refuse: answers it with an error; num_bytes: what it
    holds.

    blocked: its sessions that have no slot yet, or in whose queue it is not the first.
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
    """One sequence being processed. Event loop only.

    id: `principal/name`, or the name alone when nobody in particular opened it. serial: Unix microseconds at which this
    server took it in, or a little more: no two have the same. position: as of the last answer; the truth when nothing
    is in flight. on_ended: called when something other than its stream ends it. last_used_s: monotonic seconds. handle:
    its name in step batches, on its stream; 0: none yet. last: the request that can be retried. deferred: requests that
    wait for it, in order; None while a request can go straight to the engine. older, newer: its neighbours in the order
    of use, for `Directory` alone.
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
    persistence: Persistence = NOT_STORED
    handle: int = 0
    deferred: deque[Deferred] | None = None
    older: Session | None = None
    newer: Session | None = None
    name: str = field(init=False)
    """Its id, as its principal calls it."""

    def __post_init__(self) -> None:
        self.name = name_of(self.id)

    @property
    def whereabouts(self) -> str:
        """Why a stream that does not have it cannot use it, for messages."""
        if self.is_detached:
            return "is held, and no stream has it: resume it"
        return "is being opened elsewhere" if self.state is State.OPENING else "was opened on another stream"

    @property
    def policy(self) -> SessionPolicy:
        """What was agreed when it was opened."""
        return self.persistence.policy

    @property
    def opened_at(self) -> float:
        """When it was opened, on whichever server: Unix seconds."""
        restored = self.persistence.opened_at
        return self.serial / 1e6 if restored is None else restored

    @property
    def is_live(self) -> bool:
        """Whether it has a slot."""
        return self.state in LIVE

    @property
    def is_ready(self) -> bool:
        """Whether requests can be carried out: it has a slot, and is known to be this server's."""
        return self.state in LIVE and not self.persistence.is_unconfirmed

    @property
    def is_over(self) -> bool:
        """Whether it has ended, for clients."""
        return self.state in OVER

    @property
    def is_detached(self) -> bool:
        """Whether no stream has it."""
        return not self.persistence.is_attached

    @property
    def is_working(self) -> bool:
        """Whether it works for somebody: a generation that nobody reads does not count, nor does one that waits for its
        reader on a session without a stream."""
        if self.state is State.GENERATING and isinstance(self.last, Generation):
            return self.last.request is not None
        return self.num_in_flight > 0 or bool(self.deferred) or bool(self.persistence.awaiting)

    @property
    def num_unanswered(self) -> int:
        """Requests in flight, and those whose last answers wait for the store."""
        return self.num_in_flight + self.persistence.num_awaiting

    @property
    def reportable_position(self) -> int:
        """The position that may be told: of a strict session no more than the store has."""
        persistence = self.persistence
        if persistence.policy.durability is not Durability.STRICT or persistence.stored == (
            persistence.era,
            self.position,
        ):
            return self.position
        return 0 if persistence.stored is None else persistence.stored[1]

    @property
    def moment(self) -> Moment:
        """Where it is, in the order of what is to be stored."""
        return self.persistence.era, self.position

    def own_persistence(self) -> Persistence:
        """Its persistence, to be changed."""
        if self.persistence is NOT_STORED:
            self.persistence = Persistence(NOT_STORED.policy)
        return self.persistence

    def transition(self, event: Event) -> Transition:
        """The transition of an event. Raises IllegalRequestError when the table does not have it."""
        following = TABLE.get((self.state, event))
        if following is None:
            raise IllegalRequestError(
                f"{event.value}: session {self.name!r} is {self.state.value} at position {self.reportable_position}"
                + (": wait for its end, or cancel it" if self.state is State.GENERATING else ""),
                session_id=self.name,
                state=self.state.value,
            )
        return following

    def ended(self, result: Result) -> None:
        """Counts the last answer to one of its requests in flight."""
        self.position = result.position
        self.num_in_flight -= 1
        if not self.num_in_flight and self.state in LIVE:
            self.state = TABLE[self.state, Event.FINISH].state


def nobody(session: Session, reason: CloseReason) -> None:
    """No stream has the session: the `OnEnded` of one."""


def name_of(session_id: str) -> str:
    """The name in an id."""
    return session_id[session_id.find("/") + 1 :]


def owner_of(session_id: str) -> str:
    """The principal in an id; empty for nobody in particular."""
    return session_id[: max(session_id.find("/"), 0)]
