"""What `Client.step` takes and returns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypedDict

from carousel._constants import Constants
from carousel._requests import Source
from carousel._tensors import Features
from carousel.values import CloseReason, Step, StepOutput, Token


class RestoredFrom(StrEnum):
    """Where a session was found. UNSPECIFIED: nowhere, it is new."""

    UNSPECIFIED = "unspecified"
    MEMORY = "memory"
    STORE = "store"


@dataclass(frozen=True, slots=True)
class SessionStep(Step):
    """The answer to `Client.step`: as that to a feed, without outputs where nothing was fed, and what is known of the
    session.

    restored_from: where it was found. source: as the model read it, and first: what may come first; both of a call that
    has opened the session. checkpoint_position: how far it is stored, None: it is not. closed: why it is closed now,
    None: it is not.
    """

    session_id: str = ""
    model: str = ""
    version: int = 0
    variant: str = ""
    durability: str = "none"
    restored_from: RestoredFrom = RestoredFrom.UNSPECIFIED
    source: tuple[Token, ...] = ()
    first: StepOutput | None = None
    checkpoint_position: int | None = None
    closed: CloseReason | None = None


class StepOptions(TypedDict, total=False):
    """What `Client.step` does with the session.

    model: open the session if there is none of that id. source, version, variant, constants, first, on_disconnect,
    hold_s, durability: of that opening, as in `Client.session`. With `on_disconnect="free"` the session is closed at
    the end of each call.

    features: to feed instead of tokens, as a whole and not by the names of their parts. position: where the session
    must be before the feed, so that the call can be sent again. top_k, logits, trace: of the feed, and of `first` where
    nothing is fed. outputs, every_position, mark: of the feed, as in `Session.feed`.

    close: close the session when it was fed.
    """

    model: str
    source: Source | None
    version: int
    variant: str
    constants: Constants | None
    first: bool
    on_disconnect: str
    hold_s: float | None
    durability: str | None
    features: Features | None
    position: int | None
    top_k: int | None
    logits: bool
    outputs: bool
    every_position: bool
    mark: bool
    trace: bool
    close: bool
