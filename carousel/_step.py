"""Makes the messages of `Client.step`. Pure."""

from __future__ import annotations

import secrets
from typing import Unpack

from carousel import _answers, _requests
from carousel._arguments import flag, text
from carousel._ports import ports
from carousel._requests import Tokens
from carousel._tokens import uint
from carousel.steps import SessionStep, StepOptions
from carousel.v1 import inference_pb2 as pb

_OF_FEED = ("position", "mark", "every_position")
_OF_OUTPUTS = ("top_k", "logits", "trace")
_OF_OPENING = ("source", "version", "variant", "constants", "first", "on_disconnect", "hold_s", "durability")


def request(session_id: str, tokens: Tokens | None, **options: Unpack[StepOptions]) -> pb.StepRequest:
    """Makes the request. An opening without an id gets one, so that the request can be sent again. Raises
    InvalidArgumentError for values that no message can hold, and TypeError for options that cannot be combined."""
    model = text(options.get("model", ""), "open.model")
    if not model and (without := [name for name in _OF_OPENING if options.get(name)]):
        raise TypeError(f"{', '.join(without)}: also give `model`, which opens the session")
    if unknown := sorted(set(options) - set(StepOptions.__annotations__)):
        raise TypeError(f"{', '.join(unknown)}: no such option")
    features = options.get("features")
    has_feed = tokens is not None or features is not None
    asked = [name for name in _OF_FEED if _is_given(options.get(name))]
    if not has_feed and asked:
        raise TypeError(f"{', '.join(asked)}: also give tokens or features")
    if not has_feed and not model and (asked := [name for name in _OF_OUTPUTS if _is_given(options.get(name))]):
        raise TypeError(f"{', '.join(asked)}: also give tokens or features, or `model`, which opens the session")
    top_k, logits = options.get("top_k"), flag(options.get("logits", False), "logits")
    trace = flag(options.get("trace", False), "trace")
    session_id = text(session_id, "session_id") or (secrets.token_urlsafe(9) if model else "")
    message = pb.StepRequest(session_id=session_id, close=flag(options.get("close", False), "close"))
    if model:
        policy = _requests.SessionPolicy(
            options.get("on_disconnect", "hold"), options.get("hold_s"), options.get("durability"), unattended=False
        )
        opening = _requests.open_message(
            model,
            source=options.get("source"),
            version=options.get("version", 0),
            variant=options.get("variant", ""),
            first=options.get("first", False),
            policy=policy,
            constants=options.get("constants"),
            top_k=None if has_feed else top_k,
            logits=logits and not has_feed,
            trace=trace and not has_feed,
        )
        message.open.CopyFrom(opening)
    if has_feed:
        feed = _requests.feed_message(
            tokens,
            features=features,
            outputs=options.get("outputs", True),
            every_position=options.get("every_position", False),
            mark=options.get("mark", False),
            top_k=top_k,
            logits=logits,
            trace=trace,
        )
        position = options.get("position")
        if position is not None:
            feed.position = uint(position, 64, "feed.position")
        message.feed.CopyFrom(feed)
    return message


def _is_given(option: object) -> bool:
    return option is not None and option is not False


def is_repeatable(message: pb.StepRequest) -> bool:
    """Whether a request may be sent again, because the server then applies it once."""
    return not message.HasField("feed") or message.feed.HasField("position")


def value(message: pb.StepResponse) -> SessionStep:
    """Makes the result of a response."""
    opened, outputs = message.opened, ports(message.opened.outputs)
    step = _answers.step(message.fed, message.position, outputs)
    return SessionStep(
        step.position,
        step.outputs,
        step.replayed,
        session_id=message.session_id,
        model=opened.model,
        version=opened.version,
        variant=opened.variant,
        durability=_answers.durability(opened.durability),
        restored_from=_answers.restored_from(opened.restored_from),
        source=_answers.tokens(opened.source),
        first=_answers.step_output(opened.output, outputs) if opened.HasField("output") else None,
        checkpoint_position=message.checkpoint_position if message.HasField("checkpoint_position") else None,
        closed=_answers.close_reason(message.closed.reason) if message.HasField("closed") else None,
    )
