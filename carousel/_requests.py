"""Makes request messages from arguments.

The server checks values. This module refuses only values that no message can hold, with the name of the field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias, cast

from carousel._arguments import flag, invalid, one_of, seconds, text
from carousel._constants import Constants, fill_constants
from carousel._ports import Parts, joined_parts
from carousel._tensors import Features, is_features, steps_message, tensor_message
from carousel._tokens import is_ordered, split, uint
from carousel.v1 import inference_pb2 as pb
from carousel.values import Port

Source: TypeAlias = str | Sequence[str] | Sequence[int] | Features
"""A sequence: text, token names, token ids, or feature vectors for models that read those."""

Tokens: TypeAlias = str | int | Sequence[str] | Sequence[int]
"""Tokens to feed: names or ids, or one of them."""


_ACTIONS = ("free", "hold", "keep")
_DURABILITIES = ("none", "checkpoint", "strict")
_MAX_HOLD_S = 3.15576e11
"""The longest duration that a message can hold, in seconds."""


class SessionPolicy(NamedTuple):
    """What the server does with a session after its stream ends: see `Client.session`."""

    on_disconnect: str
    hold_s: float | None
    durability: str | None
    unattended: bool


def open_message(
    model: str,
    *,
    source: Source | None,
    version: int,
    variant: str,
    first: bool = False,
    top_k: int | None = None,
    logits: bool = False,
    trace: bool = False,
    policy: SessionPolicy | None = None,
    constants: Constants | None = None,
) -> pb.Open:
    """first: request the prediction at position 0; implied by top_k, logits and trace."""
    message = pb.Open(
        model=text(model, "open.model"),
        version=uint(version, 32, "open.version"),
        variant=text(variant, "open.variant"),
    )
    if source is not None:
        message.source.CopyFrom(sequence_message(source, "open.source"))
    outputs = _outputs_message("open.outputs", top_k=top_k, logits=logits, trace=trace)
    if flag(first, "first") or logits or trace or top_k is not None:
        message.outputs.CopyFrom(outputs)
    if policy is not None:
        _fill_policy(message, policy)
    fill_constants(message.constants, constants, "open.constants")
    return message


def vectors(
    features: Features | Parts | None,
    inputs: Sequence[Port],
    field: str,
    *,
    is_last: bool | Sequence[bool] = False,
) -> Features | None:
    """Returns the feature vectors. Joins them if they are given as named parts. is_last: see `joined_parts`. Raises
    InvalidArgumentError."""
    if isinstance(features, Mapping):
        return joined_parts(features, inputs, field, is_last=is_last)
    if is_last if isinstance(is_last, bool) else any(is_last):
        raise invalid(f"{field}: end=True needs a dict of features by name, and a model with an end flag", field)
    return features


def feed_message(
    tokens: Tokens | None,
    *,
    features: Features | None = None,
    feature_size: int = 0,
    top_k: int | None,
    logits: bool,
    outputs: bool,
    every_position: bool,
    mark: bool = False,
    trace: bool = False,
) -> pb.Feed:
    """Leaves the position for the protocol to fill in. feature_size: how many numbers a step reads."""
    spec = _outputs_message(
        "feed.outputs", top_k=top_k, logits=logits, outputs=outputs, every_position=every_position, trace=trace
    )
    mark = flag(mark, "feed.mark")
    if features is not None:
        if tokens is not None:
            raise TypeError("give tokens or features, not both")
        return pb.Feed(features=steps_message(features, feature_size, "feed.features"), outputs=spec, mark=mark)
    if tokens is None:
        raise TypeError("give tokens or features")
    names, ids = split([tokens] if isinstance(tokens, str | int) else tokens, "feed.tokens", "feed.token_ids")
    return pb.Feed(tokens=names, token_ids=ids, outputs=spec, mark=mark)


def generate_request(
    model: str,
    *,
    source: Source | None,
    version: int,
    variant: str,
    prompt: Source | None,
    decoding: pb.Decoding,
    constants: Constants | None = None,
) -> pb.GenerateRequest:
    """Makes the request of `Client.generate`."""
    message = pb.GenerateRequest(
        model=text(model, "model"),
        version=uint(version, 32, "version"),
        variant=text(variant, "variant"),
        decoding=decoding,
    )
    _fill(message, source, prompt)
    fill_constants(message.constants, constants, "constants")
    return message


def score_message(targets: Sequence[Source], *, with_end: bool) -> pb.Score:
    """Leaves the position for the protocol to fill in."""
    messages = [sequence_message(target, f"score.targets[{at}]") for at, target in enumerate(_listed(targets))]
    return pb.Score(targets=messages, with_end=flag(with_end, "score.with_end"))


def score_request(
    model: str,
    targets: Sequence[Source],
    *,
    source: Source | None,
    version: int,
    variant: str,
    prompt: Source | None,
    with_end: bool,
    constants: Constants | None = None,
) -> pb.ScoreRequest:
    """Makes the request of `Client.score`."""
    message = pb.ScoreRequest(
        model=text(model, "model"),
        version=uint(version, 32, "version"),
        variant=text(variant, "variant"),
        targets=[sequence_message(target, f"targets[{at}]") for at, target in enumerate(_listed(targets))],
        with_end=flag(with_end, "with_end"),
    )
    _fill(message, source, prompt)
    fill_constants(message.constants, constants, "constants")
    return message


def step_batch_message(
    handles: Sequence[int],
    tokens: Sequence[int] | Sequence[Sequence[int]] | None,
    positions: Sequence[int],
    *,
    features: Features | None = None,
    feature_size: int = 0,
    top_k: int | None,
    logits: bool,
    outputs: bool,
) -> pb.StepBatch:
    """Takes for each handle one token, a sequence of tokens, or one vector. feature_size: the numbers of a vector.

    Raises InvalidArgumentError when there are not as many of them as handles.
    """
    if tokens is None and features is None:
        raise TypeError("give tokens or features")
    if tokens is not None and features is not None:
        raise TypeError("give tokens or features, not both")
    if features is not None:
        return pb.StepBatch(
            handles=handles,
            positions=positions,
            features=steps_message(features, feature_size, "step_batch.features"),
            outputs=_outputs_message("step_batch.outputs", top_k=top_k, logits=logits, outputs=outputs),
        )
    tokens = tokens or ()
    if len(tokens) != len(handles):
        raise invalid(
            f"step_batch.token_ids has tokens for {len(tokens)} sessions, but the step has {len(handles)} sessions",
            "step_batch.token_ids",
        )
    message = pb.StepBatch(
        handles=handles,
        positions=positions,
        outputs=_outputs_message("step_batch.outputs", top_k=top_k, logits=logits, outputs=outputs),
    )
    try:
        if tokens and isinstance(tokens[0], Sequence):
            each = [list(one) for one in tokens]  # type: ignore[arg-type]
            message.counts.extend(map(len, each))
            message.token_ids.extend(token for one in each for token in one)
        else:
            message.token_ids.extend(tokens)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        _refuse_tokens(tokens)
        raise
    return message


def _refuse_tokens(tokens: Sequence[int] | Sequence[Sequence[int]]) -> None:
    """Raises the error for the first entry of a step that is wrong."""
    are_lists = isinstance(tokens[0], Sequence) and not isinstance(tokens[0], str)
    for at, one in enumerate(tokens):
        field = f"step_batch.token_ids[{at}]"
        if not are_lists:
            uint(one, 32, field)
        elif isinstance(one, str) or not isinstance(one, Sequence):
            raise TypeError(f"{field} must be a sequence of token ids, as the first is, not {one!r:.60}")
        else:
            for index, token in enumerate(one):
                uint(token, 32, f"{field}[{index}]")


def check_can_forecast(feature_size: int) -> None:
    """Raises InvalidArgumentError for a model of tokens. feature_size: the numbers of one step; 0 for tokens."""
    if not feature_size:
        raise invalid("forecast: this model reads and generates tokens, not numbers: call generate", "forecast")


def _fill_policy(message: pb.Open, policy: SessionPolicy) -> None:
    """Raises InvalidArgumentError for an unknown policy name."""
    action = one_of(policy.on_disconnect, _ACTIONS, "on_disconnect", field="open.on_disconnect")
    message.on_disconnect.action = pb.DisconnectAction.Value(f"DISCONNECT_ACTION_{action}".upper())
    if policy.hold_s is not None:
        hold_s = seconds(policy.hold_s, "hold_s")
        if hold_s > _MAX_HOLD_S:
            raise invalid(f"hold_s = {hold_s:g} must be at most {_MAX_HOLD_S:g} seconds", "open.on_disconnect.duration")
        message.on_disconnect.duration.FromNanoseconds(round(hold_s * 1e9))
    if policy.durability is not None:
        durability = one_of(policy.durability, _DURABILITIES, "durability", field="open.durability")
        message.durability = pb.Durability.Value(f"DURABILITY_{durability}".upper())
    message.unattended = flag(policy.unattended, "open.unattended")


def _fill(message: pb.GenerateRequest | pb.ScoreRequest, source: Source | None, prompt: Source | None) -> None:
    if source is not None:
        message.source.CopyFrom(sequence_message(source, "source"))
    if prompt is not None:
        message.prompt.CopyFrom(sequence_message(prompt, "prompt"))


def _listed(targets: Sequence[Source]) -> Sequence[Source]:
    listed = list(targets) if is_ordered(targets) and not isinstance(targets, str) else None
    if listed is None or (listed and isinstance(listed[0], int)):
        raise TypeError(f"targets must be a list of sequences, also for one target: [target], not {targets!r:.60}")
    return listed


def sequence_message(sequence: Source, field: str) -> pb.Sequence:
    """Makes a message: a string is text, rows of numbers are features, anything else is token names or ids."""
    if isinstance(sequence, str):
        return pb.Sequence(text=text(sequence, field))
    if is_features(sequence):
        return pb.Sequence(features=tensor_message(cast(Features, sequence), f"{field}.features"))
    if not is_ordered(sequence):
        raise TypeError(f"{field} must be text, tokens by name (str) or by id (int), or vectors, not {sequence!r:.60}")
    sequence = cast(Sequence[str] | Sequence[int], sequence)
    names, ids = split(sequence, f"{field}.tokens.names", f"{field}.ids.ids")
    if ids:
        return pb.Sequence(ids=pb.TokenIds(ids=ids))
    return pb.Sequence(tokens=pb.TokenNames(names=names))


def _outputs_message(
    field: str,
    *,
    top_k: int | None,
    logits: bool,
    outputs: bool = True,
    every_position: bool = False,
    trace: bool = False,
) -> pb.OutputSpec:
    if (top_k is not None) + flag(logits, "logits") + (not flag(outputs, "outputs")) > 1:
        raise TypeError("give only one of top_k, logits=True and outputs=False")
    message = pb.OutputSpec(  # the default kind is the next token, or the values
        every_position=flag(every_position, f"{field}.every_position"), trace=flag(trace, f"{field}.trace")
    )
    if top_k is not None:
        message.kind = pb.OUTPUT_KIND_TOP_K
        message.top_k = uint(top_k, 32, f"{field}.top_k", least=1)
    elif logits:
        message.kind = pb.OUTPUT_KIND_LOGITS
    elif not outputs:
        message.kind = pb.OUTPUT_KIND_NONE
    return message
