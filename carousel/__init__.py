"""Client for Carousel, which serves recurrent models over sessions that keep their state.

    from carousel import Client

    with Client("localhost:50051") as client:
        for token in client.generate("g2p-en", "carousel"):
            print(token.text)
        with client.session("g2p-en", source="carousel") as session:
            step = session.feed(["K"], top_k=3)

`AsyncClient` is the same for asyncio. Whatever goes wrong is raised as a `CarouselError`. Needs grpcio and protobuf
alone.
"""

from carousel._batch import BatchStep
from carousel.async_batch import AsyncSessionBatch
from carousel.async_client import AsyncClient
from carousel.async_session import AsyncGeneration, AsyncSession
from carousel.async_sessions import AsyncSessions
from carousel.batch import SessionBatch
from carousel.client import Client
from carousel.errors import (
    AlreadyExistsError,
    CarouselError,
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
from carousel.session import Generation, Session
from carousel.sessions import Sessions
from carousel.values import (
    CloseReason,
    DecodingOptions,
    FinishReason,
    Hypothesis,
    ModelInfo,
    ModelStatus,
    SessionInfo,
    SessionState,
    StateTensor,
    Step,
    StepOutput,
    TargetScore,
    Token,
)

__all__ = [
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncGeneration",
    "AsyncSession",
    "AsyncSessionBatch",
    "AsyncSessions",
    "BatchStep",
    "CarouselError",
    "Client",
    "CloseReason",
    "DeadlineExceededError",
    "DecodingOptions",
    "FailedPreconditionError",
    "FinishReason",
    "Generation",
    "Hypothesis",
    "InternalError",
    "InvalidArgumentError",
    "ModelInfo",
    "ModelStatus",
    "NotFoundError",
    "OutOfRangeError",
    "PermissionDeniedError",
    "PositionMismatchError",
    "RequestCancelledError",
    "ResourceExhaustedError",
    "Session",
    "SessionBatch",
    "SessionClosedError",
    "SessionInfo",
    "SessionState",
    "Sessions",
    "StateTensor",
    "Step",
    "StepOutput",
    "TargetScore",
    "Token",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
]
