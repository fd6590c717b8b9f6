"""What a client knows of one of its sessions, and what the answers about it must say.

The client is the only one that uses the session's id. It applies answers in the order in which it sent the requests:
that is the order in which the server promises to carry them out.
"""

from __future__ import annotations

from collections.abc import Sequence

from carousel.v1 import inference_pb2 as pb
from simulation.answers import Answers
from simulation.beliefs import Belief
from simulation.checks import Journal, Stamp
from simulation.entries import Entry, Presence
from simulation.streams import ClientStream
from simulation.system import Replica

_IDLE = 0.98
"""How much of its idle timeout a session is left at least: not every use is marked at once."""


class View(Belief):
    """A session, and the requests about it that are not answered yet."""

    def __init__(self, name: str, model: str, journal: Journal, replicas: Sequence[Replica]) -> None:
        super().__init__(name, model, journal, replicas)
        self._answers = Answers(self)

    def lost(self) -> None:
        """What was asked last will not be answered: it was done, or in part, or not."""
        queue, self.queue = self.queue, []
        for entry in queue:
            if entry.sent.is_done:
                self._answers.apply(entry)
            else:
                self._answers.may_have(entry)
        self.unexplained.clear()

    def closed(self, stream: ClientStream, notice: pb.StreamResponse) -> None:
        """The server says that it is closed, or is somewhere else."""
        if self.presence is Presence.ABSENT:  # it is known already
            return
        reason, name = notice.closed.reason, pb.CloseReason.Name(notice.closed.reason)
        was_idle = self.now() - self.used_at_s >= _IDLE * self.idle_timeout_s
        is_expected = {
            pb.CLOSE_REASON_CLIENT: self.is_closing,
            pb.CLOSE_REASON_IDLE: was_idle,
            pb.CLOSE_REASON_LOST: was_idle,  # the record of a spilled session expires no sooner than the session
            pb.CLOSE_REASON_SHUTDOWN: stream.is_leaving or stream.replica.is_draining,
            pb.CLOSE_REASON_MOVED: self.is_wanted
            or stream.is_leaving
            or stream.replica.may_lose_sessions
            or stream.replica.is_draining,
        }.get(reason, False)
        if not is_expected:
            self.violate(f"{stream.name} is told {name}, for which there is no reason")
        self.lost()
        is_kept = reason == pb.CLOSE_REASON_IDLE and self.action == pb.DISCONNECT_ACTION_KEEP
        if is_kept or reason == pb.CLOSE_REASON_MOVED:
            self.detach()
            self.presence = Presence.UNKNOWN
        else:
            self.gone()

    def settle(self) -> None:
        """Applies answers, in the order of sending."""
        while self.queue and self.queue[0].sent.is_done:
            self._answers.apply(self.queue.pop(0))

    def part_stored(self, entry: Entry, position: int, stamp: Stamp) -> None:
        """A part of a generation was delivered."""
        self._answers.part_stored(entry, position, stamp)
