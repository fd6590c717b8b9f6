"""Converts messages about sessions to domain values and back: policies, states, descriptions."""

from __future__ import annotations

import time

from google.protobuf.duration_pb2 import Duration

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import sessions_pb2
from service.api import convert
from service.engine.results import LaneState
from service.errors import InvalidFieldError
from service.repository.bundle import Bundle
from service.sessions.admin import StateTensor
from service.sessions.lifecycle import State
from service.sessions.limits import PolicyLimits
from service.sessions.persistence import Durability, OnDisconnect, SessionPolicy
from service.sessions.session import CloseReason, Session

_CLOSE_REASONS = {reason: pb.CloseReason.Value(f"CLOSE_REASON_{reason.name}") for reason in CloseReason}
_STATES = {
    State.IDLE: sessions_pb2.SESSION_STATE_IDLE,
    State.BUSY: sessions_pb2.SESSION_STATE_BUSY,
    State.GENERATING: sessions_pb2.SESSION_STATE_GENERATING,
    State.OPENING: sessions_pb2.SESSION_STATE_BUSY,
    State.SPILLING: sessions_pb2.SESSION_STATE_IDLE,
    State.SPILLED: sessions_pb2.SESSION_STATE_IDLE,
    State.RESTORING: sessions_pb2.SESSION_STATE_IDLE,
    State.ENDING: sessions_pb2.SESSION_STATE_UNSPECIFIED,
    State.ENDED: sessions_pb2.SESSION_STATE_UNSPECIFIED,
}
_SPILLED = (State.SPILLING, State.SPILLED, State.RESTORING)
_DURABILITIES = {
    pb.DURABILITY_UNSPECIFIED: None,
    pb.DURABILITY_NONE: Durability.NONE,
    pb.DURABILITY_CHECKPOINT: Durability.CHECKPOINT,
    pb.DURABILITY_STRICT: Durability.STRICT,
}
_DURABILITY_VALUES = {domain: value for value, domain in _DURABILITIES.items() if domain is not None}
_ACTIONS = {
    pb.DISCONNECT_ACTION_UNSPECIFIED: None,
    pb.DISCONNECT_ACTION_FREE: OnDisconnect.FREE,
    pb.DISCONNECT_ACTION_HOLD: OnDisconnect.HOLD,
    pb.DISCONNECT_ACTION_KEEP: OnDisconnect.KEEP,
}


def policy(message: pb.Open, limits: PolicyLimits, on_disconnect: OnDisconnect = OnDisconnect.FREE) -> SessionPolicy:
    """Returns the policy that an opening asks for. on_disconnect: the default if the message does not say. Raises
    InvalidFieldError for unknown values, and for more than the server grants."""
    check_policy(message)
    asked = message.on_disconnect
    duration_s = _seconds(asked.duration) if asked.HasField("duration") else None
    return limits.agree(
        _DURABILITIES[message.durability],
        _ACTIONS[asked.action] or on_disconnect,
        duration_s,
        is_unattended=message.unattended,
    )


def check_policy(message: pb.Open) -> None:
    """Raises InvalidFieldError if an opening asks for an unknown durability or disconnect action."""
    if message.durability not in _DURABILITIES:
        raise convert.unknown_value(message.durability, pb.Durability.DESCRIPTOR, field="open.durability")
    action = message.on_disconnect.action
    if action not in _ACTIONS:
        raise convert.unknown_value(action, pb.DisconnectAction.DESCRIPTOR, field="open.on_disconnect.action")


def _seconds(duration: Duration) -> float:
    """Returns a duration in seconds. Raises InvalidFieldError if the nanoseconds are a second or more, or have another
    sign than the seconds: see google/protobuf/duration.proto."""
    seconds, nanos = int(duration.seconds), int(duration.nanos)
    if abs(nanos) >= 10**9 or seconds * nanos < 0:
        raise InvalidFieldError(
            f"open.on_disconnect.duration has {seconds} seconds and {nanos} nanos: nanos must be below one second, and"
            " have the sign of seconds",
            field="open.on_disconnect.duration",
        )
    return seconds + nanos / 1e9


def check_resume(message: pb.Open) -> None:
    """Raises InvalidFieldError if a resume request sets a field that only the opening of the session may set."""
    for field in message.DESCRIPTOR.fields:
        name = field.name
        if name != "resume" and name in {one.name for one, _ in message.ListFields()}:
            raise InvalidFieldError(
                f"open.{name} must not be set with open.resume: it was fixed when the session was opened",
                field=f"open.{name}",
            )


def emitted_so_far(bundle: Bundle, lane: LaneState) -> tuple[list[pb.Token], int]:
    """Returns the last tokens that a transducer's session has emitted, and how many it has emitted in all; none for
    other models."""
    emits, vocabulary = bundle.manifest.step.emits, bundle.target_vocabulary
    if emits is None or vocabulary is None:
        return [], 0
    states = {state.name: array for state, array in zip(bundle.manifest.states, lane.states, strict=True)}
    count, history = max(0, int(states[emits.count].item())), states[emits.history].ravel()
    known = [token for token in history[max(0, len(history) - count) :].tolist() if 0 <= token < len(vocabulary)]
    tokens = convert.token_messages(vocabulary)
    return [tokens[token] for token in known], count


def durability(session: Session) -> pb.Durability.ValueType:
    """Returns how much of a session is stored."""
    return _DURABILITY_VALUES[session.policy.durability]


def close_reason(reason: CloseReason) -> pb.CloseReason.ValueType:
    """Returns why a session was closed."""
    return _CLOSE_REASONS[reason]


def session_info(session: Session) -> sessions_pb2.SessionInfo:
    """Returns the message that describes a live session."""
    bundle, persistence = session.served.bundle, session.persistence
    info = sessions_pb2.SessionInfo(
        session_id=session.id,
        model=bundle.model,
        version=bundle.version,
        variant=session.served.variant,
        position=session.reportable_position,
        state=_STATES[session.state],
        durability=durability(session),
        checkpoint_position=persistence.checkpoint_position,
        attached=persistence.is_attached,
        spilled=session.state in _SPILLED,
        marks=persistence.marks,
    )
    info.open_time.FromNanoseconds(round(session.opened_at * 1e9))
    used_at = time.time() - (time.monotonic() - session.last_used_s)
    info.last_used_time.FromNanoseconds(round(used_at * 1e9))
    return info


def tensor_message(tensor: StateTensor) -> sessions_pb2.StateTensor:
    """Returns a state tensor as a message."""
    return sessions_pb2.StateTensor(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, data=tensor.data)


def state_tensor(message: sessions_pb2.StateTensor) -> StateTensor:
    """Returns the state tensor in a message."""
    return StateTensor(message.name, message.dtype, list(message.shape), message.data)
