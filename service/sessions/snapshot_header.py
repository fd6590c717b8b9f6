"""Makes the header of a snapshot from an image, and an image from a header and its tensors.

`snapshot_format` has the classes of the header.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
from msgspec import convert
from msgspec.structs import astuple

from service.engine.arena import Array
from service.engine.beam import Hypothesis
from service.engine.decoding import Beam, Decoding, Sampling
from service.engine.jobs import OutputSpec
from service.engine.last_tokens import LastTokens
from service.engine.results import LaneState, Searched, StepOutput
from service.sessions import snapshot_format as form
from service.sessions.image import FedBefore, GeneratedBefore, Image
from service.sessions.persistence import SessionPolicy


def header_of(image: Image) -> form.Header:
    """Returns the header of an image."""
    last = image.last
    return form.Header(
        image.session_id,
        image.model,
        image.version,
        image.variant,
        image.manifest_digest,
        image.opened_at,
        image.state_names,
        *image.policy,
        _lane(image.lane),
        feed=_feed(last) if isinstance(last, FedBefore) else None,
        generation=_generation(last) if isinstance(last, GeneratedBefore) else None,
        marks=[_lane(mark) for mark in image.marks.values()],
    )


def arrays_of(image: Image) -> Iterator[Array]:
    """Returns the tensors that follow a header, in order, little-endian."""
    for lane in (image.lane, *image.marks.values()):
        for array in _arrays(lane):
            yield array.astype(array.dtype.newbyteorder("<"), copy=False)


def _arrays(lane: LaneState) -> list[Array]:
    return [*lane.states, *lane.contexts, *([] if lane.next_logits is None else [lane.next_logits])]


def _lane(lane: LaneState) -> form.Lane:
    return form.Lane(
        lane.position,
        lane.pending,
        len(lane.states),
        [form.Tensor(array.dtype.name, list(array.shape)) for array in _arrays(lane)],
        has_next_logits=lane.next_logits is not None,
        num_produced=lane.num_produced,
        seen=None if lane.seen is None else lane.seen.tolist(),
    )


def _feed(last: FedBefore) -> form.Feed:
    kind, top_k, every_position, has_trace = last.outputs
    answer = [form.Output(*output) for output in last.answer]
    return form.Feed(last.start, list(last.tokens), kind, top_k, every_position, answer, has_trace)


def _generation(last: GeneratedBefore) -> form.Generation:
    decoding, found, before = last.decoding, last.found, last.before
    sampling, beam = decoding.sampling, decoding.beam
    return form.Generation(
        last.start,
        form.Decoding(
            decoding.max_tokens,
            None if sampling is None else convert(sampling, form.Sampling, from_attributes=True),
            decoding.log_probabilities,
            decoding.repetition_penalty,
            decoding.min_tokens,
            sorted(decoding.stop_ids),
            None if beam is None else form.Beam(*beam),
        ),
        last.num_dropped,
        list(last.tokens),
        last.log_probabilities,
        last.finish_reason,
        None if found is None else found.position,
        [] if found is None else [form.Hypothesis(*one) for one in found.hypotheses],
        None if before is None else list(before.tokens),
    )


def image_of(header: form.Header, body: bytes) -> Image:
    """Returns the image of a header and its tensors. Raises ValueError, TypeError or LookupError when they do not fit
    together."""
    arrays = iter(_split(header, body))
    lane = _read_lane(header.lane, arrays)
    last: FedBefore | GeneratedBefore | None = None
    if header.feed is not None:
        last = _read_feed(header.feed)
    elif header.generation is not None:
        last = _read_generation(header.generation)
    return Image(
        header.session_id,
        header.model,
        header.version,
        header.variant,
        header.manifest_digest,
        header.opened_at,
        header.state_names,
        lane,
        SessionPolicy(header.durability, header.on_disconnect, header.duration_s, header.is_unattended),
        last,
        {mark.position: _read_lane(mark, arrays) for mark in header.marks},
    )


def _split(header: form.Header, body: bytes) -> list[Array]:
    arrays: list[Array] = []
    begin = 0
    for lane in (header.lane, *header.marks):
        for tensor in lane.tensors:
            dtype = np.dtype(tensor.dtype).newbyteorder("<")
            count = prod(tensor.shape)
            arrays.append(np.frombuffer(body, dtype, count, begin).reshape(tensor.shape))
            begin += count * dtype.itemsize
    if begin != len(body):
        raise ValueError(f"{len(body)} bytes of tensors, expected {begin}")
    return arrays


def _read_lane(lane: form.Lane, arrays: Iterator[Array]) -> LaneState:
    tensors = [next(arrays) for _ in lane.tensors]
    next_logits = tensors.pop().astype(np.float32, copy=False) if lane.has_next_logits else None
    seen = None if lane.seen is None else np.array(lane.seen, np.int64)
    states, contexts = tensors[: lane.num_states], tensors[lane.num_states :]
    return LaneState(lane.position, lane.pending, next_logits, states, contexts, lane.num_produced, seen)


def _read_feed(feed: form.Feed) -> FedBefore:
    outputs = OutputSpec(feed.kind, feed.top_k, feed.every_position, feed.has_trace)
    return FedBefore(feed.start, feed.tokens, outputs, [StepOutput(*astuple(output)) for output in feed.answer])


def _read_generation(one: form.Generation) -> GeneratedBefore:
    options = one.decoding
    decoding = Decoding(
        options.max_tokens,
        None if options.sampling is None else convert(options.sampling, Sampling, from_attributes=True),
        options.log_probabilities,
        options.repetition_penalty,
        options.min_tokens,
        frozenset(options.stop_ids),
        None if options.beam is None else Beam(*astuple(options.beam)),
    )
    before = None if one.before is None else LastTokens(one.start + one.num_dropped, one.before)
    found = None
    if one.found_position is not None:
        found = Searched(one.found_position, [Hypothesis(*astuple(each)) for each in one.found], before)
    return GeneratedBefore(
        one.start, decoding, one.num_dropped, one.tokens, one.log_probabilities, one.finish_reason, found, before
    )
