"""Results on their way from who drives the engine to the event loop, which answers them.

The event loop is called once for all that comes before it does: what comes together is answered together. Tokens of
generations that go on may wait a little longer. Writing them costs more than choosing them, and would take the whole
event loop if it could; so after each delivery of some the event loop is left to others for a while, and the tokens that
are chosen meanwhile leave together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from time import perf_counter
from typing import TypeAlias

from service.engine.jobs import Job
from service.engine.results import Generated, Result, Stepped

Answered: TypeAlias = tuple[Job, Result | Stepped]

_REST = 2.0
"""How long the event loop is left to others after it has delivered tokens, over how long that took."""


class Outgoing:
    """A queue of results, each with its job. ended(jobs): told of those that were answered for good, a delivery's in
    one call."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ended: Callable[[list[Job]], None]) -> None:
        self._loop = loop
        self._ended = ended
        self._waiting: deque[tuple[list[Answered], list[Callable[[], None]]]] = deque()
        self._is_due = False
        self._listens_at_s = 0.0

    def put(self, results: list[Answered], after: list[Callable[[], None]]) -> None:
        """Adds results, and what is to be called after them. Any thread."""
        self._waiting.append((results, after))

    def call(self) -> None:
        """Has the event loop deliver what is here. The engine's thread."""
        if self._waiting and not self._is_due:
            self._is_due = True
            self._loop.call_soon_threadsafe(self.deliver)

    def is_listening(self) -> bool:
        """Whether tokens of generations that go on would be delivered at once. Any thread."""
        return not self._is_due and perf_counter() >= self._listens_at_s

    def deliver(self) -> None:
        """Answers what is here. One answer's failure is reported and takes no other down. On the event loop."""
        self._is_due = False  # first: what is put in from here on is delivered here, or by another call
        began_s = perf_counter()
        ended: list[Job] = []
        has_tokens = False
        while self._waiting:
            results, after = self._waiting.popleft()
            for answered in results:
                job, result = answered
                if goes_on(answered):
                    has_tokens = True
                else:
                    ended.append(job)
                try:
                    job.reply(job, result)
                except Exception as error:  # a bug at the edge must not cost a neighbour its answer
                    self._loop.call_exception_handler({"message": "answering a request failed", "exception": error})
            for call in after:
                call()
        if ended:
            self._ended(ended)
        if has_tokens:
            self._listens_at_s = inf
            self._loop.call_soon(self._rest, began_s)

    def _rest(self, began_s: float) -> None:
        """The streams that were woken by a delivery, this turn before this, have begun to write."""
        now_s = perf_counter()
        self._listens_at_s = now_s + _REST * (now_s - began_s)


def goes_on(answered: Answered) -> bool:
    """Whether a result is of a generation that goes on."""
    return isinstance(answered[1], Generated) and answered[1].finish_reason is None
