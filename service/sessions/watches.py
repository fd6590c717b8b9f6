"""The watchers of sessions, and the events that wait for them.

Rules:

1. Watching has no side effect: it does not use or hold a session, and no feed waits for a watcher.
2. The events of a session are delivered in order, each once. An answer to a retry is no event.
3. When answers wait for the store (see `Persistence.waits_for_store`), an event is delivered no earlier than the
   answer: when the moment after it is stored, and the session is confirmed. An event that is not stored when the
   session ends is never delivered.
4. The events that wait for one watcher are limited. A watcher that exceeds the limit is dropped, with an error. The
   events that wait for all watchers are limited, too; those with the most are dropped first.

Without watchers, the only cost is a check whether `of_session` is empty. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from itertools import accumulate
from typing import NamedTuple, TypeAlias

from service.engine.emitted import emitted
from service.engine.jobs import FeedJob, Item, OutputKind, SearchJob, StepBatchJob, size_of
from service.engine.results import Fed, Generated, Result, Searched, StepOutput, Stepped
from service.errors import CarouselError, TooManyWatchersError, WatcherDroppedError
from service.sessions.answer_memory import outputs_bytes
from service.sessions.persistence import Moment
from service.sessions.session import CloseReason, Session

_MAX_WATCHERS = 16
"""The limit for one session."""
_MAX_EVENTS = 256
"""The limit of events that wait for one watcher."""
_MAX_BYTES = 4 * 1024 * 1024
"""The limit of their bytes. A single larger event is allowed."""
_EVENT_BYTES = 200
"""About the bytes of an event without its tokens and outputs."""


class Change(Enum):
    """A change of a session that consumes and generates no token."""

    WATCHED = "watched"  # a watch of the session begins
    ATTACHED = "attached"
    DETACHED = "detached"
    SET_BACK = "set_back"
    CANCELLED = "cancelled"
    SPILLED = "spilled"
    UNSPILLED = "unspilled"


class Consumed(NamedTuple):
    """Tokens that a session consumed, and the outputs that its client received."""

    items: Sequence[Item]
    outputs: list[StepOutput]


Happening: TypeAlias = Consumed | Generated | Searched | Change | CloseReason
"""The content of an event. No event follows a `CloseReason`."""


class WatchEvent(NamedTuple):
    """One event. moment: the session's moment after it."""

    moment: Moment
    happening: Happening
    num_bytes: int


class Watcher:
    """One watch of one session. `Watches.watch` makes it, and the caller must close it."""

    def __init__(self, session: Session, watches: Watches) -> None:
        self.session = session
        self._watches = watches
        self._waiting: deque[WatchEvent] = deque()
        self.num_bytes = 0
        """The bytes of the events that wait."""
        self._has_ended = False
        self.failure: CarouselError | None = None
        """The error that ended the watch."""
        self.on_over: Callable[[], None] | None = None
        """Called when the watch fails or the session ends: few events, or none, follow."""
        self._arrival: asyncio.Future[None] | None = None

    async def next(self) -> WatchEvent | None:
        """Returns the next event; None after the end. Raises the error that ended the watch. One task at a time."""
        while True:
            if self.failure is not None:
                raise self.failure
            if self._waiting and self._may_deliver(self._waiting[0]):
                event = self._waiting.popleft()
                self._count(-event.num_bytes)
                return event
            if self._has_ended:
                return None
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival

    def put(self, event: WatchEvent) -> None:
        """Adds an event. Drops the watcher when too much waits."""
        is_too_large = bool(self._waiting) and self.num_bytes + event.num_bytes > _MAX_BYTES
        if len(self._waiting) >= _MAX_EVENTS or is_too_large:
            self.drop()
        else:
            self._watches.make_room(event.num_bytes)
        if self.failure is None:
            self._waiting.append(event)
            self._count(event.num_bytes)
            self.wake_up()

    def wake_up(self) -> None:
        """Wakes the reader: an event may be deliverable now."""
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def end(self, reason: CloseReason) -> None:
        """Handles the end of the session: keeps only the events that may be delivered now."""
        session, kept = self.session, deque[WatchEvent]()
        while self._waiting and self._may_deliver(self._waiting[0]):
            kept.append(self._waiting.popleft())
        self._count(-sum(event.num_bytes for event in self._waiting))
        persistence = session.persistence
        position = 0 if persistence.is_unconfirmed else session.reportable_position
        kept.append(WatchEvent((persistence.era, position), reason, 0))
        self._waiting, self._has_ended = kept, True
        self.wake_up()
        if self.on_over is not None:
            self.on_over()

    def drop(self) -> CarouselError:
        """Ends the watch because too much waits, or waits for too long. Returns the error that ended it."""
        event, wait = ("event", "waits") if len(self._waiting) == 1 else ("events", "wait")
        return self._fail(
            WatcherDroppedError(
                f"{len(self._waiting)} {event} of session {self.session.name!r} {wait} to be read or stored"
                f" ({self.num_bytes} bytes), which exceeds the limit: they are dropped. Watch the session again, and"
                " read faster",
                session_id=self.session.name,
            )
        )

    def leave(self, error: CarouselError) -> None:
        """Ends the watch with an error because the server shuts down, unless the session has ended."""
        if not self._has_ended:
            self._fail(error)

    def close(self) -> None:
        """Ends the watch: no further event is delivered."""
        self._waiting.clear()
        self._count(-self.num_bytes)
        self._watches.remove(self)

    def _fail(self, error: CarouselError) -> CarouselError:
        """Ends the watch with an error. `on_over` makes the caller close it, which frees its place among the session's
        watchers."""
        self._waiting.clear()
        self._count(-self.num_bytes)
        if self.failure is None:
            self.failure = error
            self.wake_up()
            if self.on_over is not None:
                self.on_over()
        return self.failure

    def _may_deliver(self, event: WatchEvent) -> bool:
        persistence = self.session.persistence
        if self._has_ended or not persistence.waits_for_store:
            return True
        return persistence.holds(event.moment) and not persistence.is_unconfirmed

    def _count(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self._watches.num_bytes += num_bytes


class Watches:
    """The watchers of all sessions. max_bytes: of all waiting events together.

    of_session: the watchers of each session that has any. num_bytes: of all waiting events.
    """

    def __init__(self, max_bytes: int) -> None:
        self.of_session: dict[Session, list[Watcher]] = {}
        self.num_bytes = 0
        self._all: set[Watcher] = set()
        """All watchers, also of ended sessions with events that were not read yet."""
        self._max_bytes = max_bytes

    @property
    def num_watchers(self) -> int:
        """Number of all watchers, also of ended sessions with events that were not read yet."""
        return len(self._all)

    def watch(self, session: Session) -> Watcher:
        """Begins a watch of a session. Raises TooManyWatchersError."""
        watchers = self.of_session.get(session, [])
        if len(watchers) >= _MAX_WATCHERS:
            raise TooManyWatchersError(
                f"{_MAX_WATCHERS} calls already watch session {session.name!r}, the limit: end one of them",
                retry_delay_s=1.0,
                session_id=session.name,
            )
        watcher = Watcher(session, self)
        self._all.add(watcher)
        self.of_session[session] = [*watchers, watcher]
        watcher.put(WatchEvent(session.moment, Change.WATCHED, _EVENT_BYTES))
        return watcher

    def remove(self, watcher: Watcher) -> None:
        """Removes a watcher."""
        self._all.discard(watcher)
        rest = [one for one in self.of_session.get(watcher.session, ()) if one is not watcher]
        if rest:
            self.of_session[watcher.session] = rest
        else:
            self.of_session.pop(watcher.session, None)

    def make_room(self, num_bytes: int) -> None:
        """Drops the watchers with the most waiting bytes until `num_bytes` more fit. A single event always fits."""
        while self.num_bytes and self.num_bytes + num_bytes > self._max_bytes:
            max(self._all, key=lambda watcher: watcher.num_bytes).drop()

    def fed(self, session: Session, job: FeedJob, result: Result, num_tokens: int) -> None:
        """Reports that a feed moved a session by `num_tokens`, also when the feed failed."""
        if session in self.of_session:
            outputs = result.outputs if isinstance(result, Fed) else []
            self._consumed(session, result.position, job.tokens[:num_tokens], outputs)

    def stepped(self, sessions: Sequence[Session], job: StepBatchJob, result: Stepped) -> None:
        """Reports that a step batch moved sessions. `Session.position` must still be the position before the batch."""
        ends = range(len(sessions) + 1) if job.counts is None else list(accumulate(job.counts, initial=0))
        failed = {place for place, _ in result.errors}
        for place, session in enumerate(sessions):
            num_tokens = result.positions[place] - session.position
            if num_tokens > 0 and session in self.of_session:
                outputs = [] if place in failed else _row(job, result, place)
                items = job.tokens[ends[place] : ends[place + 1]][:num_tokens]
                self._consumed(session, result.positions[place], items, outputs)

    def generated(self, session: Session, result: Result) -> None:
        """Reports tokens or the end of a generation. Ignores a failure."""
        if session in self.of_session and isinstance(result, Generated):
            self._report(session, result.position, result, size_of(result.token_ids))

    def searched(self, session: Session, job: SearchJob, result: Result, num_tokens: int) -> None:
        """Reports the end of a search. num_tokens: tokens of the best result that the session had consumed when the
        search ended."""
        if session not in self.of_session:
            return
        if isinstance(result, Searched):
            num_bytes = sum(2 * size_of(one.tokens) for one in result.hypotheses)
            self._report(session, result.position, result, num_bytes)
        elif num_tokens > 0:
            best = job.search.results()[0].tokens[:num_tokens]
            self.generated(session, Generated(result.position, best, None, None))

    def changed(self, session: Session, change: Change) -> None:
        """Reports another change of a session."""
        if session in self.of_session:
            self._report(session, session.position, change, 0)

    def ended(self, session: Session, reason: CloseReason) -> None:
        """Reports that a session has ended here."""
        for watcher in self.of_session.pop(session, ()):
            watcher.end(reason)

    def more_stored(self, session: Session) -> None:
        """Wakes the watchers: more of the session is stored, or it was confirmed."""
        for watcher in self.of_session.get(session, ()):
            watcher.wake_up()

    def _consumed(self, session: Session, position: int, items: Sequence[Item], outputs: list[StepOutput]) -> None:
        self._report(session, position, Consumed(items, outputs), size_of(items) + outputs_bytes(outputs))

    def _report(self, session: Session, position: int, happening: Happening, num_bytes: int) -> None:
        event = WatchEvent((session.persistence.era, position), happening, _EVENT_BYTES + num_bytes)
        for watcher in self.of_session[session]:
            watcher.put(event)


def _row(job: StepBatchJob, result: Stepped, place: int) -> list[StepOutput]:
    """Returns the outputs that a session would have received from a feed of its own."""
    if job.outputs.kind is OutputKind.NONE:
        return []
    begin, end = place * job.width, (place + 1) * job.width
    scores = result.log_probabilities[begin:end] if job.outputs.kind is OutputKind.TOP_K else None
    logits = None if result.logits is None else result.logits[place].copy()  # a copy, not a view of the whole batch
    if job.outputs.kind is OutputKind.EMITTED and logits is not None:
        ids, scores, num_limited = emitted(logits)
        return [StepOutput(result.positions[place], ids, scores, num_limited=num_limited)] if ids else []
    return [StepOutput(result.positions[place], result.token_ids[begin:end], scores, logits)]
