"""What a session is: its identity, its state, and the table of what may happen to it when.

Pure: no asyncio, no clock, no engine thread. The table is the truth; the diagram in docs/architecture.md is drawn
from it by `diagram`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from service.engine.engine import Engine
from service.engine.items import Item
from service.engine.jobs import Lane, OutputSpec
from service.engine.results import Failed, Result
from service.errors import IllegalRequestError
from service.observer import CALL_TRACE
from service.repository.bundle import Bundle
from service.repository.manifest import BASE_VARIANT
from service.sessions.custody import Custody
from service.sessions.generation import Generation


class State(Enum):
    """What a session is doing."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hashes the name, in Python

    IDLE = "idle"
    BUSY = "busy"
    GENERATING = "generating"
    CLOSED = "closed"


class Event(Enum):
    """What may happen to a session."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hashes the name, in Python

    FEED = "feed"
    GENERATE = "generate"
    SCORE = "score"
    FINISH = "finish"
    CLOSE = "close"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.IDLE, Event.FEED): State.BUSY,
    (State.BUSY, Event.FEED): State.BUSY,
    (State.IDLE, Event.SCORE): State.BUSY,
    (State.BUSY, Event.SCORE): State.BUSY,
    (State.IDLE, Event.GENERATE): State.GENERATING,
    (State.BUSY, Event.GENERATE): State.GENERATING,
    (State.BUSY, Event.FINISH): State.IDLE,
    (State.GENERATING, Event.FINISH): State.IDLE,
    (State.IDLE, Event.CLOSE): State.CLOSED,
    (State.BUSY, Event.CLOSE): State.CLOSED,
    (State.GENERATING, Event.CLOSE): State.CLOSED,
}
"""(state, event) to the next state. What is not here is illegal. Encoding the source counts as a feed; FINISH is the
answer to the last request in flight."""


class CloseReason(Enum):
    """Why a session was closed."""

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


class Served(NamedTuple):
    """A bundle and the engine that runs it, by one of its variants."""

    bundle: Bundle
    engine: Engine
    variant: str = BASE_VARIANT


class Request:
    """One request of one session on its way. reply(request, result) is called on the event loop, for a generation many
    times.

    began_s: monotonic seconds when it was read; last_s: when its last tokens came. num_tokens: fed or generated so
    far. granted: of a generation; to be called with how many of its tokens have been written, and the position after
    them. trace: None when its call is not traced.
    """

    __slots__ = ("began_s", "granted", "last_s", "num_tokens", "replayed", "reply", "request_id", "session", "trace")

    def __init__(self, session: Session, request_id: int, reply: Reply, began_s: float, num_tokens: int = 0) -> None:
        self.session = session
        self.request_id = request_id
        self.reply = reply
        self.began_s = began_s
        self.num_tokens = num_tokens
        self.last_s = began_s
        self.replayed = False
        self.granted: Callable[[int, int], None] | None = None
        call = CALL_TRACE.get()
        self.trace = None if call is None else call.request()


Reply = Callable[[Request, Result], None]
OnClosed = Callable[["Session", CloseReason], None]


class LastFeed:
    """The feed admitted last, kept so that it can be answered again.

    request: None for one of another life. start: None until it is known. waiting: repeats that came before the answer.
    """

    __slots__ = ("outputs", "request", "result", "start", "tokens", "waiting")

    def __init__(self, request: Request | None, start: int | None, tokens: Sequence[Item], outputs: OutputSpec) -> None:
        self.request = request
        self.start = start
        self.tokens = tokens
        self.outputs = outputs
        self.result: Result | None = None
        self.waiting: list[Request] | None = None

    def is_repeated_by(self, start: int, tokens: Sequence[Item], outputs: OutputSpec) -> bool:
        """Whether a feed is this one, sent again. One that failed is not there to be repeated."""
        return (
            start == self.start
            and tokens == self.tokens
            and outputs == self.outputs
            and not isinstance(self.result, Failed)
        )


@dataclass(slots=True, eq=False)
class Session:
    """One sequence being processed. Event loop only.

    id: `principal/name`, or the name alone when nobody in particular opened it. serial: Unix microseconds at which this
    server took it in, or a little more: no two have the same. position: as of the last answer; the truth when nothing
    is in flight. on_closed: told when somebody else than its stream closes it. last_used_s: monotonic seconds. handle:
    its name in frames, on its stream; 0: none yet. last: what may be sent again. custody: None for one that ends with
    its stream. older, newer: its neighbours in the order of use, for `LiveSessions` alone.
    """

    id: str
    serial: int
    served: Served
    lane: Lane
    on_closed: OnClosed
    last_used_s: float
    position: int = 0
    state: State = State.IDLE
    num_in_flight: int = 0
    last: LastFeed | Generation | None = None
    custody: Custody | None = None
    handle: int = 0
    older: Session | None = None
    newer: Session | None = None

    @property
    def name(self) -> str:
        """Its id, as its principal calls it."""
        return name_of(self.id)

    @property
    def opened_at(self) -> float:
        """When it was opened, wherever that was: Unix seconds."""
        restored = None if self.custody is None else self.custody.opened_at
        return self.serial / 1e6 if restored is None else restored

    def after(self, event: Event) -> State:
        """The state that follows. Raises IllegalRequestError when the table does not allow the event."""
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise IllegalRequestError(
                f"{event.value}: session {self.name!r} is {self.state.value} at position {self.position}"
                + (": wait for its end, or cancel it" if self.state is State.GENERATING else ""),
                session_id=self.name,
                state=self.state.value,
            )
        return following

    def ended(self, result: Result) -> None:
        """Takes note of the last answer to one of its requests."""
        self.position = result.position
        self.num_in_flight -= 1
        if self.num_in_flight == 0 and self.state is not State.CLOSED:
            self.state = self.after(Event.FINISH)


def name_of(session_id: str) -> str:
    """The name in an id."""
    return session_id[session_id.find("/") + 1 :]


def owner_of(session_id: str) -> str:
    """The principal in an id; empty for nobody in particular."""
    return session_id[: max(session_id.find("/"), 0)]


def diagram() -> str:
    """The table of transitions as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> idle: open"]
    lines += [f"    {s.value} --> {n.value}: {e.value}" for (s, e), n in TRANSITIONS.items()]
    return "\n".join([*lines, "    closed --> [*]"])
