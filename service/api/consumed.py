"""Converts messages into what sessions consume: the tokens and vectors of sources, prompts, feeds and step batches.
Errors name the field as the client spells it."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import cast

from carousel.v1 import inference_pb2 as pb
from service.api import vectors
from service.engine.jobs import Item
from service.errors import EmptySequenceError, InvalidFieldError
from service.repository.bundle import Bundle
from service.repository.vocabulary import Vocabulary, too_many

_OF_STEPS = "max_feed_tokens"
"""The setting that limits what steps read."""


def check_count(numbers: Sized, limit: int | None, *, field: str, setting: str = _OF_STEPS) -> None:
    """Raises SequenceTooLongError for more than `limit` tokens, before any token is read. limit: None for no limit;
    setting: the name of the limit."""
    if limit is not None and len(numbers) > limit:
        raise too_many(f"{len(numbers)} tokens", limit, setting, field)


def sequence_ids(
    sequence: pb.Sequence, vocabulary: Vocabulary, *, field: str, limit: int | None = None, setting: str = _OF_STEPS
) -> list[int]:
    """Returns the token ids of a sequence, in whichever form it was sent.

    limit: the most tokens, set by `setting`; None: no limit.

    A sequence over its limit is refused by its count, before any token is looked up. Raises InvalidFieldError or a
    subclass.
    """
    form = sequence.WhichOneof("form")
    if form == "text":
        return vocabulary.ids_of_text(sequence.text, field=f"{field}.text", limit=limit, setting=setting, whole=field)
    if form == "tokens":
        check_count(sequence.tokens.names, limit, field=field, setting=setting)
        ids = vocabulary.ids_of(sequence.tokens.names, field=f"{field}.tokens.names")
    elif form == "ids":
        check_count(sequence.ids.ids, limit, field=field, setting=setting)
        ids = vocabulary.check_ids(sequence.ids.ids, field=f"{field}.ids.ids")
    else:
        raise InvalidFieldError(f"{field} is empty: set one of text, tokens and ids", field=field)
    if not ids:
        raise EmptySequenceError(f"{field}.{form} is empty: it must have 1 token or more", field=f"{field}.{form}")
    return ids


def source_items(source: pb.Sequence, bundle: Bundle, *, field: str = "source") -> Sequence[Item]:
    """Returns what the encoder reads: a source, between the tokens that the server adds to it. Raises
    InvalidFieldError, also if the model has no encoder, or a subclass."""
    encoder = bundle.manifest.encoder
    if encoder is None:
        raise InvalidFieldError(f"{field} must not be set: {bundle.model} has no encoder", field=field)
    limit = encoder.max_given_length
    items = _items(
        source,
        bundle.source_vocabulary,
        encoder.feature_size,
        bundle.model,
        limit,
        field=field,
        setting="max_source_length",
    )
    if not encoder.is_new:
        return items
    return [*_present(encoder.bos_id), *items, *_present(encoder.eos_id)]


def _present(token_id: int | None) -> list[int]:
    return [] if token_id is None else [token_id]


def prompt_items(prompt: pb.Sequence, bundle: Bundle, limit: int | None = None) -> Sequence[Item]:
    """Returns the items of a prompt, which the steps consume first. limit: the most items; None: no limit. Raises
    InvalidFieldError or a subclass."""
    step = bundle.manifest.step
    items = _items(prompt, bundle.step_vocabulary, step.feature_size, bundle.model, limit, field="prompt")
    vectors.check_whole(items, step.whole_numbers, field="prompt.features")
    return items


def feed_items(feed: pb.Feed, bundle: Bundle, limit: int | None = None) -> Sequence[Item]:
    """Returns the items of a feed; empty if it has none. limit: the most items; None: no limit. Raises
    InvalidFieldError or a subclass."""
    if bundle.step_vocabulary is not None:
        if feed.HasField("features"):
            raise _reads("tokens", bundle.model, field="feed.features")
        return feed_ids(feed, bundle.step_vocabulary, limit)
    if feed.tokens or feed.token_ids:
        raise _reads("features", bundle.model, field="feed.tokens" if feed.tokens else "feed.token_ids")
    if not feed.HasField("features"):
        return []
    step = bundle.manifest.step
    items = vectors.items_of(feed.features, step.feature_size, bundle.model, field="feed.features", limit=limit)
    vectors.check_whole(items, step.whole_numbers, field="feed.features")
    return items


def step_batch_items(message: pb.StepBatch, bundle: Bundle, limit: int | None = None) -> Sequence[Item]:
    """Returns the items of a step batch. `check_items` must check those of each row. limit: the most items; None: no
    limit. Raises InvalidFieldError or a subclass."""
    if bundle.step_vocabulary is not None:
        if message.HasField("features"):
            raise _reads("tokens", bundle.model, field="step_batch.features")
        check_count(message.token_ids, limit, field="step_batch.token_ids")
        return list(message.token_ids)
    if message.token_ids:
        raise _reads("features", bundle.model, field="step_batch.token_ids")
    size = bundle.manifest.step.feature_size
    return vectors.items_of(message.features, size, bundle.model, field="step_batch.features", limit=limit)


def check_items(items: Sequence[Item], bundle: Bundle, *, first: int) -> None:
    """Checks the items of one row, which `step_batch_items` does not. first: the place of items[0] in the step batch.
    Raises InvalidFieldError or a subclass."""
    if bundle.step_vocabulary is not None:
        ids = cast("Sequence[int]", items)  # the model reads tokens
        bundle.step_vocabulary.check_ids(ids, field="step_batch.token_ids", first=first)
    else:
        vectors.check_whole(items, bundle.manifest.step.whole_numbers, field="step_batch.features", first=first)


def _items(
    sequence: pb.Sequence,
    vocabulary: Vocabulary | None,
    feature_size: int,
    model: str,
    limit: int | None,
    *,
    field: str,
    setting: str = _OF_STEPS,
) -> Sequence[Item]:
    if vocabulary is None:
        if sequence.WhichOneof("form") != "features":
            raise _reads("features", model, field=field)
        field = f"{field}.features"
        return vectors.items_of(sequence.features, feature_size, model, field=field, limit=limit, setting=setting)
    if sequence.WhichOneof("form") == "features":
        raise _reads("tokens", model, field=f"{field}.features")
    return sequence_ids(sequence, vocabulary, field=field, limit=limit, setting=setting)


def _reads(what: str, model: str, *, field: str) -> InvalidFieldError:
    return InvalidFieldError(f"{field} does not fit {model}: it reads {what}", field=field)


def feed_ids(feed: pb.Feed, vocabulary: Vocabulary, limit: int | None = None) -> list[int]:
    """Returns the token ids of a feed; empty if it has none. limit: the most ids; None: no limit. Raises
    InvalidFieldError or a subclass."""
    token_ids = feed.token_ids
    if not feed.tokens:
        if len(token_ids) == 1 and token_ids[0] < len(vocabulary.names):  # the most frequent case
            return [token_ids[0]]
        check_count(token_ids, limit, field="feed")
        return vocabulary.check_ids(token_ids, field="feed.token_ids")
    if token_ids:
        raise InvalidFieldError("feed.token_ids and feed.tokens are both set: set one", field="feed.tokens")
    check_count(feed.tokens, limit, field="feed")
    return vocabulary.ids_of(feed.tokens, field="feed.tokens")
