"""What was agreed about a session when it was opened: what of it is stored, and what becomes of it without a stream."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from service.errors import InvalidFieldError


class Durability(IntEnum):
    """What of a session is stored; the greater, the more. NONE: nothing, but to make room and to keep it. CHECKPOINT:
    where it is, every so often. STRICT: everything that is answered, before it is."""

    NONE = 1
    CHECKPOINT = 2
    STRICT = 3


class OnDisconnect(IntEnum):
    """What becomes of a session when its stream ends. FREE: it is closed. HOLD: it is held in memory. KEEP: stored."""

    FREE = 1
    HOLD = 2
    KEEP = 3


class Terms(NamedTuple):
    """duration_s: for HOLD and KEEP, how long; is_unattended: whether its generations go on without a stream."""

    durability: Durability = Durability.NONE
    on_disconnect: OnDisconnect = OnDisconnect.FREE
    duration_s: float = 0.0
    is_unattended: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the session ends with its stream and leaves nothing behind."""
        return self.durability is Durability.NONE and self.on_disconnect is OnDisconnect.FREE


PLAIN = Terms()


@dataclass(frozen=True, slots=True)
class TermsLimits:
    """What a server agrees to. max_durability: the most that is stored; hold_s, keep_s: when none is asked for;
    max_hold_s, max_keep_s: the longest."""

    max_durability: Durability = Durability.STRICT
    hold_s: float = 60.0
    max_hold_s: float = 3600.0
    keep_s: float = 86_400.0
    max_keep_s: float = 2_592_000.0

    def agree(
        self,
        durability: Durability | None,
        on_disconnect: OnDisconnect,
        duration_s: float | None,
        *,
        is_unattended: bool,
    ) -> Terms:
        """The terms of a session that asks for so much; None: it does not say. Raises InvalidFieldError for more than
        this server gives."""
        if durability is None:
            durability = Durability.NONE if on_disconnect is OnDisconnect.FREE else Durability.CHECKPOINT
            durability = min(durability, self.max_durability)
        if durability > self.max_durability:
            raise InvalidFieldError(
                f"open.durability = {durability.name.lower()} is more than this server gives:"
                f" {self.max_durability.name.lower()}",
                field="open.durability",
            )
        field = "open.on_disconnect.duration"
        if on_disconnect is OnDisconnect.FREE:
            if duration_s is not None:
                raise InvalidFieldError(f"{field} goes with DISCONNECT_ACTION_HOLD and KEEP alone", field=field)
            return Terms(durability, on_disconnect, 0.0, is_unattended)
        is_hold = on_disconnect is OnDisconnect.HOLD
        longest = self.max_hold_s if is_hold else self.max_keep_s
        if duration_s is None:
            duration_s = min(longest, self.hold_s if is_hold else self.keep_s)
        if not 0.0 < duration_s <= longest:
            raise InvalidFieldError(
                f"{field} = {duration_s:g} s must be above 0 and at most {longest:g} s", field=field
            )
        return Terms(durability, on_disconnect, duration_s, is_unattended)
