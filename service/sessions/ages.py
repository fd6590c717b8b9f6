"""How long sessions may exist: which are too old, and how much is left of the others.

A session's age counts from its opening, on whichever server that was. Its record, its snapshots and its forks tell
when, in Unix seconds by the clock of that server: servers whose clocks differ by some seconds end a session that moves
between them earlier or later by as much.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime

from service.errors import SnapshotExpiredError
from service.sessions.session import Session

_GRACE_S = 5.0
"""For how long a record outlives its session's age: its server ends the session before, and says why."""
_FEW = 1024
"""Entries of sessions that have ended, of which there may always be so many."""


class Ages:
    """The sessions of this server by when they were opened. max_age_s: from then until they are closed, however they
    are used; 0: no limit. clock: monotonic seconds; wall_clock: Unix seconds. Event loop only."""

    def __init__(
        self,
        max_age_s: float = 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._max_age_s = max_age_s or math.inf
        self._clock = clock
        self._wall_clock = wall_clock
        self._oldest: list[tuple[float, int, Session]] = []
        """A heap of (opened_at, serial, session), some of which have ended."""
        self._num_ended = 0

    def add(self, session: Session) -> None:
        """A session of this server."""
        if self._max_age_s < math.inf:
            heapq.heappush(self._oldest, (session.opened_at, session.serial, session))

    def remove(self) -> None:
        """A session that was added has ended."""
        self._num_ended += 1
        if self._num_ended > len(self._oldest) / 2 + _FEW:
            self._oldest = [entry for entry in self._oldest if not entry[2].is_over]
            heapq.heapify(self._oldest)
            self._num_ended = 0

    def overdue(self) -> list[Session]:
        """Those that are too old, the oldest first: each is told once, and the caller ends it."""
        found = []
        while self._oldest and self.is_over(self._oldest[0][0]):
            *_, session = heapq.heappop(self._oldest)
            self._num_ended -= 1  # it was counted, or will be when it ends
            if not session.is_over:
                found.append(session)
        return found

    def is_over(self, opened_at: float) -> bool:
        """Whether a session that was opened at a time, in Unix seconds, is too old."""
        return self._wall_clock() - opened_at >= self._max_age_s

    def left_s(self, opened_at: float) -> float:
        """How long the record of such a session may last, at least 0; infinite without a limit."""
        return max(0.0, opened_at + self._max_age_s + _GRACE_S - self._wall_clock())

    def gone_by_s(self, opened_at: float) -> float:
        """When the store is to have forgotten such a session, in monotonic seconds; infinite without a limit."""
        return self._clock() + self.left_s(opened_at)

    def check_snapshot(self, opened_at: float) -> None:
        """Raises SnapshotExpiredError for a snapshot of a session that is too old."""
        if self.is_over(opened_at):
            when = datetime.fromtimestamp(opened_at, UTC).isoformat(timespec="seconds")
            raise SnapshotExpiredError(
                f"snapshot is of a session that was opened at {when}, and a session may exist for"
                f" {self._max_age_s:g} s here (max_age_s): open a new one",
                field="snapshot",
            )
