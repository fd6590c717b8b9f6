"""A client that watches a visitor's session, call after call, and compares the events with the visitor's feeds.

Rules that it checks:

1. A watch begins with `watching`, and the events have no gap: each feed begins at the position where the one before it
   ended.
2. The reported feeds are those of the visitor, with their tokens and outputs, each once.
3. `closed` is the last event, at the session's position. After the close reason CLIENT no further feed was applied.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from carousel.v1 import error_pb2
from carousel.v1 import inference_pb2 as pb
from simulation.checks import Journal
from simulation.system import Replica
from simulation.visits import Feed, Visitor
from simulation.wire import Connection, ConnectionAtOnce

_AGAIN_S = 0.05
_CHANGES = (pb.SESSION_CHANGE_SPILLED, pb.SESSION_CHANGE_UNSPILLED)
"""The changes that can happen to a session that only `Step` uses."""


class Watcher:
    """Watches a session. stalls: whether it stops reading now and then. num_watches: watches that have begun;
    num_dropped: watches that the server ended because this client did not read."""

    def __init__(
        self,
        visitor: Visitor,
        replica: Replica,
        journal: Journal,
        rng: random.Random,
        delay: Callable[[], float],
        *,
        stalls: bool,
    ) -> None:
        self.num_watches = self.num_dropped = 0
        self._visitor = visitor
        self._replica = replica
        self._journal = journal
        self._rng = rng
        self._delay = delay
        self._stalls = stalls
        self._watches: list[list[pb.WatchResponse]] = []

    async def run(self) -> None:
        """Watches until the visitor is done, and then checks all events."""
        while not self._visitor.is_done:
            await self._watch()
            await asyncio.sleep(_AGAIN_S + self._rng.random() * _AGAIN_S)
        for events in self._watches:
            self._check(events)

    async def _watch(self) -> None:
        events: list[pb.WatchResponse] = []
        over: asyncio.Future[error_pb2.Error | None] = asyncio.get_running_loop().create_future()

        def receive(message: Any) -> None:
            if isinstance(message, pb.WatchResponse):
                events.append(message)
            elif not over.done():
                over.set_result(message)

        connection = self._rng.choice((Connection, ConnectionAtOnce))(receive, self._delay)
        call = self._replica.watch(pb.WatchRequest(session_id=self._visitor.name), connection)
        call.add_done_callback(lambda done: connection.finish(None if done.cancelled() else done.result()))
        while not over.done():
            if self._stalls:
                connection.set_reading(self._rng.random() < 0.3)
            await asyncio.wait([over], timeout=self._rng.random() * (4.0 if self._stalls else 0.5))
        if events:
            self.num_watches += 1
            self._watches.append(events)
        error = over.result()
        if error is None:
            if not (events and events[-1].HasField("closed")):
                self._journal.violate(f"a watch of {self._visitor.name!r} ends with OK and without `closed`")
        elif error.reason == "WATCHER_DROPPED":
            self.num_dropped += 1
        elif error.reason not in ("SESSION_NOT_FOUND", "SESSION_MOVED") or events:
            self._journal.violate(f"a watch of {self._visitor.name!r} ends with {error}")

    def _check(self, events: list[pb.WatchResponse]) -> None:
        name, first = self._visitor.name, events[0]
        position, feeds = first.position, list[Feed]()
        for at, one in enumerate(events):
            kind = one.WhichOneof("event")
            if (kind == "watching") != (at == 0) or (kind == "closed" and at < len(events) - 1):
                self._journal.violate(f"a watch of {name!r} reports {kind} as number {at} of {len(events)}")
            if kind == "fed":
                tokens = tuple(token.id for token in one.fed.tokens)
                feeds.append(Feed(position, tokens, tuple(one.fed.fed.outputs[-1].logits)))
                position += len(tokens)
            elif kind == "changed" and one.changed.change not in _CHANGES:
                self._journal.violate(f"a watch of {name!r} reports {one.changed}")
            if one.position != position:
                self._journal.violate(f"a watch of {name!r} reports position {one.position} instead of {position}")
        self._compare(feeds, is_whole=events[-1].closed.reason == pb.CLOSE_REASON_CLIENT)

    def _compare(self, feeds: list[Feed], *, is_whole: bool) -> None:
        """Checks that the feeds are successive feeds of the visitor. is_whole: whether they must include the session's
        last feed."""
        every = self._visitor.fed
        for begin in range(len(every) - len(feeds) + 1):
            end = begin + len(feeds)
            is_end = end == len(every) or every[end].start == 0
            if every[begin:end] == feeds and (is_end or not (is_whole and feeds)):
                return
        self._journal.violate(f"a watch of {self._visitor.name!r} reports {feeds}, which were not fed so")
