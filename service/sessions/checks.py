"""Checks of requests against a model. Each error names the field, its value and what was expected.

Pure. `field` arguments are the names of request fields as the caller writes them, such as `feed.outputs`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from service.engine.decoding import Beam, Decoding, Sampling
from service.engine.jobs import Item, OutputKind, OutputSpec
from service.errors import AnswerTooLargeError, EmptySequenceError, InvalidFieldError, QueueFullError, quoted
from service.repository.manifest import BASE_VARIANT, Manifest
from service.repository.vocabulary import too_many
from service.sessions.kinds import check_kind

PRINCIPAL = r"[A-Za-z0-9._-]{1,64}"
"""The pattern of a principal's name."""
_SESSION_ID = re.compile(rf"(?:{PRINCIPAL}/)?[A-Za-z0-9._:-]{{1,128}}")
"""The pattern of an id. The API adds the principal in front of the client's name."""
_TOKEN_BYTES = 32
"""Bytes of a token on the wire, with its name and log-probability, if the caller does not give the limit of a
vocabulary."""
_OUTPUT_BYTES = 24
"""The most bytes of an output besides its numbers: its position and the framing of its fields."""
_STEPPED_BYTES = 90
"""The most bytes of one session in the answer to a step batch, besides its outputs: its position and, if it failed, an
error with a short text."""
_HYPOTHESIS_BYTES = 48
"""The most bytes of a hypothesis besides its tokens."""


def check_session_id(session_id: str, *, field: str = "session_id") -> None:
    """Raises InvalidFieldError unless a client may choose the id."""
    if not _SESSION_ID.fullmatch(session_id):
        raise invalid_session_id(session_id, field=field)


def check_principal(name: str) -> None:
    """Raises InvalidFieldError unless the name is valid for a principal."""
    if not re.fullmatch(PRINCIPAL, name):
        raise InvalidFieldError(
            f"principal = {quoted(name)} must be 1 to 64 of the characters A-Z a-z 0-9 . _ -", field="principal"
        )


def invalid_session_id(session_id: str, *, field: str = "session_id") -> InvalidFieldError:
    """Returns the error for an id that no client may choose."""
    return InvalidFieldError(
        f"{field} = {quoted(session_id)} must be 1 to 128 of the characters A-Z a-z 0-9 . _ : -", field=field
    )


def check_length(count: int, limit: int, *, field: str, noun: str = "token", setting: str = "max_feed_tokens") -> None:
    """Raises EmptySequenceError for a count of 0, and SequenceTooLongError for more than `limit`. noun: what is
    counted. setting: the name of the limit."""
    if count == 0:
        raise EmptySequenceError(f"{field} is empty: it must have 1 {noun} or more", field=field)
    if count > limit:
        raise too_many(f"{count} {noun}s", limit, setting, field)


def check_retries(count: int, limit: int) -> None:
    """Raises QueueFullError when `count` retries of one request wait for its answer already and one more may not."""
    if count >= limit:
        raise QueueFullError(
            f"{count} retries of this request already wait for its response, the limit (max_in_flight): read responses"
            " first",
            retry_delay_s=0.1,
            max_in_flight=limit,
        )


def trace_size(manifest: Manifest) -> int:
    """Returns the most bytes of the trace of one step on the wire, with names and framing."""
    longest = 0 if manifest.encoder is None else manifest.encoder.max_source_length
    outputs = () if manifest.trace is None else manifest.trace.outputs
    total = 0
    for output in outputs:
        axis = output.tensor.shape[-1]
        total += 4 * (axis if isinstance(axis, int) else longest) + len(output.name.encode()) + _OUTPUT_BYTES
    return total


def check_outputs(
    outputs: OutputSpec,
    *,
    num_tokens: int,
    vocabulary_size: int,
    max_bytes: int,
    field: str,
    trace_size: int = 0,
    token_bytes: int = _TOKEN_BYTES,
) -> int:
    """Returns the most bytes of one output. Raises InvalidFieldError for a wrong top_k, and AnswerTooLargeError when
    the answer may exceed `max_bytes`.

    vocabulary_size: logits, or values, that a step returns. trace_size: see the function of that name. token_bytes: the
    most bytes of a token, see `Bundle.max_token_bytes`. For a step batch, num_tokens is the number of its sessions, and
    `outputs.every_position` must be true; the columns of its answer take no more bytes than outputs.
    """
    if outputs.kind is OutputKind.TOP_K and not 1 <= outputs.top_k <= vocabulary_size:
        raise InvalidFieldError(
            f"{field}.top_k = {outputs.top_k} must be 1 to {vocabulary_size}, the vocabulary's size",
            field=f"{field}.top_k",
        )
    if outputs.kind is not OutputKind.TOP_K and outputs.top_k:
        raise InvalidFieldError(
            f"{field}.top_k = {outputs.top_k} can be set only with OUTPUT_KIND_TOP_K", field=f"{field}.top_k"
        )
    if outputs.kind is OutputKind.NONE and not outputs.has_trace:
        return 0
    each = _OUTPUT_BYTES + trace_size * outputs.has_trace
    if outputs.kind.is_vector:
        each += 4 * vocabulary_size
    elif outputs.kind is OutputKind.EMITTED:
        each += token_bytes * (vocabulary_size // 2)
    elif outputs.kind is not OutputKind.NONE:
        each += token_bytes * max(1, outputs.top_k)
    total = each * (num_tokens if outputs.every_position else 1)
    check_answer(total, max_bytes, field=field, advice="feed fewer tokens at a time")
    return each


def check_answer(num_bytes: int, max_bytes: int, *, field: str, advice: str) -> None:
    """Raises AnswerTooLargeError when an answer may exceed `max_bytes`. advice: how the client can ask for less."""
    if num_bytes > max_bytes:
        raise AnswerTooLargeError(
            f"{field} requests a response of up to {num_bytes} bytes, the limit is {max_bytes} (from"
            f" max_message_bytes): {advice}",
            field=field,
            limit=max_bytes,
        )


def check_open(
    manifest: Manifest,
    source: Sequence[Item] | None,
    outputs: OutputSpec | None,
    *,
    max_answer_bytes: int,
    variant: str = BASE_VARIANT,
    token_bytes: int = _TOKEN_BYTES,
    source_token_bytes: int = 0,
    within: str = "",
) -> int:
    """Returns the most bytes of the outputs of an opening. Raises EmptySequenceError, SequenceTooLongError,
    InvalidFieldError and AnswerTooLargeError when the request does not fit the model. token_bytes: the most bytes of an
    output token. source_token_bytes: the most bytes of a source token, which the answer repeats. within: the prefix of
    the request's fields."""
    field = f"{within}source"
    if manifest.encoder is None:
        if source is not None:
            raise InvalidFieldError(f"{field} must not be set: {manifest.model} has no encoder", field=field)
    elif source is None:
        raise EmptySequenceError(f"{field} is missing: {manifest.model} has an encoder and needs a source", field=field)
    else:
        noun = "vector" if manifest.encoder.feature_size else "token"
        longest = manifest.encoder.max_source_length
        check_length(len(source), longest, field=field, noun=noun, setting="max_source_length")
        max_answer_bytes -= len(source) * source_token_bytes
        check_answer(0, max_answer_bytes, field=field, advice="give a shorter source")
    num_bytes = 0
    if outputs is not None:
        check_kind(manifest, variant, outputs, field="open.outputs")
        num_bytes = check_outputs(
            outputs,
            num_tokens=1,
            vocabulary_size=manifest.output_size,
            max_bytes=max_answer_bytes,
            field="open.outputs",
            trace_size=trace_size(manifest) if outputs.has_trace else 0,
            token_bytes=token_bytes,
        )
        if manifest.special_tokens.bos_id is None and manifest.start is None:
            raise InvalidFieldError(
                f"open.outputs must not be set: {manifest.model} has no start token", field="open.outputs"
            )
    return num_bytes


def check_batch(num_sessions: int, *, max_answer_bytes: int, field: str) -> int:
    """Returns the most bytes, besides outputs, of the answer to a step batch in which every session failed. Raises
    AnswerTooLargeError above `max_answer_bytes`."""
    num_bytes = _STEPPED_BYTES * num_sessions
    check_answer(num_bytes, max_answer_bytes, field=field, advice="step fewer sessions at a time")
    return num_bytes


def check_score(targets: Sequence[Sequence[int]], *, max_answer_bytes: int, field: str) -> int:
    """Returns the most bytes of the answer to a score of these targets. Raises AnswerTooLargeError above
    `max_answer_bytes`."""
    num_bytes = sum(_HYPOTHESIS_BYTES + 4 * (len(target) + 1) for target in targets)
    check_answer(num_bytes, max_answer_bytes, field=field, advice="score fewer targets at a time")
    return num_bytes


def check_forks(count: int, limit: int, *, field: str) -> None:
    """Raises EmptySequenceError for no target, and SequenceTooLongError for more than `limit`."""
    check_length(count, limit, field=field, noun="target", setting="max_forks")


def check_reads_what_it_gives(manifest: Manifest, *, field: str) -> None:
    """Raises InvalidFieldError unless the model generates tokens that its steps consume."""
    if manifest.target_vocabulary is None or not manifest.can_generate:
        raise InvalidFieldError(
            f"{field} must not be set: {manifest.model} cannot score targets, because its steps do not consume the"
            " tokens that it generates",
            field=field,
        )


def check_can_generate(manifest: Manifest, decoding: Decoding, field: str) -> None:
    """Raises InvalidFieldError when the model cannot generate, or not with this decoding."""
    if not manifest.can_generate:
        raise InvalidFieldError(
            f"{manifest.model} cannot generate: the output of a step is not a valid input of the next step",
            field=field.rpartition(".")[0] or "model",
        )
    if manifest.target_vocabulary is not None:
        return
    for name, is_given in (
        ("sampling", decoding.sampling is not None),
        ("log_probabilities", decoding.log_probabilities),
        ("repetition_penalty", decoding.repetition_penalty != 1.0),
        ("min_tokens", decoding.min_tokens > 0),
        ("beam_search", decoding.beam is not None),
    ):
        if is_given:
            raise InvalidFieldError(
                f"{field}.{name} must not be set: {manifest.model} outputs values, not logits over tokens",
                field=f"{field}.{name}",
            )


def check_decoding(
    decoding: Decoding,
    *,
    vocabulary_size: int,
    max_tokens: int,
    max_beam_size: int,
    field: str,
    max_answer_bytes: int | None = None,
    token_bytes: int = _TOKEN_BYTES,
) -> int:
    """Returns the most bytes of the results of a search; 0 without a beam. Raises InvalidFieldError for a parameter
    outside its range, and AnswerTooLargeError when the results of a search may exceed `max_answer_bytes`; None means
    any size. token_bytes: see `Bundle.max_token_bytes`."""
    if not 1 <= decoding.max_tokens <= max_tokens:
        raise InvalidFieldError(
            f"{field}.max_tokens = {decoding.max_tokens} must be 1 to {max_tokens} (max_generate_tokens)",
            field=f"{field}.max_tokens",
        )
    if decoding.min_tokens > decoding.max_tokens:
        raise InvalidFieldError(
            f"{field}.min_tokens = {decoding.min_tokens} must be at most max_tokens, {decoding.max_tokens}",
            field=f"{field}.min_tokens",
        )
    if not (math.isfinite(decoding.repetition_penalty) and 0.0 < decoding.repetition_penalty <= 100.0):
        raise InvalidFieldError(
            f"{field}.repetition_penalty = {decoding.repetition_penalty:g} must be above 0 and at most 100",
            field=f"{field}.repetition_penalty",
        )
    if decoding.sampling is not None:
        _check_sampling(decoding.sampling, vocabulary_size, f"{field}.sampling")
    if decoding.beam is None:
        return 0
    _check_beam(decoding, decoding.beam, max_beam_size, field)
    # the answer has the best result twice: as the generated tokens, and among the results
    num_bytes = (1 + decoding.beam.num_best) * (_HYPOTHESIS_BYTES + decoding.max_tokens * token_bytes)
    if max_answer_bytes is not None:
        advice = "request fewer tokens, or fewer results"
        check_answer(num_bytes, max_answer_bytes, field=f"{field}.beam_search", advice=advice)
    return num_bytes


def _check_sampling(sampling: Sampling, vocabulary_size: int, field: str) -> None:
    if not (math.isfinite(sampling.temperature) and 0.0 < sampling.temperature <= 100.0):
        raise InvalidFieldError(
            f"{field}.temperature = {sampling.temperature:g} must be above 0 and at most 100",
            field=f"{field}.temperature",
        )
    if sampling.top_k is not None and not 1 <= sampling.top_k <= vocabulary_size:
        raise InvalidFieldError(
            f"{field}.top_k = {sampling.top_k} must be 1 to {vocabulary_size}, the vocabulary's size",
            field=f"{field}.top_k",
        )
    if not (math.isfinite(sampling.top_p) and 0.0 < sampling.top_p <= 1.0):
        raise InvalidFieldError(
            f"{field}.top_p = {sampling.top_p:g} must be above 0 and at most 1", field=f"{field}.top_p"
        )


def _check_beam(decoding: Decoding, beam: Beam, limit: int, field: str) -> None:
    within = f"{field}.beam_search"
    if not 1 <= beam.beam_size <= limit:
        raise InvalidFieldError(
            f"{within}.beam_size = {beam.beam_size} must be 1 to {limit} (max_forks)", field=f"{within}.beam_size"
        )
    if not 1 <= beam.num_best <= beam.beam_size:
        raise InvalidFieldError(
            f"{within}.num_best = {beam.num_best} must be 1 to beam_size, {beam.beam_size}", field=f"{within}.num_best"
        )
    if not -10.0 <= beam.length_penalty <= 10.0:  # false for NaN, too
        raise InvalidFieldError(
            f"{within}.length_penalty = {beam.length_penalty:g} must be -10 to 10", field=f"{within}.length_penalty"
        )
    if decoding.sampling is not None:
        raise InvalidFieldError(f"{within} and {field}.sampling are both set: set one", field=within)
    if decoding.repetition_penalty != 1.0:
        raise InvalidFieldError(f"{within} and {field}.repetition_penalty are both set: set one", field=within)
