"""The events of `Client.watch`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from carousel._tensors import Vector
from carousel.values import CloseReason, FinishReason, Hypothesis, Port, Step, Token


class SessionChange(StrEnum):
    """A change of a session other than new tokens.

    ATTACHED: a stream resumed it. DETACHED: its stream has ended, and the server keeps it. SET_BACK: it was rewound, or
    its state was replaced. CANCELLED: its work in flight was cancelled. SPILLED: its state is now only in the store, to
    free a slot. UNSPILLED: its state is in memory again.
    """

    UNSPECIFIED = "unspecified"
    ATTACHED = "attached"
    DETACHED = "detached"
    SET_BACK = "set_back"
    CANCELLED = "cancelled"
    SPILLED = "spilled"
    UNSPILLED = "unspilled"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event of a session. position: after the event, 0 or more. An event of this class itself has a type that this
    client does not know."""

    session_id: str
    position: int


@dataclass(frozen=True, slots=True)
class WatchBegun(WatchEvent):
    """The first event: the description of the session.

    durability: `none`, `checkpoint` or `strict`. inputs, outputs: the named parts of the vectors that its model reads
    and outputs. feature_size: how many numbers a step reads; 0 for a model that reads tokens.
    """

    model: str
    version: int
    variant: str
    durability: str
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    feature_size: int = 0


@dataclass(frozen=True, slots=True)
class WatchFed(WatchEvent):
    """The session has consumed tokens, or the vectors `features`.

    step: the answer that the feeding client received, with the trace if it requested one. None while more chunks of a
    long feed follow. It has no outputs if the feed was cancelled.
    """

    tokens: tuple[Token, ...] = ()
    features: tuple[Vector, ...] = ()
    step: Step | None = None


@dataclass(frozen=True, slots=True)
class WatchGenerated(WatchEvent):
    """The server has generated tokens, or the vectors `values` for a model that outputs values.

    finish_reason: why the generation ended; None while it continues. hypotheses: of a beam search, the best first.
    """

    tokens: tuple[Token, ...] = ()
    values: tuple[Vector, ...] = ()
    finish_reason: FinishReason | None = None
    hypotheses: tuple[Hypothesis, ...] = ()


@dataclass(frozen=True, slots=True)
class WatchChanged(WatchEvent):
    """The session changed in another way than by tokens."""

    change: SessionChange


@dataclass(frozen=True, slots=True)
class WatchClosed(WatchEvent):
    """The last event: the session has ended, or has moved to another server."""

    reason: CloseReason
