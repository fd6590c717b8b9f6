"""One request about one session, as its client remembers it until it is answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from carousel.v1 import inference_pb2 as pb
from simulation.streams import Sent
from simulation.system import Replica
from simulation.worlds import Choosing

REFUSALS = {
    "INVALID_FIELD",
    "TOKEN_OUT_OF_VOCABULARY",
    "UNKNOWN_TOKEN",
    "EMPTY_SEQUENCE",
    "SEQUENCE_TOO_LONG",
    "QUEUE_FULL",
    "SESSION_NOT_OPEN",
    "SESSION_NOT_FOUND",
    "ILLEGAL_REQUEST",
    "OUTPUTS_LOST",
    "NO_SLOT",
    "TOO_MANY_SESSIONS",
    "SHUTTING_DOWN",
}
"""Reasons of errors after which the session is as it was before."""


class Presence(Enum):
    """Whether a session is there, as far as its client knows."""

    ABSENT = "absent"
    PRESENT = "present"
    UNKNOWN = "unknown"


@dataclass(slots=True, eq=False)
class Call:
    """One call of `Sessions` about the session, to a replica. ended_at_s, is_lost: as of a request on a stream."""

    replica: Replica
    sent_at_s: float
    ended_at_s: float = float("inf")
    is_lost: bool = False


@dataclass(slots=True, eq=False)
class Entry:
    """One request about the session, in the order of sending.

    tokens, start, mark, kind: of a feed, or of the session's part of a step batch, whose place there is `place`.
    earlier: the step batches that this one repeats, word for word, on the same stream. is_again: whether it repeats one
    that the store did not take, and that others may have followed.
    choosing, skipped: of a generation. targets: of a score. num_cancels: sent before it. before: what was known of the
    session when an opening was sent, and is_recording: whether a replica had yet to record its end then; is_resume:
    whether that resumes, and closes: what was sent before it on its stream and not answered; opening: else its model,
    and what becomes of the session without a stream, and for how long; source: what it translates.
    """

    sent: Sent
    tokens: list[int] = field(default_factory=list)
    start: int | None = None
    mark: bool = False
    kind: int = pb.OUTPUT_KIND_NEXT_TOKEN
    place: int = 0
    earlier: tuple[Sent, ...] = ()
    is_again: bool = False
    choosing: Choosing | None = None
    skipped: int = 0
    targets: list[list[int]] = field(default_factory=list)
    num_cancels: int = 0
    before: Presence = Presence.UNKNOWN
    is_recording: bool = False
    is_resume: bool = False
    closes: list[Sent] = field(default_factory=list)
    opening: tuple[str, pb.DisconnectAction.ValueType, float] = ("", pb.DISCONNECT_ACTION_FREE, 0.0)
    source: tuple[int, ...] = ()

    @property
    def is_close(self) -> bool:
        """Whether it is a Close."""
        return self.sent.kind == "close"

    @property
    def is_absent(self) -> bool:
        """Whether no session of the id was there when an opening was sent, nor the record of one."""
        return self.before is Presence.ABSENT and not self.is_recording

    @property
    def is_opened(self) -> bool:
        """Whether it is an opening that made a new session."""
        return self.sent.is_done and not self.is_resume and self.sent.answer.HasField("opened")
