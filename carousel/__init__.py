"""Client for Carousel, a server of recurrent models that keeps each session's state between calls.

    from carousel import Client

    with Client("localhost:50051") as client:
        for token in client.generate("g2p-en", "carousel"):
            print(token.text)
        with client.session("g2p-en", source="carousel") as session:
            step = session.feed(["K"], top_k=3)

`AsyncClient` has the same calls for asyncio. Failed calls raise a `CarouselError`, wrong argument types a TypeError.
The package needs only grpcio and protobuf.
"""

import warnings

from carousel._batch_step import StepBatchResult
from carousel._version import __version__ as __version__
from carousel.async_batch import AsyncSessionBatch
from carousel.async_client import AsyncClient
from carousel.async_session import AsyncGeneration, AsyncSession
from carousel.async_sessions import AsyncSessions
from carousel.async_watch import AsyncWatch
from carousel.batch import SessionBatch
from carousel.client import Client
from carousel.errors import (
    AlreadyExistsError,
    CarouselError,
    ConcurrentUseError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    PositionMismatchError,
    RequestCancelledError,
    ResourceExhaustedError,
    SessionClosedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from carousel.frames import Frames
from carousel.session import Generation, Session
from carousel.sessions import Sessions
from carousel.steps import RestoredFrom, SessionStep, StepOptions
from carousel.values import (
    CloseReason,
    DecodingOptions,
    Emitted,
    FinishReason,
    GeneratedSequence,
    Hypothesis,
    ModelInfo,
    ModelStatus,
    Port,
    SessionConstant,
    SessionInfo,
    SessionState,
    StateTensor,
    Step,
    StepOutput,
    TargetScore,
    Token,
    Transducer,
    ValueToken,
)
from carousel.watch import Watch
from carousel.watching import (
    SessionChange,
    WatchBegun,
    WatchChanged,
    WatchClosed,
    WatchEvent,
    WatchFed,
    WatchGenerated,
)

__all__ = [
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncGeneration",
    "AsyncSession",
    "AsyncSessionBatch",
    "AsyncSessions",
    "AsyncWatch",
    "CarouselError",
    "Client",
    "CloseReason",
    "ConcurrentUseError",
    "DeadlineExceededError",
    "DecodingOptions",
    "Emitted",
    "FailedPreconditionError",
    "FinishReason",
    "Frames",
    "GeneratedSequence",
    "Generation",
    "Hypothesis",
    "InternalError",
    "InvalidArgumentError",
    "ModelInfo",
    "ModelStatus",
    "NotFoundError",
    "OutOfRangeError",
    "PermissionDeniedError",
    "Port",
    "PositionMismatchError",
    "RequestCancelledError",
    "ResourceExhaustedError",
    "RestoredFrom",
    "Session",
    "SessionBatch",
    "SessionChange",
    "SessionClosedError",
    "SessionConstant",
    "SessionInfo",
    "SessionState",
    "SessionStep",
    "Sessions",
    "StateTensor",
    "Step",
    "StepBatchResult",
    "StepOptions",
    "StepOutput",
    "TargetScore",
    "Token",
    "Transducer",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "ValueToken",
    "Watch",
    "WatchBegun",
    "WatchChanged",
    "WatchClosed",
    "WatchEvent",
    "WatchFed",
    "WatchGenerated",
]

_RENAMED = {"BatchStep": StepBatchResult}


def __getattr__(name: str) -> object:
    """Returns what an old name now stands for, with a DeprecationWarning. Old names work for one more release."""
    if name in _RENAMED:
        new = _RENAMED[name]
        warnings.warn(f"carousel.{name} is now carousel.{new.__name__}", DeprecationWarning, stacklevel=2)
        return new
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
