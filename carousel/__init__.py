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

from carousel.async_client import AsyncClient, AsyncSessions
from carousel.async_session import AsyncGeneration, AsyncSession
from carousel.client import Client, Sessions
from carousel.errors import (
    AlreadyExistsError,
    CarouselError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    PositionMismatchError,
    RequestCancelledError,
    ResourceExhaustedError,
    SessionClosedError,
    UnavailableError,
    UnimplementedError,
)
from carousel.session import Generation, Session
from carousel.values import (
    CloseReason,
    DecodingOptions,
    FinishReason,
    ModelInfo,
    ModelStatus,
    SessionInfo,
    SessionState,
    Step,
    StepOutput,
    Token,
)

__all__ = [
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncGeneration",
    "AsyncSession",
    "AsyncSessions",
    "CarouselError",
    "Client",
    "CloseReason",
    "DeadlineExceededError",
    "DecodingOptions",
    "FailedPreconditionError",
    "FinishReason",
    "Generation",
    "InternalError",
    "InvalidArgumentError",
    "ModelInfo",
    "ModelStatus",
    "NotFoundError",
    "OutOfRangeError",
    "PositionMismatchError",
    "RequestCancelledError",
    "ResourceExhaustedError",
    "Session",
    "SessionClosedError",
    "SessionInfo",
    "SessionState",
    "Sessions",
    "Step",
    "StepOutput",
    "Token",
    "UnavailableError",
    "UnimplementedError",
]
