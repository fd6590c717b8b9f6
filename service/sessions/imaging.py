"""Sessions to images, and images to what is kept of them. Pure."""

from __future__ import annotations

from service.engine.items import ITEM_SIZE
from service.engine.lane_state import LaneState
from service.engine.results import Fed
from service.errors import SnapshotModelError
from service.repository.manifest import Manifest, TensorSpec
from service.sessions.generation import Generation
from service.sessions.image import FedBefore, GeneratedBefore, Image
from service.sessions.session import LastFeed, Served, Session


def image_of(session: Session, lane: LaneState) -> Image:
    """A session as its lane was. Call only after all earlier results of the lane were delivered."""
    served, persistence, last = session.served, session.persistence, session.last
    is_suspended = isinstance(last, Generation) and last.is_suspended and last.position == lane.position
    if isinstance(last, Generation) and is_suspended and not lane.num_produced:  # nobody has gone on with it yet
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
    """What may be sent again to a session made of an image."""
    last = image.last
    if isinstance(last, FedBefore):
        feed = LastFeed(None, last.start, last.tokens, last.outputs)
        feed.result = Fed(image.lane.position, last.answer)
        return feed
    if isinstance(last, GeneratedBefore):
        generation = Generation(last.start, last.decoding, None)
        generation.tokens = list(last.tokens)
        generation.log_probabilities = None if last.log_probabilities is None else list(last.log_probabilities)
        generation.num_dropped = last.num_dropped
        generation.finish_reason, generation.found = last.finish_reason, last.found
        generation.num_read = generation.num_granted = generation.num_tokens
        generation.seen = image.lane.seen
        return generation
    return None


def check_fits(image: Image, served: Served) -> None:
    """Raises SnapshotModelError when a model has not the state that an image has."""
    manifest = served.bundle.manifest
    told = f"{served.bundle.model} version {served.bundle.version}"
    names = [state.name for state in manifest.states]
    if image.state_names != names:
        raise SnapshotModelError(f"snapshot has the state {image.state_names}, {told} has {names}", field="version")
    for lane in (image.lane, *image.marks.values()):
        specs = [*((s.name, s.input) for s in manifest.states), *((c.name, c.input) for c in manifest.contexts)]
        arrays = [*lane.states, *lane.contexts]
        if len(arrays) != len(specs):
            raise SnapshotModelError(f"snapshot has {len(arrays)} tensors, {told} has {len(specs)}", field="version")
        for (name, spec), array in zip(specs, arrays, strict=True):
            expected = _inner_shape(spec)
            given = [*array.shape] if None not in expected else [None, *array.shape[1:]]
            if given != expected or array.dtype.name != spec.dtype:
                raise SnapshotModelError(
                    f"snapshot has {name} as {array.dtype.name}{[*array.shape]}, {told} has {spec.dtype}{expected}",
                    field="version",
                )
    _check_vocabulary(image, manifest, told)


def _check_vocabulary(image: Image, manifest: Manifest, told: str) -> None:
    read, size = manifest.step_vocabulary, manifest.output_size
    logits = image.lane.next_logits
    if read is None:
        num_bytes = ITEM_SIZE * manifest.step.feature_size
        fits = all(isinstance(item, bytes) and len(item) == num_bytes for item in image.lane.pending)
    else:
        fits = all(isinstance(item, int) and item < read.size for item in image.lane.pending)
    if not fits or (logits is not None and len(logits) != size):
        what = f"of {size} values" if manifest.target_vocabulary is None else f"vocabulary of {size} tokens"
        raise SnapshotModelError(f"snapshot is of another {what} than {told}'s", field="version")


def _inner_shape(spec: TensorSpec) -> list[int | None]:
    """Without the batch axis; None where an axis is as long as the source."""
    return [axis if isinstance(axis, int) else None for axis in spec.shape if axis != "batch"]


def _last_of(session: Session, lane: LaneState) -> FedBefore | GeneratedBefore | None:
    last = session.last
    if isinstance(last, LastFeed):
        if (
            not last.is_dropped
            and isinstance(last.result, Fed)
            and last.result.position == lane.position
            and last.start is not None
        ):
            return FedBefore(last.start, last.tokens, last.outputs, last.result.outputs)
        return None
    if last is None or last.start is None:
        return None
    if not lane.num_produced:
        if not (last.is_ended and last.position == lane.position):
            return None
        return GeneratedBefore(
            last.start,
            last.decoding,
            last.num_dropped,
            list(last.tokens),
            None if last.log_probabilities is None else list(last.log_probabilities),
            last.finish_reason,
            last.found,
        )
    count = max(0, lane.num_produced - last.num_dropped)  # more may have been told since
    return GeneratedBefore(
        last.start,
        last.decoding,
        last.num_dropped,
        last.tokens[:count],
        None if last.log_probabilities is None else last.log_probabilities[:count],
        None,
    )
