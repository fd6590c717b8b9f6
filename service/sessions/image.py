"""A session as values: everything that another server needs to resume it. Makes an image of a session, checks it, and
reads its last request.

Pure. Knows no file format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from service.engine.decoding import Decoding, FinishReason, FloatRow, IntArray
from service.engine.jobs import ITEM_SIZE, Item, OutputSpec
from service.engine.last_tokens import LastTokens
from service.engine.results import Fed, LaneState, Searched, StepOutput
from service.errors import SnapshotModelError
from service.repository.manifest import Manifest, TensorSpec
from service.sessions.constants import refused_choice
from service.sessions.generation import Generation, LastFeed, NotRetryable
from service.sessions.persistence import PLAIN, SessionPolicy
from service.sessions.served import Served
from service.sessions.session import Session


@dataclass(frozen=True, slots=True)
class FedBefore:
    """The last feed and its answer. start: the position where it began."""

    start: int
    tokens: Sequence[Item]
    outputs: OutputSpec
    answer: list[StepOutput]


@dataclass(frozen=True, slots=True)
class GeneratedBefore:
    """The last generation, ended or not: see `Generation`."""

    start: int
    decoding: Decoding
    num_dropped: int
    tokens: Sequence[Item]
    log_probabilities: list[float] | None
    finish_reason: FinishReason | None
    found: Searched | None = None
    before: LastTokens | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """A session as values. manifest_digest: of the bundle, in hexadecimal. opened_at: Unix seconds. state_names: the
    names of `lane.states`, in order. last: the request that can be retried. marks: by position, the oldest first."""

    session_id: str
    model: str
    version: int
    variant: str
    manifest_digest: str
    opened_at: float
    state_names: list[str]
    lane: LaneState
    policy: SessionPolicy = PLAIN
    last: FedBefore | GeneratedBefore | None = None
    marks: dict[int, LaneState] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """About its size in bytes: its tensors, and the answers kept for retries."""
        num_bytes = sum(lane.num_bytes for lane in (self.lane, *self.marks.values()))
        if isinstance(self.last, FedBefore):
            num_bytes += sum(
                8 * len(one.token_ids) + (0 if one.logits is None else one.logits.nbytes) for one in self.last.answer
            )
        elif self.last is not None:
            num_bytes += 8 * len(self.last.tokens)
        return num_bytes


def image_of(session: Session, lane: LaneState) -> Image:
    """Returns the image of a session with the state of its lane. Call only after all earlier results of the lane were
    delivered."""
    served, persistence, last = session.served, session.persistence, session.last
    is_suspended = isinstance(last, Generation) and last.is_suspended and last.position == lane.position
    if isinstance(last, Generation) and is_suspended and not lane.num_produced:  # no retry has continued it yet
        lane = lane._replace(num_produced=last.num_tokens, seen=last.seen)
    return Image(
        session.id,
        served.bundle.model,
        served.bundle.version,
        served.variant,
        served.bundle.manifest_digest,
        session.opened_at,
        [state.name for state in served.bundle.manifest.states],
        lane,
        persistence.policy,
        _last_of(session, lane),
        {p: mark for p, mark in persistence.marks.items() if p <= lane.position},
    )


def last_in(image: Image) -> LastFeed | Generation | None:
    """Returns the request that can be retried on a session made from an image."""
    last = image.last
    if isinstance(last, FedBefore):
        # no snapshot says whether its last feed was marked: its marks do, because the newest one is never dropped
        has_mark = image.lane.position in image.marks
        feed = LastFeed(None, last.start, last.tokens, last.outputs, has_mark=has_mark)
        feed.result = Fed(image.lane.position, last.answer)
        return feed
    if isinstance(last, GeneratedBefore):
        generation = Generation(last.start, last.decoding, None)
        generation.tokens = list(last.tokens)
        generation.log_probabilities = None if last.log_probabilities is None else list(last.log_probabilities)
        generation.num_dropped = last.num_dropped
        generation.finish_reason, generation.found, generation.before = last.finish_reason, last.found, last.before
        generation.num_read = generation.num_granted = generation.num_tokens
        generation.seen = image.lane.seen
        return generation
    return None


def check_fits(image: Image, served: Served) -> None:
    """Raises SnapshotModelError when the state of an image does not fit a model."""
    manifest = served.bundle.manifest
    model = f"{served.bundle.model} version {served.bundle.version}"
    names = [state.name for state in manifest.states]
    if image.state_names != names:
        raise SnapshotModelError(
            f"snapshot has the states {image.state_names}, but {model} has {names}", field="version"
        )
    for lane in (image.lane, *image.marks.values()):
        specs = [*((s.name, s.input) for s in manifest.states), *((c.name, c.input) for c in manifest.contexts)]
        _check_source(lane, manifest, model)
        arrays = [*lane.states, *lane.contexts]
        if len(arrays) != len(specs):
            raise SnapshotModelError(
                f"snapshot has {len(arrays)} tensors, but {model} has {len(specs)}", field="version"
            )
        for (name, spec), array in zip(specs, arrays, strict=True):
            expected = _inner_shape(spec)
            given = [*array.shape] if None not in expected else [None, *array.shape[1:]]
            if given != expected or array.dtype.name != spec.dtype:
                raise SnapshotModelError(
                    f"snapshot has {name} as {array.dtype.name}{[*array.shape]}, but {model} has"
                    f" {spec.dtype}{expected}",
                    field="version",
                )
        for state, array in zip(manifest.states, lane.states, strict=True):
            if problem := refused_choice(state, array):
                raise SnapshotModelError(f"snapshot does not fit {model}: {state.name} = {problem}", field="version")
    _check_vocabulary(image, manifest, model)


def _check_source(lane: LaneState, manifest: Manifest, model: str) -> None:
    longest = 0 if manifest.encoder is None else manifest.encoder.max_source_length
    lengths = {len(array) if array.ndim else 0 for array in lane.contexts}
    if len(lengths) > 1 or max(lengths, default=0) > longest:
        raise SnapshotModelError(
            f"snapshot has a source of {sorted(lengths)} tokens, but {model} reads up to {longest}", field="version"
        )


def _check_vocabulary(image: Image, manifest: Manifest, model: str) -> None:
    """Checks every value of an image that becomes an index into the engine's arrays or must have their size. The engine
    checks nothing while it commits a step."""
    read, given = _Items.read_by(manifest), _Items.given_by(manifest)
    lanes = [image.lane, *image.marks.values()]
    fits = (
        all(read.fit(lane.pending) and _fit_outputs(lane.next_logits, manifest) for lane in lanes)
        and all(given.fit_array(lane.seen) for lane in lanes)
        and _last_fits(image, manifest, read, given)
    )
    if not fits:
        size = manifest.output_size
        what = f"{size} values of a step" if manifest.target_vocabulary is None else f"vocabulary of {size} tokens"
        raise SnapshotModelError(
            f"snapshot does not fit {model}: its token ids or arrays do not fit the {what}", field="version"
        )


def _fit_outputs(logits: FloatRow | None, manifest: Manifest) -> bool:
    """Whether a row has as many numbers as the output of a step."""
    return logits is None or logits.shape == (manifest.output_size,)


def _last_fits(image: Image, manifest: Manifest, read: _Items, given: _Items) -> bool:
    last = image.last
    if isinstance(last, FedBefore):
        return (
            read.fit(last.tokens)
            and last.outputs.top_k <= given.size
            and all(given.fit(output.token_ids) and _fit_outputs(output.logits, manifest) for output in last.answer)
            and all(_are_pairs(output.token_ids, output.log_probabilities) for output in last.answer)
        )
    if isinstance(last, GeneratedBefore):
        decoding = last.decoding
        top_k = None if decoding.sampling is None else decoding.sampling.top_k
        hypotheses = () if last.found is None else last.found.hypotheses
        return (
            given.fit(last.tokens)
            and _are_pairs(last.tokens, last.log_probabilities)
            and given.fit(list(decoding.stop_ids))
            and (top_k is None or 1 <= top_k <= given.size)
            and all(given.fit(one.tokens) for one in hypotheses)
            and all(one.end_id is None or given.fit([one.end_id]) for one in hypotheses)
        )
    return True


def _are_pairs(tokens: Sequence[Item], log_probabilities: Sequence[float] | None) -> bool:
    return not log_probabilities or len(log_probabilities) == len(tokens)


class _Items(NamedTuple):
    """The valid items: tokens below `size` or, without a vocabulary, vectors of `size` numbers."""

    size: int
    is_vocabulary: bool

    @classmethod
    def read_by(cls, manifest: Manifest) -> _Items:
        """Returns the items that a model's steps consume."""
        vocabulary = manifest.step_vocabulary
        return cls(manifest.step.feature_size, False) if vocabulary is None else cls(vocabulary.size, True)

    @classmethod
    def given_by(cls, manifest: Manifest) -> _Items:
        """Returns the items that a model generates."""
        vocabulary = manifest.target_vocabulary
        return cls(manifest.output_size, False) if vocabulary is None else cls(vocabulary.size, True)

    def fit(self, items: Sequence[Item]) -> bool:
        """Whether all items are valid."""
        if self.is_vocabulary:
            return all(isinstance(item, int) and 0 <= item < self.size for item in items)
        return all(isinstance(item, bytes) and len(item) == ITEM_SIZE * self.size for item in items)

    def fit_array(self, ids: IntArray | None) -> bool:
        """Whether an array contains only valid token ids. None and an empty array fit every model."""
        if ids is None or not ids.size:
            return True
        return self.is_vocabulary and int(ids.min()) >= 0 and int(ids.max()) < self.size


def _inner_shape(spec: TensorSpec) -> list[int | None]:
    """Returns the shape without the batch axis. None marks an axis as long as the source."""
    return [axis if isinstance(axis, int) else None for axis in spec.shape if axis != "batch"]


def _last_of(session: Session, lane: LaneState) -> FedBefore | GeneratedBefore | None:
    last = session.last
    if lane.num_produced and not isinstance(last, Generation):
        return _going_on(lane)
    while isinstance(last, NotRetryable) or (isinstance(last, LastFeed) and last.result is None):
        last = last.former  # the state does not include requests in flight
    if isinstance(last, LastFeed):
        return _fed_before(last, lane)
    if last is None or last.start is None:
        return None
    if not lane.num_produced:
        if last.is_dropped or not (last.is_ended and last.position == lane.position):
            return None
        return GeneratedBefore(
            last.start,
            last.decoding,
            last.num_dropped,
            list(last.tokens),
            None if last.log_probabilities is None else list(last.log_probabilities),
            last.finish_reason,
            last.found,
            last.before,
        )
    count = max(0, lane.num_produced - last.num_dropped)  # more tokens may have followed since
    return GeneratedBefore(
        last.start,
        last.decoding,
        last.num_dropped,
        last.tokens[:count],
        None if last.log_probabilities is None else last.log_probabilities[:count],
        None,
        before=last.before,
    )


def _fed_before(last: LastFeed, lane: LaneState) -> FedBefore | None:
    result = last.result
    if last.is_dropped or last.is_hashed or last.start is None:
        return None
    if not isinstance(result, Fed) or result.position != lane.position:
        return None
    return FedBefore(last.start, last.tokens, last.outputs, result.outputs)


def _going_on(lane: LaneState) -> GeneratedBefore | None:
    """Returns the unfinished generation of a session that keeps no tokens. It can continue, but none of its tokens can
    be delivered again."""
    decoding = lane.decoding
    if decoding is None:
        return None
    scores: list[float] | None = [] if decoding.log_probabilities else None
    return GeneratedBefore(
        lane.position - lane.num_produced, decoding, lane.num_produced, [], scores, finish_reason=None
    )
