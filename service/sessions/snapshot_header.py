"""Makes the header of a snapshot from an image, and an image from a header and its tensors.

`snapshot_format` has the classes of the header.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import msgspec
import numpy as np

from service.engine.arena import Array
from service.engine.beam import Hypothesis
from service.engine.before import Before
from service.engine.decoding import Beam, Decoding, FinishReason, FloatRow, Sampling
from service.engine.jobs import OutputKind, OutputSpec
from service.engine.results import LaneState, Searched, StepOutput
from service.sessions import snapshot_format as form
from service.sessions.image import FedBefore, GeneratedBefore, Image
from service.sessions.persistence import Durability, OnDisconnect, SessionPolicy


def header_of(image: Image) -> form.Header:
    """Returns the header of an image."""
    policy, last = image.policy, image.last
    return form.Header(
        image.session_id,
        image.model,
        image.version,
        image.variant,
        image.manifest_digest,
        image.opened_at,
        image.state_names,
        int(policy.durability),
        int(policy.on_disconnect),
        policy.duration_s,
        policy.is_unattended,
        _lane(image.lane),
        feed=_feed(last) if isinstance(last, FedBefore) else None,
        generation=_generation(last) if isinstance(last, GeneratedBefore) else None,
        marks=[_lane(mark) for mark in image.marks.values()],
    )


def arrays_of(image: Image) -> Iterator[Array]:
    """Returns the tensors that follow a header, in order, little-endian."""
    for lane in (image.lane, *image.marks.values()):
        yield from _arrays(lane)


def _arrays(lane: LaneState) -> list[Array]:
    logits = [] if lane.next_logits is None else [lane.next_logits]
    return [
        array.astype(array.dtype.newbyteorder("<"), copy=False) for array in (*lane.states, *lane.contexts, *logits)
    ]


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
    outputs = last.outputs
    answer = [
        form.Output(
            output.position,
            output.token_ids,
            output.log_probabilities,
            None if output.logits is None else _bytes(output.logits),
            None if output.trace is None else {name: _bytes(told) for name, told in output.trace.items()},
            output.num_limited,
        )
        for output in last.answer
    ]
    return form.Feed(
        last.start,
        list(last.tokens),
        outputs.kind.value,
        outputs.top_k,
        outputs.every_position,
        answer,
        outputs.has_trace,
    )


def _bytes(row: FloatRow) -> bytes:
    return row.astype("<f4", copy=False).tobytes()


def _generation(last: GeneratedBefore) -> form.Generation:
    decoding, found, before = last.decoding, last.found, last.before
    sampling, beam = decoding.sampling, decoding.beam
    return form.Generation(
        last.start,
        form.Decoding(
            decoding.max_tokens,
            None if sampling is None else msgspec.convert(sampling, form.Sampling, from_attributes=True),
            decoding.log_probabilities,
            decoding.repetition_penalty,
            decoding.min_tokens,
            sorted(decoding.stop_ids),
            None if beam is None else form.Beam(*beam),
        ),
        last.num_dropped,
        list(last.tokens),
        last.log_probabilities,
        None if last.finish_reason is None else last.finish_reason.value,
        None if found is None else found.position,
        [] if found is None else [_hypothesis(one) for one in found.hypotheses],
        None if before is None else list(before.tokens),
    )


def _hypothesis(one: Hypothesis) -> form.Hypothesis:
    return form.Hypothesis(
        one.tokens, one.end_id, one.score, one.log_probability, one.log_probabilities, one.finish_reason.value
    )


def image_of(header: form.Header, body: bytes) -> Image:
    """Returns the image of a header and its tensors. Raises ValueError when they do not fit together."""
    arrays = _split(header, body)
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
        SessionPolicy(
            Durability(header.durability),
            OnDisconnect(header.on_disconnect),
            header.duration_s,
            header.is_unattended,
        ),
        last,
        {mark.position: _read_lane(mark, arrays) for mark in header.marks},
    )


def _split(header: form.Header, body: bytes) -> Iterator[Array]:
    begin = 0
    for lane in (header.lane, *header.marks):
        for tensor in lane.tensors:
            dtype = np.dtype(tensor.dtype).newbyteorder("<")
            count = prod(tensor.shape)
            yield np.frombuffer(body, dtype, count, begin).reshape(tensor.shape)
            begin += count * dtype.itemsize
    if begin != len(body):
        raise ValueError(f"{len(body)} bytes of tensors, expected {begin}")


def _read_lane(lane: form.Lane, arrays: Iterator[Array]) -> LaneState:
    tensors = [next(arrays) for _ in lane.tensors]
    next_logits = tensors.pop().astype(np.float32, copy=False) if lane.has_next_logits else None
    seen = None if lane.seen is None else np.array(lane.seen, np.int64)
    states, contexts = tensors[: lane.num_states], tensors[lane.num_states :]
    return LaneState(lane.position, lane.pending, next_logits, states, contexts, lane.num_produced, seen)


def _read_feed(feed: form.Feed) -> FedBefore:
    answer = [
        StepOutput(
            one.position,
            one.token_ids,
            one.log_probabilities,
            None if one.logits is None else _floats(one.logits),
            None if one.trace is None else {name: _floats(told) for name, told in one.trace.items()},
            one.num_limited,
        )
        for one in feed.answer
    ]
    spec = OutputSpec(OutputKind(feed.kind), feed.top_k, feed.every_position, feed.has_trace)
    return FedBefore(feed.start, feed.tokens, spec, answer)


def _floats(data: bytes) -> FloatRow:
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)


def _read_generation(one: form.Generation) -> GeneratedBefore:
    sampling, beam = one.decoding.sampling, one.decoding.beam
    decoding = Decoding(
        one.decoding.max_tokens,
        None if sampling is None else Sampling(sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed),
        one.decoding.log_probabilities,
        one.decoding.repetition_penalty,
        one.decoding.min_tokens,
        frozenset(one.decoding.stop_ids),
        None if beam is None else Beam(beam.beam_size, beam.length_penalty, beam.num_best),
    )
    found, before = None, None if one.before is None else Before(one.start + one.num_dropped, one.before)
    if one.found_position is not None:
        found = Searched(
            one.found_position,
            [
                Hypothesis(
                    h.tokens, h.end_id, h.score, h.log_probability, h.log_probabilities, FinishReason(h.finish_reason)
                )
                for h in one.found
            ],
            before,
        )
    reason = None if one.finish_reason is None else FinishReason(one.finish_reason)
    return GeneratedBefore(
        one.start, decoding, one.num_dropped, one.tokens, one.log_probabilities, reason, found, before
    )
