"""The traffic of load generators: prepared messages for each stream, and how their responses are counted.

The native generator replays a `Traffic` unchanged; the Python one (`benchmarks.load`) sends the same messages.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace

from carousel.v1 import inference_pb2 as pb

METHOD = "/carousel.v1.Inference/Stream"
NUM_CHANNELS = 4
LONG_CHANNEL = NUM_CHANNELS
"""The long feed has its own connection, because on a shared one its message would delay the others in the transport."""
NOTHING = pb.OutputSpec(kind=pb.OUTPUT_KIND_NONE)
GROWTH_CHUNK = 100_000
HOLD_S = 1


def field_path(message: type[pb.StreamResponse], *names: str) -> str:
    """Returns the numbers of nested fields, outermost first, separated by dots."""
    fields, numbers = message.DESCRIPTOR.fields_by_name, []
    for name in names:
        numbers.append(str(fields[name].number))
        inner = fields[name].message_type
        fields = {} if inner is None else inner.fields_by_name
    return ".".join(numbers)


ERRORS = tuple(
    field_path(pb.StreamResponse, *names)
    for names in (("error",), ("closed",), ("go_away",), ("batch_stepped", "errors"))
)
"""A response with one of these fields is not the expected one."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """The messages of one stream: it sends `first` one by one, each after the response to the previous one, then
    repeats `steps`.

    is_counted: whether its responses are counted and timed.
    """

    first: list[bytes]
    steps: list[bytes]
    channel: int = 0
    is_counted: bool = True


@dataclass(frozen=True, slots=True)
class Traffic:
    """The messages of all streams.

    in_flight: requests in flight on each stream.
    steps_per_answer: how many steps a response counts as.
    end_field: only a response with this field ends its request; empty: every response does.
    count_field: a response counts as many steps as it has of this field; empty: `steps_per_answer`.
    turn_s: streams work in turn, one at a time, each for this long; 0: all at once.
    rate: requests per second in an open loop; 0: the next request follows a response.
    method: the method that is called.
    error_fields: a response with one of these fields is an error.
    """

    sequences: list[Sequence]
    in_flight: int = 1
    steps_per_answer: int = 1
    end_field: str = ""
    count_field: str = ""
    turn_s: float = 0.0
    rate: float = 0.0
    method: str = METHOD
    error_fields: tuple[str, ...] = ERRORS


@dataclass(frozen=True, slots=True)
class Load:
    """The load that a benchmark requests. Which fields have a meaning depends on the generator.

    seconds: duration of the measurement, after `warmup_s`.
    features: numbers of a vector.
    chunk: vectors per session and message.
    tokens: of one generation, or of the old session of `growth`.
    source: tokens of each session's source.
    """

    model: str = "lm-small"
    streams: int = 64
    seconds: float = 2.0
    warmup_s: float = 1.0
    tokens: int = 256
    vocabulary: int = 64
    long_feed: int = 0
    durability: str = "none"
    in_flight: int = 4
    rate: float = 1000.0
    features: int = 0
    chunk: int = 1
    source: int = 0


def opening(model: str, durability: str = "none") -> bytes:
    """Returns the bytes of an Open. A stored session is held after its stream for HOLD_S."""
    message = pb.Open(model=model, durability=pb.Durability.Value(f"DURABILITY_{durability.upper()}"))
    if durability != "none":
        message.on_disconnect.action = pb.DISCONNECT_ACTION_HOLD
        message.on_disconnect.duration.seconds = HOLD_S
    return pb.StreamRequest(open=message).SerializeToString()


def translations(load: Load) -> Traffic:
    """One session per stream, each with its own source, which generates repeatedly."""
    generator = random.Random(0)
    sequences = []
    for index in range(load.streams):
        ids = pb.TokenIds(ids=[generator.randrange(2, load.vocabulary) for _ in range(load.source)])
        message = pb.StreamRequest(open=pb.Open(model=load.model, source=pb.Sequence(ids=ids)))
        sequences.append(Sequence([message.SerializeToString()], [generate(load)], index % NUM_CHANNELS))
    return replace(generations(load), sequences=sequences)


def feed(tokens: list[int], outputs: pb.OutputSpec | None = None) -> bytes:
    """Returns the bytes of a feed."""
    return pb.StreamRequest(request_id=7, feed=pb.Feed(token_ids=tokens, outputs=outputs)).SerializeToString()


def single_feeds(load: Load) -> list[bytes]:
    """Returns the bytes of 64 feeds of one token, with different tokens."""
    return [feed([1 + index % (load.vocabulary - 1)]) for index in range(64)]


def generate(load: Load) -> bytes:
    """Returns the bytes of a greedy generation."""
    decoding = pb.Decoding(max_tokens=load.tokens)
    return pb.StreamRequest(request_id=7, generate=pb.Generate(decoding=decoding)).SerializeToString()


def step_batches(load: Load) -> list[bytes]:
    """Returns the bytes of 16 step batches of sessions 1 to `load.streams`, with different tokens."""
    handles = range(1, load.streams + 1)
    messages = []
    for shift in range(16):
        tokens = [1 + (handle + shift) % (load.vocabulary - 1) for handle in handles]
        step = pb.StepBatch(handles=handles, token_ids=tokens)
        messages.append(pb.StreamRequest(request_id=7, step_batch=step).SerializeToString())
    return messages


def lockstep(load: Load) -> Traffic:
    """One session per stream, one token per message, one in flight. With `long_feed`, beside a stream of long feeds."""
    first, steps = [opening(load.model, load.durability)], single_feeds(load)
    sequences = [Sequence(first, steps, index % NUM_CHANNELS) for index in range(load.streams)]
    if load.long_feed:
        message = feed([1] * load.long_feed, NOTHING)
        sequences.append(Sequence(first, [message], LONG_CHANNEL, is_counted=False))
    return Traffic(sequences)


def arrivals(load: Load) -> Traffic:
    """The streams of `lockstep`, stepped at random times."""
    return replace(lockstep(load), rate=load.rate)


def generations(load: Load) -> Traffic:
    """One session per stream, which generates repeatedly."""
    sequences = [
        Sequence(
            [opening(load.model), feed([1 + index % (load.vocabulary - 1)], NOTHING)],
            [generate(load)],
            index % NUM_CHANNELS,
        )
        for index in range(load.streams)
    ]
    return Traffic(
        sequences,
        end_field=field_path(pb.StreamResponse, "generated", "finish_reason"),
        count_field=field_path(pb.StreamResponse, "generated", "tokens"),
    )


def frames(load: Load) -> Traffic:
    """One stream with `load.streams` sessions that step together."""
    sequence = Sequence([opening(load.model)] * load.streams, step_batches(load))
    return Traffic([sequence], in_flight=load.in_flight, steps_per_answer=load.streams)


def vectors(load: Load) -> Traffic:
    """One stream with `load.streams` sessions that step together, `load.chunk` vectors each."""
    count = load.streams * load.chunk
    messages = []
    for shift in range(4):
        data = _numbers(count * load.features, shift)
        features = pb.Tensor(shape=[count, load.features], data=data)
        step = pb.StepBatch(handles=range(1, load.streams + 1), counts=[load.chunk] * load.streams, features=features)
        messages.append(pb.StreamRequest(request_id=7, step_batch=step).SerializeToString())
    sequence = Sequence([opening(load.model)] * load.streams, messages)
    return Traffic([sequence], in_flight=load.in_flight, steps_per_answer=count)


def vector_arrivals(load: Load) -> Traffic:
    """One session per stream, which is fed a vector at random times."""
    features = pb.Tensor(shape=[1, load.features], data=_numbers(load.features, 0))
    message = pb.StreamRequest(request_id=7, feed=pb.Feed(features=features)).SerializeToString()
    sequences = [Sequence([opening(load.model)], [message], index % NUM_CHANNELS) for index in range(load.streams)]
    return Traffic(sequences, rate=load.rate)


def vector_feeds(load: Load) -> Traffic:
    """One session per stream, one vector per message, one in flight."""
    messages = []
    for seed in range(32):
        features = pb.Tensor(shape=[1, load.features], data=_numbers(load.features, seed))
        messages.append(pb.StreamRequest(request_id=7, feed=pb.Feed(features=features)).SerializeToString())
    first = [opening(load.model)]
    return Traffic([Sequence(first, messages, index % NUM_CHANNELS) for index in range(load.streams)])


def _numbers(count: int, seed: int) -> bytes:
    generator = random.Random(seed)
    few = array("f", [generator.gauss(0.0, 1.0) for _ in range(min(count, 4096))])
    return (few * (count // len(few) + 1))[:count].tobytes()


def growth(load: Load) -> Traffic:
    """Two lone sessions, one at position 100 and one at `load.tokens`, stepped in turn, in 20 turns each."""
    sequences = []
    for position in (100, load.tokens):
        sizes = [min(GROWTH_CHUNK, position - begin) for begin in range(0, position, GROWTH_CHUNK)]
        first = [opening(load.model), *(feed([1] * size, NOTHING) for size in sizes)]
        sequences.append(Sequence(first, [feed([1])]))
    return Traffic(sequences, turn_s=load.seconds / 40)


TRAFFIC: dict[str, Callable[[Load], Traffic]] = {
    "lockstep": lockstep,
    "arrivals": arrivals,
    "generations": generations,
    "translations": translations,
    "frames": frames,
    "vectors": vectors,
    "vector_arrivals": vector_arrivals,
    "vector_feeds": vector_feeds,
    "growth": growth,
}
