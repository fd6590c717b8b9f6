"""Builds the messages of feeds and step batches, for models of tokens and for the model of frames, and requests that
must be refused."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

from carousel.v1 import inference_pb2 as pb
from simulation.bundles import LAZY, LISTENER, TRANSLATOR
from simulation.exported import frame_of


def opening(model: str, source: Sequence[int], **fields: Any) -> pb.Open:
    """Returns a message that opens a session. source: source tokens, used only for a translator."""
    message = pb.Open(model=model, **fields)
    if model == TRANSLATOR:
        message.source.ids.ids.extend(source)
    return message


def kind_of(model: str, kind: int) -> int:
    """Returns the kind of output to request from a model instead of `kind`: a transducer has only emitted tokens."""
    return pb.OUTPUT_KIND_EMITTED if model == LISTENER and kind != pb.OUTPUT_KIND_NONE else kind


def feed(model: str, tokens: Sequence[int], kind: int, **fields: Any) -> pb.Feed:
    """Returns a feed of tokens, or of the frames that stand for them."""
    message = pb.Feed(**fields)
    message.outputs.kind = kind  # type: ignore[assignment]  # an enum
    if model == LISTENER:
        message.features.CopyFrom(_frames(tokens))
    else:
        message.token_ids.extend(tokens)
    return message


def step_batch(model: str, handles: Iterable[int], each: Sequence[Sequence[int]], kind: int) -> pb.StepBatch:
    """Returns a step batch of tokens, or of the frames that stand for them. each: the tokens of each session."""
    message = pb.StepBatch(handles=handles)
    message.outputs.kind = kind  # type: ignore[assignment]  # an enum
    tokens = [token for one in each for token in one]
    if model == LISTENER:
        message.features.CopyFrom(_frames(tokens))
        return message
    if len(each[0]) > 1:  # without counts, each session has one token
        message.counts.extend(map(len, each))
    message.token_ids.extend(tokens)
    return message


def wrong(model: str) -> list[dict[str, Any]]:
    """Returns requests that an open session of a model must refuse."""
    found: list[dict[str, Any]] = [{"feed": pb.Feed(token_ids=[99])}, {"feed": pb.Feed()}]
    if model == LISTENER:
        found += [{"feed": pb.Feed(token_ids=[1])}, {"generate": pb.Generate()}]
        found += [{"score": pb.Score(targets=[pb.Sequence(ids=pb.TokenIds(ids=[1]))])}]
        found += [{"feed": feed(model, [1], pb.OUTPUT_KIND_LOGITS)}]
    elif model == TRANSLATOR:
        found += [{"feed": pb.Feed(features=_frames([1]))}, {"feed": feed(model, [1], pb.OUTPUT_KIND_EMITTED)}]
    return found


def stray(name: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns (session id, request) pairs that must be refused. name: an id that no session has."""
    strict = pb.DURABILITY_STRICT
    return [
        (name, {"open": pb.Open(model="no-such-model", durability=strict)}),
        ("no/such id", {"open": pb.Open(model=LAZY)}),
        (name, {"open": pb.Open(model=LAZY, outputs=pb.OutputSpec(top_k=99), durability=strict)}),
        (name, {"feed": pb.Feed(token_ids=[1])}),
        (name, {"open": pb.Open(resume=pb.Resume(), model=LAZY)}),
        ("", {"step_batch": pb.StepBatch(handles=[99], token_ids=[1])}),
        ("", {"step_batch": pb.StepBatch(handles=[1, 1], token_ids=[1, 1])}),
        ("", {}),
    ]


def _frames(tokens: Sequence[int]) -> pb.Tensor:
    numbers = [number for token in tokens for number in frame_of(token)]
    return pb.Tensor(shape=[len(tokens), 2], data=struct.pack(f"<{len(numbers)}f", *numbers))
