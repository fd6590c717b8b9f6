"""Messages become domain values and back: each enum value has a meaning, and each refusal names the client's field."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import EnumDescriptor

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import models_pb2, sessions_pb2
from service.api import consumed, convert, session_messages
from service.api.models import model_info, problem_info
from service.engine.decoding import Decoding, FinishReason, Sampling
from service.engine.jobs import OutputKind, OutputSpec
from service.engine.results import StepOutput
from service.errors import (
    AnswerTooLargeError,
    EmptySequenceError,
    InvalidFieldError,
    SequenceTooLongError,
    TokenOutOfVocabularyError,
    UnknownTokenError,
)
from service.repository.repository import Problem
from service.repository.vocabulary import Vocabulary
from service.sessions.checks import check_outputs
from service.sessions.kinds import default_outputs
from service.sessions.lifecycle import State
from service.sessions.limits import SessionLimits
from service.sessions.session import CloseReason
from tests import domain

NAMES = domain.TARGET_NAMES


def enum_names(descriptor: EnumDescriptor, prefix: str) -> set[str]:
    """Returns the names of an enum's values without the prefix."""
    return {name.removeprefix(prefix) for name in descriptor.values_by_name}


@pytest.mark.parametrize("number", pb.OutputKind.values())
def test_every_wire_output_kind_has_a_domain_value(number: Any) -> None:
    kind = convert.output_spec(pb.OutputSpec(kind=number), domain.bundle(), field="outputs").kind
    name = pb.OutputKind.Name(number).removeprefix("OUTPUT_KIND_")
    assert kind.name == ("NEXT_TOKEN" if name == "UNSPECIFIED" else name)


def test_every_output_kind_has_a_wire_value() -> None:
    names = enum_names(pb.OutputKind.DESCRIPTOR, "OUTPUT_KIND_")
    assert names - {"UNSPECIFIED"} == {kind.name for kind in OutputKind}


@pytest.mark.parametrize("number", [7, 99, 2**31 - 1, -1])
def test_an_output_kind_that_does_not_exist_is_refused(number: Any) -> None:
    """A newer client may send such a kind."""
    with pytest.raises(InvalidFieldError) as refusal:
        convert.output_spec(pb.OutputSpec(kind=number), domain.bundle(), field="feed.outputs")
    assert refusal.value.message.startswith(
        f"feed.outputs.kind = {number} is unknown: it must be one of OUTPUT_KIND_NONE, OUTPUT_KIND_NEXT_TOKEN, "
    )
    assert refusal.value.field == "feed.outputs.kind"


def test_the_default_output_is_the_next_token_at_the_last_position() -> None:
    assert convert.output_spec(pb.OutputSpec(), domain.bundle(), field="outputs") == OutputSpec(
        OutputKind.NEXT_TOKEN, 0, False
    )
    assert convert.output_spec(pb.OutputSpec(), domain.bundle(), field="outputs") == default_outputs(domain.manifest())


def test_output_options_are_kept() -> None:
    message = pb.OutputSpec(kind=pb.OUTPUT_KIND_TOP_K, top_k=3, every_position=True)
    assert convert.output_spec(message, domain.bundle(), field="outputs") == OutputSpec(OutputKind.TOP_K, 3, True)


@pytest.mark.parametrize("reason", [None, *FinishReason])
def test_every_finish_reason_has_its_own_on_the_wire(reason: FinishReason | None) -> None:
    message = pb.Generated(finish_reason=convert.finish_reason(reason))
    name = "UNSPECIFIED" if reason is None else reason.name
    assert message == pb.Generated(finish_reason=pb.FinishReason.Value(f"FINISH_REASON_{name}"))
    assert enum_names(pb.FinishReason.DESCRIPTOR, "FINISH_REASON_") == {"UNSPECIFIED", *(r.name for r in FinishReason)}


@pytest.mark.parametrize("reason", CloseReason)
def test_every_close_reason_has_its_own_on_the_wire(reason: CloseReason) -> None:
    assert session_messages.close_reason(reason) == pb.CloseReason.Value(f"CLOSE_REASON_{reason.name}")
    assert enum_names(pb.CloseReason.DESCRIPTOR, "CLOSE_REASON_") == {"UNSPECIFIED", *(r.name for r in CloseReason)}


@pytest.mark.parametrize("state", State)
def test_every_state_has_its_own_on_the_wire(state: State) -> None:
    """A spilled session is shown as idle, with `spilled` set. An ended session is not shown."""
    info = session_messages.session_info(domain.session(state=state))
    spilled = {"SPILLING": "IDLE", "SPILLED": "IDLE", "RESTORING": "IDLE"}
    names = {"OPENING": "BUSY", "ENDING": "UNSPECIFIED", "ENDED": "UNSPECIFIED", **spilled}
    assert info.state == sessions_pb2.SessionState.Value(f"SESSION_STATE_{names.get(state.name, state.name)}")
    assert info.spilled == (state.name in spilled)
    found = {names.get(one.name, one.name) for one in State}
    assert enum_names(sessions_pb2.SessionState.DESCRIPTOR, "SESSION_STATE_") == found


def test_a_model_has_the_status_serving_or_failed() -> None:
    names = enum_names(models_pb2.ModelStatus.DESCRIPTOR, "MODEL_STATUS_")
    assert names == {"UNSPECIFIED", "SERVING", "FAILED"}


@pytest.mark.parametrize(
    ("sequence", "ids"),
    [
        (pb.Sequence(text="K AA B"), [5, 3, 4]),
        (pb.Sequence(tokens=pb.TokenNames(names=["K", "</s>"])), [5, 2]),
        (pb.Sequence(ids=pb.TokenIds(ids=[0, 5])), [0, 5]),
    ],
)
def test_a_sequence_comes_as_text_as_names_or_as_ids(sequence: pb.Sequence, ids: list[int]) -> None:
    assert consumed.sequence_ids(sequence, domain.vocabulary(), field="prompt") == ids


def test_a_sequence_without_a_form_is_refused() -> None:
    with pytest.raises(InvalidFieldError) as refusal:
        consumed.sequence_ids(pb.Sequence(), domain.vocabulary(), field="prompt")
    assert refusal.value.message == "prompt is empty: set one of text, tokens and ids"
    assert refusal.value.field == "prompt"


@pytest.mark.parametrize(
    ("sequence", "field"),
    [
        (pb.Sequence(text=""), "prompt.text"),
        (pb.Sequence(text="  "), "prompt.text"),
        (pb.Sequence(tokens=pb.TokenNames()), "prompt.tokens"),
        (pb.Sequence(ids=pb.TokenIds()), "prompt.ids"),
    ],
)
def test_an_empty_sequence_is_refused_in_every_form(sequence: pb.Sequence, field: str) -> None:
    with pytest.raises(EmptySequenceError) as refusal:
        consumed.sequence_ids(sequence, domain.vocabulary(), field="prompt")
    assert refusal.value.message == f"{field} is empty: it must have 1 token or more"
    assert refusal.value.field == field


def test_an_unknown_token_of_a_sequence_is_named_with_the_clients_field() -> None:
    with pytest.raises(UnknownTokenError, match=r"^prompt\.text\[1\] = 'Q' is not in the vocabulary of made$"):
        consumed.sequence_ids(pb.Sequence(text="K Q"), domain.vocabulary(), field="prompt")
    with pytest.raises(UnknownTokenError, match=r"^prompt\.tokens\.names\[0\] = 'Q' is not in the vocabulary of made$"):
        consumed.sequence_ids(pb.Sequence(tokens=pb.TokenNames(names=["Q"])), domain.vocabulary(), field="prompt")
    with pytest.raises(TokenOutOfVocabularyError, match=r"^prompt\.ids\.ids\[1\] = 6 is outside .* \(0 to 5\)$"):
        consumed.sequence_ids(pb.Sequence(ids=pb.TokenIds(ids=[5, 6])), domain.vocabulary(), field="prompt")


def test_a_source_is_read_by_the_source_vocabulary() -> None:
    assert consumed.source_items(pb.Sequence(text="Cab"), domain.bundle(has_encoder=True)) == [2, 0, 1]


def test_a_source_for_a_model_without_an_encoder_is_refused() -> None:
    with pytest.raises(InvalidFieldError) as refusal:
        consumed.source_items(pb.Sequence(text="cab"), domain.bundle())
    assert refusal.value.message == "source must not be set: made has no encoder"
    assert refusal.value.field == "source"


def test_a_feed_has_ids_or_names() -> None:
    assert consumed.feed_ids(pb.Feed(token_ids=[1, 5]), domain.vocabulary()) == [1, 5]
    assert consumed.feed_ids(pb.Feed(tokens=["K", "AA"]), domain.vocabulary()) == [5, 3]
    assert consumed.feed_ids(pb.Feed(), domain.vocabulary()) == [], "the domain refuses that it is empty"


def test_a_feed_that_brings_both_ids_and_names_is_refused() -> None:
    with pytest.raises(InvalidFieldError) as refusal:
        consumed.feed_ids(pb.Feed(token_ids=[1], tokens=["K"]), domain.vocabulary())
    assert refusal.value.message == "feed.token_ids and feed.tokens are both set: set one"
    assert refusal.value.field == "feed.tokens"


def test_an_unknown_token_of_a_feed_is_named_with_the_clients_field() -> None:
    with pytest.raises(TokenOutOfVocabularyError, match=r"^feed\.token_ids\[2\] = 4294967295 is outside .*\(0 to 5\)$"):
        consumed.feed_ids(pb.Feed(token_ids=[0, 1, 2**32 - 1]), domain.vocabulary())
    with pytest.raises(UnknownTokenError, match=r"^feed\.tokens\[0\] = '' is not in the vocabulary of made$"):
        consumed.feed_ids(pb.Feed(tokens=[""]), domain.vocabulary())


def test_the_default_decoding_is_greedy_to_the_models_limit() -> None:
    assert convert.decoding(pb.Decoding(), domain.bundle(), field="d") == Decoding(40, None, False)


def test_sampling_has_the_documented_defaults() -> None:
    assert convert.decoding(pb.Decoding(sampling=pb.Sampling()), domain.bundle(), field="d").sampling == Sampling(
        1.0, None, 1.0, 0
    )


def test_explicit_zeros_are_not_replaced_by_defaults() -> None:
    """Conversion keeps them, and the domain refuses them as out of range."""
    message = pb.Decoding(max_tokens=0, sampling=pb.Sampling(temperature=0.0, top_k=0, top_p=0.0))
    assert convert.decoding(message, domain.bundle(), field="d") == Decoding(0, Sampling(0.0, 0, 0.0, 0))


def test_decoding_options_are_kept() -> None:
    sampling = pb.Sampling(temperature=0.5, top_k=3, top_p=0.25, seed=2**64 - 1)
    message = pb.Decoding(
        max_tokens=7,
        sampling=sampling,
        log_probabilities=True,
        repetition_penalty=1.5,
        min_tokens=2,
        stop_token_ids=[4],
        stop_tokens=[domain.vocabulary().names[5]],
    )
    expected = Decoding(7, Sampling(0.5, 3, 0.25, 2**64 - 1), True, 1.5, 2, frozenset({4, 5}))
    assert convert.decoding(message, domain.bundle(), field="d") == expected


def test_a_stop_token_that_the_vocabulary_lacks_is_named() -> None:
    for message, field in (
        (pb.Decoding(stop_token_ids=[3, 6]), r"d\.stop_token_ids\[1\] = 6 is outside"),
        (pb.Decoding(stop_tokens=["nope"]), r"d\.stop_tokens\[0\] = 'nope' is not in"),
    ):
        with pytest.raises((TokenOutOfVocabularyError, UnknownTokenError), match=field):
            convert.decoding(message, domain.bundle(), field="d")


def test_the_tokens_of_a_source_are_returned() -> None:
    source = domain.bundle(has_encoder=True).source_vocabulary
    assert source is not None
    assert convert.source_tokens([2, 3], source) == [pb.Token(id=2, text="c"), pb.Token(id=3, text="'")]


def filled(output: StepOutput) -> pb.StepOutput:
    message = pb.StepOutput()
    convert.fill(message, output, domain.bundle().target_vocabulary)
    return message


def test_an_output_of_the_next_token_has_no_log_probability() -> None:
    message = filled(StepOutput(3, [5]))
    assert message == pb.StepOutput(position=3, tokens=[pb.Token(id=5, text="K")])
    assert not message.tokens[0].HasField("log_probability")


def test_an_output_of_the_top_k_has_log_probabilities_also_where_they_are_0() -> None:
    message = filled(StepOutput(3, [5, 0], [0.0, -2.5]))
    tokens = [pb.Token(id=5, text="K", log_probability=0.0), pb.Token(id=0, text="<pad>", log_probability=-2.5)]
    assert message == pb.StepOutput(position=3, tokens=tokens)
    assert message.tokens[0].HasField("log_probability")


def test_an_output_of_logits_keeps_every_bit() -> None:
    logits = np.array([1e30, -1e-30, np.inf, -np.inf, 0.1, -0.0], np.float32)
    message = filled(StepOutput(0, [], None, logits))
    assert np.array(message.logits, np.float32).tobytes() == logits.tobytes()


def test_a_session_is_shown_with_times_of_the_wall_clock() -> None:
    session = domain.session("s9", 1_700_000_000_500_000, position=12, last_used_s=time.monotonic() - 10.0)
    info = session_messages.session_info(session)
    assert (info.session_id, info.model, info.version, info.position) == ("s9", "made", 3, 12)
    assert info.open_time.ToNanoseconds() / 1e9 == pytest.approx(1_700_000_000.5, abs=1e-6)
    assert info.last_used_time.ToNanoseconds() / 1e9 == pytest.approx(time.time() - 10.0, abs=5.0)


@pytest.mark.parametrize("has_encoder", [False, True])
def test_a_model_is_shown_with_its_vocabularies_and_limits(has_encoder: bool) -> None:
    info = model_info(domain.bundle(has_encoder=has_encoder))
    assert info == models_pb2.ModelInfo(
        model="made",
        version=3,
        description="made for a test",
        status=models_pb2.MODEL_STATUS_SERVING,
        has_encoder=has_encoder,
        source_vocabulary=domain.SOURCE_NAMES if has_encoder else [],
        target_vocabulary=domain.TARGET_NAMES,
        max_source_length=domain.MAX_SOURCE_LENGTH if has_encoder else 0,
        max_tokens=40,
        state_size_bytes=2 * 2 * 4,
        manifest_digest=domain.DIGEST,
        variants=["fp32"],
        can_generate=True,
        tokenizer="whitespace",
    )


def test_a_model_that_failed_is_shown_with_its_problem() -> None:
    info = problem_info(Problem("g2p-en", 2, "step.onnx is missing"))
    assert info == models_pb2.ModelInfo(
        model="g2p-en", version=2, status=models_pb2.MODEL_STATUS_FAILED, problem="step.onnx is missing"
    )


def bounded(take: Callable[[], object]) -> float:
    """Returns the seconds until `take` refuses a sequence as too long."""
    began = time.perf_counter()
    with pytest.raises(SequenceTooLongError):
        take()
    return time.perf_counter() - began


def test_a_too_long_sequence_is_refused_before_its_tokens_are_looked_up() -> None:
    many = 1_000_000
    characters, words = domain.bundle(has_encoder=True), domain.vocabulary()
    limits = SessionLimits(max_feed_tokens=9, max_forks=9)
    text, spaced = pb.Sequence(text="a" * 4 * many), pb.Sequence(text="K " * 2 * many)
    names, ids = pb.Sequence(tokens=pb.TokenNames(names=["K"] * many)), pb.Sequence(ids=pb.TokenIds(ids=[1] * many))
    feed = pb.Feed(token_ids=[1] * many)
    stop = pb.Decoding(stop_token_ids=[1] * many)
    takes: list[Callable[[], object]] = [
        lambda: consumed.source_items(text, characters),
        lambda: consumed.sequence_ids(names, words, field="prompt", limit=9),
        lambda: consumed.sequence_ids(ids, words, field="prompt", limit=9),
        lambda: consumed.sequence_ids(spaced, words, field="prompt", limit=9),
        lambda: consumed.feed_items(feed, domain.bundle(), 9),
        lambda: consumed.step_batch_items(pb.StepBatch(token_ids=[1] * 10), domain.bundle(), 9),
        lambda: convert.targets([ids], domain.bundle(), limits, field="targets"),
        lambda: convert.targets([pb.Sequence(text="K")] * 10, domain.bundle(), limits, field="targets"),
        lambda: convert.decoding(stop, domain.bundle(), field="d"),
    ]
    for take in takes:
        assert min(bounded(take) for _ in range(5)) < 0.03
    assert consumed.sequence_ids(pb.Sequence(text="K " * 9), words, field="prompt", limit=9) == [5] * 9


def test_a_source_over_the_limit_is_named_with_its_field() -> None:
    with pytest.raises(
        SequenceTooLongError, match=r"^source has 21 tokens, the limit is 20 \(max_source_length\)$"
    ) as refusal:
        consumed.source_items(pb.Sequence(text="a" * 21), domain.bundle(has_encoder=True))
    assert refusal.value.field == "source"


@pytest.mark.parametrize(("text", "number"), [("", 0), ("0", 0), ("17", 17), ("9" * 18, 10**18 - 1)])
def test_a_page_token_is_a_number_that_a_page_gave(text: str, number: int) -> None:
    assert convert.parse_page_token(text) == number


@pytest.mark.parametrize(
    "text",
    ["9" * 19, pytest.param("9" * 5000, id="5,000 digits"), "-1", "1.0", "x", " 1", "\N{ARABIC-INDIC DIGIT ONE}", "²"],
)
def test_any_other_page_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidFieldError, match="is invalid: use the next_page_token of a response") as refusal:
        convert.parse_page_token(text)
    assert refusal.value.field == "page_token"
    assert len(refusal.value.message) < 300


@pytest.mark.parametrize("kind", [OutputKind.NEXT_TOKEN, OutputKind.TOP_K, OutputKind.LOGITS])
@pytest.mark.parametrize("position", [0, 2**63])
def test_a_response_is_never_larger_than_its_estimate(kind: OutputKind, position: int) -> None:
    names = [f"{'é' * (token % 90)}{token}" for token in range(300)]
    vocabulary = Vocabulary(names, owner="v", tokenizer="whitespace", lowercase=False)
    count, top_k = 50, 7 if kind is OutputKind.TOP_K else 0
    longest = sorted(range(300), key=lambda token: -len(names[token].encode()))[: top_k or 1]
    output = StepOutput(
        position,
        [] if kind.is_vector else longest,
        [-0.5] * top_k or None,
        np.zeros(300, np.float32) if kind.is_vector else None,
    )
    message = pb.Fed()
    for _ in range(count):
        convert.fill(message.outputs.add(), output, vocabulary)
    spec = OutputSpec(kind, top_k, every_position=True)

    def check(max_bytes: int) -> None:
        check_outputs(
            spec,
            num_tokens=count,
            vocabulary_size=300,
            max_bytes=max_bytes,
            field="f",
            token_bytes=vocabulary.max_token_bytes,
        )

    check(4 * 1024 * 1024)
    with pytest.raises(AnswerTooLargeError):
        check(message.ByteSize() - 1)


@pytest.mark.parametrize("length", [0, 1, 110, 120, 130, 16_400])
def test_the_estimated_size_of_a_token_is_an_upper_bound(length: int) -> None:
    vocabulary = Vocabulary(["b", "a" * length], owner="v", tokenizer="whitespace", lowercase=False)
    for token_id, name in enumerate(vocabulary.names):
        message = pb.StepOutput(tokens=[pb.Token(id=token_id, text=name, log_probability=-1.5)])
        assert message.ByteSize() <= vocabulary.max_token_bytes <= length + 20


def test_a_tokens_message_is_made_when_it_is_first_asked_for() -> None:
    vocabulary = domain.vocabulary()
    messages = convert.token_messages(vocabulary)
    assert len(messages) == 0
    last = len(vocabulary) - 1
    assert messages[last] == pb.Token(id=last, text=vocabulary.names[last])
    assert messages[last] is messages[last]
    assert len(messages) == 1
    with pytest.raises(IndexError):
        messages[len(vocabulary)]


def test_a_vocabularys_tables_are_freed_with_it() -> None:
    """Models are unloaded, and what was computed from their vocabularies must not stay in memory."""
    vocabulary = domain.vocabulary()
    assert convert.token_messages(vocabulary) is convert.token_messages(vocabulary), "they are made once"
    seen = weakref.ref(vocabulary)
    del vocabulary
    gc.collect()
    assert seen() is None
