"""The age of sessions: which are too old, and how much time the others have left.

A session's age counts from its opening, on any server. Its record, its snapshots and its forks keep the time of the
opening, in Unix seconds by the clock of that server. When the clocks of two servers differ by some seconds, a session
that moves between them ends that much earlier or later.
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
"""How long a record outlives its session's age, so that its server can end the session first and report why."""
_FEW = 1024
"""So many heap entries of ended sessions are always allowed."""


class Ages:
    """The sessions of this server by their opening. max_age_s: seconds from the opening until a session is closed, even
    when it is in use; 0 means no limit. clock: monotonic seconds. wall_clock: Unix seconds. Event loop only."""

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
        """A heap of (opened_at, serial, session). Some of the sessions have ended."""
        self._num_ended = 0

    def add(self, session: Session) -> None:
        """Adds a session."""
        if self._max_age_s < math.inf:
            heapq.heappush(self._oldest, (session.opened_at, session.serial, session))

    def remove(self) -> None:
        """Counts the end of a session that was added."""
        self._num_ended += 1
        if self._num_ended > len(self._oldest) / 2 + _FEW:
            self._oldest = [entry for entry in self._oldest if not entry[2].is_over]
            heapq.heapify(self._oldest)
            self._num_ended = 0

    def overdue(self) -> list[Session]:
        """Returns the sessions that are too old, the oldest first. Each is returned once, and the caller must end
        it."""
        found = []
        while self._oldest and self.is_over(self._oldest[0][0]):
            *_, session = heapq.heappop(self._oldest)
            self._num_ended -= 1  # its end was counted, or will be
            if not session.is_over:
                found.append(session)
        return found

    def is_over(self, opened_at: float) -> bool:
        """Whether a session opened at this time (Unix seconds) is too old."""
        return self._wall_clock() - opened_at >= self._max_age_s

    def left_s(self, opened_at: float) -> float:
        """Returns for how many seconds the record of such a session may last, at least 0; infinite without a limit."""
        return max(0.0, opened_at + self._max_age_s + _GRACE_S - self._wall_clock())

    def gone_by_s(self, opened_at: float) -> float:
        """Returns the monotonic time from which the store must have no record of such a session; infinite without a
        limit."""
        return self._clock() + self.left_s(opened_at)

    def check_snapshot(self, opened_at: float) -> None:
        """Raises SnapshotExpiredError for a snapshot of a session that is too old."""
        if self.is_over(opened_at):
            when = datetime.fromtimestamp(opened_at, UTC).isoformat(timespec="seconds")
            raise SnapshotExpiredError(
                f"snapshot is too old: its session was opened at {when}, and sessions of this server may exist for"
                f" {self._max_age_s:g} s (max_age_s): open a new session",
                field="snapshot",
            )
