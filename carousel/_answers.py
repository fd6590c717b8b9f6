"""Makes values from messages, and errors from failed calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC
from enum import StrEnum
from typing import TypeVar

import grpc
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import DecodeError

from carousel import errors
from carousel._backoff import CLIENT_CLOSED, CONNECTION_LOST
from carousel._connecting import cause_of, explained
from carousel._ports import ports, session_constant, taken_apart
from carousel.errors import CarouselError
from carousel.steps import RestoredFrom
from carousel.v1 import error_pb2, inference_pb2, models_pb2, sessions_pb2
from carousel.values import (
    CloseReason,
    FinishReason,
    Hypothesis,
    ModelInfo,
    ModelStatus,
    Port,
    SessionInfo,
    SessionState,
    StateTensor,
    Step,
    StepOutput,
    TargetScore,
    Token,
    Transducer,
)
from carousel.watching import SessionChange

ERROR_KEY = "carousel-error-bin"
REQUEST_ID_KEY = "x-request-id"
"""Key in a failed call's trailing metadata, and in the metadata of an error inside a stream."""
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_CLASSES: dict[grpc.StatusCode, type[CarouselError]] = {
    kind.code: kind
    for kind in (
        errors.InvalidArgumentError,
        errors.OutOfRangeError,
        errors.NotFoundError,
        errors.AlreadyExistsError,
        errors.FailedPreconditionError,
        errors.ResourceExhaustedError,
        errors.RequestCancelledError,
        errors.DeadlineExceededError,
        errors.UnavailableError,
        errors.InternalError,
        errors.UnauthenticatedError,
        errors.PermissionDeniedError,
        errors.UnimplementedError,
    )
}
# gRPC has no status codes for these, so the client looks for texts.
_CLOSED = "Channel closed!"
_LOST = (
    "RST_STREAM",
    "Stream removed",
    "CANCELLED",  # by the server; a call that this client cancelled has other details
    "Internal error from Core",  # from asyncio, after a write to a closed stream
)
_BROKEN = (
    "Socket closed",
    "recvmsg:",
    "sendmsg:",
    "Connection reset",
    "Broken pipe",
    "GOAWAY received",
    "Stream removed",
)
_LOST_CODES = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED)

E = TypeVar("E", bound=StrEnum)


def tokens(messages: Iterable[inference_pb2.Token]) -> tuple[Token, ...]:
    """Makes tokens, in the order of the messages."""
    return tuple(Token(m.id, m.text, m.log_probability if m.HasField("log_probability") else None) for m in messages)


def step_output(message: inference_pb2.StepOutput, outputs: Sequence[Port] = ()) -> StepOutput:
    """Makes one step's output. outputs: the named parts of the model's values."""
    return StepOutput(
        message.position,
        tokens(message.tokens),
        tuple(message.logits),
        tuple(message.values),
        {one.name: tuple(one.values) for one in message.trace},
        taken_apart(message.values, outputs) if outputs else {},
        message.num_limited,
    )


def step(message: inference_pb2.Fed, position: int, outputs: Sequence[Port] = ()) -> Step:
    """Makes the answer to a feed. position: the session's, after the feed. outputs: see `step_output`."""
    return Step(position, tuple(step_output(one, outputs) for one in message.outputs), message.replayed)


def finish_reason(value: int) -> FinishReason | None:
    """Returns None while the generation runs."""
    return _enum(FinishReason, inference_pb2.FinishReason.DESCRIPTOR, value) if value else None


def hypotheses(messages: Iterable[inference_pb2.Hypothesis]) -> tuple[Hypothesis, ...]:
    """Makes hypotheses, in the order of the messages."""
    return tuple(
        Hypothesis(
            tokens(m.tokens),
            m.score,
            m.log_probability,
            _enum(FinishReason, inference_pb2.FinishReason.DESCRIPTOR, m.finish_reason),
            m.text,
        )
        for m in messages
    )


def target_scores(messages: Iterable[inference_pb2.TargetScore]) -> tuple[TargetScore, ...]:
    """Makes target scores, in the order of the messages."""
    return tuple(TargetScore(m.log_probability, tuple(m.log_probabilities)) for m in messages)


def close_reason(value: int) -> CloseReason:
    """Returns UNSPECIFIED for a reason that this client does not know."""
    return _enum(CloseReason, inference_pb2.CloseReason.DESCRIPTOR, value)


def session_change(value: int) -> SessionChange:
    """Returns UNSPECIFIED for a change that this client does not know."""
    return _enum(SessionChange, inference_pb2.SessionChange.DESCRIPTOR, value)


def restored_from(value: int) -> RestoredFrom:
    """Where the server found a session."""
    return _enum(RestoredFrom, inference_pb2.RestoredFrom.DESCRIPTOR, value)


def durability(value: inference_pb2.Durability.ValueType) -> str:
    """The durability as a lower-case word, such as `checkpoint`."""
    return inference_pb2.Durability.Name(value).removeprefix("DURABILITY_").lower()


def model_info(message: models_pb2.ModelInfo) -> ModelInfo:
    """Makes the description of one version of a model."""
    return ModelInfo(
        model=message.model,
        version=message.version,
        description=message.description,
        status=_enum(ModelStatus, models_pb2.ModelStatus.DESCRIPTOR, message.status),
        problem=message.problem,
        has_encoder=message.has_encoder,
        source_vocabulary=tuple(message.source_vocabulary),
        target_vocabulary=tuple(message.target_vocabulary),
        max_source_length=message.max_source_length,
        max_tokens=message.max_tokens,
        state_size_bytes=message.state_size_bytes,
        manifest_digest=message.manifest_digest,
        variants=tuple(message.variants),
        input_vocabulary=tuple(message.input_vocabulary),
        tokenizer=message.tokenizer,
        feature_size=message.feature_size,
        source_feature_size=message.source_feature_size,
        value_size=message.value_size,
        can_generate=message.can_generate,
        trace=tuple(message.trace),
        max_batch_rows=message.max_batch_rows,
        inputs=ports(message.inputs),
        outputs=ports(message.outputs),
        constants=tuple(map(session_constant, message.constants)),
        sample_rate=message.sample_rate,
        transducer=_transducer(message.transducer) if message.HasField("transducer") else None,
    )


def _transducer(message: models_pb2.Transducer) -> Transducer:
    return Transducer(message.blank_id, message.max_symbols, message.num_frames)


def session_info(message: sessions_pb2.SessionInfo) -> SessionInfo:
    """Makes the description of one live session."""
    return SessionInfo(
        session_id=message.session_id,
        model=message.model,
        version=message.version,
        position=message.position,
        state=_enum(SessionState, sessions_pb2.SessionState.DESCRIPTOR, message.state),
        open_time=message.open_time.ToDatetime(tzinfo=UTC),
        last_used_time=message.last_used_time.ToDatetime(tzinfo=UTC),
        variant=message.variant,
        durability=durability(message.durability),
        checkpoint_position=message.checkpoint_position if message.HasField("checkpoint_position") else None,
        attached=message.attached,
        spilled=message.spilled,
        marks=tuple(message.marks),
    )


def state_tensor(message: sessions_pb2.StateTensor) -> StateTensor:
    """Makes a tensor of a session's state."""
    return StateTensor(message.name, message.dtype, tuple(message.shape), message.data)


def error(message: error_pb2.Error, request_id: str = "") -> CarouselError:
    """Makes the error of a server's error message. request_id: the call's, used when the message has none."""
    code = _CODES.get(message.code, grpc.StatusCode.UNKNOWN)
    kind = _CLASSES.get(code, CarouselError)
    if message.reason == "POSITION_MISMATCH" and message.metadata.get("position", "").isdecimal():
        kind = errors.PositionMismatchError
    return kind(
        message.message,
        code=code,
        reason=message.reason,
        field=message.field,
        metadata={name: value for name, value in message.metadata.items() if name != REQUEST_ID_KEY},
        request_id=message.metadata.get(REQUEST_ID_KEY, request_id),
        retry_delay=message.retry_delay.ToTimedelta() if message.HasField("retry_delay") else None,
    )


def error_message(failure: CarouselError) -> error_pb2.Error:
    """Makes the message that describes an error."""
    return error_pb2.Error(
        code=failure.code.value[0],
        message=failure.message,
        reason=failure.reason,
        field=failure.field,
        metadata=failure.metadata | ({REQUEST_ID_KEY: failure.request_id} if failure.request_id else {}),
    )


def client_closed() -> CarouselError:
    """The error for calls that were in progress when the program closed the client."""
    return errors.RequestCancelledError("the client was closed", reason=CLIENT_CLOSED)


def rpc_error(failure: grpc.RpcError) -> CarouselError:
    """Makes the error of a failed call: the server's own if it sent one, else gRPC's."""
    pairs: Iterable[tuple[str, str | bytes]] = failure.trailing_metadata() or ()  # type: ignore[assignment]  # stubs err
    trailers = dict(pairs)
    packed, call_id = trailers.get(ERROR_KEY), trailers.get(REQUEST_ID_KEY)
    request_id = call_id if isinstance(call_id, str) else ""
    if isinstance(packed, bytes):
        with suppress(DecodeError):
            return error(error_pb2.Error.FromString(packed), request_id)
    code, details = failure.code(), failure.details() or ""
    if _CLOSED in details:
        return client_closed()
    if code is grpc.StatusCode.UNAVAILABLE and (cause := cause_of(details)) is not None:
        return errors.UnavailableError(explained(details, cause))
    signs = _LOST if code in _LOST_CODES else _BROKEN if code is grpc.StatusCode.UNAVAILABLE else ()
    if any(words in details for words in signs):
        return errors.UnavailableError(f"the connection was lost: {details}", reason=CONNECTION_LOST)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and details == "Deadline Exceeded":  # gRPC's own, of this client
        return errors.DeadlineExceededError(
            "no answer came before the call's timeout", reason="DEADLINE_EXCEEDED", request_id=request_id
        )
    return _CLASSES.get(code, CarouselError)(details, code=code, request_id=request_id)


def _enum(kind: type[E], descriptor: EnumDescriptor, value: int) -> E:
    """The member of `kind` for a value of a wire enum; UNSPECIFIED for a value that this client does not know."""
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    known = descriptor.values_by_number.get(value)
    name = known.name.removeprefix(prefix) if known else "UNSPECIFIED"
    return kind.__members__.get(name, kind.__members__["UNSPECIFIED"])
