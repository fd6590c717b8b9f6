"""The arguments and results of `Client.step`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypedDict

from carousel._constants import Constants
from carousel._requests import Source
from carousel._tensors import Features
from carousel.values import CloseReason, Step, StepOutput, Token


class RestoredFrom(StrEnum):
    """Where the server found a session. UNSPECIFIED: nowhere, the session is new."""

    UNSPECIFIED = "unspecified"
    MEMORY = "memory"
    STORE = "store"


@dataclass(frozen=True, slots=True)
class SessionStep(Step):
    """The answer to `Client.step`: the answer to the feed, without outputs if nothing was fed, and a description of the
    session.

    restored_from: where the server found it. source: as the model read it. first: the prediction at position 0. Both
    are set only by a call that opened the session. checkpoint_position: the stored position; None if nothing is stored.
    closed: why the session is now closed; None if it is open.
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

    model: open the session if no session has that id. source, version, variant, constants, first, on_disconnect,
    hold_s, durability: for that opening, as in `Client.session`. With `on_disconnect="free"` the session is closed at
    the end of each call.

    features: feed these vectors in place of tokens; not as named parts. position: the position that the session must
    have before the feed; it makes the call safe to send again. top_k, logits, trace: for the feed, or for `first` if
    nothing is fed. outputs, every_position, mark: for the feed, as in `Session.feed`.

    close: close the session after the feed.
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
