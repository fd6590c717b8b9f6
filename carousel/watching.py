"""What `Client.watch` tells of a session."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from carousel._tensors import Vector
from carousel.values import CloseReason, FinishReason, Hypothesis, Port, Step, Token


class SessionChange(StrEnum):
    """What becomes of a session without a token.

    ATTACHED: a stream has gone on with it. DETACHED: its stream has ended, and it is held. SET_BACK: by a rewind, or by
    another state. CANCELLED: its work in flight. SPILLED, UNSPILLED: its state is in the store alone, to make room, and
    back from there.
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
    """One thing that happened to a session. position: after it, 0 or more. One of this class itself is of a kind that
    this client does not know."""

    session_id: str
    position: int


@dataclass(frozen=True, slots=True)
class WatchBegun(WatchEvent):
    """The first event: what the session is.

    durability: what of it is stored. inputs, outputs: the named parts of the vectors that its model reads and gives.
    feature_size: numbers that a step reads, 0 for a model that reads tokens.
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

    step: what whoever fed it got, with the trace where that was asked for; None while more of a long feed is to come,
    and without outputs where the feed was cut off.
    """

    tokens: tuple[Token, ...] = ()
    features: tuple[Vector, ...] = ()
    step: Step | None = None


@dataclass(frozen=True, slots=True)
class WatchGenerated(WatchEvent):
    """The server has chosen tokens, or the vectors `values` of a model that gives those.

    finish_reason: why the generation ended; None while it goes on. hypotheses: of a beam search, the best first.
    """

    tokens: tuple[Token, ...] = ()
    values: tuple[Vector, ...] = ()
    finish_reason: FinishReason | None = None
    hypotheses: tuple[Hypothesis, ...] = ()


@dataclass(frozen=True, slots=True)
class WatchChanged(WatchEvent):
    """Something else has become of the session."""

    change: SessionChange


@dataclass(frozen=True, slots=True)
class WatchClosed(WatchEvent):
    """The last event: the session has ended, or has left its server."""

    reason: CloseReason
