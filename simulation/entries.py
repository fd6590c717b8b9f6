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
"""Reasons of errors that leave the session unchanged."""


class Presence(Enum):
    """Whether a session exists, as far as its client knows."""

    ABSENT = "absent"
    PRESENT = "present"
    UNKNOWN = "unknown"


@dataclass(slots=True, eq=False)
class Call:
    """One call of `Sessions` about the session. ended_at_s: when it was answered; is_lost: whether its answer is
    lost."""

    replica: Replica
    sent_at_s: float
    ended_at_s: float = float("inf")
    is_lost: bool = False


@dataclass(slots=True, eq=False)
class Entry:
    """One request about the session. Entries are kept in the order of sending.

    Of a feed, or of the session's part of a step batch: tokens; start: position, or None; mark; kind: of outputs;
    place: index of the session in the step batch. earlier: identical step batches that were sent before on the same
    stream. is_again: whether it repeats a request that was not stored and that other requests may have followed.
    Of a generation: choosing; skipped: number of tokens that need not be delivered again. Of a score: targets.
    num_cancels: Cancels that were sent before it.
    Of an open: before: what was known of the session when it was sent; is_recording: whether a replica had not yet
    recorded the session's end then; is_resume: whether it resumes. Of a resume: closes: unanswered Closes that were
    sent before on its stream. Of the open of a new session: opening: model, action on disconnect and its seconds;
    source: the source tokens of a translator.
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
        """Whether neither a session with the id nor its record existed when an open was sent."""
        return self.before is Presence.ABSENT and not self.is_recording

    @property
    def is_opened(self) -> bool:
        """Whether it is an open that made a new session."""
        return self.sent.is_done and not self.is_resume and self.sent.answer.HasField("opened")
