"""What an engine is allowed, what it answers past that, and how it stands."""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import NoSlotError, QueueFullError

_FEWEST_TOKENS, _MOST_TOKENS = 256, 2048
_BATCH_S = 0.004


def batch_tokens(seconds: float | None) -> int:
    """How many tokens a batch may have, so that others wait some 4 ms for it: 256 to 2048. seconds: that one takes, in
    a large batch; None: not known."""
    return _FEWEST_TOKENS if not seconds else max(_FEWEST_TOKENS, min(_MOST_TOKENS, int(_BATCH_S / seconds)))


def chunk_tokens(seconds: float, most: int) -> int:
    """How many steps of a row, which each take so long, may be run one after the other, so that others wait some 4 ms:
    1 to `most`."""
    return max(1, min(most, int(_BATCH_S / max(seconds, 1e-9))))


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What one engine is allowed.

    num_slots: sessions at once; num_forks: copies of sessions' states at once, for beams and for targets that are
    scored; max_waiting: requests admitted and not yet answered; max_batch_rows: sessions in a batch; max_batch_tokens:
    rows times width of one, None: as `batch_tokens`; max_chunk_tokens: tokens of one session in one; inline_s: the
    most that a batch may cost, in seconds, to run on the event loop.
    """

    num_slots: int = 10_000
    num_forks: int = 1024
    max_waiting: int = 16_384
    max_batch_rows: int = 256
    max_batch_tokens: int | None = None
    max_chunk_tokens: int = 32
    inline_s: float = 0.002

    def no_slot(self) -> NoSlotError:
        """Every session slot is taken."""
        return NoSlotError(
            f"all {self.num_slots} slots of this model are taken (max_slots): close a session, or try again later",
            retry_delay_s=1.0,
            max_slots=self.num_slots,
        )

    def no_fork(self, num_used: int) -> QueueFullError:
        """Too many beams and targets are at work."""
        return QueueFullError(
            f"{num_used} beams and targets are at work, and the most is {self.num_forks} (num_forks): try again later",
            retry_delay_s=0.1,
            num_forks=self.num_forks,
        )

    def queue_full(self, num_waiting: int) -> QueueFullError:
        """Too many requests wait."""
        return QueueFullError(
            f"{num_waiting} requests wait already, the most this model's queue holds (max_waiting): try again later",
            retry_delay_s=0.1,
            max_waiting=self.max_waiting,
        )


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """slots_used: sessions that have a slot; forks_used: copies of states; num_waiting: requests admitted and not yet
    answered; num_inline, num_threaded: batches run on the event loop, and on the thread; is_stopped: whether it runs
    none any more."""

    slots_used: int
    forks_used: int
    num_waiting: int
    num_inline: int
    num_threaded: int
    is_stopped: bool
