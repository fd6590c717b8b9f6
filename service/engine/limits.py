"""The limits of an engine, the errors for requests past them, and the engine's counts."""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import NoSlotError, QueueFullError

_FEWEST_TOKENS, _MOST_TOKENS = 256, 2048
_BATCH_S = 0.004


def batch_tokens(seconds: float | None) -> int:
    """Returns how many tokens a batch may have, 256 to 2048, so that other requests wait about 4 ms for it.

    seconds: time for one token in a large batch; None: not known, which gives 256.
    """
    return _FEWEST_TOKENS if not seconds else max(_FEWEST_TOKENS, min(_MOST_TOKENS, int(_BATCH_S / seconds)))


def chunk_tokens(seconds: float, most: int) -> int:
    """Returns how many steps of one row may run one after the other, 1 to `most`, so that others wait about 4 ms.

    seconds: time of one step.
    """
    return max(1, min(most, int(_BATCH_S / max(seconds, 1e-9))))


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Limits of one engine."""

    num_slots: int = 10_000
    """Sessions at once."""
    num_forks: int = 1024
    """Copies of sessions' states at once, for beams and for scored targets."""
    max_waiting: int = 16_384
    """Requests admitted and not yet answered."""
    max_batch_rows: int = 256
    """Sessions in a batch."""
    max_batch_tokens: int | None = None
    """Rows times width of a batch; None: computed by `batch_tokens` from the measured cost."""
    max_chunk_tokens: int = 32
    """Tokens of one session in a batch."""
    inline_s: float = 0.002
    """Highest estimated cost, in seconds, of a batch that runs on the event loop."""

    def max_chunk(self, max_of_graph: int | None) -> int:
        """Returns the most tokens of one session in a batch. max_of_graph: the most that the step graph takes, if there
        is such a limit."""
        return min(self.max_chunk_tokens, max_of_graph or self.max_chunk_tokens)

    def no_slot(self) -> NoSlotError:
        """Returns the error for an open when every slot is in use."""
        return NoSlotError(
            f"all {self.num_slots} slots of this model are in use, the limit (max_slots, by default max_sessions):"
            " close a session, or try again later",
            retry_delay_s=1.0,
            max_slots=self.num_slots,
        )

    def no_fork(self, num_used: int) -> QueueFullError:
        """Returns the error for a search or a score when too few forks are free."""
        return QueueFullError(
            f"{num_used} beams and scored targets are active, the limit is {self.num_forks} (num_forks): try again"
            " later",
            retry_delay_s=0.1,
            num_forks=self.num_forks,
        )

    def queue_full(self, num_unanswered: int) -> QueueFullError:
        """Returns the error for a request when too many wait."""
        return QueueFullError(
            f"{num_unanswered} requests already wait, the limit of this model's queue (max_waiting): try again later",
            retry_delay_s=0.1,
            max_waiting=self.max_waiting,
        )


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """Counts of an engine at one moment."""

    slots_used: int
    """Sessions that have a slot."""
    forks_used: int
    """Copies of states."""
    num_unanswered: int
    """Requests admitted and not yet answered."""
    num_inline: int
    """Batches that ran on the event loop."""
    num_threaded: int
    """Batches that ran on the engine's thread; a burst counts as one."""
    is_stopped: bool
    """Whether the engine ends: it runs at most a few more batches, then refuses every job."""
