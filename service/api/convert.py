"""Converts messages to domain values and back: outputs, decoding, tokens, scores. Errors name the field as the client
spells it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import fsum
from typing import Literal, TypeAlias

from google.protobuf.descriptor import EnumDescriptor

from carousel.v1 import inference_pb2 as pb
from service.api import tensors
from service.api.consumed import check_count, sequence_ids
from service.engine.beam import Hypothesis
from service.engine.decoding import Beam, Decoding, FinishReason, FloatArray, Sampling
from service.engine.emitted import emitted
from service.engine.jobs import Item, OutputKind, OutputSpec
from service.engine.results import StepOutput
from service.errors import InvalidFieldError, quoted
from service.repository.bundle import Bundle
from service.repository.vocabulary import Vocabulary
from service.sessions.checks import check_forks
from service.sessions.kinds import default_outputs
from service.sessions.limits import SessionLimits

_OUTPUT_KINDS = {pb.OutputKind.Value(f"OUTPUT_KIND_{kind.name}"): kind for kind in OutputKind}
Numbers: TypeAlias = Literal["logits", "values", "emitted"]
"""The meaning of the numbers that a step outputs."""
_PAGE_TOKEN_LENGTH = 18
"""Any number of this many digits fits in a signed 64-bit integer."""
_STOP_TOKENS = 1024
_FINISH_REASONS = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    FinishReason.EOS: pb.FINISH_REASON_EOS,
    FinishReason.MAX_TOKENS: pb.FINISH_REASON_MAX_TOKENS,
    FinishReason.STOP: pb.FINISH_REASON_STOP,
}


def parse_page_token(text: str) -> int:
    """Returns the number in a page token; 0 if there is none. Raises InvalidFieldError for text that is not a page
    token."""
    if len(text) <= _PAGE_TOKEN_LENGTH and (not text or (text.isascii() and text.isdecimal())):
        return int(text or 0)
    raise InvalidFieldError(
        f"page_token = {quoted(text)} is invalid: use the next_page_token of a response", field="page_token"
    )


def unknown_value(value: int, enum: EnumDescriptor, *, field: str) -> InvalidFieldError:
    """Returns the error for a number that an enum does not define."""
    expected = ", ".join(one.name for one in enum.values if one.number)
    return InvalidFieldError(f"{field} = {value} is unknown: it must be one of {expected}", field=field)


def output_spec(message: pb.OutputSpec, bundle: Bundle, *, field: str) -> OutputSpec:
    """Returns the outputs that a message asks for. Raises InvalidFieldError for an unknown kind."""
    kind = _OUTPUT_KINDS.get(message.kind) if message.kind else default_outputs(bundle.manifest).kind
    if kind is None:
        raise unknown_value(message.kind, pb.OutputKind.DESCRIPTOR, field=f"{field}.kind")
    return OutputSpec(kind, message.top_k, message.every_position or kind is OutputKind.EMITTED, message.trace)


def decoding(message: pb.Decoding, bundle: Bundle, *, field: str) -> Decoding:
    """Returns how to generate. The domain checks the ranges. Raises InvalidFieldError or a subclass for stop tokens
    that are not in the vocabulary, or too many."""
    sampling = None
    if message.HasField("sampling"):
        given = message.sampling
        sampling = Sampling(
            temperature=given.temperature if given.HasField("temperature") else 1.0,
            top_k=given.top_k if given.HasField("top_k") else None,
            top_p=given.top_p if given.HasField("top_p") else 1.0,
            seed=given.seed,
        )
    stop_ids: list[int] = []
    vocabulary = bundle.target_vocabulary
    if vocabulary is not None:
        # more stop tokens than this only repeat others; short lists may repeat some
        limit = max(len(vocabulary), _STOP_TOKENS)
        check_count(message.stop_token_ids, limit, field=f"{field}.stop_token_ids", setting="")
        check_count(message.stop_tokens, limit, field=f"{field}.stop_tokens", setting="")
        stop_ids += vocabulary.check_ids(message.stop_token_ids, field=f"{field}.stop_token_ids")
        stop_ids += vocabulary.ids_of(message.stop_tokens, field=f"{field}.stop_tokens", is_exact=True)
    elif message.stop_token_ids or message.stop_tokens:
        name = f"{field}.stop_tokens" if message.stop_tokens else f"{field}.stop_token_ids"
        raise InvalidFieldError(f"{name} must not be set: the model outputs values, not tokens", field=name)
    return Decoding(
        message.max_tokens if message.HasField("max_tokens") else bundle.manifest.max_tokens,
        sampling,
        message.log_probabilities,
        message.repetition_penalty if message.HasField("repetition_penalty") else 1.0,
        message.min_tokens,
        frozenset(stop_ids),
        _beam(message.beam_search) if message.HasField("beam_search") else None,
    )


def _beam(message: pb.BeamSearch) -> Beam:
    return Beam(
        message.beam_size,
        message.length_penalty if message.HasField("length_penalty") else 1.0,
        message.num_best if message.HasField("num_best") else 1,
    )


def targets(message: Collection[pb.Sequence], bundle: Bundle, limits: SessionLimits, *, field: str) -> list[list[int]]:
    """Returns the token ids of each target of a score. Raises as `sequence_ids`, EmptySequenceError for no target,
    SequenceTooLongError for too many targets, and InvalidFieldError if there is no vocabulary."""
    check_forks(max(1, len(message)), limits.max_forks, field=field)
    vocabulary, limit = bundle.target_vocabulary, limits.max_feed_tokens
    if vocabulary is None:
        raise InvalidFieldError(f"{field} must not be set: the model outputs values, not tokens", field=field)
    return [sequence_ids(one, vocabulary, field=f"{field}[{at}]", limit=limit) for at, one in enumerate(message)]


def source_tokens(ids: Sequence[Item], vocabulary: Vocabulary) -> list[pb.Token]:
    """Returns the tokens of a source, as the model reads them."""
    tokens = token_messages(vocabulary)
    return [tokens[token_id] for token_id in ids if isinstance(token_id, int)]


def fill(message: pb.StepOutput, output: StepOutput, vocabulary: Vocabulary | None) -> None:
    """Fills in the output of a step. message: already inside its parent, because filling it costs half as much as
    making one."""
    message.position = output.position
    if output.trace is not None:
        for name, values in output.trace.items():
            tensors.extend_floats(message.trace.add(name=name), "values", values)
    if vocabulary is None:
        if output.logits is not None:
            tensors.extend_floats(message, "values", output.logits)
        return
    if output.log_probabilities is not None:
        for token_id, log_probability in zip(output.token_ids, output.log_probabilities, strict=True):
            message.tokens.add(id=token_id, text=vocabulary.names[token_id], log_probability=log_probability)
    else:
        tokens = vocabulary.derived.get("tokens") or token_messages(vocabulary)
        for token_id in output.token_ids:
            message.tokens.append(tokens[token_id])
    if output.logits is not None:
        tensors.extend_floats(message, "logits", output.logits)
    if output.num_limited:
        message.num_limited = output.num_limited


def numbers_of(bundle: Bundle) -> Numbers:
    """Returns the meaning of the numbers that a step of a model outputs."""
    if bundle.manifest.step.emits is not None:
        return "emitted"
    return "values" if bundle.target_vocabulary is None else "logits"


def fill_numbers(message: pb.BatchStepped, rows: FloatArray, numbers: Numbers) -> None:
    """Adds the numbers of a step batch. rows: one row for each session."""
    if numbers != "emitted":
        tensors.extend_floats(message, numbers, rows)
        return
    for row in rows:
        given = emitted(row)
        message.counts.append(len(given.token_ids))
        message.token_ids.extend(given.token_ids)
        message.log_probabilities.extend(given.log_probabilities)
        message.num_limited.append(given.num_limited)


class TokenMessages(dict[int, pb.Token]):
    """The message of each token, by id, without its log-probability. Each is made when it is first asked for, since all
    of a large vocabulary together take 10 ms, and must not be changed."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._names = vocabulary.names

    def __missing__(self, token: int) -> pb.Token:
        message = self[token] = pb.Token(id=token, text=self._names[token])
        return message


def token_messages(vocabulary: Vocabulary) -> TokenMessages:
    """Returns the messages of a vocabulary's tokens, which are the same for all calls."""
    made: TokenMessages | None = vocabulary.derived.get("tokens")
    if made is None:
        made = vocabulary.derived["tokens"] = TokenMessages(vocabulary)
    return made


def hypothesis(result: Hypothesis, bundle: Bundle) -> pb.Hypothesis:
    """Returns one result of a beam search as a message."""
    names = () if bundle.target_vocabulary is None else bundle.target_vocabulary.names
    pairs = zip(result.tokens, result.log_probabilities, strict=False)  # the last may be the end token's
    return pb.Hypothesis(
        tokens=[pb.Token(id=token, text=names[token], log_probability=p) for token, p in pairs],
        score=result.score,
        log_probability=result.log_probability,
        finish_reason=_FINISH_REASONS[result.finish_reason],
    )


def target_scores(scores: list[list[float]]) -> list[pb.TargetScore]:
    """Returns the scores of targets. scores: for each target the log-probabilities of its tokens."""
    return [pb.TargetScore(log_probability=fsum(ps), log_probabilities=ps) for ps in scores]


def finish_reason(reason: FinishReason | None) -> pb.FinishReason.ValueType:
    """Returns why a generation ended; unspecified while it continues."""
    return _FINISH_REASONS[reason]
