"""What a client knows about one of its sessions, and the order in which it applies answers.

No other client uses the session's id. The client applies answers in the order in which it sent the requests, because
the server promises to carry them out in this order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from carousel.v1 import inference_pb2 as pb
from simulation.answers import Answers
from simulation.beliefs import Belief
from simulation.checks import Journal, Stamp
from simulation.entries import Entry, Presence
from simulation.streams import ClientStream
from simulation.system import Replica


class View(Belief):
    """A session and its unanswered requests."""

    def __init__(self, name: str, model: str, journal: Journal, replicas: Sequence[Replica]) -> None:
        super().__init__(name, model, journal, replicas)
        self._answers = Answers(self)

    def lost(self, *, is_over: bool = False) -> None:
        """Notes that the last requests will not be answered. They may be done, done in part, or not done. is_over:
        whether the session has ended, so that requests after the last answer do not matter."""
        while is_over and self.queue and not self.queue[-1].sent.is_done:
            self.queue.pop()
        while self.queue:
            entry = self.queue.pop(0)
            if entry.sent.is_done:
                self._answers.apply(entry)
                continue
            if entry.is_close:
                self.has_lost_close = True
                self.promised_by = entry.sent.replica.life  # the replica may have promised to close it
            self.on_their_way.append(entry.sent)
            if self.is_exclusive:
                self._answers.may_have(entry)
        self.unexplained.clear()

    def closed(self, stream: ClientStream, notice: pb.StreamResponse) -> None:
        """Handles a notice that the session is closed or has moved. Ignores it if `stream` was not the last one that
        was answered that it has the session: then the notice is late, or the answer to an open follows."""
        if self.home is not stream:
            return
        reason, name = notice.closed.reason, pb.CloseReason.Name(notice.closed.reason)
        was_idle = self.now() - self.used_at_s >= self.idle_timeout_s
        is_expected = {
            pb.CLOSE_REASON_CLIENT: self.is_closing or self.may_be_closed,
            pb.CLOSE_REASON_IDLE: was_idle,
            pb.CLOSE_REASON_MAX_AGE: self.may_be_too_old,
            pb.CLOSE_REASON_LOST: self.may_be_expired(stream.replica) or math.isfinite(self.forgotten_at_s),
            pb.CLOSE_REASON_SHUTDOWN: stream.is_leaving or stream.replica.is_draining,
            pb.CLOSE_REASON_MOVED: any(want.replica is not stream.replica for want in self.wants)
            or self.is_promised
            or stream.is_leaving
            or stream.replica.may_lose_sessions
            or stream.replica.is_draining,
        }.get(reason, False)
        if not is_expected:
            self.violate(f"{stream.name} gets {name}, for which there is no reason")
        later = self._since_opening()
        self.queue = self.queue[: len(self.queue) - len(later)]
        is_kept = reason == pb.CLOSE_REASON_IDLE and self.action == pb.DISCONNECT_ACTION_KEEP
        is_somewhere = is_kept or reason == pb.CLOSE_REASON_MOVED
        self.lost(is_over=not is_somewhere)
        self.queue = later
        if is_somewhere:
            self.detach()
            self.presence = Presence.UNKNOWN
        else:
            self.gone()
            self.closed_by = stream.replica.life
        if later:
            self.stream = later[0].sent.stream

    def _since_opening(self) -> list[Entry]:
        """Returns the unanswered requests from the last open on. They concern the session that it opens."""
        places = [at for at, entry in enumerate(self.queue) if entry.sent.kind == "open"]
        return self.queue[places[-1] :] if places else []

    def settle(self) -> None:
        """Applies answers in the order of sending."""
        self._end_former()
        while self.queue and self.queue[0].sent.is_done:
            self._answers.apply(self.queue.pop(0))

    def _end_former(self) -> None:
        """Ends the former session when a new one is open. Answers about the former session may come later, or on a
        stream that is not read, and answers about the new session must not wait for them."""
        opened = [at for at, entry in enumerate(self.queue) if entry.is_opened]
        former = self.queue[: opened[-1]] if opened else []
        unanswered = [entry for entry in former if not entry.sent.is_done]
        if unanswered:
            later = self.queue[opened[-1] :]
            self.queue = former
            self.lost()
            self.queue = later

    def part_stored(self, entry: Entry, position: int, stamp: Stamp) -> None:
        """Checks a delivered part of a generation."""
        self._answers.part_stored(entry, position, stamp)
